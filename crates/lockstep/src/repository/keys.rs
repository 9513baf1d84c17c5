//! The keys of an encrypted repository: which slots exist, and how to get the data key through one of them.
//!
//! Each slot is an object of its own, written once. Adding a key never touches another one, and at no moment is the
//! only copy of anything being overwritten. What could go wrong: the last slot is removed, and the data is lost for
//! good. So that is refused, even when two hosts remove slots at once.

use std::path::{Path, PathBuf};

use strata::check::Inventory;
use strata::delta::read_descriptor;
use strata::frame::Key;
use strata::manifest::{DeltaId, Manifest};
use strata::store::{Listed, Store, StoreErrorKind};
use strata::{Repository, document, read_many};

use super::format::{Format, MAX_SIZE, PATH};
use super::wrap::{self, DataKey, Kdf, Secret, Slot, VERSION, unhex};
use super::{newer_form, of_store, of_strata, secret};
use crate::config::RepositoryConfig;
use crate::context::lockstep;
use crate::error::{Error, Result};

pub(super) const FOLDER: &str = "keys";

/// The reason for keeping a slot of another data key while something can't be read.
pub(super) const NOT_USELESS: &str = "that key may be the one that opens it, so it stays: was lockstep.json lost, and a new repository made in its place? Then put the old lockstep.json back from a copy";

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// 32 bytes, raw or in hex.
    KeyFile(PathBuf),
    /// A file whose first line is the passphrase.
    PassphraseFile(PathBuf),
}

impl Source {
    /// Returns the source that the configuration names.
    #[must_use]
    pub fn of(config: &RepositoryConfig) -> Option<Self> {
        let key = config.key_file.clone().map(Self::KeyFile);
        key.or_else(|| config.passphrase_file.clone().map(Self::PassphraseFile))
    }

