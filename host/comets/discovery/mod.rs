//! Comets that come and go while the gateway runs: from a file that is followed, and from
//! goim's discovery.
//!
//! Promises: what cannot be read, or names no comet, changes nothing: the last good list stays,
//! and the log and the gateway's warnings say why. It does not know what a fleet is.

mod config;
mod file;
mod goim;

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::message::Address;
pub use config::Config;
use file::File;
use goim::Goim;

/// The comets that a source names.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listing {
    /// As `[comets] nodes`.
    pub(super) nodes: Vec<String>,
    /// As `[comets] addresses`.
    pub(super) addresses: BTreeMap<String, String>,
}

impl Listing {
    /// The listing, if it names comets and nothing else.
    fn checked(self) -> Result<Self, String> {
        if self.nodes.is_empty() && self.addresses.is_empty() {
            return Err("it names no comet".to_owned());
        }
        let wrong = |text: &String| Address::parse(text).err();
        match self.nodes.iter().chain(self.addresses.values()).find_map(wrong) {
            Some(error) => Err(error.to_string()),
            None => Ok(self),
        }
    }
}

/// All sources of `[comets.discovery]`.
pub(super) struct Discovery {
    file: Option<(File, Last)>,
    goim: Option<(Goim, Last)>,
}

impl Discovery {
    /// The configured sources. Nothing is read yet.
    pub(super) fn new(config: &Config) -> Self {
        let file = config.file.as_ref().map(|path| {
            let last = Last::new(format!("comets.discovery.file {}", path.display()));
            (File::new(path.clone()), last)
        });
        let goim = Goim::new(config).map(|goim| {
            let last = Last::new(format!("comets.discovery.goim, appid {}", config.appid));
            (goim, last)
        });
        Self { file, goim }
    }

    /// Whether there is anything to follow.
    pub(super) fn is_empty(&self) -> bool {
        self.file.is_none() && self.goim.is_none()
    }

    /// Reads all sources; returns whether one says something new.
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

    /// What the sources said last, the file first.
    pub(super) fn listings(&self) -> impl Iterator<Item = &Listing> {
        let file = self.file.iter().map(|(_, last)| last);
        let all = file.chain(self.goim.iter().map(|(_, last)| last));
        all.filter_map(|last| last.good.as_ref())
    }

    /// What is wrong with the sources now.
    pub(super) fn problems(&self) -> Vec<String> {
        let file = self.file.iter().map(|(_, last)| last);
        let all = file.chain(self.goim.iter().map(|(_, last)| last));
        all.filter_map(|last| Some(format!("{}: {}", last.what, last.problem.as_ref()?))).collect()
    }
}

/// What one source said last.
struct Last {
    what: String,
    good: Option<Listing>,
    problem: Option<String>,
}

impl Last {
    fn new(what: String) -> Self {
        Self { what, good: None, problem: None }
    }

    /// Takes an answer over; returns whether it changes the listing.
    fn take(&mut self, answer: Result<Listing, String>) -> bool {
        match answer.and_then(Listing::checked) {
            Ok(listing) => {
                let is_new = self.good.as_ref() != Some(&listing);
                if is_new || self.problem.is_some() {
                    let (nodes, names) = (listing.nodes.len(), listing.addresses.len());
                    info!(source = self.what, nodes, names, "comets are taken over from discovery");
                }
                self.problem = None;
                self.good = Some(listing);
                is_new
            }
            Err(error) => {
                if self.problem.as_ref() != Some(&error) {
                    let kept =
                        if self.good.is_some() { "the last good list is used" } else { "there is none yet" };
                    warn!(source = self.what, error, "cannot read comets from discovery: {kept}");
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
    fn what_names_no_comet_or_a_bad_one_keeps_the_last_good_list() {
        let of = |nodes: &[&str]| Listing {
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            ..Listing::default()
        };
        let mut last = Last::new("test".to_owned());
        assert!(!last.take(Err("away".to_owned())));
        assert!(last.take(Ok(of(&["a:1"]))));
        assert!(!last.take(Ok(of(&["a:1"]))), "nothing new");
        for bad in [Ok(of(&[])), Ok(of(&["a:1", "b"])), Err("away".to_owned())] {
            assert!(!last.take(bad));
            assert_eq!(last.good, Some(of(&["a:1"])));
            assert!(last.problem.is_some());
        }
        assert!(last.take(Ok(of(&["b:1"]))));
        assert_eq!(last.problem, None);
    }
}
