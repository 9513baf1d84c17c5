//! Translates errors of the `object_store` crate to this crate's. The kinds that callers distinguish are determined
//! here.
//!
//! What could go wrong: a wrong secret is taken for a transient failure (five tries, and then no mention of
//! credentials), or a conflict of two creations is taken for "it exists" while neither has succeeded yet.

use super::{StoreError, StoreErrorKind};

/// Translates an error of `object_store` and keeps its message.
pub(super) fn translated(verb: &'static str, path: &str, error: object_store::Error) -> StoreError {
    use object_store::Error as Theirs;
    let code = Code::of(&without_paths(&error.to_string()));
    let kind = match &error {
        // Two concurrent creations, of which neither has succeeded yet.
        Theirs::AlreadyExists { .. } if says(&error, &["ConditionalRequestConflict"]) => {
            StoreErrorKind::Transient
        }
        _ if code.is_some() => code.map_or(StoreErrorKind::Other, |code| code.kind),
        Theirs::NotFound { .. } => StoreErrorKind::NotFound,
        // S3 answers 412 if the object exists, and some servers report that status unchanged.
        Theirs::AlreadyExists { .. } | Theirs::Precondition { .. } => StoreErrorKind::AlreadyExists,
        Theirs::PermissionDenied { .. } => StoreErrorKind::PermissionDenied,
        Theirs::Unauthenticated { .. } => StoreErrorKind::Unauthenticated,
        Theirs::Generic { .. } if says(&error, NOBODY) => StoreErrorKind::Unauthenticated,
        // Of a listing, every refusal is a generic error.
        Theirs::Generic { .. } if says(&error, &["status code: 403"]) => {
            StoreErrorKind::PermissionDenied
        }
        Theirs::Generic { .. } if says(&error, &["status code: 401"]) => {
            StoreErrorKind::Unauthenticated
        }
        Theirs::Generic { .. } if says(&error, REFUSED) => StoreErrorKind::Other,
        Theirs::Generic { store, source } => kind_of_source(store, source.as_ref()),
        Theirs::JoinError { .. } => StoreErrorKind::Transient,
        _ => StoreErrorKind::Other,
    };
    StoreError { verb, path: path.to_string(), kind, source: Some(Box::new(error)) }
}

/// An error code of S3, Google or Azure that says more than the HTTP status.
pub(super) struct Code {
    code: &'static str,
    pub(super) kind: StoreErrorKind,
    /// What to do about it.
    pub(super) hint: &'static str,
}

impl Code {
    const fn new(code: &'static str, kind: StoreErrorKind, hint: &'static str) -> Code {
        Code { code, kind, hint }
    }

    /// Returns the code that a server's message contains.
    pub(super) fn of(words: &str) -> Option<&'static Code> {
        CODES.iter().find(|code| words.contains(code.code))
    }
}

const ID: &str =
    "the store doesn't know the access key's id: is it right, and does it belong to this store?";
const SECRET: &str = "the access key doesn't match its id, or is damaged: check both";
const SESSION: &str = "these temporary credentials have expired: get new ones";
const CLOCK: &str = "the store's clock and this host's differ: is this host's right?";
const BUCKET: &str = "is its name right, and the endpoint? create the bucket, or container, with the store's own tools";
const RETAINED: &str = "the bucket's retention or a hold protects it; it can be deleted once that is over. If it is the bucket's retention and there are no versions, nothing can be replaced either: use versions, or the store's soft delete";

const ARCHIVED: &str = "the object is in an archive, from which nothing can be read at once (Glacier, Azure's archive tier): bring it back to a class that can be read with the store's own tools, the cluster's whole folder, because a restore needs all of it; and take the repository out of the lifecycle rule that moved it there";

const SLOW: &str = "the connection to the store stood still, or is too slow: try again later; what was stored already is kept";

const NO_LOCKS: &str = "this bucket has no object lock: create one with object lock, or switch it on for this one with the store's own tools, or remove immutable_days from the configuration";