    /// Reads the secret.
    ///
    /// # Errors
    /// When the file can't be read, others may read it, or it holds no key.
    pub fn read(&self) -> Result<Secret> {
        match self {
            Self::KeyFile(path) => read_key(path).map(Secret::KeyFile),
            Self::PassphraseFile(path) => {
                secret::read_line(path, "passphrase file").map(Secret::Passphrase)
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KeyFile(path) => write!(f, "key file \"{}\"", path.display()),
            Self::PassphraseFile(path) => write!(f, "passphrase file \"{}\"", path.display()),
        }
    }
}

fn read_key(path: &Path) -> Result<[u8; 32]> {
    let bytes = secret::read(path, secret::KEY_FILE)?;
    let text = std::str::from_utf8(&bytes).ok().map(str::trim_ascii);
    let key = bytes.as_slice().try_into().ok().or_else(|| text.and_then(unhex::<32>));
    key.ok_or_else(|| {
        Error::usage(
            format!("the key file \"{}\" has {} bytes, which isn't a key", path.display(), bytes.len()),
            format!("a key is 32 bytes, or 64 hex digits. If a repository was made with it, leave this file as it is, and put the key there again from its copy, byte for byte: nothing else opens the repository. For a new repository, into a file that doesn't exist yet: {}; keep a copy elsewhere", secret::NEW_KEY),
        )
    })
}

/// The slots that could be read, and the ids and errors of those that couldn't.
pub type Slots = (Vec<Slot>, Vec<(String, Error)>);

/// Lists all slots of the repository.
///
/// # Errors
/// When the store can't be listed.
pub fn list(store: &Store) -> Result<Slots> {
    let mut paths = Vec::new();
    store.list(FOLDER, |listed| paths.push(listed.path)).map_err(of_store)?;
    paths.sort();
    paths.dedup();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for path in paths {
        match read(store, &path) {
            // `None` if it was removed meanwhile.
            Ok(slot) => good.extend(slot),
            Err(error) => bad.push((path, error)),
        }
    }
    good.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    Ok((good, bad))
}

fn path(id: &str) -> String {
    format!("{FOLDER}/{id}.json")
}

fn read(store: &Store, at: &str) -> Result<Option<Slot>> {
    let bytes = match store.get_small(at, MAX_SIZE) {
        Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(of_store)?,
    };
    let slot: Slot = document::read(at, &bytes).map_err(of_strata)?;
    if slot.version > VERSION {
        return Err(newer_form(&format!("\"{at}\""), slot.version, VERSION));
    }
    if path(&slot.id) != at {
        return Err(Error::failed(format!("\"{at}\" is that of key \"{}\"", slot.id)));
    }
    Ok(Some(slot))
}

/// Wraps the data key with one more secret.
///
/// # Errors
/// When the store fails.
pub fn add(store: &Store, key: &DataKey, secret: &Secret, id: &str, label: &str) -> Result<Slot> {
    let slot = wrap::wrap(key, secret, Kdf::PASSPHRASE, id, label)?;
    write(store, &slot)?;
    Ok(slot)
}

fn write(store: &Store, slot: &Slot) -> Result<()> {
    let at = path(&slot.id);
    let bytes = document::write(&at, slot).map_err(of_strata)?;
    store.put_if_absent(&at, bytes).map_err(of_store)
}

/// Returns a manifest or descriptor, of any cluster, that can't be read with the repository's own key. It may have
/// been written under another one.
pub(super) fn unread(store: &Store, key: Option<&Key>) -> Result<Option<String>> {
    for cluster in store.folders("clusters").map_err(of_store)? {
        let folder = format!("clusters/{cluster}");
        let repository = Repository::new(store.clone(), &folder, key.cloned());
        let repository = repository.map_err(of_strata)?;
        let there = Inventory::take(&repository).map_err(of_strata)?;
        let mut found = None;
        let mut look = |listed: &Listed, error: Option<strata::Error>| match error {
            Some(strata::Error::Store(error)) if error.kind != StoreErrorKind::NotFound => {
                Err(of_store(error))
            }
            Some(strata::Error::Damaged { .. } | strata::Error::Sealed { .. }) => {
                found.get_or_insert_with(|| listed.path.clone());
                Ok(())
            }
            _ => Ok(()),
        };
        let (sets, deltas): (Vec<_>, Vec<_>) =
            (there.sets.iter().collect(), there.deltas.iter().collect());
        let manifest = |(id, _): &(&String, &Listed)| Manifest::read(&repository, id);
        read_many(&sets, manifest, |(_, listed), read| look(listed, read.err()))?;
        let descriptor = |(delta, _): &(&DeltaId, &Listed)| {
            read_descriptor(&repository, &delta.image, &delta.id)
        };
        read_many(&deltas, descriptor, |(_, listed), read| look(listed, read.err()))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Removes a slot of an opened repository, except the last one, the one that `opened` it, or one that is damaged or of
/// another data key while there is something that it may open.
///
/// # Errors
/// [`Error::Usage`] when there is no such slot or it must stay; when the store fails.
pub fn remove(store: &Store, name: &str, id: &str, opened: &Opened) -> Result<()> {
    let ours = |slot: &Slot| slot.fingerprint == opened.key.fingerprint();
    let (slots, bad) = list(store)?;
    let is_it = |(at, _): &(String, Error)| *at == path(id);
    let Some(slot) = slots.iter().find(|slot| slot.id == id) else {
        return match bad.into_iter().find(is_it) {
            Some((_, error @ Error::Store { .. })) => Err(error),
            Some((at, _)) => remove_damaged(store, name, &at, opened),
            None => Err(Error::usage(
                format!("repository \"{name}\" has no key \"{id}\""),
                format!("it has: {}", ids(&slots)),
            )),
        };
    };
    if ours(slot) && slots.iter().filter(|slot| ours(slot)).count() < 2 {
        return Err(Error::usage(
            format!("key \"{id}\" is the last one of repository \"{name}\""),
            format!(
                "without it nothing in there could ever be read; add another one first: `{} repo key add {name} --new-key-file FILE`",
                lockstep()
            ),
        ));
    }
    if *id == opened.slot {
        return Err(Error::usage(
            format!(
                "key \"{id}\" is the one that the configuration opens repository \"{name}\" with"
            ),
            format!("let [repositories.{name}] name the file of another key first"),
        ));
    }
    if !ours(slot)
        && let Some(unread) = unread(store, Some(&opened.key.for_strata()))?
    {
        return Err(Error::usage(
            format!(
                "key \"{id}\" opens another data key, and \"{unread}\" in repository \"{name}\" can't be read with its own"
            ),
            NOT_USELESS,
        ));
    }
    let at = path(id);
    store.delete(&at).map_err(of_store)?;
    // Another host may have removed the others in the meantime.
    if !list(store)?.0.iter().any(ours) {
        write(store, slot)?;
        return Err(Error::failed(format!(
            "key \"{id}\" is the last one of repository \"{name}\" by now, and was put back"
        )));
    }
    Ok(())
}

/// Removes a slot that opens nothing any more. The one that opened the repository stays.
fn remove_damaged(store: &Store, name: &str, at: &str, opened: &Opened) -> Result<()> {
    if let Some(unread) = unread(store, Some(&opened.key.for_strata()))? {
        return Err(Error::usage(
            format!(
                "\"{at}\" is damaged, and \"{unread}\" in repository \"{name}\" can't be read with the key that opens it"
            ),
            NOT_USELESS,
        ));
    }
    store.delete(at).map_err(of_store)
}

/// Returns what to do about a slot that can't be read.
pub(crate) fn unread_hint(name: &str, at: &str, error: &Error) -> Option<String> {
    if let Error::Store { .. } = error {
        return error.hint();
    }
    let id = at.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".json")?;
    let lockstep = lockstep();
    Some(format!(
        "whoever has only this key can't open the repository: `{lockstep} repo key add {name} --new-key-file FILE` (or `--new-passphrase-file FILE`) adds it again, and `{lockstep} repo key remove {id} {name}` removes the damaged one"
    ))
}

/// Deletes a slot that was never used, because another host created the repository at the same time.
pub(super) fn forget(store: &Store, slot: &Slot) -> Result<()> {
    match store.delete(&path(&slot.id)) {
        Err(error) if error.kind != StoreErrorKind::NotFound => Err(of_store(error)),
        _ => Ok(()),
    }
}

fn ids(slots: &[Slot]) -> String {
    let ids: Vec<_> = slots.iter().map(|slot| slot.id.as_str()).collect();
    if ids.is_empty() { "none".into() } else { ids.join(", ") }
}

/// The data key, and the slot that it was read from.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The key.
    pub key: DataKey,
    /// The slot's id.
    pub slot: String,
}

/// Returns the data key of the repository `name`, opened with the key in its configuration; `None` if neither has
/// one.
///
/// # Errors
/// When only one of the two has a key, or the configuration's key opens no slot. The error says which.
pub fn open(
    store: &Store,
    name: &str,
    config: &RepositoryConfig,
    format: &Format,
) -> Result<Option<Opened>> {
    let (encryption, source) = match (&format.encryption, Source::of(config)) {
        (None, None) => return Ok(None),
        (None, Some(source)) => return Err(not_encrypted(name, &source)),
        (Some(_), None) => return Err(no_key(name)),
        (Some(encryption), Some(source)) => (encryption, source),
    };
    let secret = source.read()?;
    let (slots, bad) = list(store)?;
    for slot in slots.iter().filter(|slot| slot.fingerprint == encryption.fingerprint) {
        if let Some(key) = wrap::unwrap(slot, &secret, &format.id)? {
            return Ok(Some(Opened { key, slot: slot.id.clone() }));
        }
    }
    let what = opens_none(&source, name);
    if let Some((path, error)) = bad.first() {
        return Err(damaged(&what, path, error));
    }
    if !slots.iter().any(|slot| slot.fingerprint == encryption.fingerprint) {
        return Err(none_fits(name, format, &slots));
    }
    Err(Error::usage(
        what,
        format!(
            "it is another one's, or was removed; `{} repo key list {name}` shows the keys there: {}",
            lockstep(),
            ids(&slots)
        ),
    ))
}

pub(super) fn opens_none(source: &Source, name: &str) -> String {
    format!("the {source} opens no key of repository \"{name}\"")
}

/// The error that a key opened nothing, and that of the slots at least this one is damaged.
pub(super) fn damaged(what: &str, path: &str, error: &Error) -> Error {
    let what = format!("{what}; \"{path}\" can't be read ({})", error.chain());
    if let Error::Store { .. } = error {
        return Error::Store { what, hint: error.hint(), source: None };
    }
    Error::failed(what).with_hint(
        "put that object back from a copy of the repository, or use the file of another key",
    )
}

pub(super) fn not_encrypted(name: &str, source: &Source) -> Error {
    Error::usage(
        format!("repository \"{name}\" isn't encrypted, but its configuration has a {source}"),
        "take it out, or make another repository with it: one that is there stays as it is",
    )
}

pub(super) fn no_key(name: &str) -> Error {
    Error::usage(
        format!("repository \"{name}\" is encrypted, and its configuration has no key"),
        format!("set key_file or passphrase_file in [repositories.{name}]"),
    )
}

/// Returns the other repository that all slots say they are of; `None` if one says nothing, or is of this one. Then
/// `lockstep.json` may have come from elsewhere.
pub(super) fn of_another<'a>(format: &Format, slots: &'a [Slot]) -> Option<&'a str> {
    let of: Option<Vec<_>> = slots.iter().map(wrap::repository_of).collect();
    let of = of.filter(|of| !of.contains(&format.id.as_str()))?;
    of.last().copied()
}

