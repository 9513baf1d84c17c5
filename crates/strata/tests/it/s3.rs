//! The S3 store: the contract on a server, locked objects, and a server's refusals.
#![cfg(feature = "aws")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::contract::{contract, one_winner};
use crate::support::stores::http::{Answer, Request, serve};
use crate::support::stores::s3::Server;
use bytes::Bytes;
use strata::manifest::Manifest;
use strata::store::{
    CloudOptions, ObjectStorage, Retries, Secret, Storage, Store, StoreError, StoreErrorKind,
    Timeouts,
};
use strata::{Repository, lease::Lease};

/// Returns options for a bucket on a local server.
fn options(bucket: &str, port: u16) -> CloudOptions {
    CloudOptions {
        bucket: bucket.to_string(),
        prefix: "some/prefix".to_string(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        access_key_id: Some("AKIATEST".to_string()),
        secret: Some(Secret::new("hunter2")),
        allow_http: true,
        ..CloudOptions::default()
    }
}

/// Makes a bucket with object lock.
fn bucket(server: &Server, name: &str) -> CloudOptions {
    server.make_bucket(name);
    options(name, server.port)
}

#[test]
fn an_s3_server_keeps_the_contract() {
    let Some(server) = Server::start() else { return };
    contract(&ObjectStorage::s3(&bucket(&server, "bucket")).unwrap());
    contract(&ObjectStorage::s3(&bucket(&server, "with.dots")).unwrap());
    // Checksums, and uploads in parts that one client begins and another one ends.
    let locked = CloudOptions { immutable_days: Some(30), ..bucket(&server, "locked") };
    contract(&ObjectStorage::s3(&locked).unwrap());
    one_winner(Arc::new(ObjectStorage::s3(&bucket(&server, "race")).unwrap()));
    let nowhere = options("nosuch", server.port);
    let error = ObjectStorage::s3(&nowhere).unwrap().put("x", &["x".into()]).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NoBucket);
}

#[test]
fn what_is_worth_keeping_is_locked_and_what_passes_is_not() {
    let Some(server) = Server::start() else { return };
    let locked = CloudOptions { immutable_days: Some(30), ..bucket(&server, "locked") };
    let storage = Arc::new(ObjectStorage::s3(&locked).unwrap());
    let store = Store::shared(storage.clone(), Retries::default());
    let repository = Repository::new(store, "clusters/main", None).unwrap();
    Manifest::new("a-set", 1, vec![], serde_json::Value::Null).write(&repository).unwrap();
    Lease::acquire(&repository, "prune", "me", 60, 1).unwrap();
    storage.put(&repository.path("doomed.json"), &["{}".into()]).unwrap();
    let mut index = tempfile::tempfile().unwrap();
    index.write_all(&[7; 100]).unwrap();
    storage.put_file(&repository.path("volumes/i/index.parquet"), &mut index, 100).unwrap();

    let retention =
        |path: &str| server.ask("HEAD", &format!("/locked/some/prefix/clusters/main/{path}"), "");
    for kept in ["sets/a-set.json", "volumes/i/index.parquet"] {
        let answer = retention(kept);
        assert!(answer.contains("x-amz-object-lock-mode: COMPLIANCE"), "{kept}: {answer}");
        assert!(answer.contains("x-amz-object-lock-retain-until-date: 2"), "{kept}: {answer}");
    }
    for passing in ["leases/prune/00000000000000000001", "doomed.json"] {
        let answer = retention(passing);
        assert!(!answer.contains("COMPLIANCE"), "{passing}: {answer}");
    }
    // A deletion hides it; the locked version stays in the store.
    storage.delete(&repository.path("sets/a-set.json")).unwrap();
    assert_eq!(Manifest::list(&repository).unwrap(), [""; 0]);
    let versions = server.ask("GET", "/locked?versions", "");
    assert!(versions.contains("<DeleteMarker>") && versions.contains("a-set.json"), "{versions}");
}

/// Returns the date that a HEAD request shows, as S3 writes it.
fn retained_until(server: &Server, path: &str) -> String {
    let answer = server.ask("HEAD", path, "");
    let date = answer.split("x-amz-object-lock-retain-until-date: ").nth(1);
    date.and_then(|rest| rest.lines().next()).unwrap_or_default().trim().to_string()
}

