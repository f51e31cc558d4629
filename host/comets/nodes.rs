//! `[comets] nodes`: names and what DNS says of them.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::{info, warn};

use super::address::Address;
use super::job::Source;
use crate::message::CometAddr;

/// How long a look-up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// One entry of `[comets] nodes`.
#[derive(Debug)]
pub(super) struct Node {
    address: Address,
    /// What it stands for: itself, or the several addresses of its name.
    stands_for: Vec<CometAddr>,
    failing: bool,
}

impl Node {
    /// Reads the entries; those that are no addresses are left out, with a warning.
    pub(super) fn read(entries: &[String]) -> Vec<Self> {
        let read = |entry: &String| match Address::parse(entry) {
            Ok(address) => Some(Self { stands_for: vec![address.canonical()], address, failing: false }),
            Err(error) => {
                warn!(%error, "an entry of `comets.nodes` is left out");
                None
            }
        };
        entries.iter().filter_map(read).collect()
    }

    /// The comets that it stands for, and how they came to be known.
    pub(super) fn comets(&self) -> impl Iterator<Item = (CometAddr, Source)> {
        let named = self.address.canonical();
        let source = move |comet: &CometAddr| if *comet == named { Source::Configured } else { Source::Dns };
        self.stands_for.iter().map(move |comet| (comet.clone(), source(comet)))
    }

    /// Looks the name up. When that fails, the answer before stays.
    pub(super) async fn resolve(&mut self) {
        let Some(name) = self.address.name() else { return };
        let looked_up = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(name)).await;
        let error = match looked_up {
            Ok(Ok(found)) => match expand(&self.address, found) {
                Some(comets) => {
                    if std::mem::take(&mut self.failing) {
                        info!(node = %self.address, "the name is known again");
                    }
                    self.stands_for = comets;
                    return;
                }
                None => "no addresses".to_owned(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {LOOKUP_TIMEOUT:?}"),
        };
        if !std::mem::replace(&mut self.failing, true) {
            warn!(node = %self.address, error, "cannot look up a name of `comets.nodes`; what was known of it is still used");
        }
    }
}

/// What a name stands for. With one address it is the comet's own name, which connecting looks
/// up anyway. With several, each is a comet; a comet that has both kinds of addresses would
/// then count twice, so only IPv4 is taken where there is any.
fn expand(address: &Address, found: impl Iterator<Item = SocketAddr>) -> Option<Vec<CometAddr>> {
    let (mut v4, mut v6): (Vec<_>, Vec<_>) = found.partition(SocketAddr::is_ipv4);
    let chosen = if v4.is_empty() { &mut v6 } else { &mut v4 };
    chosen.sort_unstable();
    chosen.dedup();
    match chosen.len() {
        0 => None,
        1 => Some(vec![address.canonical()]),
        _ => Some(chosen.iter().map(|address| address.to_string().into()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(found: &[&str]) -> Option<Vec<CometAddr>> {
        let address = Address::parse("comets:50051").expect("an address");
        expand(&address, found.iter().map(|text| text.parse().expect("a socket address")))
    }

    #[test]
    fn several_addresses_are_several_comets() {
        let found = ["10.0.0.2:50051", "10.0.0.1:50051", "10.0.0.2:50051"];
        assert_eq!(expanded(&found), Some(vec!["10.0.0.1:50051".into(), "10.0.0.2:50051".into()]));
        let found = ["[fd00::2]:50051", "[fd00::1]:50051"];
        assert_eq!(expanded(&found), Some(vec!["[fd00::1]:50051".into(), "[fd00::2]:50051".into()]));
    }

    #[test]
    fn one_comet_stays_one_comet() {
        assert_eq!(expanded(&["127.0.0.1:50051", "[::1]:50051"]), Some(vec!["comets:50051".into()]));
        assert_eq!(expanded(&["10.0.0.1:50051"]), Some(vec!["comets:50051".into()]));
        assert_eq!(expanded(&[]), None);
    }

    #[tokio::test]
    async fn a_name_that_is_not_found_stays_what_it_was() {
        let mut nodes = Node::read(&["surely-not-there.invalid:1".into(), "no address".into()]);
        assert_eq!(nodes.len(), 1);
        nodes[0].resolve().await;
        let comets: Vec<_> = nodes[0].comets().collect();
        assert_eq!(comets, [("surely-not-there.invalid:1".into(), Source::Configured)]);
        assert!(nodes[0].failing);
    }
}
