//! Stores for tests, each on its own port: other people's servers for S3's and Azure's protocols, our own for Google's,
//! and a proxy that spoils a server's answers.
#![allow(dead_code, reason = "each test takes what it needs")]

pub mod azure;
pub mod gcs;
pub mod http;
pub mod s3;
pub mod spoiled;

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server in its own process that ends with the test.
pub struct Started {
    child: Child,
    pub port: u16,
}

impl Started {
    /// Starts the program that the variable names, otherwise the one with this name. If neither exists, the test is
    /// skipped with a message, unless LOCKSTEP_ALL is set. A program that the variable names must exist.
    pub fn start(
        variable: &str,
        program: &str,
        install: &str,
        arguments: impl Fn(u16) -> Vec<String>,
    ) -> Option<Started> {
        let named = std::env::var(variable).ok();
        let program = named.as_deref().unwrap_or(program);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let started = Command::new(program)
            .args(arguments(port))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match started {
            Ok(child) => child,
            Err(error) if named.is_some() => panic!("{variable}: cannot start {program}: {error}"),
            Err(_) => {
                let all = std::env::var_os("LOCKSTEP_ALL").is_some();
                assert!(!all, "LOCKSTEP_ALL: there is no \"{program}\" ({install})");
                eprintln!("SKIPPED: there is no \"{program}\" ({install})");
                return None;
            }
        };
        let mut server = Started { child, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "{program} ended at once: {ended:?}");
            assert!(begun.elapsed() < Duration::from_secs(60), "{program} doesn't come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
