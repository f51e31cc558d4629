//! One comet: its queue, and the task behind it (`actor`) that owns its lanes, its breaker and its
//! channel.

mod active;
mod actor;
mod backlog;
mod call;
mod parked;
mod probe;
mod turns;

use std::sync::Arc;

use tokio::sync::mpsc;

use super::channel::Dialer;
use super::job::{Job, Room, Standing};
use super::{Config, Delivered, Parcel, Receipt, Timing};
use actor::Actor;

/// The fleet's end of a comet: where parcels are handed in.
#[derive(Debug)]
pub(super) struct Comet {
    pub(super) standing: Arc<Standing>,
    inbox: mpsc::Sender<Job>,
    lanes: usize,
    room: Room,
}

impl Comet {
    /// A comet, and its task, which has to be spawned.
    pub(super) fn new(
        standing: Arc<Standing>,
        dialer: Dialer,
        config: &Config,
        timing: Timing,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, inbox) = mpsc::channel(config.queue);
        let room = Room { messages: config.queue, bytes: config.share() };
        let actor = Actor::new(Arc::clone(&standing), dialer, config, timing);
        (Self { standing, inbox: sender, lanes: config.lanes, room }, actor.run(inbox))
    }

    /// Queues a parcel. Never waits: when the queue is full, a comet that takes messages gives
    /// the parcel back, and for another one it is unreachable.
    pub(super) fn send(&self, parcel: Parcel) -> Result<Receipt, Parcel> {
        let (job, receipt) = match Job::queue(parcel, &self.standing, self.lanes, self.room) {
            Ok(queued) => queued,
            Err(parcel) if self.standing.keeps_up() => return Err(parcel),
            Err(_) => return Ok(self.full("it does not take them")),
        };
        // The queue has as many places as there can be jobs. When the task is gone, the job is
        // dropped, which tells the receipt.
        drop(self.inbox.try_send(job));
        Ok(Receipt::awaited(receipt))
    }

    /// The receipt of a parcel that found no room in the queue.
    pub(super) fn full(&self, why: &str) -> Receipt {
        let Standing { metrics, address, .. } = &*self.standing;
        metrics.failed.inc();
        let waiting = self.standing.unsettled();
        Receipt::known(Delivered::Unreachable(format!(
            "queue full: {waiting} messages wait for {address}, {why}"
        )))
    }

    /// Whether its task ended, which only a bug can bring about.
    pub(super) fn is_dead(&self) -> bool {
        self.inbox.is_closed()
    }
}
