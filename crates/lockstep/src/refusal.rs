//! Why Lockstep will not do what it was asked: typed, each naming the thing, exit code 4.

use std::fmt::Display;
use std::path::PathBuf;

use pgfiles::lsn::{Lsn, SystemIdentifier};

use crate::plan::layout::PartKind;
use crate::plan::strategy::Strategy;
use crate::process::quote;

/// Not consistent, or not safe.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// A part lies on something that has no snapshots.
    #[error("{part} lies at \"{}\" on {fs_type} (\"{source_name}\"), which can't be snapshotted", path.display())]
    NotSnapshottable {
        /// The part.
        part: PartKind,
        /// Its path, without links.
        path: PathBuf,
        /// The file system's type.
        fs_type: String,
        /// What is mounted there.
        source_name: String,
    },
    /// The dataset that is mounted at a part's place isn't what the part's files lie on.
    #[error(
        "{part} at \"{}\" should lie on dataset \"{dataset}\" (device {}:{}), and lies on device {}:{}: something else is mounted over it",
        path.display(), expected.0, expected.1, device.0, device.1
    )]
    HiddenMount {
        /// The part.
        part: PartKind,
        /// Its path, without links.
        path: PathBuf,
        /// The dataset, by the list of mounts.
        dataset: String,
        /// What the file system says of the path, major and minor.
        device: (u32, u32),
        /// The dataset's.
        expected: (u32, u32),
    },
    /// A dataset's place lies on the way to a part, and it isn't mounted there: what is seen is the folder below it.
    #[error(
        "{part} is at \"{}\", and dataset \"{dataset}\", whose place that is, isn't mounted there: what is seen lies on \"{on}\"",
        path.display()
    )]
    NotMounted {
        /// The part.
        part: PartKind,
        /// Its path, without links.
        path: PathBuf,
        /// The dataset.
        dataset: String,
        /// The dataset that holds the folder.
        on: String,
    },
    /// A tablespace's folder lacks what CREATE TABLESPACE makes in it.
    #[error("{part} at \"{}\" has no folder \"{expected}\": its files aren't there", path.display())]
    NoVersionFolder {
        /// The part.
        part: PartKind,
        /// Its path, without links.
        path: PathBuf,
        /// The folder of this version.
        expected: String,
    },
    /// A file system is mounted inside a part: its files would be in no snapshot.
    #[error("\"{source_name}\" is mounted at \"{}\", inside {part}: its files are in no snapshot of that part", point.display())]
    NestedMount {
        /// Where.
        point: PathBuf,
        /// What.
        source_name: String,
        /// Inside which part.
        part: PartKind,
    },
    /// A link in the data directory leads to something that no snapshot of the set has.
    #[error(
        "\"{}\" is a link to \"{}\": what lies there is in no snapshot of the set, and a restored cluster would write to it",
        path.display(), target.display()
    )]
    StrayLink {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// No strategy is provably consistent.
    #[error("no strategy is provably consistent here: {}", needed.join("; "))]
    NoStrategy {
        /// Each strategy and what it lacks.
        needed: Vec<String>,
    },
    /// The strategy asked for by name can't be.
    #[error("strategy {strategy} is not possible: {why}")]
    NotPossible {
        /// Which.
        strategy: Strategy,
        /// Why not.
        why: String,
        /// What would make it possible.
        needed: String,
    },
    /// A pool is nearly full; a full one makes PostgreSQL PANIC.
    #[error(
        "dataset \"{dataset}\" has {available} bytes left, fewer than the {needed} that must stay free"
    )]
    NoSpace {
        /// The dataset.
        dataset: String,
        /// What it has.
        available: u64,
        /// `min_free_mib` in bytes.
        needed: u64,
    },
    /// A snapshot isn't to be had beside a reservation.
    #[error(
        "dataset \"{dataset}\" has a refreservation: a snapshot of it would need {needed} bytes outside of that, and {left} are left there"
    )]
    Reserved {
        /// The dataset.
        dataset: String,
        /// What it has, or what is reserved if that is less.
        needed: u64,
        /// What is left.
        left: u64,
    },
    /// The server that answers isn't the one whose files are backed up.
    #[error("the server at the configured address is another cluster: {difference}")]
    WrongServer {
        /// What differs, with both values.
        difference: String,
    },
    /// The server that answers is of the same cluster, and another one than the one whose files are
    /// backed up: its primary, or another standby.
    #[error(
        "the server at the configured address isn't the one that runs in \"{}\": {difference}",
        data_directory.display()
    )]
    OtherServer {
        /// The configured data directory.
        data_directory: PathBuf,
        /// What differs, with both values.
        difference: String,
    },
    /// The layout changed while the set was taken, at every try.
    #[error("the layout changed during the backup, {difference}")]
    LayoutChanged {
        /// What changed.
        difference: String,
    },
    /// PostgreSQL itself says that the backup can't be (or wasn't) a good one.
    #[error("PostgreSQL refuses the backup: {reason}")]
    ByPostgres {
        /// Its own words.
        reason: String,
        /// Its own hint, where it gave one.
        advice: Option<String>,
    },
    /// A standby stopped being one.
    #[error("the standby was promoted during the backup: pg_control says \"{state}\"")]
    Promoted {
        /// What pg_control says.
        state: &'static str,
    },
    /// A standby followed its primary to another timeline, or was promoted to one a moment ago.
    #[error("the cluster went from timeline {from} to {to} and has made no checkpoint there")]
    TimelineChanged {
        /// Where recovery of the set would start.
        from: u32,
        /// Where it would end.
        to: u32,
    },
    /// The set has to be completed from an archive, and none was named.
    #[error("set {set} needs WAL that lies in the archive alone: {}", segments.join(", "))]
    NeedsArchive {
        /// The set.
        set: String,
        /// Which.
        segments: Vec<String>,
    },
    /// WAL that the set needs is gone.
    #[error(
        "WAL segment {needed} is gone from pg_wal before it was frozen (oldest there: {oldest})"
    )]
    WalRecycledBeforeFreeze {
        /// The segment.
        needed: String,
        /// The oldest that is there.
        oldest: String,
    },
    /// A WAL segment is there and isn't what its name says.
    #[error("WAL segment {segment} is damaged: {why}")]
    WalDamaged {
        /// The segment.
        segment: String,
        /// What is wrong.
        why: String,
    },
    /// The WAL that lies with a set's data ends before what recovery needs.
    #[error(
        "the WAL of set {set} isn't whole: recovery reads from {start} to {needed} at least, and segment {missing} isn't in its pg_wal"
    )]
    WalEndsEarly {
        /// The set.
        set: String,
        /// The first segment that isn't there.
        missing: String,
        /// Where recovery begins.
        start: Lsn,
        /// How far the data files have come.
        needed: Lsn,
    },
    /// Snapshots that should be one moment are several.
    #[error("the snapshots aren't of one transaction group: {found}")]
    NotOneTransactionGroup {
        /// Each snapshot's createtxg.
        found: String,
    },
    /// A snapshot is gone.
    #[error("set {set} is incomplete: snapshot \"{snapshot}\" is gone")]
    SnapshotMissing {
        /// The set.
        set: String,
        /// Which.
        snapshot: String,
        /// Where it is whole still, as far as this host knows.
        repositories: Vec<String>,
    },
    /// The pool of a snapshot isn't imported.
    #[error(
        "set {set} is incomplete here: pool \"{pool}\" isn't imported, and \"{snapshot}\" is on it"
    )]
    PoolAway {
        /// The set.
        set: String,
        /// The pool.
        pool: String,
        /// Which snapshot.
        snapshot: String,
        /// Where it is whole still, as far as this host knows.
        repositories: Vec<String>,
    },
    /// A snapshot has the right name and is another.
    #[error(
        "snapshot \"{snapshot}\" isn't the one of set {set}: it has {found}, the set's has {expected}"
    )]
    SnapshotSwapped {
        /// The set.
        set: String,
        /// Which.
        snapshot: String,
        /// The GUID that the manifest names.
        expected: String,
        /// That of the one that is there.
        found: String,
        /// Where it is whole still, as far as this host knows.
        repositories: Vec<String>,
    },
    /// A file of the set is gone or changed.
    #[error("set {set} is damaged: {why}")]
    SetDamaged {
        /// The set.
        set: String,
        /// What is wrong, with the file.
        why: String,
        /// Where it is whole still, as far as this host knows.
        repositories: Vec<String>,
    },
    /// A set can't be read, and the cluster may live on its timeline.
    #[error(
        "which set is the latest nobody knows: the cluster may have gone on along the timeline of set {set}, which can't be read: {why}"
    )]
    LatestUnknown {
        /// The set that can't be read.
        set: String,
        /// What is wrong with it.
        why: String,
        /// What is the latest without it.
        found: String,
        /// Where they are, if not on this host.
        repository: Option<String>,
    },
    /// PostgreSQL recovers a cluster with wal_level=minimal as after a crash alone.
    #[error(
        "set {set} was taken with wal_level=minimal, so it can only be recovered to the end of its own WAL, and {asked} was asked for"
    )]
    MinimalWal {
        /// The set.
        set: String,
        /// What was asked.
        asked: String,
    },
    /// The recovery target lies before the set is consistent.
    #[error(
        "the target {target} lies before the set's consistent point; the earliest possible is {earliest}"
    )]
    TargetBeforeConsistency {
        /// What was asked.
        target: String,
        /// What is possible.
        earliest: String,
    },
    /// The place for the restored cluster is in use.
    #[error("\"{}\" exists and isn't empty", path.display())]
    DirectoryNotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The place for the restored cluster has an older restore.
    #[error(
        "\"{}\" exists and isn't empty: it holds {} restore of set {set}",
        path.display(), if *is_unfinished { "an unfinished" } else { "a" }
    )]
    DirectoryHoldsRestore {
        /// The folder.
        path: PathBuf,
        /// The set, as it was written down there.
        set: String,
        /// It has no pg_control of this name yet.
        is_unfinished: bool,
    },
    /// What would be received is there.
    #[error("dataset \"{dataset}\" exists already")]
    DatasetExists {
        /// The dataset.
        dataset: String,
    },
    /// What a clone of a snapshot would be called is there.
    #[error("dataset \"{dataset}\" exists already, and a clone would get its name")]
    CloneExists {
        /// The dataset.
        dataset: String,
    },
    /// The place lies inside a cluster of the configuration.
    #[error("\"{}\" lies inside the {part} of cluster \"{cluster}\" itself", path.display())]
    DirectoryInsideCluster {
        /// The folder.
        path: PathBuf,
        /// The cluster.
        cluster: String,
        /// The part.
        part: PartKind,
    },
    /// What would be filled is, holds, or lies in a part of a cluster of the configuration.
    #[error(
        "the restore would fill \"{}\", and \"{}\" is the {part} of cluster \"{cluster}\"",
        path.display(), at.display()
    )]
    DirectoryHoldsCluster {
        /// The folder.
        path: PathBuf,
        /// The cluster.
        cluster: String,
        /// The part.
        part: PartKind,
        /// Where that is.
        at: PathBuf,
    },
    /// A standby would replay into the folders of its original.
    #[error(
        "the original runs here, in \"{}\" (process {pid}): on its host a standby that goes on replaying would make each new tablespace in the original's folder",
        data.display()
    )]
    StandbyBesideOriginal {
        /// The original's data directory.
        data: PathBuf,
        /// Its server.
        pid: u32,
    },
    /// `--delta` into a folder that is something else.
    #[error("\"{}\" isn't an older restore of this cluster: it holds {holds}", path.display())]
    NotAnOlderRestore {
        /// The folder.
        path: PathBuf,
        /// What was found.
        holds: String,
    },
    /// `--delta` onto a dataset that is somewhere else.
    #[error(
        "dataset \"{dataset}\" is mounted at \"{}\", and the restore goes to \"{}\"",
        at.display(), place.display()
    )]
    DatasetElsewhere {
        /// The dataset.
        dataset: String,
        /// Its mount point.
        at: PathBuf,
        /// The volume's place.
        place: PathBuf,
    },
    /// `--delta` to a folder where another dataset is mounted than the one that would be made.
    #[error(
        "dataset \"{dataset}\" isn't there, and \"{found}\" is mounted at its place \"{}\"",
        place.display()
    )]
    PlaceOfAnother {
        /// The dataset.
        dataset: String,
        /// What is mounted in its place.
        found: String,
        /// The volume's place.
        place: PathBuf,
    },
    /// Something of somebody else's is mounted inside what `--delta` writes to and removes from.
    #[error(
        "\"{source_name}\" is mounted at \"{}\", inside \"{}\", which the restore fills",
        point.display(), place.display()
    )]
    MountedInside {
        /// What.
        source_name: String,
        /// Where.
        point: PathBuf,
        /// Inside which place.
        place: PathBuf,
    },
    /// `--delta` onto a dataset whose newest snapshot isn't one that the set's deltas come after.
    #[error(
        "\"{dataset}\" can't be brought to set {set}: its newest snapshot {} {}",
        newest.as_deref().unwrap_or("(it has none)"),
        not_before(began.as_ref())
    )]
    NotOnTop {
        /// The dataset.
        dataset: String,
        /// The set.
        set: String,
        /// Its newest snapshot.
        newest: Option<String>,
        /// The newest of those that would do.
        known: Option<String>,
        /// What the repository has for the set begins with this snapshot, which is younger than the newest.
        began: Option<String>,
        /// It is stored raw.
        is_raw: bool,
    },
    /// `--delta` to a dataset with a bookmark that no rollback goes over.
    #[error("\"{bookmark}\" is newer than {snapshot}, to which --delta rolls its dataset back")]
    NewerBookmark {
        /// The bookmark.
        bookmark: String,
        /// What is rolled back to.
        snapshot: String,
    },
    /// `--delta` to a dataset that was received raw and has another key since.
    #[error(
        "the key of \"{dataset}\" was changed: \"{root}\" has it now, and what is received raw brings the original's"
    )]
    KeyChanged {
        /// The dataset.
        dataset: String,
        /// Its encryption root.
        root: String,
    },
    /// `--delta` to a dataset that can't be worked with as it is set.
    #[error("dataset \"{dataset}\" has {property}={value}: {why}")]
    SetOtherwise {
        /// The dataset.
        dataset: String,
        /// The property.
        property: &'static str,
        /// Its value.
        value: String,
        /// What --delta does with it.
        why: &'static str,
        /// The commands that change it.
        commands: String,
    },
    /// A part of the set is encrypted, and stored so.
    #[error("\"{dataset}\" is stored raw in set {set}: nobody can look into it without its key")]
    StoredRaw {
        /// The set.
        set: String,
        /// The first such dataset.
        dataset: String,
    },
    /// Received datasets can't be mounted.
    #[error("what was received can't be mounted, its keys aren't loaded: {}", datasets.join(", "))]
    KeysNotLoaded {
        /// The datasets.
        datasets: Vec<String>,
    },
    /// What a restore takes from, writes to or makes datasets below is encrypted, and can't be opened.
    #[error(
        "keys aren't loaded, and nothing can be mounted without them: {}", datasets.join(", ")
    )]
    KeysAway {
        /// The datasets.
        datasets: Vec<String>,
        /// Those whose keys they have.
        roots: Vec<String>,
    },
    /// Somebody's `zfs receive -s` wasn't finished.
    #[error(
        "a receive into \"{dataset}\" was cut off and can be gone on with: until then it takes no other"
    )]
    ReceiveBegun {
        /// The dataset.
        dataset: String,
    },
    /// WAL of an encrypted dataset would be readable to whoever reads the repository.
    #[error(
        "the set's WAL was copied out of the encrypted dataset \"{dataset}\", and repository \"{repository}\" has no key: it would lie there in the clear"
    )]
    WalInTheClear {
        /// Where pg_wal lies.
        dataset: String,
        /// The repository.
        repository: String,
    },
    /// The repository has sets of another cluster in this one's place.
    #[error(
        "repository \"{repository}\" has sets of another cluster that is called \"{cluster}\": the newest, {set}, is of system identifier {found}, and this cluster's is {own}"
    )]
    AnotherCluster {
        /// What both are called.
        cluster: String,
        /// The repository.
        repository: String,
        /// The newest set there.
        set: String,
        /// Its system identifier.
        found: SystemIdentifier,
        /// That of the set that was to be shipped.
        own: SystemIdentifier,
    },
    /// Sets would be removed by a policy, and nobody knows of which cluster.
    #[error(
        "nobody can tell which sets of repository \"{repository}\" are those of cluster \"{cluster}\": this host has none, and its data directory doesn't say which cluster it is: {why}"
    )]
    WhoseSets {
        /// The cluster's name.
        cluster: String,
        /// The repository.
        repository: String,
        /// Why pg_control can't be read.
        why: String,
    },
    /// A repository's `lockstep.json` is gone, and what it is about isn't.
    #[error(
        "lockstep.json of repository \"{name}\" is gone, and the rest is there: cluster {clusters}"
    )]
    HeaderGone {
        /// The repository.
        name: String,
        /// The clusters that are in it.
        clusters: String,
    },
    /// Not the repository that this host knows under the name.
    #[error(
        "repository \"{name}\" isn't at its URL: this host knows it by the id {id}{}, and {}",
        newest.as_ref().map_or_else(String::new, |set| format!(" (its newest set: {set})")),
        found.as_ref().map_or_else(|| "no lockstep.json is there".to_owned(), |found| format!("what is there has the id {found}"))
    )]
    RepositoryAway {
        /// The repository.
        name: String,
        /// The id of what is there.
        found: Option<String>,
        /// The id that is known.
        id: String,
        /// Its newest set, as far as this host has seen.
        newest: Option<String>,
    },
    /// A mirror can't be made, or would lose something if it were changed.
    #[error("{what}")]
    Mirror {
        /// What stands in the way, with its value.
        what: String,
        /// What would make it possible.
        needed: String,
    },
}

