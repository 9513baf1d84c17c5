//! What every store promises.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use strata::lease::Lease;
use strata::store::{Listed, Retries, Storage, Store, StoreErrorKind};
use strata::{Error, Repository};

/// Checks the contract that every implementation must keep.
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

    assert_eq!(storage.get_small("a/x", 5).unwrap(), "three");
    assert_eq!(storage.get_small("a/x", 4).unwrap_err().kind, StoreErrorKind::TooLarge);
    assert_eq!(storage.get_small("a/none", 4).unwrap_err().kind, StoreErrorKind::NotFound);

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
    // A prefix is a folder, not the beginning of a name.
    storage.put("ab", &[bytes("beside")]).unwrap();
    assert_eq!(list("a").len(), 2);
    storage.delete("ab").unwrap();
    for path in ["d/1/x", "d/2/y/z", "d/2/w", "d/beside"] {
        storage.put(path, &[bytes("in a folder")]).unwrap();
    }
    let folders = |prefix: &str| {
        let mut names = storage.folders(prefix).unwrap();
        names.sort();
        names
    };
    assert_eq!(folders("d"), ["1", "2"]);
    assert_eq!(folders("a"), [""; 0]);
    assert_eq!(folders("nothing"), [""; 0]);
    for path in ["d/1/x", "d/2/y/z", "d/2/w", "d/beside"] {
        storage.delete(path).unwrap();
    }
    // The characters that names may contain.
    let odd = "c/tank=data+20x/1.2_3-4@5,6.json";
    storage.put_if_absent(odd, &bytes("odd")).unwrap();
    assert_eq!((storage.get(odd).unwrap(), list("c")), ("odd".into(), vec![(odd.to_string(), 3)]));
    storage.delete(odd).unwrap();
    storage.delete("a/x").unwrap();
    assert_eq!(list("a").len(), 1);
}

/// If several callers create an object or take a lease at once, exactly one succeeds; for servers with concurrent
/// callers.
pub fn one_winner(storage: Arc<dyn Storage>) {
    let at_once = |each: &(dyn Fn(u8) -> bool + Sync)| -> usize {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || each(number))).collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        })
    };
    for round in 0..5 {
        let path = format!("race/{round}");
        let create = |number| match storage.put_if_absent(&path, &Bytes::from(vec![number; 99])) {
            Ok(()) => true,
            // It isn't known yet who succeeds.
            Err(error) => {
                let known = [StoreErrorKind::AlreadyExists, StoreErrorKind::Transient];
                assert!(known.contains(&error.kind), "{error}: {:?}", error.source);
                false
            }
        };
        assert_eq!(at_once(&create), 1, "{path}");
    }
    let store = Store::shared(storage, Retries::default());
    let repository = Repository::new(store, "clusters/main", None).unwrap();
    let take = |number: u8| {
        let taken = Lease::acquire(&repository, "write", &number.to_string(), 60, 1000);
        assert!(taken.is_ok() || matches!(taken, Err(Error::Leased { .. })), "{taken:?}");
        taken.is_ok()
    };
    assert_eq!(at_once(&take), 1);
    // Renewed; lost to another after it expired; given back.
    let mut lost = Lease::acquire(&repository, "write", "late", 60, 1061).unwrap();
    lost.renew(1062).unwrap();
    let other = Lease::acquire(&repository, "write", "other", 60, 1122).unwrap();
    assert!(matches!(lost.renew(1123), Err(Error::LeaseLost { .. })));
    other.release(1124).unwrap();
    Lease::acquire(&repository, "write", "next", 60, 1124).unwrap();
}
