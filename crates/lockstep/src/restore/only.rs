//! A part of a cluster: the relation files of some databases, or of some tablespaces, and holes of the same size in
//! place of the others'.
//!
//! PostgreSQL starts on that. Recovery begins where the backup did, and the first change to a page after that point
//! brings the whole page, or is skipped (`whole_pages.rs`). Nobody can connect to a database whose files are holes,
//! because its pg_filenode.map is one too; DROP DATABASE removes it.
//!
//! What could go wrong: a name that leads to the wrong database. Names are read from the set's own pg_database; if
//! several databases have or had a name, all of them are restored. And recovery may copy the holes of one database over
//! another one (`only/copied.rs`).

mod copied;
pub(super) mod renamed;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use pgfiles::RelationMap;
use pgfiles::database_catalog::{DatabaseRow, FIRST_NORMAL_OID, PG_DATABASE, databases};
use sendstream::zpl::FileType;

use crate::error::{Error, Result};
use crate::names::{SetId, is_number};
use crate::plan::layout::PartKind;
use crate::repository::peek::Peek;
use crate::repository::tree::ImageTree;
use crate::repository::{Repository, Shipped};
use crate::set::manifest::{Manifest, SetPart, SetVolume};

/// Which file a system catalog is in; `global` has one, and the folder of each database in its own tablespace.
const MAP: &str = "pg_filenode.map";
/// It has 512 or 524 bytes.
const MOST_OF_MAP: u64 = 4 << 10;
/// A row has a few hundred bytes; a million databases are more than anybody has.
const MOST_OF_CATALOG: u64 = 512 << 20;
/// Always restored, because PostgreSQL's own tools need them.
const ALWAYS: [&[u8]; 3] = [b"postgres", b"template0", b"template1"];

/// The requested parts, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Databases; if empty, all.
    pub databases: Vec<String>,
    /// Tablespaces, by OID or name; if empty, all.
    pub tablespaces: Vec<String>,
}

impl Wanted {
    /// Whether everything is requested.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.databases.is_empty() && self.tablespaces.is_empty()
    }
}

/// What is restored, by OID.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Only {
    databases: Option<BTreeSet<u32>>,
    /// The tablespaces left out. A tablespace of allow_in_place_tablespaces isn't a part of a set and has no name
    /// there, so nobody can request it; it comes with the data directory.
    without_tablespaces: Option<BTreeSet<u32>>,
}

/// What exists by name only, as holes: it can only be dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NotRestored {
    /// Databases, also those whose own tablespace isn't restored.
    pub databases: Vec<String>,
    /// Tablespaces whose content is missing.
    pub tablespaces: Vec<String>,
}

impl Only {
    /// Finds what the names mean, and what they leave out.
    pub(super) fn find(
        repository: &Repository,
        shipped: &Shipped,
        wanted: &Wanted,
    ) -> Result<(Self, NotRestored)> {
        let manifest = &shipped.manifest;
        let (mut only, mut rest) = (Self::default(), NotRestored::default());
        let mut known = BTreeSet::new();
        if !wanted.databases.is_empty() {
            known = read_databases(repository, shipped)?;
            only.databases = Some(oids_of(&wanted.databases, &known, manifest)?);
        }
        if !wanted.tablespaces.is_empty() {
            let oids = tablespaces_of(&wanted.tablespaces, manifest)?;
            let others = tablespaces_in(manifest).map(|(oid, _)| oid);
            only.without_tablespaces = Some(others.filter(|oid| !oids.contains(oid)).collect());
        }
        if !only.is_all() {
            only.add_sources(&copied::in_wal(repository, shipped)?);
        }
        if let Some(oids) = &only.databases {
            let mut rows = left_out(&known, oids);
            let there = with_folder(repository, shipped, rows.iter().map(|row| row.oid).collect())?;
            // pg_database has the rows of dropped databases until it is vacuumed.
            rows.retain(|row| there.contains(&row.oid));
            rest.databases = names_of(&rows);
        }
        if let Some(without) = &only.without_tablespaces {
            let others = tablespaces_in(manifest).filter(|(oid, _)| without.contains(oid));
            rest.tablespaces = others.map(|(_, name)| name).collect();
            let within = databases_within(repository, shipped, without)?;
            if !within.is_empty() {
                if known.is_empty() {
                    known = read_databases(repository, shipped)?;
                }
                let rows: Vec<_> = known.iter().filter(|row| within.contains(&row.oid)).collect();
                rest.databases.extend(names_of(&rows));
                rest.databases.sort();
                rest.databases.dedup();
            }
        }
        Ok((only, rest))
    }

