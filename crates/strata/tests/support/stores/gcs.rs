//! The tests' own server for Google's XML protocol, as far as the `object_store` crate uses it.
//!
//! It is written from Google's documentation of the protocol, because the emulators that can be installed speak the
//! JSON protocol, or support neither conditional writes nor uploads in parts. So it shows that our requests are what
//! the documentation requires, not that Google's servers agree. It supports objects with generations
//! (`x-goog-if-generation-match`), ranges, listings in pages, uploads in parts, a retention of the bucket, and a
//! service account: each request must bring a token that this account has signed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::http::{self, Answer, Request};

/// Entries of a listing's page; Google's have 1000.
const PAGE: usize = 3;

struct Object {
    generation: u64,
    content: Vec<u8>,
}

#[derive(Default)]
struct Bucket {
    generation: u64,
    objects: BTreeMap<String, Object>,
    /// Each with the object's name, and its parts.
    uploads: BTreeMap<String, (String, BTreeMap<usize, Vec<u8>>)>,
}

struct State {
    buckets: BTreeMap<String, Bucket>,
    is_retained: bool,
    accepted: HashSet<String>,
}

/// A server that ends with the test's process.
#[derive(Clone)]
pub struct Server {
    pub port: u16,
    state: Arc<Mutex<State>>,
    keys: Arc<Keys>,
}

/// The keys of a service account, in a folder that is removed with the server.
struct Keys {
    folder: PathBuf,
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const EMAIL: &str = "lockstep@project.iam.gserviceaccount.com";

impl Server {
    /// Starts one with a bucket.
    pub fn start(bucket: &str) -> Server {
        let keys = Arc::new(Keys::new());
        let buckets = BTreeMap::from([(bucket.to_owned(), Bucket::default())]);
        let state = State { buckets, is_retained: false, accepted: HashSet::new() };
        let state = Arc::new(Mutex::new(state));
        let (asked, known) = (state.clone(), keys.clone());
        let port = http::serve(move |request| {
            let mut state = asked.lock().unwrap();
            Some(match known.is_signed(request, &mut state.accepted) {
                true => answer(request, &mut state),
                false => Answer::error(401, "AuthenticationRequired"),
            })
        });
        Server { port, state, keys }
    }

    /// Returns its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the service account's JSON, as Google issues it.
    pub fn service_account(&self) -> String {
        let key = std::fs::read_to_string(self.keys.folder.join("key.pem")).unwrap();
        format!(
            r#"{{"type": "service_account", "private_key_id": "k1", "client_email": "{EMAIL}", "private_key": "{}"}}"#,
            key.replace('\n', "\\n")
        )
    }

