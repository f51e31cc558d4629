//! The records of one partition, from the polling thread to the partition's worker.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::consumer::until_committed::UntilCommitted;
use crate::message::Record;
use crate::offsets::AckHandle;

/// An admitted record and the handle that settles it.
#[derive(Debug)]
pub struct InFlightRecord {
    /// The record.
    pub record: Arc<Record>,
    /// Settles the record's offset.
    pub ack: AckHandle,
}

/// One assigned partition as its worker sees it. Dropping it signals that the worker is done.
#[derive(Debug)]
pub struct PartitionStream {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Records in the order of their offsets. Ends when the partition is revoked.
    pub records: mpsc::Receiver<InFlightRecord>,
    /// What is kept until records are committed.
    pub until_committed: UntilCommitted,
    /// Cancelled when the partition is being revoked: finish the work in progress, start no more.
    pub closing: CancellationToken,
    /// Cancelled when the drain has timed out: drop everything.
    pub cancel: CancellationToken,
    /// Closes with the stream; nothing is ever sent.
    pub(super) _done: std::sync::mpsc::Sender<()>,
}

/// Receives the stream of each newly assigned partition. Runs on the polling thread: it spawns the
/// partition's worker and returns.
pub type OnAssigned = Box<dyn Fn(PartitionStream) + Send + Sync>;
