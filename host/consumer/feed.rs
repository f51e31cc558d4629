//! What the polling thread hands to the worker of one partition.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::message::Record;
use crate::offsets::Ticket;

/// A record with its ticket: whoever settles the ticket has given the record its outcome.
#[derive(Debug)]
pub struct Admitted {
    /// The record.
    pub record: Arc<Record>,
    /// Settles its offset.
    pub ticket: Ticket,
}

/// One assigned partition as its worker sees it. Dropping it says that the worker is done.
#[derive(Debug)]
pub struct Feed {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Records in the order of their offsets. Ends when the partition is revoked.
    pub records: mpsc::Receiver<Admitted>,
    /// Cancelled when the partition is going away: begin nothing new, finish what is begun.
    pub closing: CancellationToken,
    /// Cancelled when the time for finishing is over: drop everything.
    pub abandon: CancellationToken,
    /// Closes with the feed; nothing is ever sent.
    pub(super) _done: std::sync::mpsc::Sender<()>,
}
