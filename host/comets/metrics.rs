//! The comets' metrics.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::source::Source;
use crate::message::{CometAddr, NamedBy};
use crate::telemetry::latency_histogram;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CometLabel {
    comet: String,
}

/// A comet's source, and whether it gets BROADCASTs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: SourceLabel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label's values")]
enum SourceLabel {
    configured,
    dns,
    discovery,
    directory,
    /// In the directory, but neither named lately nor answering: no BROADCASTs.
    left_out,
    named,
    retired,
}

impl SourceLabel {
    const ALL: [Self; 7] = [
        Self::configured,
        Self::dns,
        Self::discovery,
        Self::directory,
        Self::left_out,
        Self::named,
        Self::retired,
    ];

    fn of(source: Source, broadcasts: bool) -> Self {
        match source {
            Source::Configured => Self::configured,
            Source::Dns => Self::dns,
            Source::Discovery => Self::discovery,
            Source::Directory if broadcasts => Self::directory,
            Source::Directory => Self::left_out,
            Source::Named => Self::named,
            Source::Retired => Self::retired,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabel {
    reason: RefusedReason,
    named_by: RefusedNamedBy,
}

/// Why an address was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label's values")]
pub(super) enum RefusedReason {
    not_listed,
    loopback,
    link_local,
    unspecified,
    multicast,
    broadcast,
    /// A plugin named a comet that is not known.
    unknown_comet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label's values")]
enum RefusedNamedBy {
    directory,
    record,
    plugin,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamFailureLabels {
    comet: String,
    reason: StreamFailure,
}

/// Why a stream did not begin, or ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label's values")]
pub(super) enum StreamFailure {
    /// No Welcome in time.
    silent,
    /// The comet answered Hello, or ended the stream, with an error.
    error,
    /// The comet broke the protocol.
    protocol,
    /// The connection broke.
    lost,
    /// A message was not acknowledged in time, or a Ping not answered.
    overdue,
    /// A message waited too long for credit.
    stalled,
}

impl StreamFailure {
    const ALL: [Self; 6] =
        [Self::silent, Self::error, Self::protocol, Self::lost, Self::overdue, Self::stalled];
}

/// Counts refused addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct RefusedMetrics(Family<RefusedLabel, Counter>);

impl RefusedMetrics {
    pub(super) fn count(&self, reason: RefusedReason, named_by: NamedBy) {
        let named_by = match named_by {
            NamedBy::Directory => RefusedNamedBy::directory,
            NamedBy::Record => RefusedNamedBy::record,
            NamedBy::TrustedPlugin | NamedBy::Plugin => RefusedNamedBy::plugin,
        };
        self.0.get_or_create(&RefusedLabel { reason, named_by }).inc();
    }
}

/// The comets' metrics. Their label sets are bounded by the number of known comets.
#[derive(Clone)]
pub struct Metrics {
    success: Family<CometLabel, Counter>,
    failed: Family<CometLabel, Counter>,
    retries: Family<CometLabel, Counter>,
    not_taken: Family<CometLabel, Counter>,
    queue_full: Family<CometLabel, Counter>,
    /// Shared by all comets.
    pub(super) pending_bytes: Gauge,
    seconds: Family<CometLabel, Histogram, fn() -> Histogram>,
    waiting: Family<CometLabel, Gauge>,
    breaker_open: Family<CometLabel, Gauge>,
    active: Gauge,
    known: Family<SourceLabels, Gauge>,
    pub(super) refused: RefusedMetrics,
    streaming: Family<CometLabel, Gauge>,
    stream_failures: Family<StreamFailureLabels, Counter>,
}

impl Metrics {
    /// Registers the comets' metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            success: Family::default(),
            failed: Family::default(),
            retries: Family::default(),
            not_taken: Family::default(),
            queue_full: Family::default(),
            pending_bytes: Gauge::default(),
            seconds: Family::new_with_constructor(latency_histogram as fn() -> Histogram),
            waiting: Family::default(),
            breaker_open: Family::default(),
            active: Gauge::default(),
            known: Family::default(),
            refused: RefusedMetrics::default(),
            streaming: Family::default(),
            stream_failures: Family::default(),
        };
        let help = "Messages that the comet acknowledged";
        registry.register("job_dispatch_success", help, metrics.success.clone());
        let help = "Messages that the comet did not accept";
        registry.register("job_dispatch_failed", help, metrics.failed.clone());
        let help = "Known comets whose breaker is closed";
        registry.register("active_comet_nodes", help, metrics.active.clone());
        let help = "Duration of calls, of each attempt";
        registry.register("halley_comet_call_duration_seconds", help, metrics.seconds.clone());
        let help = "Messages queued for the comet or in flight to it";
        registry.register("halley_comet_queued_messages", help, metrics.waiting.clone());
        let help = "Whether the comet's breaker is open (1)";
        registry.register("halley_comet_breaker_open", help, metrics.breaker_open.clone());
        let help = "Attempts that failed and are retried";
        registry.register("halley_comet_retries", help, metrics.retries.clone());
        let help = "Known comets by source; left_out are comets of the directory that were not named lately and do not answer";
        registry.register("halley_comets_known", help, metrics.known.clone());
        let help = "Calls that were not made because the comet's address is not allowed, by reason and by who named it; see [comets] allow";
        registry.register("halley_comets_refused", help, metrics.refused.0.clone());
        metrics.count_comets(std::iter::empty());
        let help = "Connections that did not accept a message although their comet answers";
        registry.register("halley_comet_not_taken", help, metrics.not_taken.clone());
        let help = "Messages that had to wait for room in the comet's queue";
        registry.register("halley_comet_queue_full", help, metrics.queue_full.clone());
        let help = "Bytes of messages queued for comets or in flight, each message once";
        registry.register("halley_comets_pending_bytes", help, metrics.pending_bytes.clone());
        let help = "Whether the comet gets messages by stream (1)";
        registry.register("halley_comet_streaming", help, metrics.streaming.clone());
        let help = "Streams that did not begin, or ended before their time, by reason; a comet that does not serve streams is not counted";
        registry.register("halley_comet_stream_failures", help, metrics.stream_failures.clone());
        metrics
    }

    /// Sets how many comets are known: by source, and whether they get BROADCASTs.
    pub(super) fn count_comets(&self, comets: impl Iterator<Item = (Source, bool)>) {
        let labels: Vec<_> = comets.map(|(source, broadcasts)| SourceLabel::of(source, broadcasts)).collect();
        for source in SourceLabel::ALL {
            let count = labels.iter().filter(|label| **label == source).count();
            self.known.get_or_create(&SourceLabels { source }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// The metrics of one comet.
    pub(super) fn of(&self, comet: &CometAddr) -> CometMetrics {
        let label = CometLabel { comet: comet.to_string() };
        CometMetrics {
            success: self.success.get_or_create_owned(&label),
            failed: self.failed.get_or_create_owned(&label),
            retries: self.retries.get_or_create_owned(&label),
            not_taken: self.not_taken.get_or_create_owned(&label),
            queue_full: self.queue_full.get_or_create_owned(&label),
            seconds: self.seconds.get_or_create_owned(&label),
            waiting: self.waiting.get_or_create_owned(&label),
            breaker_open: self.breaker_open.get_or_create_owned(&label),
            active: self.active.clone(),
            streaming: self.streaming.get_or_create_owned(&label),
            stream_failures: self.stream_failures.clone(),
            comet: label.comet,
        }
    }

    /// Removes a comet's metrics.
    pub(super) fn forget(&self, comet: &CometAddr) {
        let label = CometLabel { comet: comet.to_string() };
        for family in [&self.success, &self.failed, &self.retries, &self.not_taken, &self.queue_full] {
            family.remove(&label);
        }
        for family in [&self.waiting, &self.breaker_open, &self.streaming] {
            family.remove(&label);
        }
        self.seconds.remove(&label);
        for reason in StreamFailure::ALL {
            self.stream_failures.remove(&StreamFailureLabels { comet: label.comet.clone(), reason });
        }
    }
}

/// The metrics of one comet, looked up once.
#[derive(Debug)]
pub(super) struct CometMetrics {
    pub(super) success: Counter,
    pub(super) failed: Counter,
    pub(super) retries: Counter,
    pub(super) not_taken: Counter,
    pub(super) queue_full: Counter,
    pub(super) seconds: Histogram,
    pub(super) waiting: Gauge,
    pub(super) breaker_open: Gauge,
    /// Shared by all comets.
    pub(super) active: Gauge,
    pub(super) streaming: Gauge,
    stream_failures: Family<StreamFailureLabels, Counter>,
    comet: String,
}

impl CometMetrics {
    /// A stream failed.
    pub(super) fn stream_failed(&self, reason: StreamFailure) {
        let labels = StreamFailureLabels { comet: self.comet.clone(), reason };
        self.stream_failures.get_or_create(&labels).inc();
    }
}
