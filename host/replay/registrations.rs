//! Users who were registered, from the connection that hears of them to the task that replays: a bounded
//! queue. What does not fit is dropped and counted; a sweep makes up for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::message::UserId;
use crate::replay::metrics::Metrics;

/// Registrations that may wait.
const QUEUE: usize = 10_000;

/// A user who may have returned.
pub(super) struct Registration {
    pub(super) user: UserId,
    pub(super) at: Instant,
}

/// Receives registrations, without blocking.
#[derive(Clone)]
pub struct Registrations {
    queue: mpsc::Sender<Registration>,
    dropped: Arc<AtomicU64>,
    metrics: Metrics,
}

impl Registrations {
    /// A queue, and its other end for [`ReplayOnReturn`](super::ReplayOnReturn).
    pub fn queue(metrics: Metrics) -> (Self, RegistrationQueue) {
        let (queue, registered) = mpsc::channel(QUEUE);
        let dropped = Arc::<AtomicU64>::default();
        let registrations = Self { queue, dropped: Arc::clone(&dropped), metrics: metrics.clone() };
        (registrations, RegistrationQueue { registered, dropped, metrics })
    }

    /// A user was registered.
    pub fn push(&self, user: UserId) {
        self.metrics.events.inc();
        if self.queue.try_send(Registration { user, at: Instant::now() }).is_err() {
            self.metrics.dropped.inc();
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// The receiving end of [`Registrations`].
pub struct RegistrationQueue {
    pub(super) registered: mpsc::Receiver<Registration>,
    pub(super) dropped: Arc<AtomicU64>,
    pub(super) metrics: Metrics,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts() {
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let (registrations, queue) = Registrations::queue(metrics.clone());
        for user in 0..QUEUE + 7 {
            registrations.push(format!("user-{user}").as_str().into());
        }
        assert_eq!((metrics.events.get(), metrics.dropped.get()), (QUEUE as u64 + 7, 7));
        assert_eq!((queue.dropped.load(Relaxed), queue.registered.len()), (7, QUEUE));
    }
}
