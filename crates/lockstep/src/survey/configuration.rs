//! Finds the configuration that no snapshot has: Debian has it in /etc, and files in the data directory may include
//! what is elsewhere.
//!
//! What could go wrong: the set has less than the server, and nobody notices until its host is lost. So what isn't
//! there, or isn't the newest, is a problem of the set. Or it has what is meant for this server only: a mirror's own
//! pg_hba.conf lets in whoever may open its socket.

use std::path::{Component, Path, PathBuf};

use pgfiles::control_file::ControlFile;
use postgres::Client;

use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::mirror::serve::HBA;
use crate::plan::facts::{ConfigFiles, Configuration, ServerFacts};
use crate::plan::warnings;
use crate::postgres::file_settings::{self, Doubt, FileSettings};
use crate::postgres::{conf, hba};
use crate::process::Credentials;
use crate::set::manifest::{CONFIGURATION, Manifest, of_configuration};
use crate::set::state::read_file_of;

/// Reads it from where the server says it is, or the data directory does if no server can be asked.
pub(super) fn find(
    cx: &Context,
    control: &ControlFile,
    server: Option<&ServerFacts>,
    client: Option<&mut Client>,
) -> Result<Configuration> {
    // A database superuser names these files, and a restore gives them to os_user.
    let data = &cx.cluster.data_directory;
    let mut here = Here { data, reader: files::reader_of(data)?, found: Configuration::default() };
    let Some(server) = server else {
        match here.last_server() {
            Some(places) => CONFIGURATION.into_iter().for_each(|name| here.keep(name, &places)),
            None => here.found = earlier(cx, control, None)?,
        }
        return Ok(here.found);
    };
    let places = &server.config_files;
    let Some(client) = client else {
        CONFIGURATION.into_iter().for_each(|name| here.keep(name, places));
        return Ok(here.found);
    };
    let settings = match file_settings::read(client) {
        Err(error) if error.is_recovery_conflict() => return Err(error),
        settings => settings,
    };
    let mut errors = file_settings::errors_of_rules(client, server.version_num)?;
    if !here.is_outside(&places.config) {
        if let Ok(FileSettings { doubt: Some(Doubt::Errors(of_settings)), .. }) = settings {
            errors.splice(0..0, of_settings);
        }
        here.found.warnings.extend(warnings::wrong_configuration(&errors));
        CONFIGURATION.into_iter().for_each(|name| here.keep(name, places));
        return Ok(here.found);
    }
    here.found.warnings.extend(warnings::wrong_configuration(&errors));
    let [conf, others @ ..] = CONFIGURATION;
    match settings {
        Ok(settings) => {
            here.found.files.push((conf, settings.flat()));
            here.found.warnings.extend(settings.doubt.as_ref().map(warnings::doubtful_settings));
        }
        Err(error) => {
            let mut earlier = earlier(cx, control, Some(&error.chain()))?;
            earlier.files.retain(|(name, _)| *name == conf);
            here.found.files.extend(earlier.files);
            here.found.warnings.extend(earlier.warnings);
        }
    }
    others.into_iter().for_each(|name| here.keep(name, places));
    Ok(here.found)
}

/// Returns the configuration that the newest set of this cluster has. `unread`: why a server that runs doesn't say it.
fn earlier(cx: &Context, control: &ControlFile, unread: Option<&str>) -> Result<Configuration> {
    let conf = of_configuration(CONFIGURATION[0]);
    let own = control.system_identifier;
    let has_it =
        |set: &&Manifest| set.postgres.system_identifier == own && set.files.contains_key(&conf);
    let (sets, _) = cx.state.sets()?;
    let read = |set: &Manifest| {
        let kept = |name: &&str| set.files.contains_key(&of_configuration(name));
        let directory = cx.state.set_directory(&set.set);
        let read = |name: &'static str| {
            read_file_of(&directory, set, &of_configuration(name)).map(|bytes| (name, bytes))
        };
        CONFIGURATION.into_iter().filter(kept).map(read).collect::<Result<Vec<_>>>()
    };
    for set in sets.iter().rev().filter(has_it) {
        match read(set) {
            Ok(files) => {
                let warnings = vec![warnings::no_configuration(Some(set.set.as_str()), unread)];
                return Ok(Configuration { files, warnings });
            }
            Err(error) => tracing::warn!(error = %error.chain(), "an older set's is taken"),
        }
    }
    let warnings = vec![warnings::no_configuration(None, unread)];
    Ok(Configuration { files: Vec::new(), warnings })
}

