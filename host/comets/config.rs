//! `[comets]`: where comets are and how they are called.

use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;
use smart_default::SmartDefault;

use super::access::AllowList;
use super::discovery;
use super::limits::TableLimits;
use super::tls;
use super::wire::Dialect;
use crate::message::Address;
use crate::mistake::{Mistake, mistake};
use crate::schema;

/// Messages that wait to be merged are not delivered meanwhile.
const MAX_MERGE_WINDOW: Duration = Duration::from_secs(10);

/// How messages reach comets.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryMode {
    /// By stream where the comet serves it, otherwise by unary calls.
    #[default]
    Auto,
    /// By unary calls.
    Unary,
    /// By stream only.
    Stream,
}

/// `[comets]`: where comets are and how they are called.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `chatroom` or `goim`: the service path and the form of the body.
    #[default(Dialect::Chatroom)]
    pub dialect: Dialect,
    /// How messages reach comets. `auto`: by stream (`proto/delivery.proto`) where the comet serves it,
    /// otherwise by unary calls. `unary`: only by calls. `stream`: only by stream; a comet that does
    /// not serve it is unreachable.
    #[default(DeliveryMode::Auto)]
    pub delivery: DeliveryMode,
    /// The comets that BROADCAST and `every-comet` always reach, each `host:port`. A DNS name with
    /// several addresses means all of them. Comets in the directory are added automatically, for
    /// all gateways. Use the same name in both places: a comet that is known by name and by IP
    /// address gets each BROADCAST twice.
    pub nodes: Vec<String>,
    /// Addresses (`host:port`) of server names, as producers use them in `server` and comets in the
    /// directory. These are comets like those in `nodes`.
    pub addresses: BTreeMap<String, String>,
    /// Comets that come and go while the gateway runs.
    pub discovery: discovery::Config,
    /// The addresses that the directory, records (`server`) and plugins may name in addition to the
    /// comets of this section: `host`, `host:port` or `host:port-port`. The host is an IP address, a
    /// network such as `10.0.0.0/8` (IPv6 in brackets if a port follows), or a name in which `*`
    /// matches any characters except a dot. Names are checked by the addresses they resolve to:
    /// loopback, link-local and other special addresses need an entry within their block. Without
    /// the key, all other addresses are allowed, and the directory may name loopback addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// TLS to comets.
    pub tls: tls::Config,
    /// goim: after a message for a room was sent, how long further messages are collected and then
    /// sent in one call. The first message and a full call are sent at once. 0 never waits.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_millis(50))]
    pub merge_window: Duration,
    /// How many messages may wait for one comet; for a quick one more: what it accepts in a tenth of
    /// `delivery.delivery_timeout`. When the queue is full, later messages wait in their partitions as
    /// long as the comet keeps up. A comet that accepts fewer than `queue` messages in
    /// `delivery.delivery_timeout` does not keep up: calls that find its queue full are unreachable.
    #[default(1000)]
    pub queue: usize,
    /// How many bytes of messages may be pending, over all comets; one comet may use a quarter. At
    /// the limit, partitions wait.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::mib(256))]
    pub max_pending_bytes: ByteSize,
    /// Whether calls carry the ids of their messages (`halley-message-id`), which let comets
    /// recognise duplicates. Turn it off to save bytes for comets that do not read them.
    #[default(true)]
    pub message_ids: bool,
    /// Maximum number of known comets. Addresses come from the directory and from plugins; this
    /// bounds the cost of a mistake there.
    #[default(4096)]
    pub max_comets: usize,
    /// Maximum number of known comets that only records (`server`) or policies named. They get no
    /// BROADCASTs. At the limit, the one that has been idle longest is evicted, those that never
    /// answered first.
    #[default(1024)]
    pub max_named: usize,
    /// A comet of the directory that no entry has named for this long, and that does not answer, is
    /// excluded from BROADCASTs until it is named or answers again.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(60))]
    pub stale_after: Duration,
    /// How long all gateways remember a comet that an entry of the directory named, across
    /// restarts, without another entry naming it. At most 30 days.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(24 * 3600))]
    pub retention: Duration,
    /// Other comets, and excluded ones, are forgotten after this long without an answer.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(600))]
    pub idle_timeout: Duration,
    /// How often the names in `nodes` are looked up again.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(30))]
    pub dns_refresh_interval: Duration,
    /// Timeout of connecting. Values above `delivery.request_timeout` have no effect.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(2))]
    pub connect_timeout: Duration,
    /// A comet's breaker opens after this many consecutive failed attempts.
    #[default(5)]
    pub breaker_failures: u32,
    /// The failures must also span this time without a success, so that a quick restart of a comet
    /// does not open its breaker. Useful below `delivery.delivery_timeout`.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(2))]
    pub breaker_window: Duration,
    /// How long a breaker stays open at first. It doubles with every failed probe.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(1))]
    pub breaker_open: Duration,
    /// How long a breaker stays open at most.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(30))]
    pub breaker_open_max: Duration,
}