    /// Whether everything is restored.
    pub(super) fn is_all(&self) -> bool {
        *self == Self::default()
    }

    #[cfg(test)]
    pub(super) fn of(databases: Option<&[u32]>, without_tablespaces: Option<&[u32]>) -> Self {
        let set = |oids: &[u32]| oids.iter().copied().collect();
        let without_tablespaces = without_tablespaces.map(set);
        Self { databases: databases.map(set), without_tablespaces }
    }

    /// Returns a number that identifies the choice: another choice has another number.
    pub(super) fn mark(&self, delta: &str) -> u64 {
        let mut hash = blake3::Hasher::new();
        hash.update(delta.as_bytes());
        for (kind, chosen) in [(b"d", &self.databases), (b"t", &self.without_tablespaces)] {
            // Everything is a different choice from nothing.
            let Some(oids) = chosen else { continue };
            hash.update(b"\0").update(kind);
            for oid in oids {
                hash.update(&oid.to_le_bytes());
            }
        }
        hash.finalize()
            .as_bytes()
            .first_chunk()
            .map_or(1, |bytes| u64::from_le_bytes(*bytes))
            .max(1)
    }

    /// Returns the objects of a volume that become holes.
    pub(super) fn zeroed(&self, tree: &ImageTree, volume: &SetVolume) -> Result<HashSet<u64>> {
        if self.is_all() {
            return Ok(HashSet::new());
        }
        let mut found = Found::default();
        for part in &volume.parts {
            let Some(root) = tree.find(part.inside.iter().map(OsStrExt::as_bytes)) else {
                continue;
            };
            match &part.kind {
                PartKind::Wal => {}
                PartKind::Tablespace { oid, .. } => {
                    self.tablespace(tree, root, *oid, &mut found)?;
                }
                PartKind::Data => {
                    if let Some(base) = tree.child(root, b"base") {
                        self.databases(tree, base, true, &mut found)?;
                    }
                    // Tablespaces of allow_in_place_tablespaces are folders there; only databases in them can be left
                    // out.
                    let folder = tree.child(root, b"pg_tblspc");
                    for (name, space) in folders(tree, folder)? {
                        if let Some(oid) = number(&name) {
                            self.tablespace(tree, space, oid, &mut found)?;
                        }
                    }
                }
            }
        }
        let Found { mut zeroed, kept } = found;
        zeroed.retain(|object| !kept.contains(object));
        Ok(zeroed)
    }

    /// Whether the files of a database are restored.
    pub(super) fn wants(&self, database: u32) -> bool {
        let wanted = self.databases.as_ref();
        wanted.is_none_or(|all| database < FIRST_NORMAL_OID || all.contains(&database))
    }

    fn wants_in(&self, tablespace: u32) -> bool {
        self.without_tablespaces.as_ref().is_none_or(|without| !without.contains(&tablespace))
    }

    /// Whether the files in a database's folder, named as in PostgreSQL (GetRelationPath in relpath.c), are holes.
    pub(super) fn leaves_out(&self, folder: &str) -> bool {
        let number = |name: &str| number(name.as_bytes());
        match folder.split('/').collect::<Vec<_>>()[..] {
            ["base", database] => number(database).is_some_and(|oid| !self.wants(oid)),
            ["pg_tblspc", tablespace, _, database] => {
                let both = number(tablespace).zip(number(database));
                both.is_some_and(|(space, oid)| !self.wants_in(space) || !self.wants(oid))
            }
            _ => false,
        }
    }

    fn tablespace(&self, tree: &ImageTree, root: u64, oid: u32, found: &mut Found) -> Result<()> {
        let is_wanted = self.wants_in(oid);
        for (name, version) in folders(tree, Some(root))? {
            if name.starts_with(b"PG_") {
                self.databases(tree, version, is_wanted, found)?;
            }
        }
        Ok(())
    }

