//! pg_database's heap: arbitrary pages, as they are and with a valid header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::database_catalog::databases;

fuzz_target!(|bytes: &[u8]| {
    let _ = databases(bytes);

    let mut page = bytes.to_vec();
    page.resize(8192, 0);
    // pd_special, and size and version of the page, which identify a page.
    page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
    page[18..20].copy_from_slice(&(8192_u16 | 4).to_le_bytes());
    for row in databases(&page).into_iter().flatten() {
        assert!(!row.name.is_empty() && row.name.len() <= 64, "{row:?}");
    }
});