/// The error that of these slots, which are all that there are, none is of the data key that `lockstep.json` names.
#[must_use]
pub fn none_fits(name: &str, format: &Format, slots: &[Slot]) -> Error {
    if slots.is_empty() {
        return all_gone(name);
    }
    let Some(other) = of_another(format, slots) else {
        return Error::failed(format!(
            "repository \"{name}\" is encrypted, and none of the keys in {FOLDER}/ is of the data key that its {PATH} names"
        ))
        .with_hint(format!(
            "was {PATH} or {FOLDER}/ replaced by another repository's? Put it back from a copy of the repository"
        ));
    };
    Error::failed(format!(
        "{PATH} of repository \"{name}\" has the id {}, but the keys in {FOLDER}/ are of the repository {other}",
        format.id
    ))
    .with_hint(format!(
        "was another repository's {PATH} or {FOLDER}/ put there? Put the right one back from a copy of the repository; if there is none of {PATH}, `{} repo init {name} --again` makes it again from what is there",
        lockstep()
    ))
}

/// The error that an encrypted repository has no slot any more.
#[must_use]
pub(super) fn all_gone(name: &str) -> Error {
    Error::failed(format!(
        "repository \"{name}\" is encrypted, and its wrapped keys are gone: {FOLDER}/ has none"
    ))
    .with_hint(format!(
        "put {FOLDER}/ back from a copy of the repository: without one of them nothing in it can ever be read, with any key file or passphrase"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// It may be the only copy, with a word too many; and another random key opens nothing.
    #[test]
    fn whoever_has_a_strange_key_file_is_not_told_to_overwrite_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("offsite.key");
        let kept = format!("{}  the key of offsite\n", "ab".repeat(32));
        std::fs::write(&path, &kept).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let hint = read_key(&path).unwrap_err().hint().unwrap();
        assert!(hint.contains("leave this file as it is"), "{hint}");
        let command = hint.split('`').nth(1).unwrap();
        let command = command.replace("FILE", &path.display().to_string());
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", command.as_str()]);
        assert!(!shell.output().unwrap().status.success(), "{command}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), kept);
        std::fs::remove_file(&path).unwrap();
        assert!(shell.output().unwrap().status.success(), "{command}");
        assert!(read_key(&path).is_ok());
    }
}
