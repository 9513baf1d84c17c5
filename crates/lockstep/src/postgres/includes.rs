//! What is common to configuration files that include others: they are read as one, and the places that they name are
//! known.
//!
//! What could go wrong: files that include one another without end; so their depth and number are limited, the depth as
//! in PostgreSQL.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Error, Result};

/// How deep files may include one another (CONF_FILE_START_DEPTH and CONF_FILE_MAX_DEPTH in conffiles.h).
const DEEPEST: u32 = 10;
/// How many files are read at most: the depth alone doesn't limit a file that includes itself twice.
const MOST: u32 = 1000;

/// A file with everything that it includes.
#[derive(Debug)]
pub struct Whole {
    /// Its text.
    pub text: Vec<u8>,
    /// The file, and the files and folders that are named for inclusion, whether they exist or not.
    pub places: Vec<PathBuf>,
    /// Something is named by its absolute path: a copy of the data directory has it elsewhere.
    pub is_bound: bool,
}

/// Files that are read as one.
pub(super) struct Files<'a> {
    read: &'a dyn Fn(&Path) -> Result<Option<Vec<u8>>>,
    left: u32,
    places: Vec<PathBuf>,
    is_bound: bool,
}

/// The complete text of the file at `path`; `None` if it doesn't exist. `read` reads a file if it exists, and
/// `expanded` puts what a text includes in its place.
///
/// # Errors
/// When one of the files can't be read or doesn't exist, or they include too much.
pub(super) fn whole(
    path: &Path,
    read: impl Fn(&Path) -> Result<Option<Vec<u8>>>,
    expanded: impl Fn(&mut Files, &Path, &[u8], u32) -> Result<Vec<u8>>,
) -> Result<Option<Whole>> {
    let mut files = Files { read: &read, left: MOST, places: Vec::new(), is_bound: false };
    let Some(text) = files.take(path)? else { return Ok(None) };
    let text = expanded(&mut files, path, &text, 0)?;
    Ok(Some(Whole { text, places: files.places, is_bound: files.is_bound }))
}

impl Files<'_> {
    /// Reads a file if it exists.
    pub(super) fn take(&mut self, path: &Path) -> Result<Option<Vec<u8>>> {
        self.left = self.left.checked_sub(1).ok_or_else(|| too_much(path))?;
        self.places.push(path.to_path_buf());
        (self.read)(path)
    }

    /// Notes how a file or folder is named that is included.
    pub(super) fn note(&mut self, name: &[u8]) {
        self.is_bound |= name.starts_with(b"/");
    }

    /// Reads a file that must exist.
    pub(super) fn demand(&mut self, path: &Path, by: &Path) -> Result<Vec<u8>> {
        self.take(path)?.ok_or_else(|| {
            let (path, by) = (path.display(), by.display());
            Error::failed(format!("\"{path}\", which \"{by}\" includes, isn't there"))
        })
    }

    /// Finds out what a directive of the file `by` includes; `None` if it isn't one.
    pub(super) fn included(
        &mut self,
        by: &Path,
        directive: &[u8],
        name: &[u8],
    ) -> Result<Option<Included>> {
        let place = beside(by, name);
        let (files, have_to_be) = match directive {
            b"include" => (vec![place.clone()], true),
            b"include_if_exists" => (vec![place.clone()], false),
            b"include_dir" => (files_in(&place)?, true),
            _ => return Ok(None),
        };
        self.places.push(place);
        self.note(name);
        Ok(Some(Included { files, have_to_be, is_lenient: false }))
    }

    /// The texts of what is included, with what these include in turn, one after another.
    pub(super) fn texts(
        &mut self,
        by: &Path,
        included: Included,
        depth: u32,
        expanded: impl Fn(&mut Self, &Path, &[u8], u32) -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for file in included.files {
            let text = match included.have_to_be {
                true => Some(self.demand(&file, by)?),
                false => match self.take(&file) {
                    Err(error) if included.is_lenient && is_unopened(&error) => None,
                    other => other?,
                },
            };
            if let Some(text) = text {
                all.extend(expanded(self, &file, &text, depth + 1)?);
            }
        }
        Ok(all)
    }
}

/// What a directive includes.
pub(super) struct Included {
    files: Vec<PathBuf>,
    have_to_be: bool,
    /// Those that don't have to be are skipped whenever they can't be opened, not only if they don't exist.
    is_lenient: bool,
}

impl Included {
    /// The same, as postgresql.conf includes it: ParseConfigFile in guc-file.l skips what it can't open.
    pub(super) fn lenient(self) -> Self {
        Self { is_lenient: true, ..self }
    }
}

/// Whether a file couldn't even be opened: by its permissions, or because its path leads nowhere.
fn is_unopened(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => {
            let why = source.raw_os_error().map(Errno::from_raw_os_error);
            matches!(why, Some(Errno::ACCESS | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG))
        }
        Error::Command { error, .. } => error.stderr().contains("Permission denied"),
        _ => false,
    }
}

/// Refuses files that include one another too deep.
pub(super) fn check_depth(path: &Path, depth: u32) -> Result<()> {
    if depth > DEEPEST { Err(too_much(path)) } else { Ok(()) }
}

fn too_much(path: &Path) -> Error {
    Error::failed(format!(
        "too many files include one another; one of them is \"{}\"",
        path.display()
    ))
}

/// The path of `name`, relative to the file that names it (AbsoluteConfigLocation in conffiles.c).
pub(super) fn beside(file: &Path, name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    file.parent().unwrap_or(Path::new("/")).join(std::ffi::OsStr::from_bytes(name))
}

/// The configuration files of a folder, in order (GetConfFilesInDir in conffiles.c).
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let mut files = Vec::new();
    for entry in listed {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if !name.starts_with(b".") && name.ends_with(b".conf") && name.len() > 5 && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
