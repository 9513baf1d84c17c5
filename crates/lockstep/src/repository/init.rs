//! Creates a repository once, however often and by however many hosts it is requested.
//!
//! The wrapped key is written first and `lockstep.json` last: its existence is what makes the store a repository, and
//! from then on there is a key that opens it. What could go wrong: two hosts do this at once, each with its own data
//! key. Put-if-absent lets one win, and the other removes its slot again. Or `lockstep.json` is gone while everything
//! else is still there: a new one would have a new data key, and nothing already there could be read. So that is
//! refused; the same file can be made again from what is there (`again.rs`), also in place of a damaged one, or of
//! another repository's that was put there.

mod again;

use super::format::Found;
use super::keys::{self, Source};
use super::known::Known;
use super::wrap::{self, DataKey};
use super::{Format, of_store, stores};
use crate::config::{Place, RepositoryConfig};
use crate::error::{Error, Result};
use crate::refusal::Refusal;
use crate::words;

use strata::store::{Store, StoreErrorKind};

/// A repository that exists now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its id.
    pub id: String,
    /// Whether this call created it.
    pub is_new: bool,
    /// Whether it existed before, and its `lockstep.json` was made again.
    pub is_again: bool,
    /// Whether it is encrypted.
    pub is_encrypted: bool,
}

/// What to create.
#[derive(Debug, Clone, Copy, Default)]
pub struct How<'a> {
    /// Only `lockstep.json`, lost, damaged or another repository's, made again from what is there.
    pub again: bool,
    /// The repository's id for that, if neither this host nor its keys know it.
    pub id: Option<&'a str>,
    /// The id that this host knows, if another repository is to replace it.
    pub instead_of: Option<&'a str>,
}

/// Creates the repository `name`, or checks that this host can open the one that is there. `known` is what this host
/// knows under the name.
///
/// # Errors
/// When the store fails, or what is there can't be opened with this configuration; [`Refusal::RepositoryAway`] when
/// it is another one than the known one; [`Refusal::HeaderGone`] when only `lockstep.json` is missing;
/// [`Refusal::OtherId`] when the id given isn't the known one.
pub fn run(
    name: &str,
    config: &RepositoryConfig,
    known: Option<Known>,
    how: How<'_>,
) -> Result<Made> {
    let awaited = known.clone().filter(|known| how.instead_of != Some(&*known.id));
    // A missing mount point isn't created.
    if let Some(known) = &awaited
        && stores::missing_folder(config)?.is_some()
    {
        return Err(known.clone().is_away(name, None));
    }
    let store = stores::create(config)?;
    let is_wrong = match Format::look(&store.impatient(), name)? {
        Found::Format(format) if is_anothers(&store, config, &format)? => match how.again {
            true => true,
            false => return there(&store, name, config, format, false),
        },
        Found::Format(format) => {
            return match awaited.filter(|known| known.id != format.id) {
                Some(known) => Err(known.is_away(name, Some(format.id))),
                None => there(&store, name, config, format, false),
            };
        }
        Found::Nothing => false,
        Found::Damaged(_) if how.again => true,
        Found::Damaged(error) => return Err(error),
    };
    is_reachable(&store, config)?;
    let clusters = clusters(&store)?;
    if how.again {
        let id = again::named(name, known.map(|known| known.id), how.id)?;
        let format = again::format(&store, name, config, id, &clusters)?;
        match is_wrong {
            true => format.replace(&store)?,
            false => format.create(&store).map(|_| ())?,
        }
        let made = there(&store, name, config, Format::read(&store, name)?, false)?;
        return Ok(Made { is_again: true, ..made });
    }
    if !clusters.is_empty() {
        return Err(header_gone(name, &clusters));
    }
    if let Some(known) = awaited {
        return Err(known.is_away(name, None));
    }
    keeps_what_is_there(&store, config)?;
    let Some(source) = Source::of(config) else {
        let format = Format::new()?;
        return match format.create(&store)? {
            true => there(&store, name, config, format, true),
            false => there(&store, name, config, Format::read(&store, name)?, false),
        };
    };
    let (key, secret) = (DataKey::new()?, source.read()?);
    let format = Format::new()?.encrypted(key.fingerprint());
    let slot = keys::add(&store, &key, &secret, &format.id, "made with the repository")?;
    // The slot just written must open before anything depends on it.
    if wrap::unwrap(&slot, &secret, &format.id)? != Some(key) {
        return Err(Error::failed("the data key was wrapped, and doesn't open again"));
    }
    if format.create(&store)? {
        return there(&store, name, config, format, true);
    }
    keys::forget(&store, &slot)?;
    there(&store, name, config, Format::read(&store, name)?, false)
}

