//! `[comets]`: where they are and how they are called.

use std::collections::BTreeMap;
use std::time::Duration;

use super::address::Address;
use super::lanes::MAX_LANES;
use super::wire::Dialect;

/// `[comets]`: where they are and how they are called.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `chatroom` or `goim`: the service path and the form of the body.
    pub dialect: Dialect,
    /// The comets that BROADCAST and `every-comet` reach from the start, each `host:port`. A
    /// DNS name with several addresses stands for all of them. The ones that the directory
    /// names are added by themselves; name them alike in both places, since a comet that is
    /// known under two names gets a BROADCAST under each.
    pub nodes: Vec<String>,
    /// Addresses (`host:port`) of the names that producers use as `server`.
    pub addresses: BTreeMap<String, String>,
    /// How many calls to one comet may be under way at a time: 1 to 64. A room or connection
    /// always uses the same lane.
    pub lanes: usize,
    /// How many calls may wait for one comet; further ones are unreachable at once.
    pub queue: usize,
    /// How many comets may be known at a time. Addresses come from the directory and from
    /// plugins; this bounds what a mistake there can cost.
    pub max_comets: usize,
    /// After how long without an answer a comet that is not in `nodes` is forgotten.
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
            lanes: 8,
            queue: 10_000,
            max_comets: 4096,
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
    /// What is wrong with the values, one sentence for each mistake.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=MAX_LANES).contains(&self.lanes) {
            problems.push(format!("`comets.lanes` is {}; use 1 to {MAX_LANES}", self.lanes));
        }
        let counts = [("queue", self.queue), ("max_comets", self.max_comets)];
        for (name, value) in counts.into_iter().chain([("breaker_failures", self.breaker_failures as usize)])
        {
            if value == 0 {
                problems.push(format!("`comets.{name}` is 0; use at least 1"));
            }
        }
        let durations = [
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
        for node in &self.nodes {
            problems.extend(Address::parse(node).err().map(|error| format!("`comets.nodes`: {error}")));
        }
        for (name, address) in &self.addresses {
            let error = Address::parse(address).err();
            problems.extend(error.map(|error| format!("`comets.addresses.{name}`: {error}")));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound() {
        assert_eq!(Config::default().problems(), Vec::<String>::new());
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
        let problems = config.problems();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        assert!(
            problems[3].contains("comet-2") && problems[4].contains("comets.addresses.edge"),
            "{problems:#?}"
        );
    }
}