const CODES: &[Code] = {
    use StoreErrorKind::{NoBucket, Other, Retained, Transient, Unauthenticated, Unsupported};
    &[
        // S3 ends a request whose body stands still with 400, not with 408.
        Code::new("RequestTimeout", Transient, SLOW),
        Code::new("InvalidAccessKeyId", Unauthenticated, ID),
        Code::new("SignatureDoesNotMatch", Unauthenticated, SECRET),
        Code::new("AuthenticationFailed", Unauthenticated, SECRET),
        // Azure's message, whatever code comes with it.
        Code::new("Server failed to authenticate the request", Unauthenticated, SECRET),
        Code::new("invalid_grant", Unauthenticated, SECRET),
        Code::new("InvalidToken", Unauthenticated, SESSION),
        Code::new("ExpiredToken", Unauthenticated, SESSION),
        Code::new("TokenRefreshRequired", Unauthenticated, SESSION),
        Code::new("RequestTimeTooSkewed", Other, CLOCK),
        Code::new("NoSuchBucket", NoBucket, BUCKET),
        Code::new("InvalidBucketName", NoBucket, BUCKET),
        Code::new("ContainerNotFound", NoBucket, BUCKET),
        // S3 answers 403, and Azure 409, as if an object existed already.
        Code::new("InvalidObjectState", Other, ARCHIVED),
        Code::new("BlobArchived", Other, ARCHIVED),
        Code::new("BlobBeingRehydrated", Other, ARCHIVED),
        Code::new("RetentionPolicyNotMet", Retained, RETAINED),
        Code::new("ObjectUnderActiveHold", Retained, RETAINED),
        Code::new("BlobImmutableDueTo", Retained, RETAINED),
        Code::new("protected by object lock", Retained, RETAINED),
        // Amazon's message and other servers', all with the code InvalidRequest.
        Code::new("Object Lock Configuration", Unsupported, NO_LOCKS),
        Code::new("ObjectLockConfiguration", Unsupported, NO_LOCKS),
        Code::new("object lock not configured", Unsupported, NO_LOCKS),
    ]
};
/// No credentials were set: the machine's own were requested, from addresses that exist only on a cloud's machines.
const NOBODY: &[&str] = &[
    "Missing AccessKeyId",
    "Missing SecretAccessKey",
    "//169.254.169.254",
    "//169.254.170.2",
    "metadata.google.internal",
    "//metadata/",
];
/// Requests that will fail again in the same way: wrong requests (but not 408 and 429), and the wrong region.
const REFUSED: &[&str] =
    &["status code: 400", "status code: 405", "status code: 411", "status code: 501", "redirect"];

fn says(error: &object_store::Error, words: &[&str]) -> bool {
    let text = without_paths(&error.to_string());
    words.iter().any(|word| text.contains(word))
}

/// Returns an error's message with addresses cut to their hosts: a bucket or prefix may have a name that looks like an
/// error code.
fn without_paths(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        // In a document, an attribute ends at its quotation mark; the code may follow it.
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>');
        let end = address.find(ends).unwrap_or(address.len());
        let host = address[..end].find('/').map_or(end, |slash| slash + 1);
        kept.push_str(before);
        kept.push_str(&address[..host]);
        rest = &address[end..];
    }
    kept + rest
}

