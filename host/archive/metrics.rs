//! Metrics of the archive.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::telemetry::{label_enum, latency_histogram, metrics};

metrics! {
    /// Metrics of the gateway's side.
    #[derive(Clone, Debug)]
    pub struct TopicMetrics {
        /// Messages written to the archive topic, once per user.
        pub(super) messages: Counter = "halley_archive_messages";
    }
}

metrics! {
    /// Metrics of an archiver.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// Rows of the archive topic by what became of them.
        rows: Family<RowLabel, Counter> = "halley_archive_rows";
        /// Duration of transactions in the archive's database.
        pub(super) duration: Histogram = "halley_archive_write_duration_seconds" in latency_histogram();
    }
}

label_enum! {
    /// What became of a row.
    pub(super) enum RowOutcome {
        /// It is in the database, possibly since before.
        Written = "written",
        /// The database can never hold it: it became a dead letter.
        Refused = "refused",
        /// Its user was erased after it had been stored.
        Erased = "erased",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RowLabel {
    outcome: RowOutcome,
}

impl Metrics {
    pub(super) fn rows(&self, outcome: RowOutcome, rows: usize) {
        self.rows.get_or_create(&RowLabel { outcome }).inc_by(rows as u64);
    }
}
