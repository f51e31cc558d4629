//! Limits on what a server may send, and the count of what the pipelines of a connection received.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::metrics::Metrics;

/// The limits.
#[derive(Clone, Debug)]
pub(super) struct ReplyLimits {
    /// Maximum length of a string; longer ones are replaced by nil.
    pub(super) value: usize,
    /// Approximate maximum memory of the replies to one pipeline.
    pub(super) replies: usize,
    pub(super) metrics: Metrics,
}

/// Why a server's data was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RejectedReply {
    /// Oversized replies.
    TooLarge(String),
    /// Data that no Redis sends: malformed, or an endless line.
    Malformed(String),
}

/// Measures the replies of one connection; shared by its stream and the pipelines that wait.
#[derive(Debug)]
pub(super) struct ReplyMeter {
    reply_limits: ReplyLimits,
    /// Bytes received since the last pipeline was complete.
    since: AtomicUsize,
    next: AtomicU64,
    /// The pipelines that wait for replies, in the order in which they were sent.
    waiting: Mutex<BTreeSet<u64>>,
    /// The rejected data, and the pipeline that it was for.
    excess: Mutex<Option<(RejectedReply, Option<u64>)>>,
}

/// A pipeline that waits for its replies.
pub(super) struct PipelineGuard<'a> {
    meter: &'a ReplyMeter,
    number: u64,
}

impl ReplyMeter {
    pub(super) fn new(reply_limits: ReplyLimits) -> Arc<Self> {
        Arc::new(Self {
            reply_limits,
            since: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
            excess: Mutex::default(),
        })
    }

    /// Registers a pipeline that is about to be sent.
    pub(super) fn enter(&self) -> PipelineGuard<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().insert(number);
        PipelineGuard { meter: self, number }
    }

    /// The reason why data on this connection was rejected.
    pub(super) fn excess(&self) -> Option<RejectedReply> {
        self.excess.lock().as_ref().map(|(excess, _)| excess.clone())
    }

    /// Approximate maximum memory of the replies to one pipeline.
    pub(super) fn most(&self) -> usize {
        self.reply_limits.replies
    }

    /// Maximum length of a string.
    pub(super) fn longest_value(&self) -> usize {
        self.reply_limits.value
    }

    /// A longer string was replaced by nil.
    pub(super) fn value_refused(&self, length: usize) {
        self.reply_limits.metrics.value_refused(length);
    }

    /// Counts received bytes of the replies to the current pipeline.
    pub(super) fn take(&self, bytes: usize) -> Result<(), RejectedReply> {
        let most = self.reply_limits.replies;
        let before = self.since.fetch_add(bytes.min(most.saturating_add(1)), Ordering::Relaxed);
        if before.saturating_add(bytes) <= most {
            return Ok(());
        }
        Err(RejectedReply::TooLarge(format!("replies of more than {most} bytes")))
    }

    /// Records why the connection fails.
    pub(super) fn exceeded(&self, excess: RejectedReply) {
        self.reply_limits.metrics.reply_refused();
        let first = self.waiting.lock().first().copied();
        self.excess.lock().get_or_insert((excess, first));
    }
}

impl PipelineGuard<'_> {
    /// All replies have been received: further data belongs to the next pipeline.
    pub(super) fn complete(&self) {
        self.meter.since.store(0, Ordering::Relaxed);
    }

    /// The reason why the connection failed, if this pipeline's replies were oversized, or if the
    /// data was not valid RESP.
    pub(super) fn excess(&self) -> Option<RejectedReply> {
        match &*self.meter.excess.lock() {
            Some((excess @ RejectedReply::Malformed(_), _)) => Some(excess.clone()),
            Some((excess, at)) if *at == Some(self.number) => Some(excess.clone()),
            _ => None,
        }
    }
}

impl Drop for PipelineGuard<'_> {
    fn drop(&mut self) {
        self.meter.waiting.lock().remove(&self.number);
    }
}