/// A local folder fails permanently (full, read-only) unless the system says otherwise; a server fails transiently.
fn kind_of_source(store: &str, source: &(dyn std::error::Error + 'static)) -> StoreErrorKind {
    use std::io::ErrorKind;
    for kind in chain(source).filter_map(io_kind) {
        match kind {
            ErrorKind::PermissionDenied => return StoreErrorKind::PermissionDenied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem => {
                return StoreErrorKind::Other;
            }
            ErrorKind::Interrupted
            | ErrorKind::TimedOut
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            // NFS: another host has replaced the file. The next try opens it anew.
            | ErrorKind::StaleNetworkFileHandle => return StoreErrorKind::Transient,
            _ => {}
        }
    }
    if store == "LocalFileSystem" { StoreErrorKind::Other } else { StoreErrorKind::Transient }
}

/// Returns an error and its causes, down to the first cause.
fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

/// What the HTTP client says if it couldn't connect: refused, unknown name, untrusted certificate, too slow.
const NEVER_CONNECTED: &str = "client error (Connect)";
/// What the HTTP layer says before each failed request, and before each answer of a server.
const REQUEST: &str = "Error performing ";
const ANSWERED: &str = "Server returned ";
/// What a proxy says whose own server didn't answer it.
const OF_PROXY: &[&str] = &["status code: 502", "status code: 504"];

/// Whether a request was sent and its own server didn't answer it: it may still be carried out.
pub(super) fn is_unanswered(error: &(dyn std::error::Error + 'static)) -> bool {
    let words: Vec<_> = chain(error).map(|error| without_paths(&error.to_string())).collect();
    let says = |what: &str| words.iter().any(|words| words.contains(what));
    let was_sent = says(REQUEST) && !words.iter().any(|words| words == NEVER_CONNECTED);
    was_sent && (!says(ANSWERED) || OF_PROXY.iter().any(|status| says(status)))
}

const ENDPOINT: &str = "could not connect: is the endpoint right, is the store's server running, and the proxy right if HTTPS_PROXY or HTTP_PROXY names one? if its certificate is from your own authority, set SSL_CERT_FILE to that authority's certificate file";
const NO_ROOM: &str =
    "make room there, then run the command again: what was stored already is kept";
const READ_ONLY: &str = "mount the repository's folder read-write, or configure another one";

/// Whether an error is, or was caused by, a full file system or quota.
pub(super) fn lacks_room(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    chain(error).filter_map(io_kind).any(|kind| matches!(kind, StorageFull | QuotaExceeded))
}

/// Whether an error of link(2) says, as one of several may, that the file system has no hard links.
pub(super) fn lacks_links(error: &(dyn std::error::Error + 'static)) -> bool {
    // CIFS and FAT answer with EPERM, where a folder without the right to write gives EACCES.
    let errno =
        |error: &std::io::Error| matches!(error.raw_os_error(), Some(EPERM | ENOSYS | EOPNOTSUPP));
    chain(error).any(|error| error.downcast_ref().is_some_and(errno))
}
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;

/// Whether an object has a name that `object_store` doesn't accept: an empty part, a control character.
pub(super) fn is_odd_name(error: &(dyn std::error::Error + 'static)) -> bool {
    chain(error).any(|error| error.is::<object_store::path::Error>())
}

/// Returns a hint for a cause that says more than the error's kind.
pub(super) fn hint_of_cause(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use std::io::ErrorKind;
    chain(error).find_map(|error| match io_kind(error) {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Some(NO_ROOM),
        Some(ErrorKind::ReadOnlyFilesystem) => Some(READ_ONLY),
        _ if error.to_string() == NEVER_CONNECTED => Some(ENDPOINT),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(words: &'static str) -> StoreErrorKind {
        let generic = object_store::Error::Generic { store: "S3", source: words.into() };
        translated("put", "x", generic).kind
    }

    #[test]
    fn what_will_not_pass_is_told_from_what_may() {
        assert_eq!(kind("status code: 503 Service Unavailable"), StoreErrorKind::Transient);
        assert_eq!(kind("status code: 400 Bad Request: <Code>X</Code>"), StoreErrorKind::Other);
        let stood_still = "status code: 400 Bad Request: <Code>RequestTimeout</Code>";
        assert_eq!(kind(stood_still), StoreErrorKind::Transient);
        assert_eq!(kind("status code: 400: ExpiredToken"), StoreErrorKind::Unauthenticated);
        let nobody = "PUT http://169.254.169.254/latest/api/token: timed out";
        assert_eq!(kind(nobody), StoreErrorKind::Unauthenticated);
        let quoted = "403: <Error xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Code>InvalidAccessKeyId</Code>";
        assert_eq!(kind(quoted), StoreErrorKind::Unauthenticated);
        let path = || "x".to_string();
        let no_list = "status code: 403 Forbidden: <Code>AccessDenied</Code>";
        assert_eq!(kind(no_list), StoreErrorKind::PermissionDenied);
        assert_eq!(kind("status code: 401 Unauthorized"), StoreErrorKind::Unauthenticated);
        // link(2) on CIFS.
        let links = |errno| {
            let source = Box::new(std::io::Error::from_raw_os_error(errno));
            translated(
                "create",
                "x",
                object_store::Error::Generic { store: "LocalFileSystem", source },
            )
        };
        for errno in [EPERM, ENOSYS, EOPNOTSUPP] {
            assert!(links(errno).hint().unwrap().contains("hard links"), "{errno}");
        }
        assert!(!links(13).hint().unwrap().contains("hard links"), "EACCES");
        // The bucket's name doesn't matter.
        let busy = "Error performing GET http://s3/redirects/InvalidToken/x in 1ms, after 0 retries: status code: 503";
        assert_eq!(kind(busy), StoreErrorKind::Transient);
        let forbidden = |words: &'static str| object_store::Error::PermissionDenied {
            path: path(),
            source: words.into(),
        };
        let denied = translated("put", "x", forbidden("AccessDenied")).kind;
        assert_eq!(denied, StoreErrorKind::PermissionDenied);
        let unknown = translated("put", "x", forbidden("InvalidAccessKeyId")).kind;
        assert_eq!(unknown, StoreErrorKind::Unauthenticated);
        let skewed = translated("put", "x", forbidden("RequestTimeTooSkewed"));
        assert!(skewed.kind == StoreErrorKind::Other && skewed.hint().unwrap().contains("clock"));
        let archived = [
            forbidden("<Code>InvalidObjectState</Code>"),
            object_store::Error::AlreadyExists {
                path: path(),
                source: "409: <Code>BlobArchived</Code>".into(),
            },
        ];
        for error in archived {
            let error = translated("get", "x", error);
            assert_eq!(error.kind, StoreErrorKind::Other, "{error}");
            assert!(error.hint().unwrap().contains("archive"), "{error}");
        }
        let both = object_store::Error::AlreadyExists {
            path: path(),
            source: "409: ConditionalRequestConflict".into(),
        };
        assert_eq!(translated("create", "x", both).kind, StoreErrorKind::Transient);
    }

    #[test]
    fn a_name_that_makes_every_listing_fail_is_somebody_elses() {
        for name in ["sets//x", "sets/Icon\r", "sets/../x"] {
            let odd = object_store::path::Path::parse(name).unwrap_err();
            let error = translated("list", "sets", odd.into());
            assert_eq!(error.kind, StoreErrorKind::Other);
            assert!(error.hint().unwrap().contains("another program"), "{name}");
        }
        let failed = object_store::Error::Generic { store: "S3", source: "no".into() };
        assert!(!translated("list", "sets", failed).hint().unwrap().contains("another program"));
    }

    #[test]
    fn what_may_still_be_carried_out_is_in_doubt() {
        use crate::store::{Around, ObjectStorage, Retries, Storage, Store, StoreResult};

        /// A store of which one deletion fails like this.
        struct Cut(ObjectStorage, &'static str);

        impl Around for Cut {
            fn inner(&self) -> &dyn Storage {
                &self.0
            }

            fn delete(&self, path: &str) -> StoreResult<()> {
                let (store, source) = ("S3", self.1.into());
                let error = object_store::Error::Generic { store, source };
                Err(translated("delete", path, error))
            }
        }

        for (words, expected) in [
            (
                "Error performing DELETE http://s3/b/x in 1ms - HTTP error: error sending request",
                true,
            ),
            (
                "Error performing DELETE http://s3/b/x in 60s - Server returned non-2xx status code: 504 Gateway Timeout: ",
                true,
            ),
            (
                "Error performing DELETE http://s3/b/x in 1ms - Server returned non-2xx status code: 503 Service Unavailable: <Code>SlowDown</Code>",
                false,
            ),
            (
                "Error performing DELETE http://s3/b/x in 1ms - Server returned error response: <Error/>",
                false,
            ),
            ("the credentials can't be had now", false),
        ] {
            let memory = std::sync::Arc::new(object_store::memory::InMemory::new());
            let inner = ObjectStorage::on(memory, "", Default::default()).unwrap();
            let retries = Retries { tries: 1, first_pause: std::time::Duration::ZERO };
            let store = Store::with_retries(Cut(inner, words), retries);
            let error = store.delete("x").unwrap_err();
            assert_eq!(error.kind, StoreErrorKind::Transient, "{words}");
            assert_eq!(store.is_in_doubt(), expected, "{words}");
        }
    }

    #[test]
    fn the_first_cause_is_said_and_what_to_do_about_it() {
        let full = |kind| object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(std::io::Error::from(kind)),
        };
        let error = translated("put", "x", full(std::io::ErrorKind::StorageFull));
        assert_eq!((error.kind, error.hint()), (StoreErrorKind::Other, Some(NO_ROOM)));
        assert!(error.lacks_room());
        let error = translated("get", "x", full(std::io::ErrorKind::StaleNetworkFileHandle));
        assert_eq!(error.kind, StoreErrorKind::Transient);
        let error = translated("put", "x", full(std::io::ErrorKind::ReadOnlyFilesystem));
        assert_eq!((error.kind, error.hint()), (StoreErrorKind::Other, Some(READ_ONLY)));
        assert!(!error.lacks_room());
    }

    #[cfg(feature = "aws")]
    #[test]
    fn why_no_connection_came_about_is_said() {
        use crate::store::{CloudOptions, ObjectStorage, Secret, Storage, Timeouts};

        // Nothing listens at the first; a server without TLS listens at the second.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = plain.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in plain.incoming() {
                let _ = std::io::Write::write_all(&mut stream.unwrap(), b"no TLS here\n");
            }
        });
        for (endpoint, cause) in [
            (format!("http://{closed}"), "Connection refused"),
            ("http://nowhere.invalid:9000".to_string(), "dns error"),
            (format!("https://{address}"), "TLS"),
        ] {
            let options = CloudOptions {
                bucket: "b".into(),
                prefix: String::new(),
                endpoint: Some(endpoint.clone()),
                region: None,
                access_key_id: Some("k".into()),
                secret: Some(Secret::new("s".to_string())),
                allow_http: true,
                immutable_days: None,
                timeouts: Timeouts::default(),
            };
            let error = ObjectStorage::s3(&options).unwrap().get("x").unwrap_err();
            let words = crate::error::with_causes(error.source.as_deref().unwrap());
            let is_said = words.to_lowercase().contains(&cause.to_lowercase());
            assert!(is_said || cause == "TLS", "{endpoint}: {words}");
            assert!(!words.ends_with("(Connect)"), "{endpoint}: {words}");
            assert_eq!(error.hint(), Some(ENDPOINT), "{endpoint}: {words}");
        }
    }
}
