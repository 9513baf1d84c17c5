//! The Azure store, on Microsoft's own emulator.
#![cfg(feature = "azure")]

use std::sync::Arc;

use crate::support::contract::{contract, one_winner};
use crate::support::stores::azure::{ACCOUNT, KEY, Server};
use strata::store::{CloudOptions, ObjectStorage, Secret, Storage, StoreErrorKind};

/// Returns options for a container on the server.
fn options(server: &Server, container: &str) -> CloudOptions {
    CloudOptions {
        bucket: container.to_string(),
        prefix: "some/prefix".to_string(),
        endpoint: Some(server.endpoint.clone()),
        access_key_id: Some(ACCOUNT.to_string()),
        secret: Some(Secret::new(KEY)),
        allow_http: true,
        ..CloudOptions::default()
    }
}

#[test]
fn an_azure_server_keeps_the_contract() {
    let Some(server) = Server::start() else { return };
    server.make_container("container");
    server.make_container("race");
    contract(&ObjectStorage::azure(&options(&server, "container")).unwrap());
    one_winner(Arc::new(ObjectStorage::azure(&options(&server, "race")).unwrap()));

    let nowhere = ObjectStorage::azure(&options(&server, "nosuch")).unwrap();
    for error in [
        nowhere.put("x", &["x".into()]).unwrap_err(),
        nowhere.get("x").unwrap_err(),
        nowhere.list("x", &mut |_| ()).unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::NoBucket, "{error}: {:?}", error.source);
        assert!(error.hint().unwrap().contains("name"), "{error}");
    }
    // A wrong key and an invalid one: each must be reported once, and by name.
    let wrong = |key: &str| {
        let options = CloudOptions { secret: Some(Secret::new(key)), ..options(&server, "race") };
        ObjectStorage::azure(&options).and_then(|storage| storage.put("x", &["x".into()]))
    };
    let error = wrong("aHVudGVyMg==").unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unauthenticated, "{error}: {:?}", error.source);
    let error = wrong("hunter2!").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}
