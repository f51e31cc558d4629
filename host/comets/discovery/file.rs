//! `[comets.discovery] file`: read again when it has changed.

use std::path::{Path, PathBuf};

use super::listing::{CometListing, SourceError};
use crate::blocking::run_blocking;
use crate::files;

/// A list of comets is small; a larger file is a mistake.
const MAX_LENGTH: u64 = 4 << 20;

/// A watched file.
pub(super) struct FileSource {
    path: PathBuf,
    /// The last content, compared as a whole, since a replaced file may have the same size and time.
    last: Option<Result<Vec<u8>, SourceError>>,
}

impl FileSource {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, last: None }
    }

    /// The file's list; `None` if it has not changed.
    pub(super) async fn read(&mut self) -> Option<Result<CometListing, SourceError>> {
        let content = self.content().await;
        if self.last.as_ref() == Some(&content) {
            return None;
        }
        let listing = content.as_ref().map_err(Clone::clone).and_then(|content| parse(content));
        self.last = Some(content);
        Some(listing)
    }

    async fn content(&self) -> Result<Vec<u8>, SourceError> {
        let path = self.path.clone();
        let read = run_blocking("reading the file", move || content(&path));
        read.await.map_err(SourceError::new)?
    }
}

/// The current list of a file.
pub(super) fn read(path: &Path) -> Result<CometListing, SourceError> {
    parse(&content(path)?)
}

fn content(path: &Path) -> Result<Vec<u8>, SourceError> {
    files::read(path, MAX_LENGTH).map_err(|why| SourceError::new(format!("it {why}")))
}

/// JSON if it begins with `{`, otherwise TOML.
fn parse(content: &[u8]) -> Result<CometListing, SourceError> {
    let text = std::str::from_utf8(content).map_err(|_| SourceError::new("it is not UTF-8"))?;
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|error| SourceError::new(format!("it is not valid JSON: {error}")));
    }
    toml::from_str(text)
        .map_err(|error| SourceError::new(format!("it is not valid TOML: {}", error.message())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_when_it_changed() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("comets.toml");
        let mut file = FileSource::new(path.clone());
        assert!(matches!(file.read().await, Some(Err(_))), "there is none yet");
        assert_eq!(file.read().await, None);
        std::fs::write(&path, "nodes = [\"a:1\"]\n[addresses]\nc1 = \"a:1\"").expect("written");
        let toml = file.read().await.expect("changed").expect("a listing");
        assert_eq!((toml.nodes.len(), toml.addresses["c1"].as_str()), (1, "a:1"));
        assert_eq!(file.read().await, None);
        std::fs::write(&path, r#" {"nodes": ["b:1"], "addresses": {"c1": "b:1"}}"#).expect("written");
        assert_eq!(file.read().await.expect("changed").expect("a listing").nodes, ["b:1"]);
        for bad in ["nodez = []", "{\"nodes\": 1}", "nodes = [\"a", "\u{0}"] {
            std::fs::write(&path, bad).expect("written");
            assert!(matches!(file.read().await, Some(Err(_))), "{bad:?}");
        }
    }
}