impl Refusal {
    /// [`Self::SetDamaged`], where nobody has looked who else has the set.
    pub(crate) fn damaged(set: impl Display, why: String) -> Self {
        Self::SetDamaged { set: set.to_string(), why, repositories: Vec::new() }
    }

    /// What the reader can do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotSnapshottable { .. } => "move it to a ZFS dataset, or back up a standby that lies on ZFS".into(),
            Self::HiddenMount { .. } => "look at `findmnt -A` for what hides the dataset; unmount it, or start lockstep where PostgreSQL's files are seen as PostgreSQL sees them".into(),
            Self::NotMounted { dataset, .. } => {
                let name = quote(dataset);
                format!("stop the server, `zfs mount {name}` (its key may have to be loaded before), and start the server again; where the folder below is what is meant: `zfs set canmount=noauto {name}`")
            }
            Self::NoVersionFolder { .. } => "is its dataset mounted, and its pool imported (`zpool import`)? Stop the server, mount it, and start the server again; a tablespace that is lost: DROP TABLESPACE".into(),
            Self::NestedMount { .. } => "unmount it, or make its files part of the dataset around it".into(),
            Self::StrayLink { .. } => "stop the server and put what it leads to in the place of the link; what has to lie elsewhere can be a tablespace: PostgreSQL itself makes links for those and for pg_wal alone".into(),
            Self::NoStrategy { .. } => "configure host and user so that Lockstep can connect: strategy label works on every layout".into(),
            Self::NotPossible { needed, .. } | Self::Mirror { needed, .. } => needed.clone(),
            Self::NoSpace { .. } => "free space in the pool, or lower min_free_mib in the configuration; a full pool makes PostgreSQL PANIC".into(),
            Self::Reserved { dataset, .. } => format!("free space in the pool, or do without: `zfs set refreservation=none {}`", quote(dataset)),
            Self::WrongServer { .. } => "check data_directory, host and port of this cluster in the configuration".into(),
            Self::OtherServer { .. } => "host leads to another server of this cluster (an address that moves, a proxy): set host to this server's own socket folder or to localhost".into(),
            Self::LayoutChanged { .. } => "run the backup when no tablespace or database is being created, dropped or moved; a standby's begins behind a change once a checkpoint of its primary came after that (CHECKPOINT there), and a restartpoint here".into(),
            Self::ByPostgres { advice, .. } => advice.clone().unwrap_or_else(|| "take the backup again once the reason is gone".into()),
            Self::Promoted { .. } => "take the backup again: it is a primary now".into(),
            Self::TimelineChanged { .. } => "take it again when a checkpoint was made on the new timeline (CHECKPOINT makes one; on a standby a restartpoint)".into(),
            Self::NeedsArchive { .. } => "name the way to it with --restore-command".into(),
            Self::WalRecycledBeforeFreeze { .. } => "allow a replication slot (max_replication_slots, REPLICATION for the user), or raise wal_keep_size".into(),
            Self::WalEndsEarly { .. } => "take another set, with strategy label where a connection is possible; this one is whole only where an archive has that segment".into(),
            Self::WalDamaged { .. } => "is pg_wal written by anything but PostgreSQL? look at the file with pg_waldump".into(),
            Self::NotOneTransactionGroup { .. } => "is something else taking snapshots with the same name? use strategy label".into(),
            Self::SnapshotMissing { set, repositories, .. } => format!("{}; was it destroyed by hand? To be rid of this set here: lockstep prune --local --set {set}", instead(set, repositories)),
            Self::PoolAway { set, pool, repositories, .. } => {
                let elsewhere = elsewhere(set, repositories).map_or_else(String::new, |way| format!("; {way}"));
                format!("`zpool import {}`, and the set is whole again{elsewhere}; where the pool is gone for good, `lockstep prune --local --set {set}` gives the set up", quote(pool))
            }
            Self::SnapshotSwapped { set, repositories, .. } => format!("{}; a snapshot was renamed or taken again under this name. To be rid of this set here: lockstep prune --local --set {set}", instead(set, repositories)),
            Self::SetDamaged { set, repositories, .. } => instead(set, repositories),
            Self::LatestUnknown { set, found, repository, .. } => format!("name the set: of those that can be read it is {found}. {}", crate::set::unread::ways_out(set, repository.as_deref())),
            Self::MinimalWal { .. } => "leave it out; a set that leads further needs wal_level = replica, a restart, and a new backup".into(),
            Self::TargetBeforeConsistency { .. } => "take an older set (`lockstep list`) or a later target".into(),
            Self::StoredRaw { .. } => "restore all of the set with --as zfs --dataset POOL/PATH, and load the key there".into(),
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
            Self::ReceiveBegun { dataset } => format!("let whoever began it go on; or, if nobody does, give it up with `zfs receive -A {}`", quote(dataset)),
            Self::WalInTheClear { .. } => "give the repository a key (key_file, before `repo init`); or put pg_wal on a dataset of its own; or allow it with encrypted_datasets = \"raw\"".into(),
            Self::HeaderGone { name, .. } => format!("put lockstep.json back from a copy of the repository; where there is none, `lockstep repo init {name} --again` makes it again out of what is there"),
            Self::RepositoryAway { name, id, .. } => format!("is its file system mounted, and its url right? Where another one is meant: `lockstep repo init {name} --instead-of {id}`"),
            Self::AnotherCluster { cluster, found, .. } => crate::repository::kin::hint(cluster, *found),
            Self::WhoseSets { cluster, repository, .. } => format!("prune on the cluster's host; or say which it is: formerly = [\"IDENTIFIER\"] in [clusters.{cluster}], as `lockstep show SET --from repository:{repository}` has it; or name what goes: `lockstep prune --repository {repository} --set ID`"),
            Self::DirectoryNotEmpty { .. } => "name a folder that is empty or doesn't exist yet".into(),
            Self::DirectoryHoldsRestore { is_unfinished: true, .. } => "go on with it: the same command with --from repository and --delta; or name an empty folder".into(),
            Self::DirectoryHoldsRestore { .. } => "bring it to the set's state with --from repository and --delta, or name an empty folder".into(),
            Self::DatasetExists { .. } => "name another place with --dataset; or bring what is there to the set's state with --delta".into(),
            Self::CloneExists { dataset } => format!("take another name; `zfs get lockstep:restore,lockstep:owner,origin {}` says what made it", quote(dataset)),
            Self::DirectoryInsideCluster { .. } | Self::DirectoryHoldsCluster { .. } => "restore to a folder outside the cluster".into(),
            Self::StandbyBesideOriginal { data, .. } => format!("make the standby on another host; to look at the data here take `lockstep clone create`. The server's file is \"{}\"", data.join("postmaster.pid").display()),
            Self::NotAnOlderRestore { .. } => "--delta removes what the set doesn't have: name the folder of an older restore, or an empty one".into(),
            Self::NotOnTop { newest: Some(newest), known: Some(known), .. } => format!("destroy what is newer than {known} if nothing needs it (`zfs destroy {}`), or restore to another --dataset and --to", quote(newest)),
            Self::NotOnTop { began: Some(_), .. } => "all of the volume was sent anew there (a cold set where tables are unlogged, `ship --full`, a raw dataset's next full), or older sets were removed: restore to another --dataset and --to, or destroy this restore and leave out --delta".into(),
            Self::NotOnTop { is_raw: true, .. } => "restore to another --dataset and --to: it is stored raw, and its chain may have begun anew".into(),
            Self::NotOnTop { .. } => "--delta goes forward only, from a set that the repository has: restore this one to another --dataset and --to".into(),
            Self::PlaceOfAnother { dataset, found, .. } => {
                let leaf = dataset.rsplit_once('/').map_or("", |(_, leaf)| leaf);
                let parent = found.strip_suffix(leaf).and_then(|parent| parent.strip_suffix('/'));
                let named = parent.map_or_else(String::new, |parent| format!(": --dataset {}", quote(parent)));
                format!("was it renamed, or mistyped? name the dataset and the folder (--to) of one and the same older restore{named}")
            }
            Self::MountedInside { point, .. } => format!("`umount {}`, or restore to another folder: --delta would write over what lies there, and remove it", quote(&point.display().to_string())),
            Self::DatasetElsewhere { .. } => "--delta rolls it back: name the dataset and the folder (--to) of one and the same older restore".into(),
        }
    }

    /// Whether taking the set once more may help (a race that was lost).
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

/// How a set is restored that isn't whole on this host, where it is in a repository.
#[must_use]
pub fn elsewhere(set: &str, repositories: &[String]) -> Option<String> {
    let name = repositories.first()?;
    Some(format!(
        "repository \"{name}\" has set {set}: `lockstep restore {set} --from repository:{name} --as zfs --dataset POOL/PATH --to DIR` (or --as files)"
    ))
}

/// The same, or where it is nowhere else what can be done instead.
fn instead(set: &str, repositories: &[String]) -> String {
    elsewhere(set, repositories).unwrap_or_else(|| "restore another set: `lockstep list`".into())
}

/// Why nothing can be put on top of a dataset's newest snapshot, behind its name.
fn not_before(began: Option<&String>) -> String {
    match began {
        Some(began) => {
            format!("is older than {began}, with which what the repository has for that set begins")
        }
        None => "isn't one of those that the repository has before it".into(),
    }
}
