//! Metrics of the archive.

use crate::telemetry::{Counter, Family, Histogram, at_zero, label_enum, latency_histogram, metrics};

metrics! {
    /// Metrics of the gateway's side.
    #[derive(Clone, Debug)]
    pub struct TopicMetrics {
        /// Messages written to the archive topic, once per user.
        pub(super) messages: Counter = "halley_archive_messages";
        /// Messages of rooms with a history written to the archive topic.
        pub(super) room_messages: Counter = "halley_archive_room_messages";
        /// Messages of rooms with a history that the archive can never have.
        pub(super) room_messages_refused: Counter = "halley_archive_room_messages_refused";
    }
}

metrics! {
    /// Metrics of an archiver.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// Rows of the archive topic by what became of them.
        rows: Family<RowOutcome, Counter> = "halley_archive_rows" in at_zero(Family::default());
        /// Duration of transactions in the archive's database.
        pub(super) duration: Histogram = "halley_archive_write_duration_seconds" in latency_histogram();
    }
}

metrics! {
    /// Metrics of reading for pages of inboxes and histories.
    #[derive(Clone, Debug)]
    pub struct ReadMetrics {
        /// Reads of the archive for pages of inboxes and histories, by outcome.
        reads: Family<ReadOutcome, Counter> = "halley_archive_reads" in at_zero(Family::default());
    }
}

label_enum! {
    /// How a read ended.
    pub(super) enum ReadOutcome as "outcome" {
        /// The database answered.
        Ok = "ok",
        /// It could not be used.
        Failed = "failed",
        /// It was not asked, because it could not be used a moment ago.
        Skipped = "skipped",
    }
}

impl ReadMetrics {
    pub(super) fn count(&self, outcome: ReadOutcome) {
        self.reads.get_or_create(&outcome).inc();
    }
}

label_enum! {
    /// What became of a row.
    pub(super) enum RowOutcome as "outcome" {
        /// It is in the database, possibly since before.
        Written = "written",
        /// The database can never hold it: it became a dead letter.
        Refused = "refused",
        /// Its user was erased after it had been stored.
        Erased = "erased",
    }
}

impl Metrics {
    pub(super) fn rows(&self, outcome: RowOutcome, rows: usize) {
        self.rows.get_or_create(&outcome).inc_by(rows as u64);
    }
}
