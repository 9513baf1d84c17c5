//! A frame of a pack: arbitrary bytes, as they are and with a valid length and hash, with a key and without.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata::Ulid;
use strata::frame::{Key, Place, length, open};

const PLACE: Place<'static> = Place { path: "packs/x", pack: Ulid(7), at: 99 };

fuzz_target!(|bytes: &[u8]| {
    let _ = open(bytes, PLACE, None);

    let mut frame = bytes.to_vec();
    frame.resize(bytes.len().max(48), 0);
    let payload = u32::try_from(frame.len() - 48).expect("the fuzzer's inputs are small");
    frame[..4].copy_from_slice(b"stF1");
    frame[12..16].copy_from_slice(&payload.to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&PLACE.pack.0.to_be_bytes()).update(&PLACE.at.to_le_bytes());
    let hash = hasher.update(&frame[..16]).update(&frame[48..]).finalize();
    frame[16..48].copy_from_slice(hash.as_bytes());
    assert_eq!(length(&frame), Some(frame.len()));
    let says = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]);
    if let Ok(content) = open(&frame, PLACE, None) {
        assert_eq!(content.len(), says as usize);
    }
    assert!(
        open(&frame, PLACE, Some(&Key::new([1; 32]))).is_err(),
        "it isn't sealed with this key"
    );
});
