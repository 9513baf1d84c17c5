//! Errors of the `object_store` crate as those of this one: what callers branch on is told apart here.
//!
//! What could go wrong: a wrong secret that is taken for a failure that passes (five tries, and then no word of
//! credentials), or a conflict of two creations that is taken for "it is there" while neither has won yet.

use super::{StoreError, StoreErrorKind};

/// An error of `object_store`, its words kept.
pub(super) fn translated(verb: &'static str, path: &str, error: object_store::Error) -> StoreError {
    use object_store::Error as Theirs;
    let code = Code::of(&without_paths(&error.to_string()));
    let kind = match &error {
        // Two at once, neither of which has won yet.
        Theirs::AlreadyExists { .. } if says(&error, &["ConditionalRequestConflict"]) => {
            StoreErrorKind::Transient
        }
        _ if code.is_some() => code.map_or(StoreErrorKind::Other, |code| code.kind),
        Theirs::NotFound { .. } => StoreErrorKind::NotFound,
        // S3 answers 412 where it has the object, which some servers report as it is.
        Theirs::AlreadyExists { .. } | Theirs::Precondition { .. } => StoreErrorKind::AlreadyExists,
        Theirs::PermissionDenied { .. } => StoreErrorKind::PermissionDenied,
        Theirs::Unauthenticated { .. } => StoreErrorKind::Unauthenticated,
        Theirs::Generic { .. } if says(&error, NOBODY) => StoreErrorKind::Unauthenticated,
        Theirs::Generic { .. } if says(&error, REFUSED) => StoreErrorKind::Other,
        Theirs::Generic { store, source } => kind_of_source(store, source.as_ref()),
        Theirs::JoinError { .. } => StoreErrorKind::Transient,
        _ => StoreErrorKind::Other,
    };
    StoreError { verb, path: path.to_string(), kind, source: Some(Box::new(error)) }
}

/// A code of S3, Google or Azure that says more than the status it comes with.
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

    /// The one that a server's words hold.
    pub(super) fn of(words: &str) -> Option<&'static Code> {
        CODES.iter().find(|code| words.contains(code.code))
    }
}

const ID: &str =
    "the store doesn't know the access key's id: is it the right one, and this store's?";
const SECRET: &str = "the access key isn't the one that belongs to its id, or is damaged";
const SESSION: &str = "the credentials were given for some time only, which is over: get new ones";
const CLOCK: &str = "the store's clock and this host's differ: is this host's right?";
const BUCKET: &str = "is its name right, and the endpoint? the bucket, or container, is made with the store's own tools";
const RETAINED: &str = "a retention of the bucket's or a hold keeps it as it is; it goes when that is over. Where it is the bucket's, and without versions, nothing can be replaced either: use versions, or the store's soft delete";

const NO_LOCKS: &str = "this bucket locks no objects: make one with object lock, or switch it on for this one with the store's own tools; or take immutable_days out";

const CODES: &[Code] = {
    use StoreErrorKind::{NoBucket, Other, Retained, Unauthenticated, Unsupported};
    &[
        Code::new("InvalidAccessKeyId", Unauthenticated, ID),
        Code::new("SignatureDoesNotMatch", Unauthenticated, SECRET),
        Code::new("AuthenticationFailed", Unauthenticated, SECRET),
        // Azure's words, whatever code they come with.
        Code::new("Server failed to authenticate the request", Unauthenticated, SECRET),
        Code::new("invalid_grant", Unauthenticated, SECRET),
        Code::new("InvalidToken", Unauthenticated, SESSION),
        Code::new("ExpiredToken", Unauthenticated, SESSION),
        Code::new("TokenRefreshRequired", Unauthenticated, SESSION),
        Code::new("RequestTimeTooSkewed", Other, CLOCK),
        Code::new("NoSuchBucket", NoBucket, BUCKET),
        Code::new("InvalidBucketName", NoBucket, BUCKET),
        Code::new("ContainerNotFound", NoBucket, BUCKET),
        Code::new("RetentionPolicyNotMet", Retained, RETAINED),
        Code::new("ObjectUnderActiveHold", Retained, RETAINED),
        Code::new("BlobImmutableDueTo", Retained, RETAINED),
        Code::new("protected by object lock", Retained, RETAINED),
        // Amazon's words, and other servers', for what they all call an InvalidRequest.
        Code::new("Object Lock Configuration", Unsupported, NO_LOCKS),
        Code::new("ObjectLockConfiguration", Unsupported, NO_LOCKS),
        Code::new("object lock not configured", Unsupported, NO_LOCKS),
    ]
};
/// No credentials were set: the machine was asked for its own, by addresses that only a cloud's machines know.
const NOBODY: &[&str] = &[
    "Missing AccessKeyId",
    "Missing SecretAccessKey",
    "//169.254.169.254",
    "//169.254.170.2",
    "metadata.google.internal",
    "//metadata/",
];
/// What the same request will be answered again: wrong requests (but not 408 and 429), and the wrong region.
const REFUSED: &[&str] =
    &["status code: 400", "status code: 405", "status code: 411", "status code: 501", "redirect"];

fn says(error: &object_store::Error, words: &[&str]) -> bool {
    let text = without_paths(&error.to_string());
    words.iter().any(|word| text.contains(word))
}

/// An error's words, of addresses the hosts alone: a bucket or prefix may be called like a server's word.
fn without_paths(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        let end = address.find(char::is_whitespace).unwrap_or(address.len());
        let host = address[..end].find('/').map_or(end, |slash| slash + 1);
        kept.push_str(before);
        kept.push_str(&address[..host]);
        rest = &address[end..];
    }
    kept + rest
}

/// A local folder fails for good (full, read-only), unless the system says otherwise; a server fails for now.
fn kind_of_source(store: &str, source: &(dyn std::error::Error + 'static)) -> StoreErrorKind {
    use std::io::ErrorKind;
    let mut next = Some(source);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            match error.kind() {
                ErrorKind::PermissionDenied => return StoreErrorKind::PermissionDenied,
                ErrorKind::StorageFull | ErrorKind::ReadOnlyFilesystem => {
                    return StoreErrorKind::Other;
                }
                ErrorKind::Interrupted
                | ErrorKind::TimedOut
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionRefused => return StoreErrorKind::Transient,
                _ => {}
            }
        }
        next = error.source();
    }
    if store == "LocalFileSystem" { StoreErrorKind::Other } else { StoreErrorKind::Transient }
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
        assert_eq!(kind("status code: 400: ExpiredToken"), StoreErrorKind::Unauthenticated);
        let nobody = "PUT http://169.254.169.254/latest/api/token: timed out";
        assert_eq!(kind(nobody), StoreErrorKind::Unauthenticated);
        let path = || "x".to_string();
        // The bucket's name says nothing.
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
        let both = object_store::Error::AlreadyExists {
            path: path(),
            source: "409: ConditionalRequestConflict".into(),
        };
        assert_eq!(translated("create", "x", both).kind, StoreErrorKind::Transient);
    }
}
