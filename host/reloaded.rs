//! Files that are read again when they change: tokens, certificates.
//!
//! They are looked at when they are needed, at most once a second. Files that cannot be used after a change
//! are logged once and are a [problem](Reloaded::problem) until they can be used; what was read before stays:
//! a slip of an editor locks nobody out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{info, warn};

use crate::blocking::{EndedEarly, run_blocking};
use crate::files::{self, ReadError};

/// How often the files are looked at.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// Maximum size of a file, in bytes.
const LONGEST_FILE: u64 = 1024 * 1024;

/// What is wrong with the content.
pub(crate) type InvalidContent = Box<dyn std::error::Error + Send + Sync>;

/// A file.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    /// Whether no other user may read it.
    pub(crate) is_secret: bool,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error("`{key}` {file} {why}")]
    Read { key: &'static str, file: String, why: ReadError },
    #[error("`{key}`: {why}")]
    Invalid { key: &'static str, why: InvalidContent },
    #[error(transparent)]
    EndedEarly(#[from] EndedEarly),
}

/// What was read from the files last.
pub(crate) struct Reloaded<T> {
    /// The key of the configuration that names the files.
    key: &'static str,
    files: Vec<SourceFile>,
    parse: fn(&[String]) -> Result<T, InvalidContent>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    value: T,
    contents: Vec<String>,
    looked_at: Instant,
    /// The present problem, logged once.
    problem: Option<String>,
}

impl<T: Clone + Send + 'static> Reloaded<T> {
    /// Reads the files.
    ///
    /// # Errors
    /// If they cannot be read, or `parse` refuses them.
    pub(crate) async fn load(
        key: &'static str,
        files: Vec<SourceFile>,
        parse: fn(&[String]) -> Result<T, InvalidContent>,
    ) -> Result<Self, ReloadError> {
        run_blocking("reading files of the configuration", move || Self::load_now(key, files, parse)).await?
    }

    /// As [`Reloaded::load`], for a start: blocks while it reads.
    ///
    /// # Errors
    /// As [`Reloaded::load`].
    pub(crate) fn load_now(
        key: &'static str,
        files: Vec<SourceFile>,
        parse: fn(&[String]) -> Result<T, InvalidContent>,
    ) -> Result<Self, ReloadError> {
        let contents = read_all(key, files.clone())?;
        let value = parse(&contents).map_err(|why| ReloadError::Invalid { key, why })?;
        let current = Current { value, contents, looked_at: Instant::now(), problem: None };
        Ok(Self { key, files, parse, current: Mutex::new(current) })
    }

    /// Why the files cannot be used as they are now, as of the last look at them.
    pub(crate) fn problem(&self) -> Option<String> {
        let problem = self.current.lock().problem.clone()?;
        Some(format!("{problem}; what was read before stays"))
    }

    /// What the files said at the last look at them.
    pub(crate) fn last(&self) -> T {
        self.current.lock().value.clone()
    }

    /// What the files say now.
    pub(crate) async fn current(&self) -> T {
        {
            let mut current = self.current.lock();
            if current.looked_at.elapsed() < INTERVAL {
                return current.value.clone();
            }
            // Others use what is there while this caller reads.
            current.looked_at = Instant::now();
        }
        let contents = read(self.key, self.files.clone()).await;
        let mut current = self.current.lock();
        let parsed = contents.and_then(|contents| {
            if contents == current.contents {
                return Ok(None);
            }
            let value = (self.parse)(&contents).map_err(|why| ReloadError::Invalid { key: self.key, why })?;
            Ok(Some((contents, value)))
        });
        match parsed {
            Ok(None) => current.problem = None,
            Ok(Some((contents, value))) => {
                info!("`{}` was read again", self.key);
                (current.contents, current.value, current.problem) = (contents, value, None);
            }
            Err(error) => {
                let problem = error.to_string();
                if current.problem.as_ref() != Some(&problem) {
                    warn!("{problem}; what was read before stays");
                    current.problem = Some(problem);
                }
            }
        }
        current.value.clone()
    }
}

async fn read(key: &'static str, files: Vec<SourceFile>) -> Result<Vec<String>, ReloadError> {
    run_blocking("reading files of the configuration", move || read_all(key, files)).await?
}

fn read_all(key: &'static str, files: Vec<SourceFile>) -> Result<Vec<String>, ReloadError> {
    let read = |SourceFile { path, is_secret }: SourceFile| {
        let read = if is_secret { files::read_secret } else { files::read_text };
        let file = path.display().to_string();
        read(&path, LONGEST_FILE).map_err(|why| ReloadError::Read { key, file, why })
    };
    files.into_iter().map(read).collect()
}

#[cfg(test)]
impl<T> Reloaded<T> {
    /// Looks at the files at the next call.
    pub(crate) fn look_again(&self) {
        self.current.lock().looked_at -= INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_noticed_and_a_mistake_keeps_what_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let files = vec![SourceFile { path: path.clone(), is_secret: false }];
        let parse = |contents: &[String]| Ok(contents[0].parse::<u32>()?);
        let reloaded = Reloaded::load("[a] b", files.clone(), parse).await.unwrap();
        assert_eq!(reloaded.current().await, 1);
        for (content, expected) in [("2", 2), ("x", 2), ("3", 3)] {
            std::fs::write(&path, content).unwrap();
            reloaded.look_again();
            assert_eq!(reloaded.current().await, expected, "{content}");
            let problem = reloaded.problem();
            assert_eq!(problem.is_some(), content == "x", "{problem:?}");
        }
        std::fs::write(&path, "x").unwrap();
        let why = Reloaded::load("[a] b", files, parse).await.err().map(|error| error.to_string());
        assert!(why.as_deref().is_some_and(|why| why.contains("`[a] b`")), "{why:?}");
    }
}