    /// Adds the files in the folders of databases, except PG_VERSION.
    fn databases(
        &self,
        tree: &ImageTree,
        folder: u64,
        is_wanted: bool,
        found: &mut Found,
    ) -> Result<()> {
        for (name, database) in folders(tree, Some(folder))? {
            let Some(oid) = number(&name) else { continue };
            let is_kept = is_wanted && self.wants(oid);
            for (name, object) in tree.children(database) {
                let attributes = tree.attributes(object)?;
                let is_file = attributes.file_type() == FileType::Regular;
                if !is_file || name == b"PG_VERSION" {
                    continue;
                }
                if !is_kept {
                    found.zeroed.insert(object);
                } else if attributes.links != 1 {
                    found.kept.insert(object);
                }
            }
        }
        Ok(())
    }
}

/// Files in the folders of databases.
#[derive(Default)]
struct Found {
    /// Those of databases that aren't restored.
    zeroed: HashSet<u64>,
    /// Those of the others that have further names. `pg_upgrade --link` leaves such names in the tablespaces, in the
    /// former version's folder, in which a database of the same files may have another OID (up to PostgreSQL 14).
    kept: HashSet<u64>,
}

/// Returns the folders in a folder.
fn folders(tree: &ImageTree, folder: Option<u64>) -> Result<Vec<(Vec<u8>, u64)>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (name, object) in tree.children(folder) {
        if tree.attributes(object)?.file_type() == FileType::Directory {
            found.push((name.to_vec(), object));
        }
    }
    Ok(found)
}

fn number(name: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(name).ok()?;
    is_number(text).then(|| text.parse().ok()).flatten()
}

/// The folder `global` of a set's data directory, in the repository.
pub(super) struct Global {
    peek: Peek,
    folder: PathBuf,
    set: SetId,
}

impl Global {
    pub(super) fn open(repository: &Repository, shipped: &Shipped) -> Result<Self> {
        let set = &shipped.manifest.set;
        let (volume, part) = data_part(&shipped.manifest)?;
        let shipped = shipped.volumes.iter().find(|shipped| shipped.dataset == volume.dataset);
        let shipped = shipped.ok_or_else(|| {
            Error::failed(format!("the data directory of set {set} isn't in the repository"))
        })?;
        Ok(Self {
            peek: Peek::open(repository, &shipped.image, &shipped.delta)?,
            folder: part.inside.join("global"),
            set: set.clone(),
        })
    }

    /// Reads one of its files.
    pub(super) fn read(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.folder.join(name);
        let object = self.peek.find(path.iter().map(OsStrExt::as_bytes))?.ok_or_else(|| {
            Error::failed(format!("set {} has no file \"{}\"", self.set, path.display()))
        })?;
        self.peek.small_file(object, limit)
    }

    /// Makes the error for a file with unexpected content.
    pub(super) fn strange(&self, what: &str, name: &str) -> Error {
        let path = self.folder.join(name);
        Error::failed(format!("{what} of set {}, \"{}\", can't be read", self.set, path.display()))
    }
}

/// Returns the databases that a set's pg_database names, as of its last checkpoint.
fn read_databases(repository: &Repository, shipped: &Shipped) -> Result<BTreeSet<DatabaseRow>> {
    let mut global = Global::open(repository, shipped)?;
    let map = RelationMap::parse(&global.read(MAP, MOST_OF_MAP)?)
        .map_err(|e| global.strange("the relation map", MAP).because(e))?;
    let file = map.file_of(PG_DATABASE).ok_or_else(|| {
        Error::failed(format!("the relation map of set {} has no pg_database", global.set))
    })?;
    let file = file.to_string();
    databases(&global.read(&file, MOST_OF_CATALOG)?)
        .map_err(|e| global.strange("pg_database", &file).because(e))
}

fn data_part(manifest: &Manifest) -> Result<(&SetVolume, &SetPart)> {
    let part = manifest.parts().find(|(_, part)| part.kind == PartKind::Data);
    part.and_then(|(at, part)| Some((manifest.volumes.get(at)?, part)))
        .ok_or_else(|| Error::failed(format!("set {} names no data directory", manifest.set)))
}