#[test]
fn a_lock_is_prolonged_on_a_server() {
    let Some(server) = Server::start() else { return };
    let locked = CloudOptions { immutable_days: Some(1), ..bucket(&server, "locked") };
    let storage = ObjectStorage::s3(&locked).unwrap();
    // A path with characters that are escaped in an address.
    let path = "volumes/tank=data+20x/1,2@3.parquet";
    storage.put(path, &["a".into()]).unwrap();
    let at = "/locked/some/prefix/volumes/tank%3Ddata%2B20x/1%2C2%403.parquet";
    let before = retained_until(&server, at);
    // 2100-01-01.
    storage.lock_until(path, 4_102_444_800).unwrap();
    let after = retained_until(&server, at);
    assert!(
        before.starts_with("20") && after.starts_with("2100-01-01T00:00:00"),
        "{before} {after}"
    );
    assert!(server.ask("HEAD", at, "").contains("x-amz-object-lock-mode: COMPLIANCE"));
    assert_eq!(storage.get(path).unwrap(), "a");
    for passing in ["leases/write/1", "doomed.json", "clusters/main/locks.json"] {
        let error = storage.lock_until(passing, 4_102_444_800).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unsupported);
    }
    // A bucket without object lock.
    server.ask("PUT", "/open", "");
    let open = CloudOptions { immutable_days: Some(1), ..options("open", server.port) };
    let plain = ObjectStorage::s3(&options("open", server.port)).unwrap();
    plain.put("x", &["a".into()]).unwrap();
    let open = ObjectStorage::s3(&open).unwrap();
    let refusals = [open.lock_until("x", 4_102_444_800), open.put("y", &["a".into()])];
    for error in refusals.map(Result::unwrap_err) {
        assert_eq!(error.kind, StoreErrorKind::Unsupported, "{error:?}");
        assert!(error.hint().unwrap().contains("immutable_days"), "{error:?}");
    }
    let plain = plain.lock_until("x", 4_102_444_800).unwrap_err();
    assert_eq!((plain.kind, plain.source.is_none()), (StoreErrorKind::Unsupported, true));
}

/// Starts a server that returns `answer`'s answer to each request, and records the requests.
fn asked(
    answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> (u16, std::sync::mpsc::Receiver<Request>) {
    let (send, requests) = std::sync::mpsc::channel();
    let port = serve(move |request| {
        let noted = Request {
            method: request.method.clone(),
            target: request.target.clone(),
            headers: request.headers.clone(),
            body: request.body.clone(),
        };
        // Not every test reads them.
        let _ = send.send(noted);
        Some(answer(request))
    });
    (port, requests)
}

#[test]
fn a_prolongation_is_signed_and_well_formed() {
    let (port, requests) = asked(|_| Answer::new(200, ""));
    let locked = CloudOptions {
        immutable_days: Some(7),
        region: Some("eu-north-1".to_string()),
        ..options("b", port)
    };
    ObjectStorage::s3(&locked).unwrap().lock_until("packs/a=b", 1_800_000_000).unwrap();
    let request = requests.recv().unwrap();
    assert_eq!(request.method, "PUT");
    assert_eq!(request.target, "/b/some/prefix/packs/a%3Db?retention");
    let body = "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>COMPLIANCE</Mode>\
                <RetainUntilDate>2027-01-15T08:00:00Z</RetainUntilDate></Retention>";
    assert_eq!(String::from_utf8(request.body.clone()).unwrap(), body);
    let header = |name| request.header(name).unwrap_or_else(|| panic!("{name}: {request:?}"));
    // As another program computes it for this body.
    assert_eq!(header("content-md5"), "cgarGSQteL9DHvbvpMZMXw==");
    assert_eq!(header("x-amz-content-sha256").len(), 64);
    let authorization = header("authorization");
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIATEST/"), "{authorization}");
    assert!(authorization.contains("/eu-north-1/s3/aws4_request, "), "{authorization}");
    let signed = "SignedHeaders=content-md5;content-type;host;x-amz-content-sha256;x-amz-date, ";
    assert!(authorization.contains(signed), "{authorization}");
    // It locks an existing object, and carries nothing that would lock another one.
    assert!(request.header("x-amz-object-lock-mode").is_none());
    assert!(requests.try_recv().is_err(), "one request");
}

#[test]
fn who_may_not_prolong_is_told_which_right_is_missing() {
    let (port, requests) = asked(|_| Answer::error(403, "AccessDenied"));
    let locked = CloudOptions { immutable_days: Some(7), ..options("b", port) };
    let error = ObjectStorage::s3(&locked).unwrap().lock_until("x", 1_800_000_000).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::PermissionDenied);
    assert!(error.hint().unwrap().contains("s3:PutObjectRetention"), "{error:?}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("cannot prolong the lock of \"x\"") && shown.contains("AccessDenied"));
    assert!(!shown.contains("hunter2") && !shown.contains("Signature"), "{shown}");
    let methods: Vec<_> = requests.try_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["PUT", "GET"], "it may be locked for longer");
    for (status, code, kind) in [
        (403, "InvalidAccessKeyId", StoreErrorKind::Unauthenticated),
        (403, "SignatureDoesNotMatch", StoreErrorKind::Unauthenticated),
        (404, "NoSuchKey", StoreErrorKind::NotFound),
        (404, "NoSuchBucket", StoreErrorKind::NoBucket),
        (503, "SlowDown", StoreErrorKind::Transient),
        (400, "MalformedXML", StoreErrorKind::Other),
        (301, "PermanentRedirect", StoreErrorKind::Other),
    ] {
        let (port, _) = asked(move |_| Answer::error(status, code));
        let locked = CloudOptions { immutable_days: Some(7), ..options("b", port) };
        let error = ObjectStorage::s3(&locked).unwrap().lock_until("x", 1_800_000_000).unwrap_err();
        assert_eq!(error.kind, kind, "{status} {code}: {error:?}");
    }
}

