//! Recovery settings as text for postgresql.auto.conf of a restored cluster.

use std::path::Path;

use crate::postgres::target::{Recovery, Target};

/// Settings that a restored cluster must not inherit from the old one: where it replicated from, and the target of an
/// older restore.
const NOT_KEPT: [&str; 17] = [
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "trigger_file",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "standby_mode",
];

/// Their defaults in PostgreSQL 13 to 18 (`guc_tables.c`). A command at the end of recovery might move an address to
/// this server, and the target of an older restore would end or stop this one.
const NEUTRAL: [(&str, &str); 11] = [
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("recovery_min_apply_delay", "0"),
    ("recovery_target", ""),
    ("recovery_target_action", "pause"),
    ("recovery_target_inclusive", "on"),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_timeline", "latest"),
    ("recovery_target_xid", ""),
];

/// Settings of older versions that name files outside the data directory, by the last major version that has them:
/// these files are the original's. A server empties the folder of statistics when it starts after a crash or with a
/// backup's label, and doesn't start without it (pgstat_reset_all in pgstat.c). It ends recovery where the trigger
/// file exists, and removes it.
const OF_OLDER: [(u32, &str, &str); 2] =
    [(14, "stats_temp_directory", "pg_stat_tmp"), (15, "promote_trigger_file", "")];

/// Returns the settings of older versions that this version has, for a server that isn't the original.
pub fn of_older(major: Option<u32>) -> impl Iterator<Item = (String, String)> {
    let has = move |last: u32| major.is_some_and(|major| major <= last);
    let known = OF_OLDER.into_iter().filter(move |(last, ..)| has(*last));
    known.map(|(_, name, value)| (name.to_owned(), value.to_owned()))
}

/// One line of a configuration file; the value is quoted for guc-file.l.
#[must_use]
pub fn setting(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

/// Puts a setting after all others, replacing an earlier one of the same name.
pub fn put(settings: &mut Vec<(String, String)>, name: String, value: String) {
    settings.retain(|(known, _)| *known != name);
    settings.push((name, value));
}

/// Returns postgresql.auto.conf with `added` at its end, and without settings that aren't kept or are set again. It
/// needn't be UTF-8: settings have the encoding of the database in which they were made.
#[must_use]
pub fn auto_conf(old: &[u8], added: &[(String, String)]) -> Vec<u8> {
    // What comes after the mark was written by a restore, and stays there.
    let (mut text, mut ours) = (Vec::new(), Vec::new());
    let mut is_ours = false;
    for line in lines(old) {
        if line == MARK.as_bytes() {
            is_ours = true;
            continue;
        }
        let name = name_of(line);
        let replaced = added.iter().any(|(added, _)| added.as_bytes() == name);
        if !NOT_KEPT.iter().any(|known| known.as_bytes() == name) && !replaced {
            let to = if is_ours { &mut ours } else { &mut text };
            to.extend_from_slice(line);
            to.push(b'\n');
        }
    }
    for (name, value) in added {
        ours.extend_from_slice(setting(name, value).as_bytes());
    }
    if !ours.is_empty() {
        text.extend_from_slice(MARK.as_bytes());
        text.push(b'\n');
        text.append(&mut ours);
    }
    text
}

/// A file's lines without their ends.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

/// The name that a line sets, in lower case; the value may follow it directly (guc-file.l). Empty for a comment.
pub(super) fn name_of(line: &[u8]) -> Vec<u8> {
    let line = line.trim_ascii_start();
    let is_of_a_name =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"_.".contains(byte) || *byte >= 0x80;
    let end = line.iter().position(|byte| !is_of_a_name(byte)).unwrap_or(line.len());
    line[..end].to_ascii_lowercase()
}

/// Returns postgresql.conf for a restored cluster whose data directory is `data`. Its own `data_directory` is
/// commented out. If it includes other files, which may set it, the right one is added at the end: the last one
/// counts (ProcessConfigFileInternal in guc.c), and one in postgresql.auto.conf doesn't.
#[must_use]
pub fn staying(text: &[u8], data: &Path) -> Vec<u8> {
    const INCLUDES: [&[u8]; 3] = [b"include", b"include_if_exists", b"include_dir"];
    let mut changed = Vec::with_capacity(text.len());
    let mut includes = false;
    for line in lines(text) {
        let name = name_of(line);
        includes |= INCLUDES.contains(&name.as_slice());
        if name == b"data_directory" {
            changed.extend_from_slice(b"# lockstep restore: ");
        }
        changed.extend_from_slice(line);
        changed.push(b'\n');
    }
    if includes {
        changed.extend_from_slice(b"# lockstep restore: over what is included\n");
        changed
            .extend_from_slice(setting("data_directory", &data.display().to_string()).as_bytes());
    } else if !text.ends_with(b"\n") {
        changed.pop();
    }
    changed
}

/// If it is 0, no subscription is active.
pub const NO_WORKERS: &str = "max_logical_replication_workers";

/// Settings with which a copy leaves the original alone. A subscription of the original would continue in it, and take
/// changes away. pg_cron connects to where its table says: to the original, which would run each job twice. Its
/// versions before 1.6 don't know the setting for that, and with the last one they run the jobs in their own server,
/// instead of connecting anywhere. A coordinator of Citus connects to the workers in its table, rolls back there what is
/// prepared and isn't in its own pg_dist_transaction, and removes shards that its own tables call moved: by then the
/// original may have committed the one, and have the other in use again. A server without these extensions takes all
/// of it as it is.
const APART: [(&str, &str); 5] = [
    (NO_WORKERS, "0"),
    ("cron.launch_active_jobs", "off"),
    JOBS_OF_ITS_OWN,
    ("citus.recover_2pc_interval", "-1"),
    ("citus.defer_shard_delete_interval", "-1"),
];

const JOBS_OF_ITS_OWN: (&str, &str) = ("cron.use_background_workers", "on");

/// Returns the setting with which a cluster beside the original runs pg_cron's jobs in itself: it has a port of its
/// own, but the table of jobs has the original's.
#[must_use]
pub fn jobs_of_its_own() -> (String, String) {
    let (name, value) = JOBS_OF_ITS_OWN;
    (name.to_owned(), value.to_owned())
}

/// Returns the settings with which a copy leaves the original alone.
pub fn apart() -> impl Iterator<Item = (String, String)> {
    APART.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()))
}