    /// Forbids deleting and replacing from now on, as in a bucket with a retention policy.
    pub fn retain(&self, is_retained: bool) {
        self.state.lock().unwrap().is_retained = is_retained;
    }
}

impl Keys {
    fn new() -> Keys {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let folder = format!("lockstep-gcs-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let keys = Keys { folder };
        let rsa = ["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        keys.openssl(&[&rsa[..], &["-out", "key.pem"]].concat(), b"");
        keys.openssl(&["pkey", "-in", "key.pem", "-pubout", "-out", "public.pem"], b"");
        keys
    }

    fn openssl(&self, arguments: &[&str], input: &[u8]) -> bool {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait().unwrap().success()
    }

    /// Whether the request carries a token that the account has signed.
    fn is_signed(&self, request: &Request, accepted: &mut HashSet<String>) -> bool {
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let Some(token) = token else { return false };
        if accepted.contains(token) {
            return true;
        }
        let Some((signed, signature)) = token.rsplit_once('.') else { return false };
        let claims = signed.split_once('.').map(|(_, claims)| of_base64(claims));
        let claims = String::from_utf8(claims.unwrap_or_default()).unwrap_or_default();
        std::fs::write(self.folder.join("signature"), of_base64(signature)).unwrap();
        let verify = ["dgst", "-sha256", "-verify", "public.pem", "-signature", "signature"];
        let is_signed = claims.contains(EMAIL) && self.openssl(&verify, signed.as_bytes());
        if is_signed {
            accepted.insert(token.to_owned());
        }
        is_signed
    }
}

/// Decodes the form without padding that tokens use.
fn of_base64(text: &str) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|byte| digits.iter().position(|digit| *digit == byte)) {
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

fn answer(request: &Request, state: &mut State) -> Answer {
    let path = request.path();
    let (bucket, key) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let is_retained = state.is_retained;
    let Some(bucket) = state.buckets.get_mut(bucket) else {
        return Answer::error(404, "NoSuchBucket");
    };
    let upload = request.query("uploadId");
    let is_kept = is_retained && upload.is_none() && bucket.objects.contains_key(key);
    match (request.method.as_str(), upload) {
        ("PUT" | "DELETE", None) if is_kept => Answer::error(403, "RetentionPolicyNotMet"),
        ("GET", None) if key.is_empty() => bucket.list(request),
        ("GET" | "HEAD", None) => bucket.get(request, key),
        ("PUT", None) => bucket.put(request, key),
        ("DELETE", None) => match bucket.objects.remove(key) {
            Some(_) => Answer::new(204, ""),
            None => Answer::error(404, "NoSuchKey"),
        },
        ("POST", None) if request.query("uploads").is_some() => bucket.begin(key),
        ("PUT", Some(id)) => bucket.part(request, key, &id),
        ("POST", Some(id)) => bucket.complete(request, key, &id),
        ("DELETE", Some(id)) => match bucket.uploads.remove(&id) {
            Some(_) => Answer::new(204, ""),
            None => Answer::error(404, "NoSuchUpload"),
        },
        _ => Answer::error(400, "InvalidArgument"),
    }
}

impl Bucket {
    fn write(&mut self, key: &str, content: Vec<u8>) -> u64 {
        self.generation += 1;
        let generation = self.generation;
        self.objects.insert(key.to_owned(), Object { generation, content });
        generation
    }

    fn put(&mut self, request: &Request, key: &str) -> Answer {
        let there = self.objects.get(key).map_or(0, |object| object.generation);
        let wanted = request.header("x-goog-if-generation-match");
        if wanted.is_some_and(|wanted| wanted != there.to_string()) {
            return Answer::error(412, "PreconditionFailed");
        }
        let generation = self.write(key, request.body.clone());
        Answer::new(200, "")
            .with("ETag", format!("\"g{generation}\""))
            .with("x-goog-generation", generation)
    }

    fn get(&self, request: &Request, key: &str) -> Answer {
        let Some(object) = self.objects.get(key) else { return Answer::error(404, "NoSuchKey") };
        let all = &object.content;
        let said = |answer: Answer| {
            answer
                .with("ETag", format!("\"g{}\"", object.generation))
                .with("x-goog-generation", object.generation)
                .with("Last-Modified", "Tue, 24 Nov 2026 00:00:00 GMT")
        };
        let Some(range) = request.header("range") else { return said(Answer::new(200, &all[..])) };
        let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let first: usize = first.parse().unwrap();
        let end = last.parse::<usize>().map_or(all.len(), |last| all.len().min(last + 1));
        if first >= end {
            return Answer::error(416, "InvalidRange");
        }
        let range = format!("bytes {first}-{}/{}", end - 1, all.len());
        said(Answer::new(206, &all[first..end]).with("Content-Range", range))
    }

    fn list(&self, request: &Request) -> Answer {
        let prefix = request.query("prefix").unwrap_or_default();
        let after = request.query("continuation-token").unwrap_or_default();
        let matching = self.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
        let mut rest = matching.filter(|(key, _)| **key > after).peekable();
        let mut xml = "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>".to_owned();
        if let Some(delimiter) = request.query("delimiter") {
            // Folders are only listed where there are few.
            let inside = rest.filter_map(|(key, _)| key[prefix.len()..].split_once(&delimiter));
            for folder in inside.map(|(folder, _)| folder).collect::<BTreeSet<_>>() {
                let whole = format!("{prefix}{folder}{delimiter}");
                write!(xml, "<CommonPrefixes><Prefix>{whole}</Prefix></CommonPrefixes>").unwrap();
            }
            xml.push_str("</ListBucketResult>");
            return Answer::new(200, xml);
        }
        let mut last = String::new();
        for (key, object) in rest.by_ref().take(PAGE) {
            let (size, generation) = (object.content.len(), object.generation);
            write!(
                xml,
                "<Contents><Key>{key}</Key><Generation>{generation}</Generation><LastModified>2026-11-24T00:00:00.000Z</LastModified><ETag>\"g{generation}\"</ETag><Size>{size}</Size></Contents>"
            )
            .unwrap();
            last.clone_from(key);
        }
        if rest.peek().is_some() {
            write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>").unwrap();
        }
        xml.push_str("</ListBucketResult>");
        Answer::new(200, xml)
    }

    fn begin(&mut self, key: &str) -> Answer {
        self.generation += 1;
        let id = format!("upload/{}+", self.generation);
        self.uploads.insert(id.clone(), (key.to_owned(), BTreeMap::new()));
        Answer::new(
            200,
            format!(
                "<InitiateMultipartUploadResult><Key>{key}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            ),
        )
    }

    fn part(&mut self, request: &Request, key: &str, id: &str) -> Answer {
        let number = request.query("partNumber").and_then(|number| number.parse().ok());
        match (self.uploads.get_mut(id), number) {
            (Some((of, parts)), Some(number)) if of == key => {
                parts.insert(number, request.body.clone());
                Answer::new(200, "").with("ETag", format!("\"p{number}\""))
            }
            _ => Answer::error(404, "NoSuchUpload"),
        }
    }

    /// Joins the named parts in their order; each but the last must have at least 5 MiB.
    fn complete(&mut self, request: &Request, key: &str, id: &str) -> Answer {
        let Some((of, mut parts)) = self.uploads.remove(id) else {
            return Answer::error(404, "NoSuchUpload");
        };
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let named = body.split("<Part>").skip(1).map(|part| {
            let inside = |name: &str| {
                let rest = part.split(&format!("<{name}>")).nth(1).unwrap_or_default();
                rest.split('<').next().unwrap_or_default()
            };
            (inside("PartNumber").parse::<usize>().unwrap_or(0), inside("ETag"))
        });
        let mut content = Vec::new();
        let (mut before, mut is_last) = (0, false);
        for (number, tag) in named {
            let Some(part) = parts.remove(&number).filter(|_| number > before && !is_last) else {
                return Answer::error(400, "InvalidPart");
            };
            if tag.trim_matches('"') != format!("p{number}") {
                return Answer::error(400, "InvalidPart");
            }
            is_last = part.len() < 5 << 20;
            before = number;
            content.extend(part);
        }
        if of != key || before == 0 {
            return Answer::error(400, "InvalidPart");
        }
        let generation = self.write(key, content);
        Answer::new(
            200,
            format!("<CompleteMultipartUploadResult><Key>{key}</Key><ETag>\"g{generation}\"</ETag></CompleteMultipartUploadResult>"),
        )
        .with("x-goog-generation", generation)
    }
}