impl Config {
    /// How many bytes may be pending over all comets.
    pub(super) fn pending_bytes(&self) -> usize {
        usize::try_from(self.max_pending_bytes.as_u64()).unwrap_or(usize::MAX)
    }

    /// How many of them one comet may use: a few slow comets leave room for the others.
    pub(super) fn share(&self) -> usize {
        (self.pending_bytes() / 4).max(1)
    }

    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        if self.merge_window > MAX_MERGE_WINDOW {
            problems.push(mistake!("comets.merge_window", "is longer than {MAX_MERGE_WINDOW:?}"));
        }
        let counts = [("queue", self.queue), ("max_comets", self.max_comets), ("max_named", self.max_named)];
        for (name, value) in counts.into_iter().chain([("breaker_failures", self.breaker_failures as usize)])
        {
            if value == 0 {
                problems.push(mistake!("comets.{name}", "is 0; use at least 1"));
            }
        }
        if self.max_pending_bytes.as_u64() == 0 {
            problems.push(mistake!("comets.max_pending_bytes", "is 0; use a size such as \"256MiB\""));
        }
        let durations = [
            ("stale_after", self.stale_after),
            ("retention", self.retention),
            ("idle_timeout", self.idle_timeout),
            ("dns_refresh_interval", self.dns_refresh_interval),
            ("connect_timeout", self.connect_timeout),
            ("breaker_open", self.breaker_open),
        ];
        for (name, duration) in durations {
            if duration.is_zero() {
                problems.push(mistake!("comets.{name}", "is zero; use a duration such as \"1s\""));
            }
        }
        if self.breaker_open_max < self.breaker_open {
            problems.push(
                mistake!("comets.breaker_open_max", "is below `comets.breaker_open`")
                    .and("comets.breaker_open"),
            );
        }
        if self.retention > Duration::from_secs(30 * 24 * 3600) {
            problems.push(mistake!("comets.retention", "is longer than 30 days"));
        }
        if self.retention < self.stale_after {
            problems.push(
                mistake!("comets.retention", "is shorter than `comets.stale_after`")
                    .and("comets.stale_after"),
            );
        }
        problems.extend(self.discovery.validate());
        problems.extend(self.tls.validate());
        let allow = AllowList::parse(self.allow.as_deref().unwrap_or_default());
        let wrong = allow.err().into_iter().flatten();
        problems.extend(wrong.map(|why| mistake!("comets.allow", ": {why}")));
        for (at, node) in self.nodes.iter().enumerate() {
            let error = Address::parse(node).err();
            problems.extend(error.map(|error| mistake!("comets.nodes", ": {error}").at(at)));
        }
        for (name, address) in &self.addresses {
            let error = Address::parse(address).err();
            problems.extend(error.map(|error| mistake!("comets.addresses", ": `{name}`: {error}").at(name)));
        }
        problems
    }

    /// The parsed `allow`. An invalid list allows nothing; `problems` reports it before.
    pub(super) fn allow_list(&self) -> Option<AllowList> {
        self.allow.as_ref().map(|entries| AllowList::parse(entries).unwrap_or_default())
    }

    /// Which comets may be called in addition to the configured ones, as a sentence.
    pub fn who_may_be_called(&self) -> String {
        match self.allow.as_deref() {
            None => "records (`server`) may name comets at any address except loopback, link-local and other special ones; restrict them with [comets] allow".to_owned(),
            Some([]) => "[comets] allow is empty: only comets of [comets] and its discovery are called".to_owned(),
            Some(entries) => format!("the directory and records (`server`) may name comets at {}", entries.join(", ")),
        }
    }

    /// Whether an operator lists comets, here or through discovery.
    pub fn names_comets(&self) -> bool {
        !self.nodes.is_empty() || !self.addresses.is_empty() || !self.discovery.is_empty()
    }

    pub(super) fn limits(&self) -> TableLimits {
        TableLimits {
            max_comets: self.max_comets,
            max_named: self.max_named,
            stale_after: self.stale_after,
            retention: self.retention,
            idle_timeout: self.idle_timeout,
            first_answer_timeout: 2 * self.connect_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound() {
        assert_eq!(Config::default().validate(), []);
    }

    #[test]
    fn every_mistake_is_reported() {
        let config = Config {
            merge_window: Duration::from_secs(11),
            queue: 0,
            dns_refresh_interval: Duration::ZERO,
            nodes: vec!["comet-1:50051".into(), "comet-2".into()],
            addresses: [("edge".to_owned(), "edge.example".to_owned())].into(),
            ..Config::default()
        };
        let problems = config.validate();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        assert!(
            problems[3].text.contains("comet-2") && problems[4].text.contains("comets.addresses`: `edge`"),
            "{problems:#?}"
        );
    }
}
