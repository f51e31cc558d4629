//! The comets that an operator lists, by configuration or discovery, with their names resolved.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::{info, warn};

use super::Config;
use super::discovery::Discovery;
use super::names::ServerNames;
use super::source::Source;
use crate::message::CometAddr;

/// How long a look-up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// All comets that an operator lists.
#[derive(Debug, Default)]
pub(super) struct NodeList(Vec<NodeEntry>);

/// One entry of the list.
#[derive(Debug)]
struct NodeEntry {
    address: CometAddr,
    source: Source,
    /// Whether it is a name to resolve.
    is_dns_name: bool,
    /// Its comets: itself, or the addresses of its name. Empty while the name is unresolved.
    resolved: Vec<CometAddr>,
    failing: bool,
}

impl NodeList {
    /// Applies the current configuration and discovery. Known DNS results are kept.
    pub(super) fn update(&mut self, config: &Config, discovery: &Discovery) {
        let mut known = std::mem::take(&mut self.0);
        let mut seen = HashSet::new();
        let mut add = |text: &str, source, is_dns_name| {
            let address = CometAddr::from(text);
            let address = if config.tls.enabled { address.without_https() } else { address };
            match address.address() {
                Ok(_) if !seen.insert(address.clone()) => {}
                Ok(_) => {
                    let before = known.iter().position(|node| node.address == address);
                    let before = before.map(|at| known.swap_remove(at));
                    self.0.push(NodeEntry::new(address, source, is_dns_name, before));
                }
                Err(error) => warn!(%error, "ignoring a configured comet"),
            }
        };
        config.nodes.iter().for_each(|node| add(node, Source::Configured, true));
        config.addresses.values().for_each(|address| add(address, Source::Configured, false));
        for listing in discovery.listings() {
            listing.nodes.iter().for_each(|node| add(node, Source::Discovery, true));
            listing.addresses.values().for_each(|address| add(address, Source::Discovery, false));
        }
    }

    /// The server names that configuration and discovery map.
    pub(super) fn names(config: &Config, discovery: &Discovery) -> ServerNames {
        let found = discovery.listings().flat_map(|listing| &listing.addresses);
        let all = config.addresses.iter().chain(found);
        ServerNames::new(all.map(|(name, address)| (name.as_str(), address.as_str())))
            .with_tls(config.tls.enabled)
    }

    /// The comets of all entries, with their sources.
    pub(super) fn comets(&self) -> impl Iterator<Item = (CometAddr, Source)> {
        self.0.iter().flat_map(NodeEntry::comets)
    }

    /// Resolves all names.
    pub(super) async fn resolve(&mut self) {
        join_all(self.0.iter_mut().map(NodeEntry::resolve)).await;
    }
}

impl NodeEntry {
    fn new(address: CometAddr, source: Source, is_dns_name: bool, before: Option<Self>) -> Self {
        let is_name = address.address().is_ok_and(|address| address.name().is_some());
        let is_dns_name = is_dns_name && is_name;
        let before = before.filter(|before| before.is_dns_name == is_dns_name);
        let failing = before.as_ref().is_some_and(|before| before.failing);
        let resolved = match before {
            Some(before) => before.resolved,
            None if is_dns_name => Vec::new(),
            None => vec![address.clone()],
        };
        Self { address, source, is_dns_name, resolved, failing }
    }

    fn comets(&self) -> impl Iterator<Item = (CometAddr, Source)> {
        let source = |comet: &CometAddr| if *comet == self.address { self.source } else { Source::Dns };
        self.resolved.iter().map(move |comet| (comet.clone(), source(comet)))
    }

    /// Resolves the name. If that fails, the last result is kept.
    async fn resolve(&mut self) {
        if !self.is_dns_name {
            return;
        }
        let address = self.address.address();
        let Some(name) = address.as_ref().ok().and_then(|address| address.name()) else { return };
        let looked_up = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(name)).await;
        let error = match looked_up {
            Ok(Ok(found)) => match expand(&self.address, found) {
                Some(comets) => {
                    if std::mem::take(&mut self.failing) {
                        info!(node = %self.address, "recovered: the name resolves again");
                    }
                    self.resolved = comets;
                    return;
                }
                None => "no addresses".to_owned(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {LOOKUP_TIMEOUT:?}"),
        };
        if self.resolved.is_empty() {
            self.resolved.push(self.address.clone());
        }
        if !std::mem::replace(&mut self.failing, true) {
            warn!(node = %self.address, error, "cannot resolve a name of `comets.nodes`; using its last known addresses");
        }
    }
}

/// The comets of a name. With one address, the name is the comet, and connecting resolves it again.
/// With several, each address is a comet. A comet with both kinds of addresses would count twice,
/// so only IPv4 addresses are used if there are any.
fn expand(address: &CometAddr, found: impl Iterator<Item = SocketAddr>) -> Option<Vec<CometAddr>> {
    let (mut v4, mut v6): (Vec<_>, Vec<_>) = found.partition(SocketAddr::is_ipv4);
    let chosen = if v4.is_empty() { &mut v6 } else { &mut v4 };
    chosen.sort_unstable();
    chosen.dedup();
    match chosen.len() {
        0 => None,
        1 => Some(vec![address.clone()]),
        _ => {
            let scheme =
                if address.address().is_ok_and(|address| address.is_https()) { "https://" } else { "" };
            Some(chosen.iter().map(|address| format!("{scheme}{address}").into()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(found: &[&str]) -> Option<Vec<CometAddr>> {
        expand(&"comets:50051".into(), found.iter().map(|text| text.parse().expect("a socket address")))
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

    fn nodes(nodes: &[&str], addresses: &[(&str, &str)]) -> NodeList {
        let owned = |text: &&str| (*text).to_owned();
        let addresses = addresses.iter().map(|(name, at)| (owned(name), owned(at))).collect();
        let config = Config { nodes: nodes.iter().map(owned).collect(), addresses, ..Config::default() };
        let mut all = NodeList::default();
        all.update(&config, &Discovery::new(&config.discovery));
        all
    }

    #[tokio::test]
    async fn an_unresolvable_name_becomes_its_own_comet() {
        let mut nodes = nodes(&["surely-not-there.invalid:1", "no address"], &[]);
        assert_eq!(nodes.comets().count(), 0);
        nodes.resolve().await;
        let comets: Vec<_> = nodes.comets().collect();
        assert_eq!(comets, [("surely-not-there.invalid:1".into(), Source::Configured)]);
        assert!(nodes.0[0].failing);
    }

    #[test]
    fn mapped_addresses_are_one_comet_in_any_spelling() {
        let all =
            nodes(&["http://A.example.:01"], &[("a", "10.0.0.1:1"), ("b", "comet:1"), ("c", "10.0.0.1:01")]);
        let comets: Vec<_> = all.comets().collect();
        let configured = |text: &str| (CometAddr::from(text), Source::Configured);
        assert_eq!(
            comets,
            [configured("10.0.0.1:1"), configured("comet:1")],
            "a.example has to be resolved first"
        );
    }
}
