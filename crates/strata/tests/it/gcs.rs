//! The Google store, on the tests' own server, which speaks the needed part of the protocol (support/stores/gcs.rs).
#![cfg(feature = "gcp")]

use std::sync::Arc;

use crate::support::contract::{contract, one_winner};
use crate::support::stores::gcs::Server;
use strata::store::{CloudOptions, ObjectStorage, Secret, Storage, StoreErrorKind};

/// Returns options for the bucket on the server, with the account in this service account's JSON.
fn options(server: &Server, bucket: &str, service_account: &str) -> CloudOptions {
    CloudOptions {
        bucket: bucket.to_string(),
        prefix: "some/prefix".to_string(),
        endpoint: Some(server.endpoint()),
        secret: Some(Secret::new(service_account)),
        allow_http: true,
        ..CloudOptions::default()
    }
}

#[test]
fn a_google_server_keeps_the_contract() {
    let server = Server::start("bucket");
    let account = server.service_account();
    let open = |bucket| ObjectStorage::gcs(&options(&server, bucket, &account)).unwrap();
    contract(&open("bucket"));
    one_winner(Arc::new(open("bucket")));
    let nowhere = open("nosuch");
    let error = nowhere.put("x", &["x".into()]).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NoBucket, "{error}: {:?}", error.source);
    assert_eq!(nowhere.list("x", &mut |_| ()).unwrap_err().kind, StoreErrorKind::NoBucket);
}

#[test]
fn another_account_is_named_as_one_that_the_store_does_not_know() {
    let (server, other) = (Server::start("bucket"), Server::start("bucket"));
    let storage = ObjectStorage::gcs(&options(&server, "bucket", &other.service_account()));
    let error = storage.unwrap().put("x", &["x".into()]).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unauthenticated, "{error}: {:?}", error.source);
    // The form that the server's emulators use: no token is requested and none is sent.
    let anonymous =
        r#"{"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": true}"#;
    let storage = ObjectStorage::gcs(&options(&server, "bucket", anonymous)).unwrap();
    let error = storage.get("x").unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unauthenticated, "{error}: {:?}", error.source);
    let error = ObjectStorage::gcs(&options(&server, "bucket", "hunter2 {")).err().unwrap();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

/// A bucket's own retention forbids replacing and deleting: this is reported, with what to do instead.
#[test]
fn what_the_bucket_retains_is_named() {
    let server = Server::start("bucket");
    let storage = ObjectStorage::gcs(&options(&server, "bucket", &server.service_account()));
    let storage = storage.unwrap();
    storage.put("x", &["x".into()]).unwrap();
    server.retain(true);
    storage.put_if_absent("y", &"y".into()).unwrap();
    for error in [storage.put("x", &["z".into()]), storage.delete("x")] {
        let error = error.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Retained, "{error}: {:?}", error.source);
        assert!(error.hint().unwrap().contains("retention"), "{error}");
    }
    server.retain(false);
    storage.delete("x").unwrap();
}