struct Here<'a> {
    data: &'a Path,
    reader: Option<Credentials>,
    found: Configuration,
}

impl Here<'_> {
    /// Keeps one of the files, with what it includes, if any of that is outside the data directory, or named by its
    /// absolute path. The host of the restored server may not have it; or it has the original's.
    fn keep(&mut self, name: &'static str, places: &ConfigFiles) {
        let read = |path: &Path| files::read_as(path, self.reader);
        let (mut path, mut whole) = match name {
            "pg_hba.conf" => (&places.hba, hba::whole(&places.hba, read)),
            "pg_ident.conf" => (&places.ident, hba::whole(&places.ident, read)),
            _ => (&places.config, conf::whole(&places.config, read)),
        };
        // A mirror's own rules: its primary's are in the data directory. A restored cluster goes by these, whatever the
        // primary's postgresql.conf says where they are.
        let is_mirror_s = matches!(&whole, Ok(Some(own)) if own.text == HBA);
        let primary_s = self.data.join(name);
        if is_mirror_s {
            (path, whole) = (&primary_s, hba::whole(&primary_s, read));
        }
        let is_outside = self.is_outside(path);
        let why = match whole {
            Ok(Some(whole)) => {
                let is_elsewhere = || whole.places.iter().any(|place| self.is_outside(place));
                if is_mirror_s || whole.is_bound || is_elsewhere() {
                    self.found.files.push((name, whole.text));
                }
                return;
            }
            Ok(None) if !is_outside => return,
            Ok(None) => "it isn't there".to_owned(),
            Err(error) => error.chain(),
        };
        self.found.warnings.push(match is_outside {
            true => warnings::unread_configuration(name, path, &why),
            false => warnings::unread_include(name, path, &why),
        });
    }

    /// Whether a path leads out of the data directory, itself or by a link. An empty one leads nowhere.
    fn is_outside(&self, path: &Path) -> bool {
        let real = |path: &Path| std::fs::canonicalize(path).ok();
        let goes_up = path.components().any(|step| step == Component::ParentDir);
        match (real(path), real(self.data)) {
            _ if path.as_os_str().is_empty() => false,
            (Some(path), Some(data)) => !path.starts_with(data),
            (None, Some(data)) => {
                goes_up || !path.starts_with(data) && !path.starts_with(self.data)
            }
            (_, None) => goes_up || !path.starts_with(self.data),
        }
    }

    /// Returns where the files of the last server were; `None` if its postgresql.conf was elsewhere, where nobody says
    /// where the others are. An unused copy may be in the data directory then.
    fn last_server(&self) -> Option<ConfigFiles> {
        let text = |name: &str| files::read_as(&self.data.join(name), self.reader).ok().flatten();
        let options = text("postmaster.opts").unwrap_or_default();
        let options = Options(String::from_utf8_lossy(&options).into_owned());
        let conf = self.data.join("postgresql.conf");
        let is_elsewhere = match (options.of("config_file"), options.folder()) {
            (Some(path), folder) => {
                let is_in = |folder: Option<&Path>| folder.is_some_and(|it| path.starts_with(it));
                self.is_outside(&path) && !is_in(folder.as_deref())
            }
            // In a container, the data directory may have another path.
            (None, Some(folder)) => {
                let has = |name: &str| folder.join(name).exists();
                has("postgresql.conf") && !has("PG_VERSION")
            }
            (None, None) => false,
        };
        if is_elsewhere || !conf.exists() {
            return None;
        }
        let read = |path: &Path| files::read_as(path, self.reader);
        let written = conf::whole(&conf, read).ok().flatten().map(|whole| whole.text);
        let changed = text("postgresql.auto.conf");
        let place = |setting: &str, name: &str| {
            let set = |text: &Option<Vec<u8>>| conf::value_of(text.as_deref()?, setting);
            let set = || set(&changed).or_else(|| set(&written)).map(as_path);
            let path = options.of(setting).or_else(set).filter(|path| !path.as_os_str().is_empty());
            self.data.join(path.unwrap_or_else(|| name.into()))
        };
        let (hba, ident) = (place("hba_file", "pg_hba.conf"), place("ident_file", "pg_ident.conf"));
        Some(ConfigFiles { config: conf, hba, ident })
    }
}

