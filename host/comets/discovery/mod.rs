//! Comets that come and go while the gateway runs: from a watched file, and from goim's discovery.
//!
//! Promise: a list that cannot be read, or that has no comet, changes nothing. The last good list
//! stays active, and the log and the gateway's warnings report why. This module does not know the
//! fleet.

mod config;
mod file;
mod goim;
mod listing;

use tracing::{info, warn};

pub use config::Config;
use file::FileSource;
use goim::GoimDiscovery;
pub(super) use listing::CometListing;
use listing::SourceError;

/// All sources of `[comets.discovery]`.
pub(super) struct Discovery {
    file: Option<(FileSource, SourceState)>,
    goim: Option<(GoimDiscovery, SourceState)>,
}

impl Discovery {
    /// The configured sources. Nothing is read yet.
    pub(super) fn new(config: &Config) -> Self {
        let file = config.file.as_ref().map(|path| {
            let last = SourceState::new(format!("comets.discovery.file {}", path.display()));
            (FileSource::new(path.clone()), last)
        });
        let goim = GoimDiscovery::new(config).map(|goim| {
            let last = SourceState::new(format!("comets.discovery.goim, appid {}", config.appid));
            (goim, last)
        });
        Self { file, goim }
    }

    /// Whether no source is configured.
    pub(super) fn is_empty(&self) -> bool {
        self.file.is_none() && self.goim.is_none()
    }

    /// Reads all sources; returns whether a list has changed.
    pub(super) async fn refresh(&mut self) -> bool {
        let mut news = false;
        if let Some((file, last)) = &mut self.file
            && let Some(read) = file.read().await
        {
            news |= last.take(read);
        }
        if let Some((goim, last)) = &mut self.goim {
            news |= last.take(goim.fetch().await);
        }
        news
    }

    /// The last lists of the sources, the file first.
    pub(super) fn listings(&self) -> impl Iterator<Item = &CometListing> {
        let file = self.file.iter().map(|(_, last)| last);
        let all = file.chain(self.goim.iter().map(|(_, last)| last));
        all.filter_map(|last| last.good.as_ref())
    }

    /// The current problems of the sources.
    pub(super) fn problems(&self) -> Vec<String> {
        let file = self.file.iter().map(|(_, last)| last);
        let all = file.chain(self.goim.iter().map(|(_, last)| last));
        all.filter_map(|last| Some(format!("{}: {}", last.what, last.problem.as_ref()?))).collect()
    }
}

/// The last result of one source.
struct SourceState {
    what: String,
    good: Option<CometListing>,
    problem: Option<SourceError>,
}

impl SourceState {
    fn new(what: String) -> Self {
        Self { what, good: None, problem: None }
    }

    /// Applies a result; returns whether it changes the list.
    fn take(&mut self, answer: Result<CometListing, SourceError>) -> bool {
        match answer.and_then(CometListing::checked) {
            Ok(listing) => {
                let is_new = self.good.as_ref() != Some(&listing);
                if is_new || self.problem.is_some() {
                    let (nodes, names) = (listing.nodes.len(), listing.addresses.len());
                    info!(source = self.what, nodes, names, "comets updated from discovery");
                }
                self.problem = None;
                self.good = Some(listing);
                is_new
            }
            Err(error) => {
                if self.problem.as_ref() != Some(&error) {
                    let kept =
                        if self.good.is_some() { "using the last good list" } else { "no list was read yet" };
                    warn!(source = self.what, %error, "cannot read comets from discovery: {kept}, retrying");
                }
                self.problem = Some(error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_list_keeps_the_last_good_one() {
        let of = |nodes: &[&str]| CometListing {
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            ..CometListing::default()
        };
        let mut last = SourceState::new("test".to_owned());
        assert!(!last.take(Err(SourceError::new("away"))));
        assert!(last.take(Ok(of(&["a:1"]))));
        assert!(!last.take(Ok(of(&["a:1"]))), "nothing new");
        for bad in [Ok(of(&[])), Ok(of(&["a:1", "b"])), Err(SourceError::new("away"))] {
            assert!(!last.take(bad));
            assert_eq!(last.good, Some(of(&["a:1"])));
            assert!(last.problem.is_some());
        }
        assert!(last.take(Ok(of(&["b:1"]))));
        assert_eq!(last.problem, None);
    }
}
