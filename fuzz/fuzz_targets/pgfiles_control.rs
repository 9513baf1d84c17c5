//! pg_control: arbitrary bytes, as they are and with a valid CRC; without it the fuzzer would get no further than the
//! CRC.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::backup_label::{BackupFrom, BackupLabel};
use pgfiles::control_file::{ControlFile, PG_CONTROL_FILE_SIZE, UNUSABLE_CHECKPOINT};
use pgfiles::{Lsn, TimelineId};

fuzz_target!(|bytes: &[u8]| {
    let _ = ControlFile::parse(bytes);

    let mut file = bytes.to_vec();
    file.resize(PG_CONTROL_FILE_SIZE, 0);
    let version = u32::from_le_bytes([file[8], file[9], file[10], file[11]]);
    let end = if version == 1800 { 292 } else { 288 };
    let crc = crc32c::crc32c(&file[..end]);
    file[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    let Ok(control) = ControlFile::parse(&file) else { return };
    assert_eq!(control.to_bytes(), file);
    let _ = control.major_version();

    let unusable =
        ControlFile::parse(&control.with_checkpoint_unusable()).expect("what was written reads");
    assert_eq!(unusable.checkpoint, UNUSABLE_CHECKPOINT);
    let bytes = control.with_min_recovery_point(Lsn::new(u64::MAX), TimelineId::FIRST);
    let moved = ControlFile::parse(&bytes).expect("what was written reads");
    assert_eq!(moved.min_recovery_point, Lsn::new(u64::MAX));

    if let Ok(label) = BackupLabel::from_control_file(&control, BackupFrom::Standby, "now", "fuzz")
    {
        assert_eq!(BackupLabel::parse(&label.to_bytes()).as_ref(), Ok(&label));
        label.start_segment(control.wal_segment_size).expect("the segment holds the start");
    }
});
