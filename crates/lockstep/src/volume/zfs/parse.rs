//! Parses the output of `zfs -H`. Errors quote verbatim what isn't understood.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::suspended::Listed;
use super::{DatasetName, Made, Properties, Tagged};
use crate::error::{Error, Result};

/// Parses `zfs get -Hp -o name,property,value`, asked for certain properties: three columns between tabs. `-` means
/// "not set".
pub(super) fn properties(text: &str, is_asked: impl Fn(&str) -> bool) -> Result<Properties> {
    let mut all = Properties::new();
    let mut last: Option<(&str, &str)> = None;
    for line in text.split_terminator('\n') {
        let mut columns = line.splitn(3, '\t');
        if let (Some(name), Some(property), Some(value)) =
            (columns.next(), columns.next(), columns.next())
            && is_asked(property)
        {
            all.entry(name.to_owned()).or_default().insert(property.to_owned(), value.to_owned());
            last = Some((name, property));
            continue;
        }
        // A mount point may contain line ends.
        let Some((name, "mountpoint")) = last else {
            return Err(not_understood("zfs get", line));
        };
        if let Some(value) = all.get_mut(name).and_then(|of| of.get_mut("mountpoint")) {
            value.push('\n');
            value.push_str(line);
        }
    }
    Ok(all)
}

/// Parses `zfs get -H -o name,property,value,source`: the value and its source, by name and property. `local` means
/// that it was set there, `received` that it came with a stream.
pub(super) fn sourced(text: &str) -> Result<BTreeMap<(String, String), (String, String)>> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let [name, property, value, source] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(not_understood("zfs get", line));
        };
        let found = (value.to_owned(), source.to_owned());
        all.insert((name.to_owned(), property.to_owned()), found);
    }
    Ok(all)
}

/// The columns for [`tagged`].
pub(super) const TAGGED_COLUMNS: &str = "name,lockstep:owner,lockstep:set,lockstep:state";

/// Parses `zfs list -H -o` [`TAGGED_COLUMNS`]: the snapshots that Lockstep took.
pub(super) fn tagged(text: &str) -> Result<Vec<Tagged>> {
    let mut tagged = Vec::new();
    for line in text.lines() {
        let [name, owner, set, state] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(not_understood("zfs list", line));
        };
        // User properties are inherited: a snapshot of a clone may show its dataset's.
        let Some((dataset, snapshot)) = name.split_once('@') else { continue };
        if set == "-" || snapshot != format!("lockstep-{set}") {
            continue;
        }
        tagged.push(Tagged {
            snapshot: self::dataset(dataset)?.snapshot(snapshot),
            owner: owner.to_owned(),
            set: set.to_owned(),
            state: state.to_owned(),
        });
    }
    Ok(tagged)
}

/// The columns for [`made`].
pub(super) const MADE_COLUMNS: &str = "name,origin,lockstep:restore,lockstep:owner";

/// Parses `zfs list -H -o` [`MADE_COLUMNS`]: the datasets that show a restore's mark, their own or inherited.
pub(super) fn made(text: &str) -> Result<Vec<Made>> {
    let mut all = Vec::new();
    for line in text.lines() {
        let [name, origin, restore, owner] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(not_understood("zfs list", line));
        };
        if restore == "-" {
            continue;
        }
        let origin = origin
            .split_once('@')
            .map(|(of, name)| dataset(of).map(|of| of.snapshot(name)))
            .transpose()?;
        let (restore, owner) = (restore.to_owned(), owner.to_owned());
        all.push(Made { dataset: dataset(name)?, origin, restore, owner });
    }
    Ok(all)
}

/// Parses `zfs list -H -o name,origin`: the clones, each with its origin.
pub(super) fn clones(text: &str) -> Result<Vec<(&str, &str)>> {
    let columns =
        |line| str::split_once(line, '\t').ok_or_else(|| not_understood("zfs list", line));
    let all: Vec<_> = text.lines().map(columns).collect::<Result<_>>()?;
    Ok(all.into_iter().filter(|(_, origin)| *origin != "-").collect())
}

/// Parses `zfs list -H -o name,mountpoint,canmount`: the datasets that ZFS mounts by itself, and where. A dataset
/// whose name Lockstep can't use isn't part of any cluster.
pub(super) fn places(text: &str) -> Result<Vec<(DatasetName, PathBuf)>> {
    const CANMOUNT: [&str; 4] = ["on", "off", "noauto", "-"];
    let mut all = Vec::new();
    let mut rest = text;
    // A mount point may contain line ends and tabs; a name contains none.
    while !rest.is_empty() {
        let ends = rest.match_indices('\n').map(|(at, _)| at).chain([rest.len()]);
        let mut whole = ends.filter_map(|end| {
            let (name, behind) = rest.get(..end)?.split_once('\t')?;
            let (point, canmount) = behind.rsplit_once('\t')?;
            CANMOUNT.contains(&canmount).then_some((name, point, canmount, end))
        });
        let Some((name, point, canmount, end)) = whole.next() else {
            return Err(not_understood("zfs list", rest));
        };
        if canmount == "on"
            && point.starts_with('/')
            && let Ok(name) = DatasetName::new(name)
        {
            all.push((name, point.into()));
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Ok(all)
}

/// Parses `zfs list -H -o name`: the dataset and the name of each snapshot.
pub(super) fn snapshots(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once('@'))
}

/// Parses `zpool get -H feature@NAME`: whether the pool has the feature.
pub(super) fn has_feature(text: &str) -> bool {
    text.split('\t').any(|word| ["enabled", "active"].contains(&word))
}

/// Parses `zpool list -H -o name,health,guid,failmode`.
pub(super) fn pools(text: &str) -> Listed {
    let mut listed = Listed::default();
    for line in text.lines() {
        let mut columns = line.split('\t');
        let (Some(name), health) = (columns.next(), columns.next()) else { continue };
        let is_suspended = health == Some("SUSPENDED");
        if is_suspended {
            listed.suspended.insert(name.to_owned());
        }
        let guid = columns.next().and_then(|guid| guid.parse().ok());
        listed.guids.extend(guid.map(|guid| (name.to_owned(), guid)));
        if !is_suspended && columns.next() == Some("continue") {
            listed.continuing.insert(name.to_owned());
        }
    }
    listed
}

/// Returns what `zpool status` says of blocks that can't be read back, if there are any (`print_error_log` and
/// `status_callback` in zpool_main.c).
pub(super) fn data_errors(text: &str) -> Option<&str> {
    let said = text.lines().find_map(|line| line.trim_start().strip_prefix("errors: "))?;
    (!said.starts_with("No known data errors")).then_some(said)
}

/// The option letters of `zfs send`, from the usage that it or `zfs` prints without arguments.
pub(super) fn send_flags(usage: &str) -> Option<&str> {
    let line = usage.lines().find(|line| line.contains("send [-"))?;
    line.split("[-").nth(1)?.split(']').next()
}

/// A dataset's name as printed.
pub(super) fn dataset(text: &str) -> Result<DatasetName> {
    DatasetName::new(text).map_err(Error::failed)
}

/// Parses a number printed with `-p`.
pub(super) fn number(text: &str, what: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::failed(format!("\"zfs get\" says {text:?} for {what}")))
}