/// Checks whether another encrypted repository's `lockstep.json` is in the place of this one's, as far as the keys say:
/// all of them are of another repository.
fn is_anothers(store: &Store, config: &RepositoryConfig, format: &Format) -> Result<bool> {
    // An interrupted `repo init` may have left a key beside a repository that has none.
    if format.encryption.is_none() || Source::of(config).is_none() {
        return Ok(false);
    }
    let (slots, bad) = keys::list(store)?;
    Ok(bad.is_empty() && !slots.is_empty() && keys::of_another(format, &slots).is_some())
}

fn there(
    store: &Store,
    name: &str,
    config: &RepositoryConfig,
    format: Format,
    is_new: bool,
) -> Result<Made> {
    keys::open(store, name, config, &format)?;
    let is_encrypted = format.encryption.is_some();
    Ok(Made { id: format.id, is_new, is_again: false, is_encrypted })
}

/// Returns the clusters that have anything in the store. A key alone doesn't count: an interrupted `repo init` leaves
/// one, and it has sealed nothing yet.
pub(super) fn clusters(store: &Store) -> Result<Vec<String>> {
    let mut all = store.folders("clusters").map_err(of_store)?;
    let mut failed = None;
    all.retain(|name| {
        let mut is_any = false;
        // An empty folder doesn't count.
        let listed = store.list(&format!("clusters/{name}"), |_| is_any = true);
        failed = failed.take().or(listed.err());
        is_any
    });
    failed.map_or(Ok(all), |error| Err(of_store(error)))
}

pub(super) fn header_gone(name: &str, clusters: &[String]) -> Error {
    let clusters = words::a_few(clusters);
    Refusal::HeaderGone { name: name.to_owned(), clusters }.into()
}

/// Checks that the store can create an object only if it doesn't exist yet: all locks between hosts are based on
/// that.
fn keeps_what_is_there(store: &Store, config: &RepositoryConfig) -> Result<()> {
    let path = format!("leases/probe/{}", crate::names::random_suffix()?);
    store.put_if_absent(&path, b"first".to_vec()).map_err(of_store)?;
    let second = store.put_if_absent(&path, b"second".to_vec());
    let kept = store.get(&path).map_err(of_store)?;
    let folds_case = store.size(&path.to_ascii_uppercase()).is_ok();
    // With a bucket that has a retention policy, or credentials that may not delete, the probe stays and harms
    // nobody.
    if let Err(error) = store.delete(&path) {
        tracing::debug!(path, error = %of_store(error).chain(), "the probe stays where it is");
    }
    if folds_case {
        return Err(Error::failed(format!(
            "the store of \"{}\" doesn't distinguish upper- and lower-case letters",
            config.url
        ))
        .with_hint("datasets and clusters whose names differ only in these would be one there, and what one of them needs would be deleted; use another file system (of ZFS, a dataset with casesensitivity=sensitive)"));
    }
    match second {
        Err(error) if error.kind == StoreErrorKind::AlreadyExists && *kept == *b"first" => Ok(()),
        Err(error) if error.kind != StoreErrorKind::AlreadyExists => Err(of_store(error)),
        _ => Err(Error::failed(format!(
            "the store of \"{}\" writes over what is there where it is asked not to (If-None-Match)",
            config.url
        ))
        .with_hint("two hosts could prune at once there; use a store, or a version of it, that keeps it")),
    }
}

