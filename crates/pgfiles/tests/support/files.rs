//! The recorded files, found by their kind.

use pgfiles::{ControlFile, WalSegmentSize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Major versions that were recorded.
pub const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

/// One cluster's files: a version's folder, or a folder in it for a special segment size.
pub struct Recording {
    pub major: u32,
    pub folder: PathBuf,
}

impl Recording {
    /// Returns the files whose names have this ending, by the name without it.
    pub fn files(&self, ending: &str) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path());
        files
            .filter_map(|path| {
                let name = path.file_name()?.to_str()?.strip_suffix(ending)?.to_owned();
                Some((name, fs::read(&path).unwrap()))
            })
            .collect()
    }

    pub fn file(&self, name: &str) -> Vec<u8> {
        let path = self.folder.join(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn control(&self) -> ControlFile {
        ControlFile::parse(&self.file("production.pg_control")).unwrap()
    }

    pub fn segment_size(&self) -> WalSegmentSize {
        self.control().wal_segment_size
    }
}

pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// Returns all recordings: three clusters per version.
pub fn recordings() -> Vec<Recording> {
    let folders = ["", "segments-of-1-mib", "segments-of-64-mib"];
    MAJORS
        .into_iter()
        .flat_map(|major| {
            folders.map(|folder| Recording {
                major,
                folder: testdata().join(major.to_string()).join(folder),
            })
        })
        .collect()
}

/// Returns every recorded control file, with `pg_controldata`'s output for it.
pub fn control_files() -> Vec<(String, u32, Vec<u8>, String)> {
    let mut all = Vec::new();
    for recording in recordings() {
        for (name, bytes) in recording.files(".pg_control") {
            let said =
                String::from_utf8(recording.file(&format!("{name}.pg_controldata"))).unwrap();
            all.push((
                format!("{}/{name}", recording.folder.display()),
                recording.major,
                bytes,
                said,
            ));
        }
    }
    assert_eq!(all.len(), MAJORS.len() * (7 + 2), "a recording is missing or not looked at");
    all
}
