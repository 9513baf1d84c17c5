//! Logs every `zfs` and `zpool` that the program starts, through scripts that come first in its PATH.

use super::fixture::Fixture;
use super::lockstep::Lockstep;
use super::pools::path_with_turns;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The scripts and their log.
#[derive(Debug)]
pub struct CommandLog {
    bin: PathBuf,
    log: PathBuf,
}

impl CommandLog {
    /// New scripts with an empty log.
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
        with_first(&self.bin, lockstep)
    }

    /// What was started since the last call, one line each, such as `zfs get …`.
    #[track_caller]
    pub fn take(&self) -> Vec<String> {
        let Ok(text) = fs::read_to_string(&self.log) else { return Vec::new() };
        fs::remove_file(&self.log).expect("one's own file can be removed");
        text.lines().map(str::to_owned).collect()
    }

    /// Replaces `zfs`, as an upgrade does.
    #[track_caller]
    pub fn replace_program(&self) {
        self.write("zfs");
    }

    #[track_caller]
    fn write(&self, program: &str) {
        // The next one in the PATH after its own folder is the real one.
        let script = format!(
            "#!/bin/sh\nprintf '%s\\n' \"{program} $*\" >>'{}'\nPATH=${{PATH#*:}}\nexec {program} \"$@\"\n",
            self.log.display()
        );
        put_script(&self.bin, program, &script);
    }
}

/// The program, with a `zfs` that fails for one subcommand and otherwise is the real one.
#[track_caller]
pub fn without_zfs(fixture: &Fixture, lockstep: &Lockstep, subcommand: &str) -> Lockstep {
    let bin = fixture.root().join(format!("without-{subcommand}"));
    fs::create_dir_all(&bin).unwrap_or_else(|error| panic!("cannot create {bin:?}: {error}"));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" != {subcommand} ] || {{ echo 'no {subcommand} today' >&2; exit 1; }}\nPATH=${{PATH#*:}}\nexec zfs \"$@\"\n"
    );
    put_script(&bin, "zfs", &script);
    with_first(&bin, lockstep)
}

/// The program, with a `zfs` that answers some commands itself (branches of `case "$*"`) and passes the others to the
/// real one.
#[track_caller]
pub fn pretending(fixture: &Fixture, lockstep: &Lockstep, name: &str, cases: &str) -> Lockstep {
    let bin = fixture.root().join(name);
    fs::create_dir_all(&bin).unwrap_or_else(|error| panic!("cannot create {bin:?}: {error}"));
    let script = format!(
        "#!/bin/sh\nPATH=${{PATH#*:}}\ncase \"$*\" in\n{cases}\n*) exec zfs \"$@\";;\nesac\n"
    );
    put_script(&bin, "zfs", &script);
    with_first(&bin, lockstep)
}

/// The program, with a `zfs` and a `zpool` that say of one pool what they say if its disks are gone.
#[track_caller]
pub fn suspending(fixture: &Fixture, lockstep: &Lockstep, pool: &str) -> Lockstep {
    let lockstep = unhealthy(fixture, lockstep, pool);
    suspend(&fixture.root().join("unhealthy"), pool);
    lockstep
}

/// The same of a pool with `failmode=continue`: `zpool list` of OpenZFS before 2.2 doesn't call it suspended.
#[track_caller]
pub fn continuing(fixture: &Fixture, lockstep: &Lockstep, pool: &str) -> Lockstep {
    let bin = fixture.root().join("continuing");
    let line = format!("/^{pool}\\t/s/[^\\t]*$/continue/");
    let lockstep = listing(&bin, lockstep, &line);
    suspend(&bin, pool);
    lockstep
}

/// Puts a `zfs` into a folder that says of one pool what it says if it is suspended.
#[track_caller]
fn suspend(bin: &Path, pool: &str) {
    let cases = format!(
        "*' {pool}'|*' {pool} '*|*' {pool}/'*|*' {pool}@'*)\n  for last; do :; done\n  \
         echo \"cannot open '$last': pool I/O is currently suspended\" >&2\n  exit 1;;"
    );
    let script = format!(
        "#!/bin/sh\nPATH=${{PATH#*:}}\ncase \" $*\" in\n{cases}\n*) exec zfs \"$@\";;\nesac\n"
    );
    put_script(bin, "zfs", &script);
}

/// The same as [`suspending`], but only `zpool list` says it.
#[track_caller]
pub fn unhealthy(fixture: &Fixture, lockstep: &Lockstep, pool: &str) -> Lockstep {
    let line = format!("s/^{pool}\\t[^\\t]*/{pool}\\tSUSPENDED/");
    listing(&fixture.root().join("unhealthy"), lockstep, &line)
}

/// The program, with a `zpool` whose list of pools goes through `sed`.
#[track_caller]
fn listing(bin: &Path, lockstep: &Lockstep, line: &str) -> Lockstep {
    fs::create_dir_all(bin).unwrap_or_else(|error| panic!("cannot create {bin:?}: {error}"));
    let script = format!(
        "#!/bin/sh\nPATH=${{PATH#*:}}\nzpool \"$@\" | case \"$*\" in\n\
         'list -H -o name,health,guid,failmode') sed '{line}';;\n*) cat;;\nesac\n"
    );
    put_script(bin, "zpool", &script);
    with_first(bin, lockstep)
}

fn with_first(bin: &Path, lockstep: &Lockstep) -> Lockstep {
    let mut path = bin.to_owned().into_os_string();
    path.push(":");
    path.push(path_with_turns());
    lockstep.clone().with_environment("PATH", Path::new(&path))
}

#[track_caller]
fn put_script(bin: &Path, program: &str, script: &str) {
    let part = bin.join(format!("{program}.part"));
    fs::write(&part, script).unwrap_or_else(|error| panic!("cannot write {part:?}: {error}"));
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))
        .expect("one's own file's mode can be set");
    fs::rename(&part, bin.join(program)).expect("a file can be renamed in its directory");
}