/// Checks that the bucket exists. A missing bucket looks like an empty one until something is written.
fn is_reachable(store: &Store, config: &RepositoryConfig) -> Result<()> {
    match store.list("keys", |_| ()) {
        // Some servers report a missing bucket less clearly than others.
        Err(error) if error.kind == StoreErrorKind::NotFound => match config.place() {
            Ok(Place::Cloud { bucket, .. }) => {
                Err(Error::failed(format!("there is no bucket \"{bucket}\" at \"{}\"", config.url))
                    .because(error.to_string())
                    .with_hint("make it first, with the store's own tools; is the endpoint right?"))
            }
            _ => Err(of_store(error)),
        },
        Err(error) => Err(of_store(error)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {

    use bytes::Bytes;
    use strata::store::{Around, Storage, StoreError, StoreResult};

    use super::*;
    use crate::prune::memory_store::Memory;

    /// A store whose server doesn't know conditions, or doesn't allow deletion.
    struct Odd {
        inner: Memory,
        overwrites: bool,
        deletes: bool,
    }

    impl Around for Odd {
        fn inner(&self) -> &dyn Storage {
            &self.inner
        }

        fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
            match self.overwrites {
                true => self.inner.put(path, std::slice::from_ref(data)),
                false => self.inner.put_if_absent(path, data),
            }
        }

        fn delete(&self, path: &str) -> StoreResult<()> {
            match self.deletes {
                true => self.inner.delete(path),
                false => Err(StoreError::new("delete", path, StoreErrorKind::Retained)),
            }
        }
    }

    /// A file system to which `A` and `a` are the same.
    struct Folding(Memory);

    impl Around for Folding {
        fn inner(&self) -> &dyn Storage {
            &self.0
        }

        fn size(&self, path: &str) -> StoreResult<u64> {
            self.0.size(&path.to_ascii_lowercase())
        }
    }

    #[test]
    fn a_store_to_which_two_names_are_one_is_refused() {
        let config: RepositoryConfig = toml::from_str("url = 'file:///b'").unwrap();
        let memory = Memory::default();
        let error = keeps_what_is_there(&Store::new(Folding(memory.clone())), &config).unwrap_err();
        assert!(error.to_string().contains("lower-case"), "{error}");
        assert!(error.hint().is_some() && memory.paths("").is_empty(), "the probe is gone");
    }

    #[test]
    fn a_store_that_writes_over_what_is_there_is_refused() {
        let config: RepositoryConfig = toml::from_str("url = 's3://b'").unwrap();
        let good = Memory::default();
        keeps_what_is_there(&Store::new(good.clone()), &config).unwrap();
        assert!(good.paths("").is_empty(), "the probe is gone");
        let overwrites = Odd { inner: good, overwrites: true, deletes: true };
        let error = keeps_what_is_there(&Store::new(overwrites), &config).unwrap_err();
        assert!(error.to_string().contains("s3://b"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("two hosts")));
    }

    /// A folder on NFS: the answer to link(2) was lost, and the client has sent it again.
    struct SentAgain(Memory);

    impl Around for SentAgain {
        fn inner(&self) -> &dyn Storage {
            &self.0
        }

        fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
            self.0.put_if_absent(path, data)?;
            self.0.put_if_absent(path, data)
        }
    }

    #[test]
    fn whose_lockstep_json_exists_already_is_told_by_its_content() {
        let store = Store::new(SentAgain(Memory::default()));
        let format = Format::new().unwrap();
        assert!(format.create(&store).unwrap(), "it is its own, and its key stays");
        assert!(!Format::new().unwrap().create(&store).unwrap(), "it is another's");
        assert_eq!(Format::read(&store, "offsite").unwrap(), format);
    }

    #[test]
    fn a_store_that_lets_nobody_delete_does() {
        let config: RepositoryConfig = toml::from_str("url = 's3://b'").unwrap();
        for overwrites in [false, true] {
            let memory = Memory::default();
            let kept = Odd { inner: memory.clone(), overwrites, deletes: false };
            let result = keeps_what_is_there(&Store::new(kept), &config);
            assert_eq!(result.is_ok(), !overwrites, "{result:?}");
            assert_eq!(memory.paths("leases/probe").len(), 1, "it could not be deleted");
        }
    }
}
