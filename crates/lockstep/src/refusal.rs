//! Why Lockstep refuses to do what it was asked: typed, each with the values concerned, exit code 4.

mod hints;

use std::fmt::Display;
use std::path::PathBuf;

use pgfiles::lsn::{Lsn, SystemIdentifier};

use crate::plan::facts::Unsettled;
use crate::plan::layout::PartKind;
use crate::plan::strategy::Strategy;
use crate::volume::zfs::Away;

pub use hints::elsewhere;

/// A request that wouldn't be consistent or safe.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// A part is on something that has no snapshots.
    #[error("{part} lies at \"{}\" on {fs_type} (\"{source_name}\"), which can't be snapshotted", path.display())]
    NotSnapshottable {
        /// The part.
        part: PartKind,
        /// Its path, with links resolved.
        path: PathBuf,
        /// The file system's type.
        fs_type: String,
        /// The source of the mount.
        source_name: String,
    },
    /// The dataset mounted at a part's place isn't what holds the part's files.
    #[error(
        "{part} at \"{}\" should lie on dataset \"{dataset}\" (device {}:{}), and lies on device {}:{}: something else is mounted over it",
        path.display(), expected.0, expected.1, device.0, device.1
    )]
    HiddenMount {
        /// The part.
        part: PartKind,
        /// Its path, with links resolved.
        path: PathBuf,
        /// The dataset, according to the list of mounts.
        dataset: String,
        /// The device that the file system reports for the path, major and minor.
        device: (u32, u32),
        /// The dataset's device.
        expected: (u32, u32),
    },
    /// A dataset's mount point is on the way to a part, but it isn't mounted there: what is seen is the folder below
    /// it.
    #[error(
        "{part} is at \"{}\", where dataset \"{dataset}\" should be mounted, but isn't: what is seen there is on \"{on}\"",
        path.display()
    )]
    NotMounted {
        /// The part.
        part: PartKind,
        /// Its path, with links resolved.
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
        /// Its path, with links resolved.
        path: PathBuf,
        /// The folder of this PostgreSQL version.
        expected: String,
    },
    /// A file system is mounted inside a part: its files would be in no snapshot.
    #[error("\"{source_name}\" is mounted at \"{}\", inside {part}: its files are in no snapshot of that part", point.display())]
    NestedMount {
        /// The mount point.
        point: PathBuf,
        /// The source of the mount.
        source_name: String,
        /// The part that it is inside of.
        part: PartKind,
    },
    /// A dataset's mount point is inside a part, and it isn't mounted there: its files would be in no snapshot.
    #[error(
        "dataset \"{dataset}\" should be mounted at \"{}\", inside {part}, but isn't: its files are in no snapshot of that part",
        point.display()
    )]
    NestedNotMounted {
        /// The dataset.
        dataset: String,
        /// Its mount point.
        point: PathBuf,
        /// The part that this is inside of.
        part: PartKind,
    },
    /// The server sees another folder at a part's path than Lockstep does.
    #[error(
        "what is at \"{}\" here isn't what the server (process {pid}) sees there: it has mounts of its own, and the files of {part} that it writes are somewhere else",
        path.display()
    )]
    SeenElsewhere {
        /// The part.
        part: PartKind,
        /// Its path, as PostgreSQL knows it.
        path: PathBuf,
        /// A process of the server.
        pid: u32,
    },
    /// A link in the data directory leads to something that isn't in any snapshot of the set.
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
        /// Each strategy, and what it lacks.
        needed: Vec<String>,
    },
    /// The explicitly requested strategy isn't possible.
    #[error("strategy {strategy} is not possible: {why}")]
    NotPossible {
        /// The strategy.
        strategy: Strategy,
        /// Why not.
        why: String,
        /// What would make it possible.
        needed: String,
    },
    /// The files aren't those that the cluster's last server left.
    #[error("{what}")]
    Unsettled {
        /// What was found, with the file.
        what: String,
        /// What to do.
        needed: String,
    },
    /// A pool is nearly full; a full one makes PostgreSQL PANIC.
    #[error(
        "dataset \"{dataset}\" has {available} bytes left, fewer than the {needed} that must stay free"
    )]
    NoSpace {
        /// The dataset.
        dataset: String,
        /// Its free space, in bytes.
        available: u64,
        /// `min_free_mib` in bytes, and on pg_wal's volume what two segments take.
        needed: u64,
    },
    /// With the snapshot's, its name is longer than ZFS allows.
    #[error(
        "dataset \"{dataset}\" has a name of {length} characters: a set's snapshot can have a name only if there are at most {longest}"
    )]
    NameTooLong {
        /// The dataset.
        dataset: String,
        /// The length of its name.
        length: usize,
        /// What ZFS leaves for it.
        longest: usize,
    },
    /// There is no room for a snapshot because of a reservation.
    #[error(
        "dataset \"{dataset}\" has a refreservation: a snapshot of it would need {needed} bytes outside of that, and {left} are left there"
    )]
    Reserved {
        /// The dataset.
        dataset: String,
        /// How much it holds, or how much is reserved if that is less.
        needed: u64,
        /// What is left.
        left: u64,
    },
    /// The server that answers isn't the one whose files are to be backed up.
    #[error("the server at the configured address is another cluster: {difference}")]
    WrongServer {
        /// The difference, with both values.
        difference: String,
    },
    /// The server that answers belongs to the same cluster, but isn't the one whose files are to be backed up: it is
    /// its primary, or another standby.
    #[error(
        "the server at the configured address isn't the one that runs in \"{}\": {difference}",
        data_directory.display()
    )]
    OtherServer {
        /// The configured data directory.
        data_directory: PathBuf,
        /// The difference, with both values.
        difference: String,
    },
    /// The layout changed while the set was taken, at every attempt.
    #[error("the layout changed during the backup, {difference}")]
    LayoutChanged {
        /// What changed.
        difference: String,
    },
    /// PostgreSQL itself says that the backup can't be, or wasn't, a good one.
    #[error("PostgreSQL refuses the backup: {reason}")]
    ByPostgres {
        /// PostgreSQL's own words.
        reason: String,
        /// PostgreSQL's own hint, if it gave one.
        advice: Option<String>,
    },
    /// A standby stopped being one.
    #[error("the standby was promoted during the backup: pg_control says \"{state}\"")]
    Promoted {
        /// What pg_control says.
        state: &'static str,
    },
    /// A standby followed its primary to another timeline, or was promoted to one just now.
    #[error("the cluster went from timeline {from} to {to} and has made no checkpoint there")]
    TimelineChanged {
        /// The timeline on which recovery of the set would start.
        from: u32,
        /// The timeline on which it would end.
        to: u32,
    },
    /// The set has to be completed from an archive, and none was given.
    #[error("set {set} needs WAL that is only in the archive: {}", segments.join(", "))]
    NeedsArchive {
        /// The set.
        set: String,
        /// The segments.
        segments: Vec<String>,
    },
    /// WAL that the set needs is gone.
    #[error(
        "WAL segment {needed} is gone from pg_wal before it was frozen (oldest there: {oldest})"
    )]
    WalRecycledBeforeFreeze {
        /// The segment.
        needed: String,
        /// The oldest segment that is there.
        oldest: String,
    },
    /// A WAL segment exists, but isn't what its name says.
    #[error("WAL segment {segment} is damaged: {why}")]
    WalDamaged {
        /// The segment.
        segment: String,
        /// What is wrong.
        why: String,
    },
    /// The WAL stored with a set's data ends before recovery has what it needs.
    #[error(
        "the WAL of set {set} isn't whole: recovery reads from {start} to {needed} at least, and segment {missing} isn't in its pg_wal"
    )]
    WalEndsEarly {
        /// The set.
        set: String,
        /// The first missing segment.
        missing: String,
        /// Where recovery begins.
        start: Lsn,
        /// How far the data files have advanced.
        needed: Lsn,
    },
    /// Snapshots that should be of one moment aren't.
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
        /// The snapshot.
        snapshot: String,
        /// Its present name, if its dataset was renamed: the set is good.
        now: Option<String>,
        /// The repositories where it is still whole, as far as this host knows.
        repositories: Vec<String>,
    },
    /// The pool of a snapshot isn't imported, or is suspended.
    #[error(
        "set {set} is incomplete here: pool \"{pool}\" {}, and \"{snapshot}\" is on it",
        why.state()
    )]
    PoolAway {
        /// The set.
        set: String,
        /// The pool.
        pool: String,
        /// What is the matter with it.
        why: Away,
        /// The snapshot.
        snapshot: String,
        /// The repositories where it is still whole, as far as this host knows.
        repositories: Vec<String>,
    },
    /// Whoever touches what is on a suspended pool waits until it is cleared.
    #[error("pool \"{pool}\" is suspended, and \"{what}\" is on it: nothing there can be read")]
    PoolSuspended {
        /// The pool.
        pool: String,
        /// The path or dataset.
        what: String,
    },
    /// A snapshot has the right name but is another one.
    #[error(
        "snapshot \"{snapshot}\" isn't the one of set {set}: it has {found}, the set's has {expected}"
    )]
    SnapshotSwapped {
        /// The set.
        set: String,
        /// The snapshot.
        snapshot: String,
        /// The GUID in the manifest.
        expected: String,
        /// The GUID of the snapshot that is there.
        found: String,
        /// The repositories where it is still whole, as far as this host knows.
        repositories: Vec<String>,
    },
    /// A file of the set is gone or changed.
    #[error("set {set} is damaged: {why}")]
    SetDamaged {
        /// The set.
        set: String,
        /// What is wrong, with the file.
        why: String,
        /// The repositories where it is still whole, as far as this host knows.
        repositories: Vec<String>,
    },
    /// A set can't be read, and the cluster may live on its timeline.
    #[error(
        "it is unknown which set is the latest: the cluster may have continued on the timeline of set {set}, which can't be read: {why}"
    )]
    LatestUnknown {
        /// The set that can't be read.
        set: String,
        /// What is wrong with it.
        why: String,
        /// The latest set without it.
        found: String,
        /// The repository that holds them, if they aren't on this host.
        repository: Option<String>,
    },
    /// PostgreSQL recovers a cluster with wal_level=minimal only as after a crash.
    #[error(
        "set {set} was taken with wal_level=minimal, so it can only be recovered to the end of its own WAL, and {asked} was asked for"
    )]
    MinimalWal {
        /// The set.
        set: String,
        /// What was requested.
        asked: String,
    },
    /// The recovery target is before the point at which the set is consistent.
    #[error(
        "the target {target} lies before the set's consistent point; the earliest possible is {earliest}"
    )]
    TargetBeforeConsistency {
        /// The requested target.
        target: String,
        /// The earliest possible target.
        earliest: String,
    },
    /// The folder for the restored cluster is in use.
    #[error("\"{}\" exists and isn't empty", path.display())]
    DirectoryNotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The folder for the restored cluster holds an older restore.
    #[error(
        "\"{}\" exists and isn't empty: it holds {} restore of set {set}",
        path.display(), if *is_unfinished { "an unfinished" } else { "a" }
    )]
    DirectoryHoldsRestore {
        /// The folder.
        path: PathBuf,
        /// The set, as recorded there.
        set: String,
        /// Whether its pg_control doesn't have its final name yet.
        is_unfinished: bool,
    },
    /// The dataset to receive already exists.
    #[error("dataset \"{dataset}\" exists already")]
    DatasetExists {
        /// The dataset.
        dataset: String,
    },
    /// The name that a clone of a snapshot would get already exists.
    #[error("dataset \"{dataset}\" exists already, and a clone would get its name")]
    CloneExists {
        /// The dataset.
        dataset: String,
    },
    /// The target is inside a cluster of the configuration.
    #[error("\"{}\" lies inside the {part} of cluster \"{cluster}\" itself", path.display())]
    DirectoryInsideCluster {
        /// The folder.
        path: PathBuf,
        /// The cluster.
        cluster: String,
        /// The part.
        part: PartKind,
    },
    /// The target is, contains, or is inside a part of a cluster of the configuration.
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
        /// The path of that part.
        at: PathBuf,
    },
    /// The target is, contains, or is inside a part of a server that runs here.
    #[error(
        "the restore would fill \"{}\", and \"{}\" is the {part} of the server in \"{}\" (process {pid})",
        path.display(), at.display(), data.display()
    )]
    DirectoryHoldsServer {
        /// The folder.
        path: PathBuf,
        /// The part.
        part: PartKind,
        /// The path of that part.
        at: PathBuf,
        /// The server's data directory.
        data: PathBuf,
        /// The process id of the server.
        pid: u32,
    },
    /// A standby would replay into the folders of its original.
    #[error(
        "the original cluster runs on this host, in \"{}\" (process {pid}): a standby here would replay each new tablespace into the original's folder",
        data.display()
    )]
    StandbyBesideOriginal {
        /// The original's data directory.
        data: PathBuf,
        /// The process id of its server.
        pid: u32,
    },
    /// `--delta` into a folder that isn't an older restore of this cluster.
    #[error("\"{}\" isn't an older restore of this cluster: it holds {holds}", path.display())]
    NotAnOlderRestore {
        /// The folder.
        path: PathBuf,
        /// What was found.
        holds: String,
    },
    /// `--delta` onto a dataset that is mounted elsewhere.
    #[error(
        "dataset \"{dataset}\" is mounted at \"{}\", and the restore goes to \"{}\"",
        at.display(), place.display()
    )]
    DatasetElsewhere {
        /// The dataset.
        dataset: String,
        /// Its mount point.
        at: PathBuf,
        /// Where the volume belongs.
        place: PathBuf,
        /// Both are in the folder of this restore.
        is_its: bool,
    },
    /// `--delta` to a folder where another dataset is mounted than the one to create.
    #[error(
        "dataset \"{dataset}\" doesn't exist, and \"{found}\" is mounted where it belongs, at \"{}\"",
        place.display()
    )]
    PlaceOfAnother {
        /// The dataset.
        dataset: String,
        /// What is mounted there instead.
        found: String,
        /// Where the volume belongs.
        place: PathBuf,
    },
    /// `--delta` to a folder that isn't empty, in place of which a dataset would have to be made or mounted.
    #[error(
        "dataset \"{dataset}\" {}, and the folder where it belongs isn't empty: \"{}\"",
        if *is_there { "isn't mounted" } else { "doesn't exist" },
        place.display()
    )]
    PlaceNotEmpty {
        /// The dataset.
        dataset: String,
        /// It exists.
        is_there: bool,
        /// Where the volume belongs.
        place: PathBuf,
    },
    /// `--as files` to a folder where a restore's dataset belongs, which isn't mounted.
    #[error("dataset \"{dataset}\" of a restore belongs at \"{}\", and isn't mounted", place.display())]
    PlaceOfUnmounted {
        /// The dataset.
        dataset: String,
        /// Its mount point.
        place: PathBuf,
    },
    /// Something that isn't Lockstep's is mounted inside what `--delta` writes to and removes from.
    #[error(
        "\"{source_name}\" is mounted at \"{}\", inside \"{}\", which the restore fills",
        point.display(), place.display()
    )]
    MountedInside {
        /// The source of the mount.
        source_name: String,
        /// The mount point.
        point: PathBuf,
        /// The place that it is inside of.
        place: PathBuf,
    },
    /// `--delta` onto a dataset whose newest snapshot isn't one that the set's deltas can follow.
    #[error(
        "\"{dataset}\" can't be brought to set {set}: its newest snapshot {} {}",
        newest.as_deref().unwrap_or("(it has none)"),
        not_before(began.as_ref())
    )]
    NotOnTop {
        /// The dataset.
        dataset: Box<str>,
        /// The set.
        set: Box<str>,
        /// The dataset's newest snapshot.
        newest: Option<Box<str>>,
        /// The newest snapshot that would do.
        known: Option<Box<str>>,
        /// Whose set the newest snapshot is a part of, and how that set is given up.
        of_set: Option<Box<str>>,
        /// The snapshot with which the repository's deltas for the set begin, if it is younger than the newest.
        began: Option<String>,
        /// Whether it is stored raw.
        is_raw: bool,
        /// The commands that remove what is there, if it is an unfinished restore.
        removal: Option<Box<str>>,
    },
    /// `--delta` to a dataset with a bookmark that a rollback can't pass.
    #[error("\"{bookmark}\" is newer than {snapshot}, to which --delta rolls its dataset back")]
    NewerBookmark {
        /// The bookmark.
        bookmark: String,
        /// The snapshot to roll back to.
        snapshot: String,
    },
    /// `--delta` to a dataset that was received raw and whose key has changed since.
    #[error(
        "the key of \"{dataset}\" was changed: it is now that of \"{root}\", but a raw stream brings the original's"
    )]
    KeyChanged {
        /// The dataset.
        dataset: String,
        /// Its encryption root.
        root: String,
    },
    /// `--delta` to a dataset with a property that makes it unusable.
    #[error("dataset \"{dataset}\" has {property}={value}: {why}")]
    SetOtherwise {
        /// The dataset.
        dataset: String,
        /// The property.
        property: &'static str,
        /// Its value.
        value: String,
        /// Why --delta can't work with it.
        why: &'static str,
        /// The commands that change it.
        commands: String,
    },
    /// A part of the set is encrypted, and stored like that.
    #[error("\"{dataset}\" is stored raw in set {set}: nobody can look into it without its key")]
    StoredRaw {
        /// The set.
        set: String,
        /// The first such dataset.
        dataset: String,
    },
    /// `zfs receive` would refuse a stream in this pool.
    #[error("pool \"{pool}\" lacks what the set needs: feature@{} is disabled", lacking.join(", feature@"))]
    PoolLacksFeature {
        /// The pool.
        pool: String,
        /// The names of the features.
        lacking: Vec<&'static str>,
    },
    /// Received datasets can't be mounted, because their keys aren't loaded.
    #[error("what was received can't be mounted, its keys aren't loaded: {}", datasets.join(", "))]
    KeysNotLoaded {
        /// The datasets.
        datasets: Vec<String>,
    },
    /// A dataset that a restore reads from, writes to or creates datasets below is encrypted, and its key isn't
    /// loaded.
    #[error(
        "keys aren't loaded, and nothing can be mounted without them: {}", datasets.join(", ")
    )]
    KeysAway {
        /// The datasets.
        datasets: Vec<String>,
        /// The encryption roots whose keys they use.
        roots: Vec<String>,
    },
    /// A `zfs receive -s` that isn't Lockstep's wasn't finished.
    #[error(
        "an interrupted receive into \"{dataset}\" can still be resumed: until it is resumed or aborted, the dataset accepts no other"
    )]
    ReceiveBegun {
        /// The dataset.
        dataset: String,
    },
    /// WAL of an encrypted dataset would be readable to anyone who can read the repository.
    #[error(
        "the set's WAL was copied out of the encrypted dataset \"{dataset}\", and repository \"{repository}\" has no key: it would be stored there in the clear"
    )]
    WalInTheClear {
        /// The dataset with pg_wal.
        dataset: String,
        /// The repository.
        repository: String,
    },
    /// The repository holds sets of another cluster under this one's name.
    #[error(
        "repository \"{repository}\" has sets of another cluster that is called \"{cluster}\": the newest, {set}, is of system identifier {found}, and this cluster's is {own}"
    )]
    AnotherCluster {
        /// The name of both.
        cluster: String,
        /// The repository.
        repository: String,
        /// The newest set there.
        set: String,
        /// Its system identifier.
        found: SystemIdentifier,
        /// The system identifier of the set to be shipped.
        own: SystemIdentifier,
    },
    /// A policy would remove sets, and nobody knows which cluster they belong to.
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
    /// A repository's `lockstep.json` is gone, but the rest of the repository isn't.
    #[error(
        "lockstep.json of repository \"{name}\" is gone, but the rest of the repository is there: cluster {clusters}"
    )]
    HeaderGone {
        /// The repository.
        name: String,
        /// The clusters that it holds.
        clusters: String,
    },
    /// It isn't the repository that this host knows under the name.
    #[error(
        "repository \"{name}\" isn't at its URL: this host knows it by the id {id}{}, and {}",
        newest.as_ref().map_or_else(String::new, |set| format!(" (its newest set: {set})")),
        found.as_ref().map_or_else(|| "no lockstep.json is there".to_owned(), |found| format!("what is there has the id {found}"))
    )]
    RepositoryAway {
        /// The repository.
        name: String,
        /// The id of the repository that is there.
        found: Option<String>,
        /// The known id.
        id: String,
        /// Its newest set, as far as this host has seen.
        newest: Option<String>,
    },
    /// The id given for a repository isn't the one that this host knows.
    #[error("this host knows repository \"{name}\" by the id {known}, and --id says {id}")]
    OtherId {
        /// The repository.
        name: String,
        /// The known id.
        known: String,
        /// The id given.
        id: String,
    },
    /// A mirror can't be created, or changing it would lose something.
    #[error("{what}")]
    Mirror {
        /// What stands in the way, with its value.
        what: String,
        /// What would make it possible.
        needed: String,
    },
}

impl From<Unsettled> for Refusal {
    fn from(Unsettled { what, needed }: Unsettled) -> Self {
        Self::Unsettled { what, needed }
    }
}

impl Refusal {
    /// Returns [`Self::SetDamaged`] before anybody has checked where else the set is.
    pub(crate) fn damaged(set: impl Display, why: String) -> Self {
        Self::SetDamaged { set: set.to_string(), why, repositories: Vec::new() }
    }
}

/// Says why nothing can be put on top of a dataset's newest snapshot; the text follows that snapshot's name.
fn not_before(began: Option<&String>) -> String {
    match began {
        Some(began) => {
            format!(
                "is older than {began}, the snapshot with which the repository's data for that set begins"
            )
        }
        None => "isn't one of those that the repository has before it".into(),
    }
}
