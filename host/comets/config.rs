//! `[comets]`: where they are and how they are called.

use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;

use super::access::AllowList;
use super::discovery;
use super::known::Limits;
use super::lanes::MAX_LANES;
use super::wire::Dialect;
use crate::message::Address;

/// `[comets]`: where they are and how they are called.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `chatroom` or `goim`: the service path and the form of the body.
    pub dialect: Dialect,
    /// The comets that BROADCAST and `every-comet` always reach, each `host:port`. A DNS name
    /// with several addresses stands for all of them. The ones that entries of the directory
    /// name are added by themselves, for all gateways; name them alike in both places, since a
    /// comet that is known by name and by IP address gets a BROADCAST under each.
    pub nodes: Vec<String>,
    /// Addresses (`host:port`) of server names, as producers put them into `server` and comets
    /// into the directory. They are comets like those in `nodes`.
    pub addresses: BTreeMap<String, String>,
    /// Comets that come and go while the gateway runs.
    pub discovery: discovery::Config,
    /// The addresses that the directory, records (`server`) and plugins may name, beside the comets
    /// of this section: `host`, `host:port` or `host:port-port`, where the host is an IP address, a
    /// network such as `10.0.0.0/8` (an IPv6 one in brackets where a port follows), or a name in
    /// which `*` stands for any characters but a dot. Names are checked where they lead: loopback,
    /// link-local and other special addresses only where an entry lies in their block. Without the
    /// key, all others are allowed, and the directory may name loopback addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// How many calls to one comet may be under way at a time: 1 to 64. A room or connection
    /// always uses the same lane.
    pub lanes: usize,
    /// How many messages may wait for one comet. What comes when it is full waits in its
    /// partition while the comet takes messages. A comet that is slower than `queue` messages in
    /// `delivery.give_up_after` does not take them: what finds its queue full is unreachable.
    pub queue: usize,
    /// How many bytes of messages may wait for comets, over all comets; one comet may have a
    /// quarter. At the bound partitions wait.
    pub max_pending_bytes: ByteSize,
    /// Whether calls carry the ids of their messages (`halley-message-id`), by which comets know
    /// what they had before. Off saves bytes for comets that never read them.
    pub message_ids: bool,
    /// How many comets may be known at a time. Addresses come from the directory and from
    /// plugins; this bounds what a mistake there can cost.
    pub max_comets: usize,
    /// How many comets may be known that only records (`server`) or policies named. They get no
    /// BROADCASTs; of them the longest idle ones give way, first those that never answered.
    pub max_named: usize,
    /// A comet of the directory that no entry has named for so long, and that does not answer, is
    /// left out of BROADCASTs until it is named or answers again.
    #[serde(with = "humantime_serde")]
    pub stale_after: Duration,
    /// For how long a comet that an entry of the directory named is remembered by all gateways,
    /// through restarts, without being named again. At most 30 days.
    #[serde(with = "humantime_serde")]
    pub remember: Duration,
    /// After how long without an answer other comets are forgotten, and left-out ones.
    #[serde(with = "humantime_serde")]
    pub idle_after: Duration,
    /// How often the names in `nodes` are looked up again.
    #[serde(with = "humantime_serde")]
    pub resolve_every: Duration,
    /// How long a connection may take to come about. Beyond `delivery.timeout` it has no
    /// effect.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How many attempts in a row have to fail until a comet's breaker opens.
    pub breaker_failures: u32,
    /// For how long, beside that, nothing may have succeeded: a comet that restarts quickly is
    /// waited for. Useful below `delivery.give_up_after`.
    #[serde(with = "humantime_serde")]
    pub breaker_patience: Duration,
    /// How long a breaker stays open at first. It doubles with every probe that fails.
    #[serde(with = "humantime_serde")]
    pub breaker_open: Duration,
    /// How long a breaker stays open at most.
    #[serde(with = "humantime_serde")]
    pub breaker_open_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dialect: Dialect::Chatroom,
            nodes: Vec::new(),
            addresses: BTreeMap::new(),
            discovery: discovery::Config::default(),
            allow: None,
            lanes: 8,
            queue: 1000,
            max_pending_bytes: ByteSize::mib(256),
            message_ids: true,
            max_comets: 4096,
            max_named: 1024,
            stale_after: Duration::from_secs(60),
            remember: Duration::from_secs(24 * 3600),
            idle_after: Duration::from_secs(600),
            resolve_every: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            breaker_failures: 5,
            breaker_patience: Duration::from_secs(2),
            breaker_open: Duration::from_secs(1),
            breaker_open_max: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// How many bytes may wait for comets.
    pub(super) fn pending_bytes(&self) -> usize {
        usize::try_from(self.max_pending_bytes.as_u64()).unwrap_or(usize::MAX)
    }

    /// How many of them may wait for one comet: a few that do not read leave room for the rest.
    pub(super) fn share(&self) -> usize {
        (self.pending_bytes() / 4).max(1)
    }

    /// What is wrong with the values, one sentence for each mistake.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=MAX_LANES).contains(&self.lanes) {
            problems.push(format!("`comets.lanes` is {}; use 1 to {MAX_LANES}", self.lanes));
        }
        let counts = [("queue", self.queue), ("max_comets", self.max_comets), ("max_named", self.max_named)];
        for (name, value) in counts.into_iter().chain([("breaker_failures", self.breaker_failures as usize)])
        {
            if value == 0 {
                problems.push(format!("`comets.{name}` is 0; use at least 1"));
            }
        }
        if self.max_pending_bytes.as_u64() == 0 {
            problems.push("`comets.max_pending_bytes` is 0; use a size such as \"256MiB\"".into());
        }
        let durations = [
            ("stale_after", self.stale_after),
            ("remember", self.remember),
            ("idle_after", self.idle_after),
            ("resolve_every", self.resolve_every),
            ("connect_timeout", self.connect_timeout),
            ("breaker_open", self.breaker_open),
        ];
        for (name, duration) in durations {
            if duration.is_zero() {
                problems.push(format!("`comets.{name}` is zero; use a duration such as \"1s\""));
            }
        }
        if self.breaker_open_max < self.breaker_open {
            problems.push("`comets.breaker_open_max` is below `comets.breaker_open`".into());
        }
        if self.remember > Duration::from_secs(30 * 24 * 3600) {
            problems.push("`comets.remember` is longer than 30 days".into());
        }
        if self.remember < self.stale_after {
            problems.push("`comets.remember` is shorter than `comets.stale_after`".into());
        }
        problems.extend(self.discovery.validate());
        let allow = AllowList::parse(self.allow.as_deref().unwrap_or_default());
        let wrong = allow.err().into_iter().flatten();
        problems.extend(wrong.map(|why| format!("`comets.allow`: {why}")));
        for node in &self.nodes {
            problems.extend(Address::parse(node).err().map(|error| format!("`comets.nodes`: {error}")));
        }
        for (name, address) in &self.addresses {
            let error = Address::parse(address).err();
            problems.extend(error.map(|error| format!("`comets.addresses.{name}`: {error}")));
        }
        problems
    }

    /// The parsed `allow`. What cannot be read allows nothing: `problems` says so before.
    pub(super) fn allow_list(&self) -> Option<AllowList> {
        self.allow.as_ref().map(|entries| AllowList::parse(entries).unwrap_or_default())
    }

    /// Which comets may be called beside those of an operator, in a sentence.
    pub fn who_may_be_called(&self) -> String {
        match self.allow.as_deref() {
            None => "records (`server`) may name comets at any address but loopback, link-local and other special ones; [comets] allow says which".to_owned(),
            Some([]) => "[comets] allow is empty: no comet is called but those of [comets] and its discovery".to_owned(),
            Some(entries) => format!("the directory and records (`server`) may name comets at {}", entries.join(", ")),
        }
    }

    /// Whether an operator says which comets there are, here or through discovery.
    pub fn names_comets(&self) -> bool {
        !self.nodes.is_empty() || !self.addresses.is_empty() || !self.discovery.is_empty()
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_comets: self.max_comets,
            max_named: self.max_named,
            stale_after: self.stale_after,
            remember: self.remember,
            idle_after: self.idle_after,
            chance: 2 * self.connect_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound() {
        assert_eq!(Config::default().validate(), Vec::<String>::new());
    }

    #[test]
    fn every_mistake_is_told() {
        let config = Config {
            lanes: 65,
            queue: 0,
            resolve_every: Duration::ZERO,
            nodes: vec!["comet-1:50051".into(), "comet-2".into()],
            addresses: [("edge".to_owned(), "edge.example".to_owned())].into(),
            ..Config::default()
        };
        let problems = config.validate();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        assert!(
            problems[3].contains("comet-2") && problems[4].contains("comets.addresses.edge"),
            "{problems:#?}"
        );
    }
}
