//! Remembers across restarts which components exceeded a limit of the compiler: one file per
//! component.
//!
//! ```text
//! <folder>/<SHA-256 of the component>.json
//! ```
//!
//! A mark is written before a compilation begins and removed when it succeeds. This also bounds the
//! attempts at a component that takes the gateway down together with its compiler (for example a
//! container whose processes are killed together when memory runs out). A mark is valid for one
//! engine and one set of limits: raising the limits, or upgrading the gateway, causes a new attempt.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;

use crate::files::OwnedDir;
use crate::wasm::compile::limits::{CompileError, CompileLimits};

/// How many attempts may end together with the gateway.
const ATTEMPTS: u32 = 3;
/// The largest mark that is read, in bytes.
const MAX_MARK: u64 = 64 * 1024;
/// The maximum number of marks; the oldest are removed.
const MOST: usize = 1_000;

/// The directory of marks. Without a directory there are no marks.
#[derive(Debug)]
pub(super) struct CompileMarks {
    folder: Option<OwnedDir>,
}

/// The mark of one component.
#[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize)]
struct CompileMark {
    /// The plugin that it was compiled for.
    plugin: String,
    /// The fingerprint of the engine.
    engine: String,
    memory: ByteSize,
    #[serde(with = "humantime_serde")]
    timeout: Duration,
    /// Attempts that began and did not end.
    attempts: u32,
    /// Which limit it exceeded; `None` while it is being compiled.
    why: Option<String>,
    #[serde(with = "humantime_serde")]
    at: SystemTime,
}

/// A compilation in progress.
#[derive(Debug)]
pub(super) struct CompileAttempt<'a> {
    folder: Option<&'a OwnedDir>,
    /// The name of the mark's file.
    name: String,
    mark: CompileMark,
}

impl CompileMarks {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        let open = |folder: PathBuf| {
            let opened = OwnedDir::create(&folder).inspect(OwnedDir::remove_temporary);
            let folder = folder.display();
            opened.inspect_err(|why| tracing::warn!("{folder} {why}; {UNMARKED}")).ok()
        };
        Self { folder: folder.and_then(open) }
    }

    pub(super) fn are_kept(&self) -> bool {
        self.folder.is_some()
    }

    /// Records that a component is about to be compiled.
    ///
    /// # Errors
    /// When earlier attempts have failed.
    pub(super) fn begin(
        &self,
        plugin: &str,
        component: &str,
        engine: &str,
        limits: CompileLimits,
    ) -> Result<CompileAttempt<'_>, CompileError> {
        let CompileLimits { memory, timeout } = limits;
        let (folder, name) = (self.folder.as_ref(), format!("{component}.json"));
        let is_same =
            |mark: &CompileMark| mark.engine == engine && (mark.memory, mark.timeout) == (memory, timeout);
        let known = folder.and_then(|folder| read(folder, &name)).filter(is_same);
        let attempts = known.as_ref().map_or(0, |mark| mark.attempts);
        if let (Some(mark), Some(folder)) = (known, folder)
            && let Some(why) = mark.why.or_else(|| often(attempts))
        {
            return Err(CompileError::Limited(format!(
                "{why}; an earlier attempt failed, so it is not retried: raise the limit, or \
                 remove {}",
                folder.path().join(&name).display()
            )));
        }
        let (plugin, engine) = (plugin.to_owned(), engine.to_owned());
        let mark = CompileMark {
            plugin,
            engine,
            memory,
            timeout,
            attempts: attempts + 1,
            why: None,
            at: SystemTime::now(),
        };
        let attempt = CompileAttempt { folder, name, mark };
        attempt.write();
        Ok(attempt)
    }
}

impl CompileAttempt<'_> {
    /// Records that it exceeded a limit.
    pub(super) fn limited(mut self, why: &str) {
        self.mark.why = Some(why.to_owned());
        self.write();
    }

    /// Removes the mark: it ended otherwise, so another attempt is allowed.
    pub(super) fn forget(self) {
        if let Some(folder) = self.folder {
            // A mark that stays counts as an attempt that did not end.
            let _ = folder.remove(&self.name);
        }
    }

    fn write(&self) {
        let Some(folder) = self.folder else { return };
        let text = serde_json::to_vec_pretty(&self.mark).unwrap_or_default();
        match folder.replace(&self.name, &text) {
            Ok(()) => folder.remove_oldest(MOST),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "{UNMARKED}"),
        }
    }
}

/// The consequence if marks cannot be stored.
const UNMARKED: &str = "a plugin that cannot be compiled is tried at every start";

fn often(attempts: u32) -> Option<String> {
    (attempts >= ATTEMPTS)
        .then(|| format!("was being compiled each of the {attempts} times when the gateway was killed"))
}

fn read(folder: &OwnedDir, name: &str) -> Option<CompileMark> {
    serde_json::from_slice(&folder.read(name, MAX_MARK).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LIMITS: CompileLimits =
        CompileLimits { memory: ByteSize::mib(64), timeout: Duration::from_secs(9) };

    fn begin(marks: &CompileMarks) -> Result<CompileAttempt<'_>, CompileError> {
        marks.begin("p", "abc", "engine", LIMITS)
    }

    #[test]
    fn a_component_over_the_limit_is_not_retried() {
        let folder = tempfile::tempdir().unwrap();
        let marks = || CompileMarks::new(Some(folder.path().join("uncompilable")));
        begin(&marks()).unwrap().forget();
        begin(&marks()).unwrap().limited("takes too much");
        let why = begin(&marks()).unwrap_err().to_string();
        let file = folder.path().join("uncompilable/abc.json");
        assert!(why.starts_with("takes too much;") && why.contains(&file.display().to_string()), "{why}");
        let more = CompileLimits { memory: ByteSize::mib(65), ..LIMITS };
        let longer = CompileLimits { timeout: Duration::from_secs(10), ..LIMITS };
        for (component, engine, limits) in [
            ("other", "engine", LIMITS),
            ("abc", "other", LIMITS),
            ("abc", "engine", more),
            ("abc", "engine", longer),
        ] {
            // No further mark is written, so each limit is compared with the same mark.
            let kept = fs::read(&file).unwrap();
            marks().begin("p", component, engine, limits).unwrap().forget();
            fs::write(&file, kept).unwrap();
        }
        begin(&marks()).unwrap_err();
        fs::remove_file(&file).unwrap();
        begin(&marks()).unwrap();
    }

    #[test]
    fn a_component_that_kills_the_gateway_is_retried_3_times() {
        let folder = tempfile::tempdir().unwrap();
        let marks = CompileMarks::new(Some(folder.path().to_owned()));
        // A dropped attempt is one that did not end.
        (0..ATTEMPTS).for_each(|_| drop(begin(&marks).unwrap()));
        assert!(begin(&marks).unwrap_err().to_string().contains("3 times when the gateway was killed"));
    }

    #[test]
    fn marks_are_bounded_and_damaged_marks_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let marks = CompileMarks::new(Some(folder.path().to_owned()));
        for number in 0..MOST + 20 {
            fs::write(folder.path().join(format!("{number}.json")), b"{").unwrap();
        }
        begin(&marks).unwrap().limited("too much");
        assert!(fs::read_dir(folder.path()).unwrap().count() <= MOST);
        fs::write(folder.path().join("abc.json"), b"{").unwrap();
        begin(&marks).unwrap();
        assert!(begin(&CompileMarks::new(None)).is_ok());
    }
}
