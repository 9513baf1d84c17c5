//! The output of `pg_controldata`, made from a [`ControlFile`]: the expected value of every field.

use pgfiles::WalSegment;
use pgfiles::control_file::ControlFile;

/// Lines as `pg_controldata` of that version prints them with `LC_ALL=C TZ=UTC`.
pub fn expected(control: &ControlFile, major: u32) -> String {
    let copy = &control.checkpoint_copy;
    let size = control.wal_segment_size;
    let on = |value: bool| if value { "on" } else { "off" };
    let mut lines: Vec<(&str, String)> = vec![
        ("pg_control version number:", control.pg_control_version.to_string()),
        ("Catalog version number:", control.catalog_version.to_string()),
        ("Database system identifier:", control.system_identifier.to_string()),
        ("Database cluster state:", control.state.as_str().to_owned()),
        ("pg_control last modified:", ctime(control.time)),
        ("Latest checkpoint location:", control.checkpoint.to_string()),
        ("Latest checkpoint's REDO location:", copy.redo.to_string()),
        (
            "Latest checkpoint's REDO WAL file:",
            WalSegment::containing(copy.timeline, copy.redo, size).file_name(size),
        ),
        ("Latest checkpoint's TimeLineID:", copy.timeline.to_string()),
        ("Latest checkpoint's PrevTimeLineID:", copy.prev_timeline.to_string()),
        ("Latest checkpoint's full_page_writes:", on(copy.full_page_writes).to_owned()),
        (
            "Latest checkpoint's NextXID:",
            format!("{}:{}", copy.next_xid >> 32, copy.next_xid & 0xFFFF_FFFF),
        ),
        ("Latest checkpoint's NextOID:", copy.next_oid.to_string()),
        ("Latest checkpoint's NextMultiXactId:", copy.next_multi.to_string()),
        ("Latest checkpoint's NextMultiOffset:", copy.next_multi_offset.to_string()),
        ("Latest checkpoint's oldestXID:", copy.oldest_xid.to_string()),
        ("Latest checkpoint's oldestXID's DB:", copy.oldest_xid_db.to_string()),
        ("Latest checkpoint's oldestActiveXID:", copy.oldest_active_xid.to_string()),
        ("Latest checkpoint's oldestMultiXid:", copy.oldest_multi.to_string()),
        ("Latest checkpoint's oldestMulti's DB:", copy.oldest_multi_db.to_string()),
        ("Latest checkpoint's oldestCommitTsXid:", copy.oldest_commit_ts_xid.to_string()),
        ("Latest checkpoint's newestCommitTsXid:", copy.newest_commit_ts_xid.to_string()),
        ("Time of latest checkpoint:", ctime(copy.time)),
        ("Fake LSN counter for unlogged rels:", control.unlogged_lsn.to_string()),
        ("Minimum recovery ending location:", control.min_recovery_point.to_string()),
        ("Min recovery ending loc's timeline:", control.min_recovery_point_timeline.to_string()),
        ("Backup start location:", control.backup_start_point.to_string()),
        ("Backup end location:", control.backup_end_point.to_string()),
        (
            "End-of-backup record required:",
            if control.backup_end_required { "yes" } else { "no" }.to_owned(),
        ),
        ("wal_level setting:", control.wal_level.as_str().to_owned()),
        ("wal_log_hints setting:", on(control.wal_log_hints).to_owned()),
        ("max_connections setting:", control.max_connections.to_string()),
        ("max_worker_processes setting:", control.max_worker_processes.to_string()),
        ("max_wal_senders setting:", control.max_wal_senders.to_string()),
        ("max_prepared_xacts setting:", control.max_prepared_transactions.to_string()),
        ("max_locks_per_xact setting:", control.max_locks_per_transaction.to_string()),
        ("track_commit_timestamp setting:", on(control.track_commit_timestamp).to_owned()),
        ("Maximum data alignment:", control.max_align.to_string()),
        ("Database block size:", control.block_size.to_string()),
        ("Blocks per segment of large relation:", control.relation_segment_blocks.to_string()),
        ("WAL block size:", control.wal_block_size.to_string()),
        ("Bytes per WAL segment:", size.to_string()),
        ("Maximum length of identifiers:", control.name_data_length.to_string()),
        ("Maximum columns in an index:", control.index_max_keys.to_string()),
        ("Maximum size of a TOAST chunk:", control.toast_max_chunk_size.to_string()),
        ("Size of a large-object chunk:", control.large_object_block_size.to_string()),
        ("Date/time type storage:", "64-bit integers".to_owned()),
        (
            "Float8 argument passing:",
            if control.float8_by_value { "by value" } else { "by reference" }.to_owned(),
        ),
        ("Data page checksum version:", control.data_checksum_version.to_string()),
    ];
    if major >= 18 {
        let signedness =
            if control.default_char_signedness == Some(true) { "signed" } else { "unsigned" };
        lines.push(("Default char data signedness:", signedness.to_owned()));
    }
    let nonce: String =
        control.mock_authentication_nonce.iter().map(|byte| format!("{byte:02x}")).collect();
    lines.push(("Mock authentication nonce:", nonce));
    // Values begin in column 39, but one label reaches that far itself.
    lines.iter().map(|(label, value)| format!("{label:<38}{value}\n")).collect()
}

/// Lines that differ, for a message.
pub fn differences(expected: &str, found: &str) -> Vec<String> {
    let pairs = expected.lines().zip(found.lines());
    let mut all: Vec<String> = pairs
        .filter(|(a, b)| a != b)
        .map(|(a, b)| format!("parsed: {a}\npg_controldata: {b}"))
        .collect();
    if expected.lines().count() != found.lines().count() {
        all.push("another number of lines".to_owned());
    }
    all
}

/// `strftime("%c")` in the C locale and UTC: `Mon Nov 23 20:26:34 2026`.
pub fn ctime(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]
        [usize::try_from(days.rem_euclid(7)).unwrap()];
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let (mut year, mut day) = (1970, days);
    while day >= if is_leap(year) { 366 } else { 365 } {
        day -= if is_leap(year) { 366 } else { 365 };
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let months = [
        ("Jan", 31),
        ("Feb", february),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let mut month = "";
    for (name, length) in months {
        month = name;
        if day < length {
            break;
        }
        day -= length;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday} {month} {:>2} {hour:02}:{minute:02}:{second:02} {year}", day + 1)
}
