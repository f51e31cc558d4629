//! The comets' metrics.

use super::source::Source;
use crate::message::{CometAddr, NamedBy};
use crate::telemetry::{
    Counter, EncodeLabelSet, Family, Gauge, Histogram, at_zero, label_enum, latency_histogram, metrics,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CometLabel {
    comet: String,
}

label_enum! {
    /// A comet's source, and whether it gets BROADCASTs.
    enum SourceLabel as "source" {
        Configured = "configured",
        Dns = "dns",
        Discovery = "discovery",
        Directory = "directory",
        /// In the directory, but neither named lately nor answering: no BROADCASTs.
        LeftOut = "left_out",
        Named = "named",
        Retired = "retired",
    }
}

impl SourceLabel {
    fn of(source: Source, broadcasts: bool) -> Self {
        match source {
            Source::Configured => Self::Configured,
            Source::Dns => Self::Dns,
            Source::Discovery => Self::Discovery,
            Source::Directory if broadcasts => Self::Directory,
            Source::Directory => Self::LeftOut,
            Source::Named => Self::Named,
            Source::Retired => Self::Retired,
        }
    }
}

label_enum! {
    /// Why an address was refused.
    pub(super) enum RefusedReason as "reason" {
        NotListed = "not_listed",
        Loopback = "loopback",
        LinkLocal = "link_local",
        Unspecified = "unspecified",
        Multicast = "multicast",
        Broadcast = "broadcast",
        /// A plugin named a comet that is not known.
        UnknownComet = "unknown_comet",
    }
}

label_enum! {
    enum RefusedNamedBy as "named_by" {
        Directory = "directory",
        Record = "record",
        Plugin = "plugin",
    }
}

label_enum! {
    /// Why a stream did not begin, or ended before its time.
    pub(super) enum StreamFailure as "reason" {
        /// No Welcome in time.
        Silent = "silent",
        /// The comet answered Hello, or ended the stream, with an error.
        Error = "error",
        /// The comet broke the protocol.
        Protocol = "protocol",
        /// The connection broke.
        Lost = "lost",
        /// A message was not acknowledged in time, or a Ping not answered.
        Overdue = "overdue",
        /// A message waited too long for credit.
        Stalled = "stalled",
    }
}

/// Counts refused addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct RefusedMetrics(Family<(RefusedReason, RefusedNamedBy), Counter>);

impl RefusedMetrics {
    pub(super) fn count(&self, reason: RefusedReason, named_by: NamedBy) {
        let named_by = match named_by {
            NamedBy::Directory => RefusedNamedBy::Directory,
            NamedBy::Record => RefusedNamedBy::Record,
            NamedBy::TrustedPlugin | NamedBy::Plugin => RefusedNamedBy::Plugin,
        };
        self.0.get_or_create(&(reason, named_by)).inc();
    }
}

metrics! {
    /// The comets' metrics. Their label sets are bounded by the number of known comets.
    #[derive(Clone)]
    pub struct Metrics {
        /// Messages that the comet acknowledged.
        success: Family<CometLabel, Counter> = "job_dispatch_success";
        /// Messages that the comet did not accept.
        failed: Family<CometLabel, Counter> = "job_dispatch_failed";
        /// Known comets whose breaker is closed.
        active: Gauge = "active_comet_nodes";
        /// Duration of calls, of each attempt.
        seconds: Family<CometLabel, Histogram, fn() -> Histogram> = "halley_comet_call_duration_seconds"
            in Family::new_with_constructor(latency_histogram);
        /// Messages queued for the comet or in flight to it.
        waiting: Family<CometLabel, Gauge> = "halley_comet_queued_messages";
        /// Whether the comet's breaker is open (1).
        breaker_open: Family<CometLabel, Gauge> = "halley_comet_breaker_open";
        /// Attempts that failed and are retried.
        retries: Family<CometLabel, Counter> = "halley_comet_retries";
        /// Known comets by source; left_out are comets of the directory that were not named lately and do not
        /// answer.
        known: Family<SourceLabel, Gauge> = "halley_comets_known" in at_zero(Family::default());
        /// Calls that were not made because the comet's address is not allowed, by reason and by who named it;
        /// see [comets] allow.
        not_allowed: Family<(RefusedReason, RefusedNamedBy), Counter> = "halley_comets_refused"
            in at_zero(Family::default());
        /// Connections that did not accept a message although their comet answers.
        not_taken: Family<CometLabel, Counter> = "halley_comet_not_taken";
        /// Messages that had to wait for room in the comet's queue.
        queue_full: Family<CometLabel, Counter> = "halley_comet_queue_full";
        /// Bytes of messages queued for comets or in flight, each message once.
        pub(super) pending_bytes: Gauge = "halley_comets_pending_bytes";
        /// Whether the comet gets messages by stream (1).
        streaming: Family<CometLabel, Gauge> = "halley_comet_streaming";
        /// Streams that did not begin, or ended before their time, by reason; a comet that does not serve streams
        /// is not counted.
        stream_failures: Family<(CometLabel, StreamFailure), Counter> = "halley_comet_stream_failures";
    }
}

impl Metrics {
    pub(super) fn refused(&self) -> RefusedMetrics {
        RefusedMetrics(self.not_allowed.clone())
    }

    /// Sets how many comets are known: by source, and whether they get BROADCASTs.
    pub(super) fn count_comets(&self, comets: impl Iterator<Item = (Source, bool)>) {
        let labels: Vec<_> = comets.map(|(source, broadcasts)| SourceLabel::of(source, broadcasts)).collect();
        for source in SourceLabel::ALL {
            let count = labels.iter().filter(|label| **label == source).count();
            self.known.get_or_create(&source).set(i64::try_from(count).unwrap_or(i64::MAX));
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
            comet: label,
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
            self.stream_failures.remove(&(label.clone(), reason));
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
    stream_failures: Family<(CometLabel, StreamFailure), Counter>,
    comet: CometLabel,
}

impl CometMetrics {
    /// A stream failed.
    pub(super) fn stream_failed(&self, reason: StreamFailure) {
        self.stream_failures.get_or_create(&(self.comet.clone(), reason)).inc();
    }
}
