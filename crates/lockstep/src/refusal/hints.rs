//! What somebody can do about each refusal. Commands are whole, so that they can be copied, and none of them destroys
//! anything that may still be needed without saying so.

use super::Refusal;
use crate::context::lockstep;
use crate::process::quote;

impl Refusal {
    /// Returns what the reader can do.
    #[must_use]
    pub fn hint(&self) -> String {
        let lockstep = lockstep();
        match self {
            Self::NotSnapshottable { .. } => "move it to a ZFS dataset, or back up a standby that lies on ZFS".into(),
            Self::HiddenMount { .. } => "look at `findmnt -A` for what hides the dataset; unmount it, or start lockstep where PostgreSQL's files are seen as PostgreSQL sees them".into(),
            Self::NotMounted { dataset, .. } => {
                let name = quote(dataset);
                format!("stop the server. What it has written since it runs here is in that folder and not in the dataset: if the folder is empty, or an old copy in which nothing was written, `zfs mount {name}` (its key may have to be loaded before), and start the server again. Else keep a copy of the folder before anything is mounted over it: a tablespace or pg_wal of before and a data directory of now are a mixture, which may start without an error and be wrong. If the folder below is the one you want: `zfs set canmount=noauto {name}`")
            }
            Self::NoVersionFolder { .. } => "is its dataset mounted, and its pool imported (`zpool import`)? Stop the server, mount it, and start the server again; if the tablespace is lost: DROP TABLESPACE".into(),
            Self::NestedMount { .. } => "unmount it, or make its files part of the dataset around it".into(),
            Self::NestedNotMounted { dataset, .. } => format!("make its files part of the dataset around it; if it is only a copy, or nobody needs it there: `zfs set canmount=noauto {}`", quote(dataset)),
            Self::SeenElsewhere { pid, .. } => format!("`findmnt --task {pid}` lists what is mounted for the server (a container's volumes, a unit's BindPaths=). Let the path lead to the same folder here: a link or a mount of this host may still lead to an older copy"),
            Self::StrayLink { .. } => "stop the server and replace the link with what it points to; data that has to be elsewhere can be a tablespace: PostgreSQL itself makes links only for tablespaces and pg_wal".into(),
            Self::NoStrategy { .. } => "configure host and user so that Lockstep can connect: strategy label works on every layout".into(),
            Self::NotPossible { needed, .. } | Self::Unsettled { needed, .. } | Self::Mirror { needed, .. } => needed.clone(),
            Self::NoSpace { .. } => "free space in the pool, or lower min_free_mib in the configuration; a full pool makes PostgreSQL PANIC".into(),
            Self::NameTooLong { dataset, .. } => format!("stop the server, and look at `zfs get mountpoint {0}`: one that is inherited moves with the name, so set it to where it is now (`zfs set mountpoint=… {0}`); then `zfs rename` the dataset to a shorter name. If one above it is renamed instead, that goes for each one below", quote(dataset)),
            Self::Reserved { dataset, .. } => format!("free space in the pool, or do without: `zfs set refreservation=none {}`", quote(dataset)),
            Self::WrongServer { .. } => "check data_directory, host and port of this cluster in the configuration".into(),
            Self::OtherServer { .. } => "host leads to another server of this cluster (an address that moves, a proxy): set host to this server's own socket folder or to localhost".into(),
            Self::LayoutChanged { .. } => "run the backup when no tablespace or database is being created, dropped or moved; after such a change, a backup of a standby needs a checkpoint on the primary (CHECKPOINT there) and then a restartpoint here".into(),
            Self::ByPostgres { advice, .. } => advice.clone().unwrap_or_else(|| "take the backup again once the reason is gone".into()),
            Self::Promoted { .. } => "take the backup again: it is a primary now".into(),
            Self::TimelineChanged { .. } => "take the backup again after a checkpoint on the new timeline (CHECKPOINT makes one; on a standby, a restartpoint)".into(),
            Self::NeedsArchive { .. } => "say with --restore-command how to fetch it".into(),
            Self::WalRecycledBeforeFreeze { .. } => "allow a replication slot (max_replication_slots, REPLICATION for the user) and let it keep the WAL of a backup (max_slot_wal_keep_size, idle_replication_slot_timeout), or raise wal_keep_size".into(),
            Self::WalEndsEarly { .. } => "take another set, with strategy label where a connection is possible; this one is whole only where an archive has that segment".into(),
            Self::WalDamaged { .. } => "is pg_wal written by anything but PostgreSQL? look at the file with pg_waldump".into(),
            Self::NotOneTransactionGroup { .. } => "is something else taking snapshots with the same name? use strategy label".into(),
            Self::SnapshotMissing { set, snapshot, now: Some(now), repositories } => {
                let elsewhere = elsewhere(set, repositories).map_or_else(String::new, |way| format!("; {way}"));
                format!("it is \"{now}\" now: the set is good, and can be used once that is \"{snapshot}\" again; `{lockstep} check` says how{elsewhere}")
            }
            Self::SnapshotMissing { set, repositories, .. } => format!("{}; was it destroyed by hand? To be rid of this set here: {lockstep} prune --local --set {set}", instead(set, repositories)),
            Self::PoolAway { set, pool, repositories, why, .. } => {
                let elsewhere = elsewhere(set, repositories).map_or_else(String::new, |way| format!("; {way}"));
                format!("`{}`, and the set is whole again{elsewhere}; if the pool is gone for good, `{lockstep} prune --local --set {set}` gives the set up", why.command(pool))
            }
            Self::PoolSuspended { pool, .. } => format!("`zpool status {}` says which disks are gone; once they are back: `zpool clear {}`", quote(pool), quote(pool)),
            Self::SnapshotSwapped { set, repositories, .. } => format!("{}; a snapshot was renamed or taken again under this name. To be rid of this set here: {lockstep} prune --local --set {set}", instead(set, repositories)),
            Self::SetDamaged { set, repositories, .. } => instead(set, repositories),
            Self::LatestUnknown { set, found, repository, .. } => format!("name the set: the latest of those that can be read is {found}. {}", crate::set::unread::ways_out(set, repository.as_deref())),
            Self::MinimalWal { .. } => "leave that out; to recover further, set wal_level = replica, restart the server, and take a new backup".into(),
            Self::TargetBeforeConsistency { .. } => format!("take an older set (`{lockstep} list`) or a later target"),
            Self::StoredRaw { .. } => "restore all of the set with --as zfs --dataset POOL/PATH, and load the key there".into(),
            Self::PoolLacksFeature { pool, lacking } => {
                let commands: Vec<_> = lacking.iter().map(|name| format!("`zpool set feature@{name}=enabled {}`", quote(pool))).collect();
                format!("{}; or restore into another pool, or --as files. Nothing was changed", commands.join(", "))
            }
            Self::KeysNotLoaded { datasets } => {
                let commands: Vec<_> = datasets.iter().map(|name| format!("`zfs load-key {}`", quote(name))).collect();
                format!("{}, then run the same command with --delta: nothing is received twice", commands.join(", "))
            }
            Self::KeysAway { roots, .. } => {
                let commands: Vec<_> = roots.iter().map(|name| format!("`zfs load-key {}`", quote(name))).collect();
                format!("{}, then run the same command again: nothing was changed", commands.join(", "))
            }
            Self::NewerBookmark { bookmark, .. } => format!("destroy it if nothing needs it (`zfs destroy {}`), or restore to another --dataset and --to: nothing was changed", quote(bookmark)),
            Self::KeyChanged { .. } => "restore to another --dataset and --to, and leave the copy's key as it is: it has the original's; nothing was changed".into(),
            Self::SetOtherwise { commands, .. } => format!("{commands}, then run the same command again: nothing was changed"),
            Self::ReceiveBegun { dataset } => format!("let the command that began it resume it; or, if nothing will, abort it with `zfs receive -A {}`", quote(dataset)),
            Self::WalInTheClear { .. } => "give the repository a key (key_file, before `repo init`); or put pg_wal on a dataset of its own; or allow it with encrypted_datasets = \"raw\"".into(),
            Self::HeaderGone { name, .. } => format!("if it is on a disk of its own: is that mounted? (a command during which it was unmounted leaves files below its mount point.) Else put lockstep.json back from a copy of the repository; if there is none, `{lockstep} repo init {name} --again` makes it again from what is there"),
            Self::OtherId { name, .. } => format!("leave --id out: `{lockstep} repo init {name} --again`; if the url leads to another repository than before, give it another name in the configuration"),
            Self::RepositoryAway { name, id, .. } => format!("is its file system mounted, and its url right? If you mean another repository: `{lockstep} repo init {name} --instead-of {id}`"),
            Self::AnotherCluster { cluster, found, .. } => crate::repository::kin::hint(cluster, *found),
            Self::WhoseSets { cluster, repository, .. } => format!("prune on the cluster's host; or say which it is: formerly = [\"IDENTIFIER\"] in [clusters.{cluster}], as `{lockstep} show SET --from repository:{repository}` has it; or name what goes: `{lockstep} prune --repository {repository} --set ID`"),
            Self::DirectoryNotEmpty { .. } => "name a folder that is empty or doesn't exist yet".into(),
            Self::DirectoryHoldsRestore { is_unfinished: true, .. } => "continue it: run the same command with --from repository and --delta; or name an empty folder".into(),
            Self::DirectoryHoldsRestore { .. } => "bring it to the set's state with --from repository and --delta, or name an empty folder".into(),
            Self::DatasetExists { .. } => "name another place with --dataset; or bring what is there to the set's state with --delta".into(),
            Self::CloneExists { dataset } => format!("take another name; `zfs get lockstep:restore,lockstep:owner,origin {}` says what made it", quote(dataset)),
            Self::DirectoryInsideCluster { .. } | Self::DirectoryHoldsCluster { .. } | Self::DirectoryHoldsServer { .. } => "restore to a folder outside the cluster".into(),
            Self::StandbyBesideOriginal { data, .. } => format!("make the standby on another host; to look at the data here take `{lockstep} clone create`. The server's file is \"{}\"", data.join("postmaster.pid").display()),
            Self::NotAnOlderRestore { .. } => "--delta removes what the set doesn't have: name the folder of an older restore, or an empty one".into(),
            Self::NotOnTop { known: Some(_), of_set: Some(of_set), .. } => format!("{of_set}; or restore to another --dataset and --to"),
            Self::NotOnTop { newest: Some(newest), known: Some(known), .. } => format!("destroy what is newer than {known} if nothing needs it (`zfs destroy {}`), or restore to another --dataset and --to", quote(newest)),
            Self::NotOnTop { began: Some(_), removal, .. } => format!("the whole volume was sent there again (a cold set with unlogged tables, `ship --full`, a raw dataset's next full), or older sets were removed: restore to another --dataset and --to, or destroy this restore and leave out --delta{}", or_removed(removal.as_deref())),
            Self::NotOnTop { is_raw: true, removal, .. } => format!("restore to another --dataset and --to: it is stored raw, and its chain may have started again with a full stream{}", or_removed(removal.as_deref())),
            Self::NotOnTop { removal, .. } => format!("--delta goes forward only, from a set that the repository has: restore this one to another --dataset and --to{}", or_removed(removal.as_deref())),
            Self::PlaceOfAnother { dataset, found, .. } => {
                let leaf = dataset.rsplit_once('/').map_or("", |(_, leaf)| leaf);
                let parent = found.strip_suffix(leaf).and_then(|parent| parent.strip_suffix('/'));
                let named = parent.map_or_else(String::new, |parent| format!(": --dataset {}", quote(parent)));
                format!("was it renamed, or mistyped? name the dataset and the folder (--to) of one and the same older restore{named}")
            }
            Self::PlaceNotEmpty { dataset, is_there: true, place } => format!("the dataset would hide what is there, or couldn't be mounted. If the folder's content is the older restore: restore with --as files --delta, once the dataset has no mount point there (`zfs set mountpoint=none {}`). If the dataset is: move \"{}\" away; nothing was changed", quote(dataset), place.display()),
            Self::PlaceOfUnmounted { dataset, .. } => format!("mount it (`zfs mount {0}`) and restore with --as zfs --delta; or, if it isn't needed, `zfs destroy -r {0}`; or restore to another folder: nothing was changed", quote(dataset)),
            Self::PlaceNotEmpty { .. } => "an older restore --as files? --as files --delta continues with it or goes over it; or restore to another folder: nothing was changed".into(),
            Self::MountedInside { point, .. } => format!("`umount {}`, or restore to another folder: --delta would overwrite and remove what is there", quote(&point.display().to_string())),
            Self::DatasetElsewhere { is_its: true, .. } => "a part that was a folder of its dataset has one of its own by now, or the other way round, and the older restore's can't become the set's: restore to another --dataset and --to. Nothing was changed".into(),
            Self::DatasetElsewhere { .. } => "--delta rolls it back: name the dataset and the folder (--to) of one and the same older restore".into(),
        }
    }

    /// Checks whether taking the set once more may help (a lost race).
    #[must_use]
    pub fn worth_another_try(&self) -> bool {
        matches!(
            self,
            Self::LayoutChanged { .. }
                | Self::WalRecycledBeforeFreeze { .. }
                | Self::TimelineChanged { .. }
        )
    }
}

/// Says how to restore a set that isn't whole on this host from a repository that has it.
#[must_use]
pub fn elsewhere(set: &str, repositories: &[String]) -> Option<String> {
    let (name, lockstep) = (repositories.first()?, lockstep());
    Some(format!(
        "repository \"{name}\" has set {set}: `{lockstep} restore {set} --from repository:{name} --as zfs --dataset POOL/PATH --to DIR` (or --as files)"
    ))
}

/// The same, or if no repository has it, what can be done instead.
fn instead(set: &str, repositories: &[String]) -> String {
    elsewhere(set, repositories)
        .unwrap_or_else(|| format!("restore another set: `{} list`", lockstep()))
}

/// Says how to be rid of an unfinished restore, for the end of a hint.
fn or_removed(commands: Option<&str>) -> String {
    commands.map_or_else(String::new, |commands| {
        format!(". What is there is an unfinished restore; to remove it, if nobody needs it: `{commands}`")
    })
}
