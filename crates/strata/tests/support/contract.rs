//! What every store promises.

use std::io::Write;

use bytes::Bytes;
use strata::store::{Listed, Storage, StoreErrorKind};

/// The contract, as every implementation keeps it.
pub fn contract(storage: &dyn Storage) {
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    assert_eq!(storage.get("a/x").unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(storage.size("a/x").unwrap_err().kind, StoreErrorKind::NotFound);
    storage.delete("a/x").unwrap();

    storage.put("a/x", &[bytes("one"), bytes("two")]).unwrap();
    assert_eq!(storage.get("a/x").unwrap(), "onetwo");
    storage.put("a/x", &[bytes("three")]).unwrap();
    assert_eq!(storage.get("a/x").unwrap(), "three", "written over");
    assert_eq!(storage.size("a/x").unwrap(), 5);
    assert_eq!(storage.get_range("a/x", 1..3).unwrap(), "hr");
    assert!(
        storage.get_range("a/x", 3..9).is_err_and(|_| true)
            || storage.get_range("a/x", 3..9).unwrap().len() == 2
    );

    storage.put_if_absent("a/y", &bytes("first")).unwrap();
    let again = storage.put_if_absent("a/y", &bytes("second")).unwrap_err();
    assert_eq!(again.kind, StoreErrorKind::AlreadyExists);
    assert!(again.to_string().contains("\"a/y\""), "{again}");
    assert_eq!(storage.get("a/y").unwrap(), "first");

    let mut file = tempfile::tempfile().unwrap();
    let large: Vec<u8> = (0..20 << 20).map(|index: u32| (index / 7) as u8).collect();
    file.write_all(&large).unwrap();
    storage.put_file("b/large", &mut file, large.len() as u64).unwrap();
    assert!(storage.get("b/large").unwrap() == large);
    storage.put_file("b/small", &mut file, 10).unwrap();
    assert_eq!(storage.get("b/small").unwrap(), large[..10]);

    let list = |prefix: &str| {
        let mut listed = Vec::new();
        storage.list(prefix, &mut |Listed { path, size, .. }| listed.push((path, size))).unwrap();
        listed.sort();
        listed
    };
    assert_eq!(list("a"), [("a/x".to_string(), 5), ("a/y".to_string(), 5)]);
    assert_eq!(list("").len(), 4);
    assert_eq!(list("nothing"), []);
    storage.delete("a/x").unwrap();
    assert_eq!(list("a").len(), 1);
}
