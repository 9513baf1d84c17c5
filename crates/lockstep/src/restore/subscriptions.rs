//! What a restored cluster's subscriptions don't get again.
//!
//! What could go wrong: the original's server has confirmed to its publishers what it applied after the set, or after
//! the recovery's target. A publisher sends nothing again that was confirmed in the slot (CreateDecodingContext in
//! logical.c goes on from there, whatever the subscriber asks for): the subscriptions of the restored cluster go on
//! without these changes, nothing fails, and no table shows that rows are missing.

use std::path::Path;

use super::{Problem, Request, Restored};

/// How far each subscription has come (CheckPointReplicationOrigin in origin.c): a number, 16 bytes for each, a CRC.
const ORIGINS: &str = "pg_logical/replorigin_checkpoint";
const WITHOUT_ANY: u64 = 8;

/// Returns a problem if the restored cluster's subscriptions are active, and warns if somebody may make them so.
pub(super) fn go_on(request: &Request, restored: &Restored) -> Option<Problem> {
    let may_go_on = request.clone.is_none() && request.recovery.standby.is_none();
    if !may_go_on || !has_origins(&restored.placement.data) {
        return None;
    }
    if !restored.started || restored.holds_subscriptions {
        tracing::warn!(
            "what the cluster's publishers sent to the original after the place where recovery ends isn't sent again: its subscriptions lack it once they are active. Compare the tables with the publishers' then, or fill them anew"
        );
        return None;
    }
    Some(Problem {
        what: "the cluster's subscriptions go on, and what their publishers sent to the original after the place where recovery ended isn't sent again".into(),
        hint: "compare the tables with the publishers', or fill them anew: DROP SUBSCRIPTION, TRUNCATE the tables, CREATE SUBSCRIPTION".into(),
    })
}

/// Whether it has replayed changes of a publisher, according to its last checkpoint.
fn has_origins(data: &Path) -> bool {
    let found = data.join(ORIGINS).symlink_metadata();
    found.is_ok_and(|found| found.is_file() && found.len() > WITHOUT_ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_is_known_by_its_origins() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path();
        assert!(!has_origins(data), "max_replication_slots = 0 leaves no such file");
        std::fs::create_dir(data.join("pg_logical")).unwrap();
        for (length, has) in [(8, false), (24, true), (40, true)] {
            std::fs::write(data.join(ORIGINS), vec![0_u8; length]).unwrap();
            assert_eq!(has_origins(data), has, "{length}");
        }
    }
}