fn not_understood(command: &str, line: &str) -> Error {
    Error::failed(format!("cannot read this line of \"{command}\": {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabs_separate_and_blanks_do_not() {
        let text = "t/n:e.s t@x\tlockstep:label\tnight ly\nt\tguid\t17\n";
        let all = properties(text, |_| true).unwrap();
        assert_eq!(all["t/n:e.s t@x"]["lockstep:label"], "night ly");
        assert_eq!(number(&all["t"]["guid"], "guid").unwrap(), 17);
    }

    #[test]
    fn a_mount_point_may_have_line_ends_and_tabs() {
        let text = "t/a\tatime\toff\nt/a\tmountpoint\t/s\nx\ty\tz\n\nt/b\tatime\ton\nt/b\tmountpoint\t/t\n";
        let is_asked = |property: &str| ["atime", "mountpoint"].contains(&property);
        let all = properties(text, is_asked).unwrap();
        assert_eq!(all["t/a"]["mountpoint"], "/s\nx\ty\tz\n");
        assert_eq!((&*all["t/b"]["mountpoint"], &*all["t/b"]["atime"]), ("/t", "on"));
        assert!(properties("t/a\tatime\toff\nx\n", is_asked).is_err());
    }

    #[test]
    fn what_a_pool_has_lost_is_told() {
        // The same with zfs-fuse 0.7.0 and OpenZFS.
        let of = |errors| {
            format!("  pool: t\n state: ONLINE\nconfig:\n\n\tNAME  STATE\n\nerrors: {errors}\n")
        };
        assert_eq!(data_errors(&of("No known data errors")), None);
        let said = "1 data errors, use '-v' for a list";
        assert_eq!(data_errors(&of(said)), Some(said));
    }

    #[test]
    fn what_was_received_is_told_from_what_was_set() {
        // The same with zfs-fuse 0.7.0 and OpenZFS.
        let text = "t/d@s\tlockstep:owner\tme\tlocal\nu/c d@s\tlockstep:owner\tme\treceived\n";
        let all = sourced(text).unwrap();
        let of = |name: &str| all[&(name.to_owned(), "lockstep:owner".to_owned())].1.clone();
        assert_eq!((of("t/d@s"), of("u/c d@s")), ("local".into(), "received".into()));
        assert!(sourced("t/d@s\tlockstep:owner\tme").is_err());
    }

    #[test]
    fn what_a_restore_made_says_of_what_it_is_a_clone() {
        let text = "t\t-\t-\t-\nt/c\tt/a b@s\tclone-dev\tme\nt/r\t-\trestore-1\tme\n";
        let all = made(text).unwrap();
        let origins: Vec<_> = all.iter().map(|made| made.origin.as_ref()).collect();
        assert_eq!(origins, [Some(&DatasetName::new("t/a b").unwrap().snapshot("s")), None]);
        assert_eq!((all[0].restore.as_str(), all[1].owner.as_str()), ("clone-dev", "me"));
        assert!(made("t\t-\t-").is_err());
    }

    #[test]
    fn places_are_those_that_zfs_mounts() {
        // The same with zfs-fuse 0.7.0 and OpenZFS.
        let text = "t\tnone\ton\nt/a b\t/srv/a b\ton\nt/c\t/srv/c\tnoauto\nt/l\tlegacy\ton\n";
        let all = places(text).unwrap();
        assert_eq!(all, [(DatasetName::new("t/a b").unwrap(), PathBuf::from("/srv/a b"))]);
        assert!(places("t\t/srv").is_err() && places("t\t/srv\ton\nu\t/x").is_err());
        let odd = places("t\tnone\ton\nt/b\t/a\nb\tc\ton\nt/d\t/d\ton\n").unwrap();
        let points: Vec<_> = odd.iter().map(|(_, point)| point.to_str().unwrap()).collect();
        assert_eq!(points, ["/a\nb\tc", "/d"]);
    }

    #[test]
    fn what_is_not_understood_is_shown() {
        let error = properties("cannot open 'x': strange", |_| true).unwrap_err();
        assert!(error.to_string().contains("strange"));
        assert!(number("12K", "used").unwrap_err().to_string().contains("12K"));
    }
}
