//! Timeline history: kept byte for byte, continued as PostgreSQL continues it, searched without gaps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::{Lsn, TimelineHistory, TimelineId, WalSegmentSize};

fuzz_target!(|bytes: &[u8]| {
    let newest = TimelineId::new(u32::MAX - 1).expect("not zero");
    let Ok(history) = TimelineHistory::parse(newest, bytes) else { return };
    assert_eq!(history.to_bytes(), bytes);
    let child = TimelineId::new(u32::MAX).expect("not zero");
    let branched =
        history.branch(child, Lsn::new(77), b"reason").expect("any history can be continued");
    assert_eq!(branched.switches().len(), history.switches().len() + 1);

    for switch in history.switches() {
        for lsn in [switch.lsn, Lsn::new(switch.lsn.as_u64().wrapping_sub(1))] {
            let timeline = history.timeline_at(lsn);
            assert!(history.contains(timeline, lsn));
            let number = lsn.as_u64() / u64::from(WalSegmentSize::DEFAULT.bytes());
            assert!(
                history
                    .timelines_of_segment(number, WalSegmentSize::DEFAULT)
                    .any(|t| t == timeline)
            );
        }
    }
});