#[test]
fn a_longer_lock_is_as_good() {
    for (status, until, is_fine) in [
        (403, "2027-01-15T08:00:00Z", true),
        (400, "2030-01-01T00:00:00.000Z", true),
        (403, "2027-01-15T07:59:59Z", false),
    ] {
        let (port, _requests) = asked(move |request| match request.method.as_str() {
            "PUT" => Answer::error(status, "AccessDenied"),
            _ => Answer::new(
                200,
                format!(
                    "<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>"
                ),
            ),
        });
        let locked = CloudOptions { immutable_days: Some(7), ..options("b", port) };
        let result = ObjectStorage::s3(&locked).unwrap().lock_until("x", 1_800_000_000);
        assert_eq!(result.is_ok(), is_fine, "{status}, {until}: {result:?}");
    }
}

/// moto doesn't lock what is uploaded in parts, so this looks at what is sent.
#[test]
fn an_upload_in_parts_is_locked_where_it_begins() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (send, heads) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            let head = head.to_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
            let length = length.map_or(0, |length| length.parse::<u64>().unwrap());
            std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).unwrap();
            let body = match head.split("some/prefix/large").nth(1) {
                Some(rest) if rest.starts_with("?uploads") => {
                    "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
                }
                Some(_) if head.starts_with("post") => {
                    "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
                }
                _ => "",
            };
            send.send(head).unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    let locked = CloudOptions { immutable_days: Some(7), ..options("b", port) };
    let mut large = tempfile::tempfile().unwrap();
    large.write_all(&vec![7; 20 << 20]).unwrap();
    ObjectStorage::s3(&locked).unwrap().put_file("large", &mut large, 20 << 20).unwrap();
    let heads: Vec<String> = heads.try_iter().collect();
    assert_eq!(heads.len(), 1 + 3 + 1, "{heads:?}");
    for (number, head) in heads.iter().enumerate() {
        // Either the header itself and its name among the signed ones, or neither.
        let times = head.matches("x-amz-object-lock-retain-until-date").count();
        assert_eq!(times, if number == 0 { 2 } else { 0 }, "{head}");
        assert!(number == 4 || head.contains("x-amz-checksum"), "{head}");
    }
}

/// Starts a server that gives every request the same answer and counts them; with an empty answer it never answers.
fn answering(answer: &'static str) -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            if answer.is_empty() {
                silent.push(stream);
                continue;
            }
            let _ = stream.read(&mut [0; 16 << 10]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (port, count)
}

fn put(options: &CloudOptions, tries: u32) -> StoreError {
    let retries = Retries { tries, first_pause: Duration::from_millis(1) };
    let store = Store::with_retries(ObjectStorage::s3(options).unwrap(), retries);
    store.put("x", &[Bytes::from_static(b"abc")]).unwrap_err()
}

#[test]
fn a_server_that_is_busy_is_asked_as_often_as_was_said() {
    let busy = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (port, count) = answering(busy);
    assert_eq!(put(&options("b", port), 3).kind, StoreErrorKind::Transient);
    assert_eq!(count.load(Ordering::SeqCst), 3, "tries don't multiply");
}

#[test]
fn wrong_credentials_are_named_once_and_nothing_says_the_key() {
    let unknown = "HTTP/1.1 403 Forbidden\r\nContent-Length: 86\r\nConnection: close\r\n\r\n\
         <Error><Code>InvalidAccessKeyId</Code><Message>There is no such key.</Message></Error>";
    let (port, count) = answering(unknown);
    let options = options("b", port);
    let error = put(&options, 5);
    assert_eq!((error.kind, count.load(Ordering::SeqCst)), (StoreErrorKind::Unauthenticated, 1));
    assert!(error.hint().unwrap().contains("access key's id"));
    let shown =
        format!("{error} {error:?} {:?} {options:?}", strata::Error::from(put(&options, 1)));
    assert!(shown.contains("InvalidAccessKeyId"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_server_that_says_nothing_times_out() {
    let (port, _) = answering("");
    let timeouts = Timeouts { call: Duration::from_millis(300), least_rate: 1 << 20 };
    let begun = Instant::now();
    let error = put(&CloudOptions { timeouts, ..options("b", port) }, 2);
    assert_eq!(error.kind, StoreErrorKind::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
