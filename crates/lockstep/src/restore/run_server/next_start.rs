//! A file that is in the way of recovery, and that the next start of recovery removes.

use std::path::{Component, Path};

use crate::postgres::server::Server;

/// Whether recovery reached its end and found a file of an unlogged relation in the way that its next start removes.
/// `has_met`: this happened before; it is accepted only once.
///
/// A relation is unlogged if it has an init fork. If an index of an unlogged table was being built at the snapshot,
/// the snapshot has its main fork but no init fork: the WAL brings that. PostgreSQL removes the main forks of
/// unlogged relations when recovery begins, and copies their init forks to them when it ends (ResetUnloggedRelations
/// in reinit.c). The copy comes before recovery is marked as ended, so the next start does everything again, this
/// time with the init fork present from the beginning.
pub(super) fn needs_its_next_start(data: &Path, server: &Server, has_met: &mut bool) -> bool {
    let Some(file) = server.said().iter().rev().find_map(|line| main_fork_in_the_way(line)) else {
        return false;
    };
    let mut init_fork = data.join(file).into_os_string();
    init_fork.push("_init");
    if *has_met || !Path::new(&init_fork).exists() {
        return false;
    }
    tracing::info!(
        "\"{file}\", of an unlogged relation that was being made when the set was taken, was in the way at the end of recovery: the next start removes it"
    );
    *has_met = true;
    true
}

/// Returns the file in `… FATAL:  could not create file "base/5/16391": File exists` (copy_file in copydir.c).
fn main_fork_in_the_way(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("FATAL:  could not create file \"")?;
    let file = rest.strip_suffix("\": File exists")?;
    let is_relative = Path::new(file).components().all(|step| matches!(step, Component::Normal(_)));
    is_relative.then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_fork_in_the_way_is_read_from_the_log() {
        let file = |rest: &str| main_fork_in_the_way(&format!("t [7] {rest}")).map(str::to_owned);
        let found = file("FATAL:  could not create file \"base/5/16391\": File exists");
        assert_eq!(found.as_deref(), Some("base/5/16391"));
        for other in [
            "FATAL:  could not create file \"base/5/16391\": No space left on device",
            "FATAL:  could not create file \"/srv/x\": File exists",
            "FATAL:  could not create file \"base/../../x\": File exists",
            "LOG:  could not create file \"base/5/16391\": File exists",
        ] {
            assert_eq!(file(other), None, "{other}");
        }
    }
}
