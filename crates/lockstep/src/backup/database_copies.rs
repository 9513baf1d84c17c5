//! Checks that no database is lost to a copy that recovery of the set replays: see [`copies`].
//!
//! What could go wrong: too little WAL is read. On a primary it is read to the end of the set, on a standby as far as
//! it had replayed after the last snapshot of data; if nobody can be asked, as far as there is any. A snapshot of one
//! transaction group of a primary, and a cluster that was shut down, are what a crash or a stop leaves: they have no
//! such window.

use pgfiles::lsn::Lsn;
use pgfiles::wal_name::WalSegment;

use super::attempt::Attempt;
use crate::error::Result;
use crate::plan::strategy::Strategy;
use crate::plan::warnings;
use crate::postgres::copies::{self, Removals};
use crate::postgres::{connection, session, wal, wal_run};
use crate::refusal::Refusal;

impl Attempt<'_> {
    /// Asks the server, after the last snapshot of data, what only it knows.
    pub(super) fn note_removals(&mut self) -> Result<()> {
        let is_standby = self.is_standby();
        let Some(client) = self.survey.client.as_mut() else { return Ok(()) };
        if is_standby {
            self.replayed = session::replayed(client)?.0;
        } else {
            let databases = connection::databases_being_removed(client)?;
            session::hear(client)?;
            self.removals = Removals::UnderWay(databases);
        }
        Ok(())
    }

    /// Reads the database copies from the WAL that recovery of the set replays, while that is sure to be there.
    ///
    /// # Errors
    /// [`Refusal::LayoutChanged`] when one may lose something; [`Refusal::WalRecycledBeforeFreeze`] when the WAL was
    /// gone before it was read, [`Refusal::TimelineChanged`], and [`Refusal::WalDamaged`] when it can't be read as far
    /// as the set needs it.
    pub(super) fn check_copies(&mut self) -> Result<()> {
        let is_standby = self.is_standby();
        match self.plan.strategy {
            Strategy::Cold => return Ok(()),
            Strategy::Atomic if !is_standby => return Ok(()),
            _ => {}
        }
        if !self.wal.archived.is_empty() {
            let warning = warnings::unread_wal(&self.wal.archived);
            tracing::warn!("{}: {}", warning.what, warning.hint);
            self.plan.warnings.push(warning);
            return Ok(());
        }
        let identity = self.wal_identity();
        let (start, needed) = self.wal_range()?;
        let everything = Lsn::new(u64::MAX);
        let until = match (is_standby, self.survey.client.is_some()) {
            (true, true) => self.replayed.unwrap_or(everything).max(needed),
            (false, true) => needed,
            (_, false) => everything,
        };
        let removals = if is_standby { &Removals::Recorded } else { &self.removals };
        let folders = [
            self.cx.state.set_directory(&self.set).join("wal"),
            self.cx.cluster.data_directory.join("pg_wal"),
        ];
        let (records, end) = copies::read(&folders, identity, start, until)?;
        if end < needed {
            // Nothing was flushed since the standby switched: its pg_control doesn't name the new timeline yet.
            if is_standby && let Some(to) = wal_run::left_before(&folders[1], identity, needed)? {
                let from = identity.timeline.get();
                return Err(Refusal::TimelineChanged { from, to: to.get() }.into());
            }
            let is_gone = |name: &String| !folders.iter().any(|folder| folder.join(name).exists());
            let segments = wal::segments(identity, end, needed).into_iter();
            let mut names = segments.map(|segment| segment.file_name(identity.segment_size));
            // It was frozen with the others, and gone before it was read here: no slot keeps it. Which of them is
            // removed first depends on the order of the folder (RemoveOldXlogFiles in xlog.c).
            if let Some(gone) = names.find(is_gone) {
                let oldest = wal::oldest(&folders[1], identity.segment_size)?;
                return Err(Refusal::WalRecycledBeforeFreeze { needed: gone, oldest }.into());
            }
            let segment = WalSegment::containing(identity.timeline, end, identity.segment_size);
            let segment = segment.file_name(identity.segment_size);
            let why = format!("recovery reads to {needed}, and no record can be read at {end}");
            return Err(Refusal::WalDamaged { segment, why }.into());
        }
        match copies::lost(&records, removals) {
            None => Ok(()),
            Some(difference) => Err(Refusal::LayoutChanged { difference }.into()),
        }
    }
}
