//! The repository: where sets are kept beyond this host, as deltas of block changes.
//!
//! ```text
//! lockstep.json                    format, id; made once, by `repo init`
//! clusters/NAME/…                  docs/repository-format.md
//! ```
//!
//! `strata` stores images and knows neither ZFS nor PostgreSQL. Here is what makes an image of a
//! send stream and a send stream of an image.

pub mod files;
mod format;
pub mod header;
pub mod image;
pub mod ingest;
pub mod shipped;
pub mod tree;
pub mod unfold;

use std::path::Path;

use strata::store::{ObjectStorage, Store};

use crate::config::RepositoryConfig;
use crate::context::Context;
use crate::error::{Error, Result};

pub use format::Format;
pub use shipped::{Shipped, ShippedVolume};

/// A cluster's part of a repository, opened.
pub struct Repository {
    /// Its name in the configuration.
    pub name: String,
    /// Its table in the configuration.
    pub config: RepositoryConfig,
    /// Its own id.
    pub id: String,
    /// The cluster's folder in it.
    pub strata: strata::Repository,
}

/// The store that a repository's URL means.
///
/// # Errors
/// When it can't be opened.
pub fn store(config: &RepositoryConfig) -> Result<Store> {
    match config.url.strip_prefix("file://") {
        Some(folder) => Ok(Store::new(ObjectStorage::folder(Path::new(folder)).map_err(of_store)?)),
        None => Err(Error::usage(
            format!("repository URL \"{}\": this kind isn't built in", config.url),
            "write file:///folder",
        )),
    }
}

/// Opens the repository `name` for the cluster of `cx`.
///
/// # Errors
/// When there is none of that name, it was never made, or it can't be opened.
pub fn open(cx: &Context, name: &str) -> Result<Repository> {
    let config = cx.repositories.get(name).ok_or_else(|| {
        let known = cx.repositories.keys().cloned().collect::<Vec<_>>().join(", ");
        Error::usage(
            format!("no repository \"{name}\" in the configuration"),
            format!("it has: {}", if known.is_empty() { "none" } else { &known }),
        )
    })?;
    let store = store(config)?;
    let format = Format::read(&store, name)?;
    let folder = format!("clusters/{}", cx.name);
    let strata = strata::Repository::new(store, &folder, None).map_err(of_strata)?;
    Ok(Repository { name: name.to_owned(), config: config.clone(), id: format.id, strata })
}

/// An error of the repository crate as one of the program's, with its hint.
pub fn of_strata(error: strata::Error) -> Error {
    let hint = error.hint().map(str::to_owned);
    let failed = Error::failed(error.to_string());
    let failed = match std::error::Error::source(&error) {
        Some(source) => failed.because(source.to_string()),
        None => failed,
    };
    match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}

fn of_store(error: strata::store::StoreError) -> Error {
    of_strata(error.into())
}