/// Returns the OIDs of all databases that have, or had, one of the names, and of those that are always restored.
fn oids_of(
    names: &[String],
    known: &BTreeSet<DatabaseRow>,
    manifest: &Manifest,
) -> Result<BTreeSet<u32>> {
    let mut by_name: BTreeMap<&[u8], BTreeSet<u32>> = BTreeMap::new();
    for row in known {
        by_name.entry(&row.name).or_default().insert(row.oid);
    }
    let mut oids = BTreeSet::new();
    for name in names {
        let found = by_name.get(name.as_bytes()).ok_or_else(|| {
            let all: Vec<_> =
                by_name.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
            Error::usage(
                format!("set {} has no database \"{name}\"", manifest.set),
                format!(
                    "it has: {}; one that was made or renamed after the set's checkpoint isn't known yet",
                    all.join(", ")
                ),
            )
        })?;
        oids.extend(found);
    }
    oids.extend(ALWAYS.iter().filter_map(|name| by_name.get(name)).flatten());
    Ok(oids)
}

/// Returns the rows of databases whose files become holes.
fn left_out<'a>(known: &'a BTreeSet<DatabaseRow>, oids: &BTreeSet<u32>) -> Vec<&'a DatabaseRow> {
    let is_left_out = |row: &&DatabaseRow| row.oid >= FIRST_NORMAL_OID && !oids.contains(&row.oid);
    known.iter().filter(is_left_out).collect()
}

/// Returns their names, each once.
fn names_of(rows: &[&DatabaseRow]) -> Vec<String> {
    let names: BTreeSet<_> =
        rows.iter().map(|row| String::from_utf8_lossy(&row.name).into_owned()).collect();
    names.into_iter().collect()
}

/// Returns those of these databases that have a folder in the set. It is in the database's own tablespace, which the
/// catalog names at a place that depends on the version; so all are looked through until every database is found.
fn with_folder(
    repository: &Repository,
    shipped: &Shipped,
    mut wanted: BTreeSet<u32>,
) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    // The data directory's volume first: most are there.
    let is_data = |part: &SetPart| part.kind == PartKind::Data;
    let mut volumes: Vec<_> = shipped.manifest.volumes.iter().collect();
    volumes.sort_by_key(|volume| !volume.parts.iter().any(is_data));
    for volume in volumes {
        let of_it = shipped.volumes.iter().find(|shipped| shipped.dataset == volume.dataset);
        let Some(of_it) = of_it.filter(|_| !wanted.is_empty()) else { continue };
        let mut peek = Peek::open(repository, &of_it.image, &of_it.delta)?;
        for part in &volume.parts {
            for (oid, _) in folders_of_databases(&mut peek, part)? {
                if wanted.remove(&oid) {
                    found.insert(oid);
                }
            }
        }
    }
    Ok(found)
}

/// Returns the OIDs of the databases whose own tablespace is one of these: their pg_filenode.map lies there, without
/// which nobody can connect to them. Of others only some tables and indexes lie there.
fn databases_within(
    repository: &Repository,
    shipped: &Shipped,
    tablespaces: &BTreeSet<u32>,
) -> Result<BTreeSet<u32>> {
    let is_one = |part: &&SetPart| match &part.kind {
        PartKind::Tablespace { oid, .. } => tablespaces.contains(oid),
        PartKind::Data | PartKind::Wal => false,
    };
    let mut found = BTreeSet::new();
    for of_it in &shipped.volumes {
        let volumes = &shipped.manifest.volumes;
        let volume = volumes.iter().find(|volume| volume.dataset == of_it.dataset);
        let mut parts =
            volume.into_iter().flat_map(|volume| &volume.parts).filter(is_one).peekable();
        if parts.peek().is_none() {
            continue;
        }
        let mut peek = Peek::open(repository, &of_it.image, &of_it.delta)?;
        for part in parts {
            for (oid, folder) in folders_of_databases(&mut peek, part)? {
                if children(&mut peek, folder)?.iter().any(|(name, _)| name == MAP.as_bytes()) {
                    found.insert(oid);
                }
            }
        }
    }
    Ok(found)
}

