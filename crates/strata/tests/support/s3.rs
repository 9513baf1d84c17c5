//! An S3 server for a test: moto's, started on a port of its own, and what a test asks it beside the store's calls.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use strata::store::{CloudOptions, Secret};

/// A server that goes with the test.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// Starts one, or says that the test is skipped: `LOCKSTEP_MOTO`, else `moto_server`, is what starts it.
    pub fn start() -> Option<Server> {
        let program = std::env::var("LOCKSTEP_MOTO").unwrap_or_else(|_| "moto_server".to_string());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let started = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = started else {
            eprintln!(
                "skipped: no S3 server, \"{program}\" isn't there (pip install 'moto[server]')"
            );
            return None;
        };
        let mut server = Server { child, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{program} ended at once: {ended:?}");
            assert!(begun.elapsed() < Duration::from_secs(60), "{program} doesn't come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    /// Makes a bucket, with object lock.
    pub fn bucket(&self, name: &str) -> CloudOptions {
        let header = "x-amz-bucket-object-lock-enabled: true\r\n";
        let answer = self.ask("PUT", &format!("/{name}"), header);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        options(name, self.port)
    }

    /// Makes a request with a signature that is none: this server looks only for one.
    pub fn ask(&self, method: &str, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let signed = "Authorization: AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n";
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n{signed}{headers}Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bucket on a server of this machine.
pub fn options(bucket: &str, port: u16) -> CloudOptions {
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
