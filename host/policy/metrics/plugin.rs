//! The metrics of one plugin's version, for as long as it is prepared.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::decision::PluginVersion;
use crate::policy::metrics::labels::{ErrorLabels, OwnLabels};
use crate::policy::metrics::{Known, MAX_OWN_NAME_LENGTH, MAX_OWN_NAMES, Metrics};
use crate::policy::on_error::FailureKind;

/// What a filter decided about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Decision {
    Pass,
    Drop,
    DeadLetter,
    Amend,
}

/// A limit that plugins run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Limit {
    /// The deadline of a call.
    Time,
    /// The memory of an instance, or the size of its tables.
    Memory,
    /// The size of an answer, or of a part of it.
    Output,
    /// The length of a line in the log, or how many there are.
    Log,
    /// The names of the plugin's own metrics.
    Metrics,
    /// The size of the plugin's state, or how much of it one batch uses.
    State,
    /// What the process may have: there was no room for an instance.
    AddressSpace,
    /// The time of calls that ran past their deadline: what it was not asked about.
    TimeBudget,
}

/// The metrics of one prepared plugin. Dropping the last of a name removes its label sets.
#[derive(Debug)]
pub(in crate::policy) struct PluginMetrics {
    pub(super) calls: [Counter; 4],
    pub(super) decisions: [Counter; 4],
    pub(super) limits: [Counter; 8],
    pub(super) over_budget: Gauge,
    pub(super) seconds: [Histogram; 4],
    pub(super) all: Metrics,
    pub(super) version: PluginVersion,
}

impl PluginMetrics {
    /// One call of the hook with this index in [`HOOKS`].
    pub(in crate::policy) fn called(&self, hook: usize, seconds: f64) {
        self.calls[hook].inc();
        self.seconds[hook].observe(seconds);
    }

    /// A call failed in this way, and at this limit, if that is why.
    pub(in crate::policy) fn failed(&self, kind: FailureKind, limit: Option<Limit>) {
        self.all.errors.get_or_create(&ErrorLabels::of(&self.version, kind.as_str())).inc();
        if let Some(limit) = limit {
            self.hit(limit);
        }
    }

    /// The plugin ran into a limit.
    pub(in crate::policy) fn hit(&self, limit: Limit) {
        self.limits[limit as usize].inc();
    }

    /// It was not asked about this many messages, rooms or recipients.
    pub(in crate::policy) fn unasked(&self, count: usize) {
        self.limits[Limit::TimeBudget as usize].inc_by(count as u64);
    }

    /// How many workers do not ask it for now.
    pub(in crate::policy) fn over_budget(&self) -> &Gauge {
        &self.over_budget
    }

    /// One message that the filter decided so.
    pub(in crate::policy) fn decided(&self, decision: Decision) {
        self.decisions[decision as usize].inc();
    }

    /// One message that the version in force decided otherwise.
    pub(in crate::policy) fn differed(&self, kind: &'static str) {
        self.all.differences.get_or_create(&ErrorLabels::of(&self.version, kind)).inc();
    }

    /// Adds to a counter of the plugin's own. False when its name is not allowed, or one too
    /// many.
    pub(in crate::policy) fn own_counter(&self, name: &str, value: u64) -> bool {
        if !self.may_have(name, |known| &mut known.counters) {
            return false;
        }
        self.all.own_counters.get_or_create(&self.own_labels(name)).inc_by(value);
        true
    }

    /// Sets a gauge of the plugin's own. False when its name is not allowed, or one too many.
    pub(in crate::policy) fn own_gauge(&self, name: &str, value: f64) -> bool {
        if !self.may_have(name, |known| &mut known.gauges) {
            return false;
        }
        self.all.own_gauges.get_or_create(&self.own_labels(name)).set(value);
        true
    }

    fn may_have(&self, name: &str, names: impl Fn(&mut Known) -> &mut Vec<String>) -> bool {
        let printable = name.chars().all(|c| !c.is_control());
        if name.is_empty() || name.len() > MAX_OWN_NAME_LENGTH || !printable {
            return false;
        }
        let mut all = self.all.known();
        let Some(known) = all.get_mut(&*self.version.name) else { return false };
        let names = names(known);
        if names.iter().any(|known| known == name) {
            return true;
        }
        if names.len() >= MAX_OWN_NAMES {
            return false;
        }
        names.push(name.to_owned());
        true
    }

    fn own_labels(&self, name: &str) -> OwnLabels {
        OwnLabels { plugin: self.version.name.to_string(), name: name.to_owned() }
    }
}

impl Drop for PluginMetrics {
    fn drop(&mut self) {
        self.all.forget(&self.version);
    }
}