/// Returns the folders of databases in this part of a set, by the databases' OIDs.
fn folders_of_databases(peek: &mut Peek, part: &SetPart) -> Result<Vec<(u32, u64)>> {
    let mut tablespaces = Vec::new();
    let mut folders = Vec::new();
    let Some(root) = peek.find(part.inside.iter().map(OsStrExt::as_bytes))? else {
        return Ok(Vec::new());
    };
    match part.kind {
        PartKind::Wal => {}
        PartKind::Tablespace { .. } => tablespaces.push(root),
        PartKind::Data => {
            for (name, object) in children(peek, root)? {
                match &name[..] {
                    b"base" => folders.push(object),
                    // Tablespaces of allow_in_place_tablespaces are folders there, all others links.
                    b"pg_tblspc" => {
                        tablespaces.extend(children(peek, object)?.into_iter().map(|(_, at)| at));
                    }
                    _ => {}
                }
            }
        }
    }
    for tablespace in tablespaces {
        let versions = children(peek, tablespace)?.into_iter();
        folders.extend(versions.filter(|(name, _)| name.starts_with(b"PG_")).map(|(_, at)| at));
    }
    let mut databases = Vec::new();
    for folder in folders {
        let all = children(peek, folder)?.into_iter();
        databases.extend(all.filter_map(|(name, object)| Some((number(&name)?, object))));
    }
    Ok(databases)
}

/// Returns the names in a folder; of anything else, none.
fn children(peek: &mut Peek, folder: u64) -> Result<Vec<(Vec<u8>, u64)>> {
    Ok(peek.node(folder)?.children.iter().map(|(name, object)| (name.to_vec(), object)).collect())
}

/// Returns the tablespaces that are parts of the set, with their names.
fn tablespaces_in(manifest: &Manifest) -> impl Iterator<Item = (u32, String)> {
    manifest.parts().filter_map(|(_, part)| match &part.kind {
        PartKind::Tablespace { oid, name } => {
            Some((*oid, name.clone().unwrap_or_else(|| oid.to_string())))
        }
        _ => None,
    })
}

fn tablespaces_of(names: &[String], manifest: &Manifest) -> Result<BTreeSet<u32>> {
    let which = |wanted: &String| super::placement::find_tablespace(manifest, wanted);
    names.iter().map(which).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::manifest::tests::manifest;

    fn row(oid: u32, name: &str) -> DatabaseRow {
        DatabaseRow { oid, name: name.into() }
    }

    #[test]
    fn every_database_of_a_name_counts_and_the_system_s_always_do() {
        let known = BTreeSet::from([
            row(5, "postgres"),
            row(20_000, "postgres"),
            row(1, "template1"),
            row(16_384, "shop"),
            row(16_390, "shop"),
            row(16_400, "other"),
        ]);
        let oids = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            oids_of(&names, &known, &manifest("20261123T194512Z-k3fa", Vec::new()))
        };
        assert_eq!(oids(&["shop"]).unwrap(), BTreeSet::from([1, 5, 16_384, 16_390, 20_000]));
        let error = oids(&["shop", "Shop"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.hint().unwrap().contains("other, postgres, shop, template1"), "{error}");
    }

    #[test]
    fn what_is_left_out_is_named_and_the_system_s_is_not() {
        let known = BTreeSet::from([
            row(1, "template1"),
            row(5, "postgres"),
            row(16_384, "shop"),
            row(16_390, "crm"),
            row(16_391, "crm"),
            row(16_400, "audit"),
        ]);
        let left_out = |oids: &[u32]| names_of(&left_out(&known, &oids.iter().copied().collect()));
        assert_eq!(left_out(&[1, 5, 16_384]), ["audit", "crm"]);
        assert_eq!(left_out(&[16_384, 16_390, 16_391, 16_400]), [""; 0]);
    }

    #[test]
    fn another_choice_has_another_mark() {
        let only = |oids: &[u32]| Only {
            databases: Some(oids.iter().copied().collect()),
            without_tablespaces: None,
        };
        assert_ne!(only(&[1]).mark("7"), only(&[2]).mark("7"));
        assert_ne!(only(&[1]).mark("7"), only(&[1]).mark("8"));
        let tablespaces = Only::of(None, Some(&[1]));
        assert_ne!(only(&[1]).mark("7"), tablespaces.mark("7"));
        assert_ne!(only(&[]).mark("7"), Only::default().mark("7"), "none is not all");
    }
}
