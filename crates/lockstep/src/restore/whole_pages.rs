//! Checks whether the replayed WAL brings whole pages where a restore of a part has holes, and handles WAL that
//! doesn't.
//!
//! With full_page_writes, the first change to a page after a checkpoint brings the whole page. The exception is the
//! bit that VACUUM sets on a page: without data checksums and wal_log_hints, that page isn't in the WAL
//! (log_heap_visible in heapam.c). With full_page_writes off, no change brings it. Then a change to a hole finds no
//! page, and recovery would end with "WAL contains references to invalid pages", after everything was fetched. So it
//! is told to continue.
//!
//! What could go wrong: it continues where a page is missing from what *is* restored. So the server's messages are
//! checked afterwards: pages may only have been missing in files of other databases.

use pgfiles::control_file::ControlFile;

use super::build::Build;
use super::only::{Global, Only};
use super::source::Source;
use crate::error::{Error, Result};
use crate::postgres::invalid_pages::IGNORE;
use crate::postgres::server::Server;
use crate::postgres::target::{Action, Recovery, Target};
use crate::repository::{Repository, Shipped, check_command};

/// pg_control has 8 KiB.
const MOST_OF_CONTROL: u64 = 64 << 10;

/// Warns about the consequences of WAL without whole pages; `starts`: Lockstep starts the server.
pub(super) fn check(
    repository: &Repository,
    shipped: &Shipped,
    recovery: &Recovery,
    starts: bool,
) -> Result<()> {
    let mut global = Global::open(repository, shipped)?;
    let bytes = global.read("pg_control", MOST_OF_CONTROL)?;
    let control = ControlFile::parse(&bytes)
        .map_err(|e| global.strange("pg_control", "pg_control").because(e))?;
    let set = &shipped.manifest.set;
    let full_page_writes = control.checkpoint_copy.full_page_writes;
    let goes_on = recovery.restore_command.is_some() && recovery.target != Target::Immediate;
    if !full_page_writes && goes_on {
        tracing::warn!(
            %set,
            "full_page_writes was off: each change to what isn't restored, in WAL from --restore-command, adds lines to the server's log, which may become larger than that WAL"
        );
    }
    let is_whole =
        full_page_writes && (control.data_checksum_version != 0 || control.wal_log_hints);
    if !is_whole && (!starts || recovery.action == Action::Shutdown) {
        tracing::warn!(
            %set,
            "data checksums and wal_log_hints were off, or full_page_writes was: recovery may end at a change to what isn't restored. Restore with --start, or start it the first time with `pg_ctl -o '-c {IGNORE}=on' start`"
        );
    }
    Ok(())
}

/// Fails if pages were missing from what is restored.
pub(super) fn verify(build: &Build, server: &Server) -> Result<()> {
    match &build.source {
        Source::Repository(from) => missed(&from.only, server.invalid_pages()),
        Source::Snapshots => Ok(()),
    }
}

fn missed<'a>(only: &Only, mut folders: impl Iterator<Item = &'a str>) -> Result<()> {
    match folders.find(|folder| !only.leaves_out(folder)) {
        None => Ok(()),
        Some(folder) => Err(Error::failed(format!(
            "recovery found changes to pages in \"{folder}\" that don't exist, although these files are restored"
        ))
        .with_hint(format!(
            "the set's files and the WAL don't belong together: does restore_command deliver another cluster's? {} looks at the set; or restore another one",
            check_command()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_may_be_missing_in_files_that_are_not_restored_alone() {
        let only = Only::of(Some(&[1, 5, 16_384]), Some(&[16_501]));
        let missed = |folder: &str| missed(&only, [folder].into_iter());
        for folder in [
            "base/16385",
            "pg_tblspc/16501/PG_17_202406281/16384",
            "pg_tblspc/16500/PG_17_1/9999999",
        ] {
            assert!(missed(folder).is_ok(), "{folder}");
        }
        for folder in [
            "base/16384",
            "base/4",
            "global",
            "pg_tblspc/16500/PG_17_1/16384",
            // An in-place tablespace, which no set knows.
            "pg_tblspc/16502/PG_17_1/16384",
            "base/x",
        ] {
            let error = missed(folder).unwrap_err();
            assert!(error.exit_code() == 1 && error.to_string().contains(folder), "{error}");
        }
        let everything = Only::of(None, None);
        assert!(super::missed(&everything, ["base/16385"].into_iter()).is_err());
    }
}
