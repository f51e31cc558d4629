//! What the commands share: exit codes, the location of the configuration, and reading and writing files
//! that are named on the command line.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::config::Config;
use crate::files;

/// The command succeeded.
pub const EXIT_SUCCESS: u8 = 0;
/// The command failed or left work unfinished.
pub const EXIT_FAILURE: u8 = 1;
/// The command line or the configuration is wrong.
pub const EXIT_USAGE: u8 = 2;
/// The version, and the revision that it was built from.
pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("HALLEY_REVISION"), ")");
/// The command line is wrong, or a file that it names: the command exits with [`EXIT_USAGE`].
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct UsageError(anyhow::Error);

/// Marks errors as mistakes of the caller.
pub(super) trait OrUsage<T> {
    /// # Errors
    /// The same, as a mistake of the caller.
    fn or_usage(self) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrUsage<T> for Result<T, E> {
    fn or_usage(self) -> anyhow::Result<T> {
        self.map_err(|why| UsageError(why.into()).into())
    }
}

/// A mistake of the caller.
pub(super) fn usage<T>(mistake: &str) -> anyhow::Result<T> {
    Err(anyhow::anyhow!("{mistake}")).or_usage()
}

/// The exit code of a command that failed with this error.
pub(super) fn code_of(error: &anyhow::Error) -> u8 {
    if error.is::<UsageError>() { EXIT_USAGE } else { EXIT_FAILURE }
}

/// An error and its causes. Texts of librdkafka's errors contain those of their causes already.
pub(super) fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        said if said.ends_with(&cause) => text,
        said => format!("{said}: {cause}"),
    })
}

/// Maximum size of a file named on the command line, in bytes.
pub(super) const LARGEST_INPUT: u64 = 256 * 1024 * 1024;

/// The text of a file that a command was given.
pub(super) fn read_input(file: &Path) -> anyhow::Result<String> {
    files::read_argument(file, LARGEST_INPUT).with_context(|| format!("cannot read {}", file.display()))
}

/// Location of the configuration.
#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    /// The configuration file (TOML). Default: `./halley.toml` if it exists, otherwise the built-in
    /// defaults.
    ///
    /// The environment overrides the file: HALLEY__SECTION__KEY. The value is text, or a number, a
    /// list or a table in TOML syntax: HALLEY__KAFKA__GROUP=halley-2, HALLEY__KAFKA__TOPICS='["push",
    /// "push-2"]', HALLEY__KAFKA__PROPERTIES='{ "security.protocol" = "SSL" }' (replaces the whole
    /// table of the file).
    #[arg(long, short, value_name = "FILE", env = "HALLEY_CONFIG")]
    pub(super) config: Option<PathBuf>,
}

/// The file that is read if none is named.
const USUAL_FILE: &str = "halley.toml";

impl ConfigArgs {
    /// The file to read: the named one, or `halley.toml` if it exists.
    pub(super) fn file(&self) -> Option<PathBuf> {
        let usual = || Some(PathBuf::from(USUAL_FILE)).filter(|file| file.exists());
        self.config.clone().or_else(usual)
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// With all its mistakes.
    pub(super) fn load(&self) -> anyhow::Result<Config> {
        Config::load(self.file().as_deref()).or_usage()
    }

    /// A description of where the configuration is read from.
    pub(super) fn source(&self) -> String {
        match (self.file(), &self.config) {
            (Some(file), Some(_)) => file.display().to_string(),
            (Some(file), None) => format!("./{}", file.display()),
            (None, _) => "defaults and environment only".to_owned(),
        }
    }
}

/// The plugin that a file is for: the one named like the file, or the one with `-` for `_`; otherwise
/// the name of the file.
pub(super) fn plugin_name_of<'a>(file: &Path, mut known: impl Iterator<Item = &'a str> + Clone) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let dashed = stem.replace('_', "-");
    let is_known = known.clone().any(|name| name == stem);
    if !is_known && known.any(|name| name == dashed) { dashed } else { stem }
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Runs the work of a command. When it has ended, a call to an unreachable Kafka may still block; the
/// process does not wait for it.
///
/// # Errors
/// Those of the work.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = runtime()?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Writes a file. Creates its folders if needed.
///
/// # Errors
/// When the file or a folder cannot be written.
pub(super) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let done = file
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| files::create_new(file, text.as_bytes()));
    done.with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let code = || anyhow::anyhow!("UnknownPartition (Local: Unknown partition)");
        let kafka = code().context(format!("Meta data fetch error: {}", code()));
        let once = "topic: Meta data fetch error: UnknownPartition (Local: Unknown partition)";
        assert_eq!(with_causes(&kafka.context("topic")), once);
        assert_eq!(with_causes(&anyhow::anyhow!("b").context("a")), "a: b");
    }

    #[test]
    fn a_file_is_for_the_plugin_of_its_name() {
        let name = |file: &str| plugin_name_of(Path::new(file), ["keyword-filter", "a_b"].into_iter());
        assert_eq!(name("x/keyword_filter.wasm"), "keyword-filter");
        assert_eq!(name("a_b.wasm"), "a_b");
        assert_eq!(name("un_known.wasm"), "un_known");
    }
}
