//! An Azure server: Azurite, Microsoft's own emulator, in memory. It checks signatures.

use std::process::Command;

use super::{Started, http};

/// The emulator's publicly known account and key.
pub const ACCOUNT: &str = "devstoreaccount1";
/// See [`ACCOUNT`].
pub const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A server that ends with the test.
pub struct Server {
    started: Started,
    /// Its address, with the account.
    pub endpoint: String,
    port: u16,
}

impl Server {
    /// Starts one, or reports that the test is skipped.
    pub fn start() -> Option<Server> {
        let started =
            Started::start("LOCKSTEP_AZURITE", "azurite-blob", "npm install -g azurite", |port| {
                let port = port.to_string();
                let arguments = ["--blobHost", "127.0.0.1", "--blobPort", &port];
                let more = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck"];
                let more = more.into_iter().chain(["--disableTelemetry"]);
                arguments.into_iter().chain(more).map(str::to_owned).collect()
            })?;
        let port = started.port;
        Some(Server { started, endpoint: format!("http://127.0.0.1:{port}/{ACCOUNT}"), port })
    }

    /// Makes a container.
    pub fn make_container(&self, name: &str) {
        let (path, date) = (format!("/{ACCOUNT}/{name}"), date());
        let signed = format!(
            "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2021-08-06\n/{ACCOUNT}{path}\nrestype:container"
        );
        let headers = format!(
            "x-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\nAuthorization: SharedKey {ACCOUNT}:{}\r\n",
            signature(&signed)
        );
        let path = format!("{path}?restype=container");
        let answer = http::ask(self.port, "PUT", &path, &headers);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}

fn python(program: &str, argument: &str) -> String {
    let output = Command::new("python3").args(["-c", program, argument]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn date() -> String {
    python("import email.utils as e; print(e.formatdate(usegmt=True), end='')", "")
}

fn signature(text: &str) -> String {
    let program = format!(
        "import base64, hmac, sys; key = base64.b64decode('{KEY}'); \
         print(base64.b64encode(hmac.digest(key, sys.argv[1].encode(), 'sha256')).decode(), end='')"
    );
    python(&program, text)
}