fn as_path(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

/// The command line in postmaster.opts: each argument in double quotes, unchanged (CreateOptsFile in postmaster.c).
struct Options(String);

impl Options {
    fn arguments(&self) -> impl Iterator<Item = &str> {
        self.0.trim_end().split(" \"").skip(1).map(|it| it.strip_suffix('"').unwrap_or(it))
    }

    /// The value that the command line gives to a setting: `-c name=value`, `--name=value`, with "-" for "_".
    fn of(&self, setting: &str) -> Option<PathBuf> {
        let value = |argument: &str| {
            let argument =
                argument.strip_prefix("--").or(argument.strip_prefix("-c")).unwrap_or(argument);
            let (name, value) = argument.split_once('=')?;
            (name.replace('-', "_") == setting).then(|| value.into())
        };
        self.arguments().filter_map(value).last()
    }

    /// The folder that the server was started on: `-D folder`, `-Dfolder`.
    fn folder(&self) -> Option<PathBuf> {
        let mut arguments = self.arguments();
        let given = arguments.find_map(|argument| argument.strip_prefix("-D"))?;
        let folder = if given.is_empty() { arguments.next()? } else { given };
        Some(folder.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_where_the_configuration_was() {
        let of = |text: &str| {
            let options = Options(text.to_owned());
            let text = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
            (text(options.of("config_file")), text(options.folder()))
        };
        let some = |text: &str| Some(text.to_owned());
        for (line, config, folder) in [
            ("/usr/bin/postgres \"-D\" \"/d a\"\n", None, some("/d a")),
            ("postgres \"-D/d\" \"-c\" \"config_file=/e/c\"\n", some("/e/c"), some("/d")),
            ("postgres \"-cconfig_file=/a\" \"--config-file=/b c\"\n", some("/b c"), None),
            ("postgres \"--config_file=/e=f\" \"-c\" \"port=1\"", some("/e=f"), None),
            ("postgres \"-c\" \"port=1\"", None, None),
            ("postgres", None, None),
            ("", None, None),
        ] {
            assert_eq!(of(line), (config, folder), "{line}");
        }
    }

    #[test]
    fn what_is_included_by_its_absolute_path_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().canonicalize().unwrap();
        let [config, hba, ident] = CONFIGURATION.map(|name| data.join(name));
        let places = ConfigFiles { config, hba, ident };
        let own = data.join("own");
        std::fs::write(&own, "x\n").unwrap();
        let kept = |folder: &str| {
            let list = format!("local all @{folder}own peer # {folder}own\n");
            std::fs::write(&places.config, format!("include '{folder}own'\n")).unwrap();
            std::fs::write(&places.hba, list).unwrap();
            std::fs::write(&places.ident, format!("include {folder}own\n")).unwrap();
            let mut here = Here { data: &data, reader: None, found: Configuration::default() };
            CONFIGURATION.into_iter().for_each(|name| here.keep(name, &places));
            assert!(here.found.warnings.is_empty(), "{folder}");
            let text = |(name, text)| (name, String::from_utf8(text).unwrap());
            here.found.files.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(kept(""), [], "a copy of the data directory has all of it");
        let folder = format!("{}/", data.display());
        let [conf, hba, ident] = CONFIGURATION;
        let of_hba = format!("local all x peer # {folder}own\n");
        let all = [(conf, "x\n".to_owned()), (hba, of_hba), (ident, "x\n".to_owned())];
        assert_eq!(kept(&folder), all);
        // What is only set to a path includes nothing.
        std::fs::write(&places.config, format!("log_directory = '{folder}log'\n")).unwrap();
        let read = |path: &Path| files::read_as(path, None);
        assert!(!conf::whole(&places.config, read).unwrap().unwrap().is_bound);
    }

    #[test]
    fn what_leads_out_of_the_data_directory_is_outside() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().join("data");
        std::fs::create_dir_all(data.join("conf.d")).unwrap();
        std::fs::create_dir(scratch.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("../etc", data.join("linked")).unwrap();
        let here = Here { data: &data, reader: None, found: Configuration::default() };
        for (path, is_outside) in [
            ("", false),
            ("data/conf.d", false),
            ("data/none", false),
            ("data/../etc", true),
            ("data/../none", true),
            ("data/linked", true),
            ("etc/none", true),
        ] {
            let path = if path.is_empty() { PathBuf::new() } else { scratch.path().join(path) };
            assert_eq!(here.is_outside(&path), is_outside, "{path:?}");
        }
    }
}
