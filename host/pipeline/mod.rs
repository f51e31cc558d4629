//! Processes messages: check claims, decode, filter, guard, resolve, route, fan out, handle absent
//! recipients, settle.
//!
//! # How it runs
//! Each assigned partition has one worker task. It takes the records that are ready as a batch
//! (sized by the backlog, never by a timer), runs the whole batch through the stages that need
//! round trips, queues each message's calls at their comets in order, and continues with the next
//! batch. When the last call of a message ends, the partition's settler settles it. Only a message
//! with another outcome than "acknowledged by every comet" gets a *delivery task* for the rest:
//! absent recipients, dead letter, settlement.
//!
//! # Promises
//! - A batch uses one policy set from beginning to end. A stalled policy (`on_error = "stall"`) is
//!   called again; plugins before it are not, unless another set is active by then, which restarts
//!   the stage.
//! - A record is settled once every recipient has an outcome. A delivery task that is cancelled
//!   drops its handle, and the record is delivered again.
//! - An unreachable Redis or dead-letter topic stalls the partition; no message is dropped. Stages
//!   are retried until they succeed or the partition is revoked.
//!
//! It never sees a Kafka, Redis, gRPC or WebAssembly type.

mod absent;
mod absent_budget;
mod age;
mod archiving;
mod batch;
mod cached_routes;
mod call;
mod chain;
mod claims;
mod config;
mod delivery_task;
mod dispatch;
mod explain;
mod failed_comets;
mod hand_over;
mod history;
mod in_flight;
mod key_order;
mod metrics;
mod outcome;
mod parts;
mod push;
mod resolve;
mod retry;
mod spans;
mod trace;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::consumer::PartitionStream;
use crate::panics;

pub use absent_budget::AbsentBudget;
pub use config::{DeliveryConfig, PushKeys, RoomSource, RoutingConfig};
pub use explain::{Explanation, explain};
pub use metrics::Metrics;
pub use parts::Pipeline;
pub use push::{PushOutcome, PushedMessage, Pusher};
pub use resolve::Resolver;

use batch::PartitionWorker;
use in_flight::Settler;

impl Pipeline {
    /// Processes one partition until it is revoked, then drains. The stream is dropped last, which
    /// tells the consumer that the worker is done.
    pub async fn run(self: Arc<Self>, mut stream: PartitionStream) {
        let delivery_tasks = TaskTracker::new();
        let (closing, cancel) = (stream.closing.clone(), stream.cancel.clone());
        let kept = stream.until_committed.clone();
        let settler = Settler::new(&self, delivery_tasks.clone(), kept, cancel.clone());
        let settling = panics::abort_on_panic("settling messages", Arc::clone(&settler).run());
        // Aborted when it is dropped.
        let mut settling_task = JoinSet::new();
        settling_task.spawn(settling);
        let mut worker = PartitionWorker::new(&self, &stream, &settler, delivery_tasks.clone());
        let mut admitted = Vec::new();
        loop {
            let taken = tokio::select! {
                biased;
                () = closing.cancelled() => 0,
                taken = stream.records.recv_many(&mut admitted, self.max_batch) => taken,
            };
            if taken == 0 || worker.batch(std::mem::take(&mut admitted)).await.is_err() {
                break;
            }
        }
        delivery_tasks.close();
        debug!(stream.partition, delivery_tasks = delivery_tasks.len(), "the partition is closing; draining");
        tokio::select! {
            () = async { settler.wait_until_idle().await; delivery_tasks.wait().await } => {}
            // Delivery tasks see the same token, drop their ack handles and end.
            () = cancel.cancelled() => delivery_tasks.wait().await,
        }
    }
}
