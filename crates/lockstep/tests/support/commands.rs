//! Every `zfs` and `zpool` that the program starts, written down by scripts that come first in its PATH.

use super::fixture::Fixture;
use super::lockstep::Lockstep;
use super::pools::path_with_turns;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The scripts and what they have written down.
#[derive(Debug)]
pub struct CommandLog {
    bin: PathBuf,
    log: PathBuf,
}

impl CommandLog {
    /// New scripts; nothing is written down yet.
    #[track_caller]
    pub fn new(fixture: &Fixture) -> CommandLog {
        let bin = fixture.root().join("watched-bin");
        fs::create_dir_all(&bin).unwrap_or_else(|error| panic!("cannot create {bin:?}: {error}"));
        let this = CommandLog { bin, log: fixture.root().join("commands.log") };
        for program in ["zfs", "zpool"] {
            this.write(program);
        }
        this
    }

    /// The program, with these scripts first in its PATH.
    pub fn watching(&self, lockstep: &Lockstep) -> Lockstep {
        let mut path = self.bin.clone().into_os_string();
        path.push(":");
        path.push(path_with_turns());
        lockstep.clone().with_environment("PATH", Path::new(&path))
    }

    /// What was started since the last time this was asked, a line each, as `zfs get …`.
    #[track_caller]
    pub fn take(&self) -> Vec<String> {
        let Ok(text) = fs::read_to_string(&self.log) else { return Vec::new() };
        fs::remove_file(&self.log).expect("one's own file can be removed");
        text.lines().map(str::to_owned).collect()
    }

    /// Puts another `zfs` in the old one's place, as an upgrade does.
    #[track_caller]
    pub fn replace_program(&self) {
        self.write("zfs");
    }

    #[track_caller]
    fn write(&self, program: &str) {
        // What follows its own folder in the PATH is the real one.
        let script = format!(
            "#!/bin/sh\nprintf '%s\\n' \"{program} $*\" >>'{}'\nPATH=${{PATH#*:}}\nexec {program} \"$@\"\n",
            self.log.display()
        );
        let part = self.bin.join(format!("{program}.part"));
        fs::write(&part, script).unwrap_or_else(|error| panic!("cannot write {part:?}: {error}"));
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755))
            .expect("one's own file's mode can be set");
        fs::rename(&part, self.bin.join(program)).expect("a file can be renamed in its directory");
    }
}