const MARK: &str = "# written by lockstep restore:";

/// Returns what a restore has written at the end of postgresql.auto.conf; nothing if it is no restore's.
#[must_use]
pub fn written_by_a_restore(text: &[u8]) -> &[u8] {
    let mark = text.windows(MARK.len()).position(|found| found == MARK.as_bytes());
    mark.map(|at| &text[at + MARK.len()..]).unwrap_or_default()
}

/// Settings that a restored cluster keeps: its port, no archiving into the old archive, and its own pid file
/// (Debian's setting names the live cluster's, and an empty one isn't a file name). A standby keeps the server that
/// it follows, and its archive_mode: with `on` it archives only once it is promoted, then as its primary did; with
/// `always` it archives as the original standby did.
#[must_use]
pub fn lasting(recovery: &Recovery, directory: &Path, port: Option<u16>) -> Vec<(String, String)> {
    let pid_file = directory.join("run/postmaster.pid");
    let mut all = vec![("external_pid_file".to_owned(), pid_file.display().to_string())];
    if let Some(standby) = &recovery.standby {
        let primary = standby.primary.as_ref().map(ToString::to_string);
        let mut follows = neutral();
        for (name, value) in [
            ("restore_command", recovery.restore_command.clone()),
            ("primary_conninfo", primary),
            ("primary_slot_name", standby.slot.clone()),
        ] {
            put(&mut follows, name.to_owned(), value.unwrap_or_default());
        }
        all.extend(follows);
    } else if !recovery.keep_archiving {
        all.push(("archive_mode".to_owned(), "off".to_owned()));
    }
    all.extend(port.map(|port| ("port".to_owned(), port.to_string())));
    all
}

