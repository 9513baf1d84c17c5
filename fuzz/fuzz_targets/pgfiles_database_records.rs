//! Pages of WAL: whatever they are, the records found are within them, in order, and before the end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::{Lsn, WalSegmentSize};
use pgfiles::database_records::{Next, Records};

const START: u64 = 0x0300_0000;

fuzz_target!(|bytes: &[u8]| {
    let mut records = Records::new(Lsn::new(START), Lsn::new(u64::MAX), WalSegmentSize::DEFAULT);
    for (page, address) in bytes.chunks(8192).zip((START..).step_by(8192)) {
        if records.page(Lsn::new(address), page) != Next::Page {
            break;
        }
    }
    let end = records.end();
    let found = records.into_found();
    assert!(found.windows(2).all(|pair| pair[0].at < pair[1].at));
    assert!(found.iter().all(|record| record.at < end));
});
