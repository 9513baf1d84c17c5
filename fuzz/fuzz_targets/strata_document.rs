//! A document of a repository: arbitrary bytes, as they are and as a body with a valid hash.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use strata::document::{read, write};

fuzz_target!(|bytes: &[u8]| {
    let _ = read::<Value>("sets/x.json", bytes);

    let Ok(body) = std::str::from_utf8(bytes) else { return };
    let hash = blake3::hash(bytes).to_hex();
    let envelope = format!("{{\"body\":{body},\"blake3\":\"{hash}\"}}");
    let Ok(value) = read::<Value>("sets/x.json", envelope.as_bytes()) else { return };
    let again = write("sets/x.json", &value).expect("what was read can be written");
    assert_eq!(read::<Value>("sets/x.json", &again).expect("what was written reads"), value);
});
