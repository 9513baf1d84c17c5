//! Users of the operating system, and how a program becomes one.
//!
//! What could go wrong: a program runs with only a user's number, without everything else that makes the user. A
//! server without its supplementary groups can't read files of these groups (Debian's key belongs to `ssl-cert`), and
//! its restore_command then finds no archive, which PostgreSQL takes for the archive's end.

use super::{Credentials, Program};

/// A user, as the system's databases know it (passwd(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// User id and first group's id.
    pub ids: Credentials,
    /// Its home.
    pub home: String,
    /// Its shell.
    pub shell: String,
}

impl User {
    /// Looks up a user by name or number. This asks getent(1), so that users from LDAP and the like are found too;
    /// where there is no such program, passwd(5) is read.
    #[must_use]
    pub fn find(which: &str) -> Option<Self> {
        match Program::new("getent").args(["passwd", which]).run() {
            Ok(out) => Self::parse(out.stdout.trim_end_matches('\n')),
            Err(_) => Self::find_in(&std::fs::read_to_string("/etc/passwd").ok()?, which),
        }
    }

    fn find_in(passwd: &str, which: &str) -> Option<Self> {
        let uid = which.parse().ok();
        let mut all = passwd.lines().filter_map(Self::parse);
        all.find(|user| user.name == which || Some(user.ids.uid) == uid)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?.to_owned();
        let shell = fields.next().unwrap_or_default().to_owned();
        Some(Self { name, ids: Credentials { uid, gid }, home, shell })
    }

    /// Returns what `su` and `runuser` set in the environment.
    pub(super) fn environment(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let shell = if self.shell.is_empty() { "/bin/sh" } else { &self.shell };
        let name = self.name.as_str();
        [("HOME", self.home.as_str()), ("SHELL", shell), ("USER", name), ("LOGNAME", name)]
            .into_iter()
    }
}

/// The variables that differ from user to user.
pub(super) const VARIABLES: [&str; 4] = ["HOME", "SHELL", "USER", "LOGNAME"];

/// Returns the beginning of a command line that runs a program as another user. setpriv(1) becomes that user and then
/// the program, so the process stays the same one. Without unsafe code, the standard library can drop groups but not
/// set them. A number that no user has (a file's owner may be one) has no groups.
pub(super) fn becoming(ids: Credentials, known: Option<&User>) -> [String; 5] {
    let groups = if known.is_some() { "--init-groups" } else { "--clear-groups" };
    let Credentials { uid, gid } = ids;
    [
        "setpriv".to_owned(),
        format!("--reuid={uid}"),
        format!("--regid={gid}"),
        groups.to_owned(),
        "--".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_in_passwd_by_name_and_by_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\n# none\n\npostgres:x:101:104::/var/lib:/bin/sh\n";
        for which in ["postgres", "101"] {
            assert_eq!(User::find_in(passwd, which).unwrap().ids.gid, 104);
        }
        for missing in ["104", "post", "", "# none"] {
            assert_eq!(User::find_in(passwd, missing), None);
        }
    }

    #[test]
    fn a_line_of_passwd_is_a_user() {
        let line = "postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash";
        let user = User::parse(line).unwrap();
        assert_eq!((user.ids.uid, user.ids.gid), (101, 104));
        let all: Vec<_> = user.environment().collect();
        assert_eq!(all[0], ("HOME", "/var/lib/postgresql"));
        assert_eq!(all[1], ("SHELL", "/bin/bash"));
        assert_eq!(all[3], ("LOGNAME", "postgres"));
        assert_eq!(all.iter().map(|(name, _)| *name).collect::<Vec<_>>(), VARIABLES);
        let bare = User::parse("a:x:1:2::/:").unwrap();
        assert_eq!(bare.environment().nth(1), Some(("SHELL", "/bin/sh")));
        for strange in ["", "a:x", "a:x:one:2::/:", "a:x:1:2"] {
            assert_eq!(User::parse(strange), None, "{strange}");
        }
    }

    #[test]
    fn who_becomes_a_user_has_its_groups_and_its_home() {
        assert!(rustix::process::geteuid().is_root(), "run as root: it becomes other users");
        let as_user = |user: &User, program: &str| {
            let out = Program::new(program).args(["-G"]).as_user(Some(user.ids)).run().unwrap();
            let mut words: Vec<_> = out.stdout.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        // Daemon's only group is its own; postgres may read Debian's keys.
        for name in ["daemon", "postgres"] {
            let Some(user) = User::find(name) else { continue };
            let known = Program::new("id").args(["-G", name]).run().unwrap().stdout;
            let mut known: Vec<_> = known.split_whitespace().map(str::to_owned).collect();
            known.sort();
            assert_eq!(as_user(&user, "id"), known, "{name}");
            let out = Program::new("env").as_user(Some(user.ids)).run().unwrap().stdout;
            for (variable, value) in user.environment() {
                assert!(out.lines().any(|line| line == format!("{variable}={value}")), "{out}");
            }
        }
        let nobodys = Credentials { uid: 2_000_000_123, gid: 2_000_000_124 };
        let out = Program::new("id").arg("-G").as_user(Some(nobodys)).run().unwrap().stdout;
        assert_eq!(out.trim(), "2000000124");
        let out = Program::new("env").as_user(Some(nobodys)).run().unwrap().stdout;
        assert!(!out.lines().any(|line| line.starts_with("HOME=")), "{out}");
    }
}
