//! An S3 server: moto's. It checks no signatures; conditional writes, parts, versions and object lock work as Amazon's.

use super::Started;
use super::http;

/// A server that ends with the test.
pub struct Server {
    started: Started,
    pub port: u16,
}

impl Server {
    /// Starts one, or reports that the test is skipped.
    pub fn start() -> Option<Server> {
        let started =
            Started::start("LOCKSTEP_MOTO", "moto_server", "pip install 'moto[server]'", |port| {
                ["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned).to_vec()
            })?;
        Some(Server { port: started.port, started })
    }

    /// Makes a bucket, with object lock.
    pub fn make_bucket(&self, name: &str) {
        let header = "x-amz-bucket-object-lock-enabled: true\r\n";
        let answer = self.ask("PUT", &format!("/{name}"), header);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Makes a request with a fake signature, because this server only checks that there is one.
    pub fn ask(&self, method: &str, path: &str, headers: &str) -> String {
        let signed = "Authorization: AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n";
        http::ask(self.port, method, path, &format!("{signed}{headers}"))
    }
}
