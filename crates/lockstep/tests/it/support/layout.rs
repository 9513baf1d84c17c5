//! Where a test cluster's parts are: which pools, which datasets, which directories on them.
//!
//! Paths are relative to the fixture's `mnt` directory. [`two_pools_four_datasets`] is the main one.

/// A file-backed pool: its name is the workspace's followed by `label`.
#[derive(Debug, Clone)]
pub struct PoolSpec {
    /// What follows the workspace's name.
    pub label: String,
    /// The size of the sparse file.
    pub size: u64,
}

/// A dataset, with where it is mounted.
#[derive(Debug, Clone)]
pub struct DatasetSpec {
    /// The pool's index in [`Layout::pools`].
    pub pool: usize,
    /// The dataset's name below the pool.
    pub name: String,
    /// The mountpoint, relative to `mnt`.
    pub mount: String,
}

/// Where pg_wal is.
#[derive(Debug, Clone)]
pub enum Wal {
    /// A directory in the data directory.
    Inside,
    /// A symbolic link to this path.
    Linked(String),
    /// A dataset that is mounted at the data directory's `pg_wal`.
    Mounted {
        /// The pool's index in [`Layout::pools`].
        pool: usize,
        /// The dataset's name below the pool.
        name: String,
    },
}

/// A cluster before it exists.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The pools.
    pub pools: Vec<PoolSpec>,
    /// The datasets, parents first.
    pub datasets: Vec<DatasetSpec>,
    /// The data directory.
    pub data: String,
    /// pg_wal.
    pub wal: Wal,
    /// Tablespaces: name and path.
    pub tablespaces: Vec<(String, String)>,
    /// PostgreSQL's major version.
    pub major: u32,
    /// Settings for postgresql.conf, beyond the fixture's own.
    pub settings: Vec<(String, String)>,
    /// Whether segments are archived (by `cp`, into the fixture's `archive` directory).
    pub archive: bool,
}

/// Large enough for a test, small enough for the machine: a pool's file never shrinks.
const POOL_SIZE: u64 = 4 << 30;

impl Layout {
    /// Pools without datasets, a data directory and pg_wal.
    pub fn new(pools: &[&str], data: &str, wal: Wal) -> Layout {
        Layout {
            pools: pools
                .iter()
                .map(|label| PoolSpec { label: (*label).to_owned(), size: POOL_SIZE })
                .collect(),
            datasets: Vec::new(),
            data: data.to_owned(),
            wal,
            tablespaces: Vec::new(),
            major: 15,
            settings: Vec::new(),
            archive: false,
        }
    }

    pub fn dataset(mut self, pool: usize, name: &str, mount: &str) -> Layout {
        self.datasets.push(DatasetSpec { pool, name: name.to_owned(), mount: mount.to_owned() });
        self
    }

    pub fn tablespace(mut self, name: &str, path: &str) -> Layout {
        self.tablespaces.push((name.to_owned(), path.to_owned()));
        self
    }

    /// Another version of PostgreSQL.
    pub fn major(mut self, major: u32) -> Layout {
        self.major = major;
        self
    }

    /// One more line of postgresql.conf.
    pub fn setting(mut self, name: &str, value: &str) -> Layout {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With PostgreSQL's default for new segments of WAL, which writes them full of zeros.
    pub fn zeros(self) -> Layout {
        self.setting("wal_init_zero", "on")
    }

    /// With `archive_mode = on` and `cp` into the fixture's archive directory.
    pub fn archive(mut self) -> Layout {
        self.archive = true;
        self
    }

    /// Pools of another size.
    pub fn pool_size(mut self, size: u64) -> Layout {
        for pool in &mut self.pools {
            pool.size = size;
        }
        self
    }
}

/// The main one. Pool a: data directory, tablespace `ts1`; pool b: pg_wal, tablespace `ts2`.
/// The data directory, pg_wal and ts1 are directories on their datasets, ts2 is the dataset's own root.
pub fn two_pools_four_datasets() -> Layout {
    Layout::new(&["a", "b"], "data/pg", Wal::Linked("wal/pg_wal".to_owned()))
        .dataset(0, "data", "data")
        .dataset(0, "ts1", "ts1")
        .dataset(1, "wal", "wal")
        .dataset(1, "ts2", "ts2")
        .tablespace("ts1", "ts1/files")
        .tablespace("ts2", "ts2")
}

/// The same four datasets below one parent in one pool, where one transaction group can hold them all.
pub fn one_pool() -> Layout {
    Layout::new(&["a"], "data", Wal::Linked("wal".to_owned()))
        .dataset(0, "pg", "pg")
        .dataset(0, "pg/data", "data")
        .dataset(0, "pg/wal", "wal")
        .dataset(0, "pg/ts1", "ts1")
        .dataset(0, "pg/ts2", "ts2")
        .tablespace("ts1", "ts1")
        .tablespace("ts2", "ts2")
}

/// Two empty pools, for a cluster whose own files are elsewhere.
pub fn empty_pools() -> Layout {
    Layout::new(&["a", "b"], "data", Wal::Inside).tablespace("ts1", "ts1").tablespace("ts2", "ts2")
}

/// Everything on one dataset, next to a foreign file or two.
pub fn one_dataset() -> Layout {
    Layout::new(&["a"], "all/data", Wal::Linked("all/wal".to_owned()))
        .dataset(0, "all", "all")
        .tablespace("ts1", "all/ts1")
        .tablespace("ts2", "all/ts2")
}

/// Six tablespaces: eight datasets in two pools.
pub fn eight_datasets() -> Layout {
    let start = Layout::new(&["a", "b"], "data/pg", Wal::Linked("wal/pg_wal".to_owned()))
        .dataset(0, "data", "data")
        .dataset(1, "wal", "wal");
    (1..=6).fold(start, |layout, n| {
        let name = format!("ts{n}");
        layout.dataset(n % 2, &name, &name).tablespace(&name, &name)
    })
}

/// pg_wal is a dataset mounted inside the data directory, which is itself a dataset's root.
pub fn nested_wal() -> Layout {
    Layout::new(&["a", "b"], "data", Wal::Mounted { pool: 1, name: "wal".to_owned() })
        .dataset(0, "data", "data")
        .dataset(0, "ts1", "ts1")
        .dataset(1, "ts2", "ts2")
        .tablespace("ts1", "ts1")
        .tablespace("ts2", "ts2")
}

/// Everything on one dataset whose name is as long as its snapshots allow, with most characters written as three.
pub fn long_name() -> Layout {
    Layout::new(&["a"], "all/data", Wal::Linked("all/wal".to_owned()))
        .dataset(0, &format!("{}p", "p: ".repeat(50)), "all")
        .tablespace("ts1", "all/ts1")
        .tablespace("ts2", "all/ts2")
}

/// Names that need quoting somewhere: spaces, dots, colons; a tablespace below a directory with a newline and a
/// backslash.
pub fn odd_names() -> Layout {
    Layout::new(&["-a.b:c_d", "b"], "my data: v1.5/pg data", Wal::Linked("w a.l/pg wal".to_owned()))
        .dataset(0, "my data: v1.5", "my data: v1.5")
        .dataset(0, "my data: v1.5/t.s 1", "t.s 1")
        .dataset(1, "w a.l", "w a.l")
        .dataset(1, "ts:2", "new\nline \\ ts:2")
        .tablespace("ts1", "t.s 1/line one\nline two \\ end")
        .tablespace("ts2", "new\nline \\ ts:2")
}