/// Overrides what postgresql.conf says, which was the original's. PostgreSQL applies settings in order, and refuses
/// an empty target after another one, so these come first.
#[must_use]
pub fn neutral() -> Vec<(String, String)> {
    NEUTRAL.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// The settings of recovery; they are removed once recovery is over.
#[must_use]
pub fn passing(recovery: &Recovery) -> Vec<(String, String)> {
    if recovery.signal().is_none() || recovery.standby.is_some() {
        return Vec::new();
    }
    let mut all = neutral();
    let mut set = |name: &str, value: String| put(&mut all, name.to_owned(), value);
    // PostgreSQL demands a restore_command with recovery.signal. "false" finds nothing, so recovery reads the set's
    // own WAL in pg_wal.
    set("restore_command", recovery.restore_command.clone().unwrap_or_else(|| "false".into()));
    match &recovery.target {
        Target::End => {}
        Target::Time(time) => {
            set("recovery_target_time", time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string());
        }
        Target::Lsn(lsn) => set("recovery_target_lsn", lsn.to_string()),
        Target::Xid(xid) => set("recovery_target_xid", xid.to_string()),
        Target::Name(name) => set("recovery_target_name", name.clone()),
        Target::Immediate => set("recovery_target", "immediate".into()),
    }
    if recovery.target != Target::End {
        set("recovery_target_action", recovery.action.as_str().into());
    }
    if recovery.exclusive {
        set("recovery_target_inclusive", "off".into());
    }
    if let Some(timeline) = &recovery.timeline {
        set("recovery_target_timeline", timeline.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::conninfo::Conninfo;
    use crate::postgres::target::Standby;

    #[test]
    fn values_are_quoted_as_postgresql_reads_them() {
        assert_eq!(setting("a", r"cp 'x' \y"), "a = 'cp ''x'' \\\\y'\n");
    }

    #[test]
    fn the_old_cluster_s_replication_is_not_kept() {
        let old = "# Do not edit\nwork_mem = '1MB'\nprimary_conninfo = 'host=a'\nPRIMARY_SLOT_NAME='s'\nport=5432\n";
        let text = auto_conf(old.as_bytes(), &[("port".into(), "5500".into())]);
        assert_eq!(
            String::from_utf8_lossy(&text),
            "# Do not edit\nwork_mem = '1MB'\n# written by lockstep restore:\nport = '5500'\n"
        );
        assert_eq!(auto_conf(&text, &[("port".into(), "5500".into())]), text);
    }

    #[test]
    fn older_versions_leave_the_original_s_files_alone() {
        let names = |major| of_older(major).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(Some(14)), ["stats_temp_directory", "promote_trigger_file"]);
        assert_eq!(names(Some(15)), ["promote_trigger_file"]);
        // A setting that a version doesn't have keeps its server from starting.
        assert!(names(Some(16)).is_empty() && names(None).is_empty());
    }

    #[test]
    fn what_is_not_utf_8_stays_as_it_is() {
        let old = b"search_path = '\"sch\xe9ma\", public'\nevent_source='\xe9'";
        let text = auto_conf(old, &[]);
        assert_eq!(text, [&old[..], b"\n"].concat());
        assert_eq!(staying(old, Path::new("/r/data")), old);
    }

    #[test]
    fn a_restored_cluster_stays_in_its_data_directory() {
        let staying = |text: &str| {
            String::from_utf8(staying(text.as_bytes(), Path::new("/r/it's/data"))).unwrap()
        };
        for same in [
            "",
            "port = 1",
            "port = 1\n",
            "#include_dir = 'conf.d'\n",
            "data_directory_mode = 0700\n",
        ] {
            assert_eq!(staying(same), same);
        }
        let ours = "# lockstep restore: over what is included\ndata_directory = '/r/it''s/data'\n";
        assert_eq!(
            staying(" Data_Directory='/live'\nport = 1"),
            "# lockstep restore:  Data_Directory='/live'\nport = 1"
        );
        assert_eq!(staying("data_directory'/live'"), "# lockstep restore: data_directory'/live'");
        for include in
            ["include_dir 'conf.d'", "include'x'", "INCLUDE='x'", "include_if_exists = 'x'"]
        {
            assert_eq!(staying(include), format!("{include}\n{ours}"));
        }
        // A set of a cluster that was itself restored: nothing of the older restore's path is left.
        let older = "include 'x'\ndata_directory = '/older'\n";
        assert_eq!(
            staying(older),
            format!("include 'x'\n# lockstep restore: data_directory = '/older'\n{ours}")
        );
    }

    #[test]
    fn a_standby_keeps_whom_it_follows() {
        let follows = |standby| {
            let recovery = Recovery { standby: Some(standby), ..Recovery::default() };
            assert_eq!(passing(&recovery), []);
            String::from_utf8(auto_conf(b"", &lasting(&recovery, Path::new("/r"), None))).unwrap()
        };
        let primary = Conninfo::parse("host=db1 passfile='/a b'").unwrap();
        let text = follows(Standby { primary: Some(primary), slot: Some("s1".into()) });
        for line in [
            "primary_conninfo = 'host=db1 passfile=''/a b'''",
            "primary_slot_name = 's1'",
            "restore_command = ''",
            "recovery_target_timeline = 'latest'",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        assert!(!text.contains("archive_mode"), "{text}");
        // An older primary_conninfo isn't kept: what postgresql.conf says about a primary isn't meant for this
        // standby.
        assert!(follows(Standby::default()).contains("primary_conninfo = ''"));
    }

    #[test]
    fn a_target_becomes_one_setting_and_an_action() {
        let recovery = Recovery {
            target: Target::Lsn("0/3000000".parse().unwrap()),
            timeline: Some("latest".into()),
            ..Recovery::default()
        };
        let mut all = passing(&recovery);
        all.extend(lasting(&recovery, Path::new("/r"), Some(5500)));
        let get = |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("recovery_target_lsn"), Some("0/3000000"));
        assert_eq!(get("recovery_target_action"), Some("promote"));
        assert_eq!(get("recovery_target_inclusive"), Some("on"));
        let before = passing(&Recovery { exclusive: true, ..recovery.clone() });
        assert!(before.contains(&("recovery_target_inclusive".to_owned(), "off".to_owned())));
        assert_eq!(get("recovery_target_timeline"), Some("latest"));
        assert_eq!(get("restore_command"), Some("false"));
        assert_eq!(get("archive_mode"), Some("off"));
        assert_eq!(get("external_pid_file"), Some("/r/run/postmaster.pid"));
        // The comment stays above its settings, however often the file is written.
        let text = |old: &[u8], added: &[(String, String)]| {
            String::from_utf8(auto_conf(old, added)).unwrap()
        };
        let twice = text(&auto_conf(b"work_mem = '1MB'\n", &all), &[]);
        let (theirs, ours) = twice.split_once(MARK).unwrap();
        assert!(theirs == "work_mem = '1MB'\n" && ours.contains("port = '5500'"), "{twice}");
        assert_eq!(text(b"", &[]), "");
        // The temporary settings are removed, the lasting ones stay.
        let text = text(&auto_conf(b"", &all), &[]);
        assert!(
            text.contains("port") && !text.contains("target") && !text.contains("restore_command")
        );
    }
}
