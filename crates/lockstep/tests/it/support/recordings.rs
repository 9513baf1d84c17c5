//! The recorded send streams of `crates/sendstream/testdata`, for tests inside and outside of the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The recordings, unpacked for as long as a test runs.
pub struct Recordings(pub PathBuf);

impl Recordings {
    pub fn unpack(test: &str) -> Recordings {
        let name = format!("lockstep-recorded-streams-{}-{test}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let archive = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../sendstream/testdata/streams/streams.tar.zst");
        let mut unpack = Command::new("tar");
        unpack.args(["-I", "zstd --long=27", "-C"]).arg(&folder).arg("-xf").arg(archive);
        assert!(unpack.status().unwrap().success(), "tar and zstd are needed");
        Recordings(folder)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A full stream and four increments.
    pub fn chain(&self, dataset: &str, flags: &str) -> Vec<Vec<u8>> {
        let full = format!("{dataset}.{flags}.s0");
        let steps = (0..4).map(|step| format!("{dataset}.{flags}.s{step}-s{}", step + 1));
        std::iter::once(full).chain(steps).map(|name| self.read(&name)).collect()
    }
}

impl Drop for Recordings {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
