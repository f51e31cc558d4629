//! What the pipeline is made of: the parts that every stage of every partition uses.

use std::sync::Arc;
use std::time::Duration;

use crate::archive::ArchiveTopic;
use crate::comets::Fleet;
use crate::dead_letter::DeadLetters;
use crate::guard::Guards;
use crate::history::{self, RedisRoomHistory};
use crate::inbox::{self, InboxQueue, Notifier};
use crate::pipeline::absent_budget::AbsentBudget;
use crate::pipeline::metrics::Metrics;
use crate::pipeline::resolve::Resolver;
use crate::policy::Policies;
use crate::redrive_key::CachedRedriveKey;
use crate::shared_state::SharedState;
use crate::stalls::Stalls;
use crate::telemetry::traces::Tracer;

/// The parts that process messages. Shared by all partitions.
pub struct Pipeline {
    /// The active policies.
    pub policies: Arc<Policies>,
    /// Finds recipients.
    pub resolver: Resolver,
    /// Claims the policies' guards.
    pub guards: Arc<dyn Guards>,
    /// The state that policies share with other gateways.
    pub shared_state: Arc<dyn SharedState>,
    /// The comets.
    pub fleet: Arc<Fleet>,
    /// Stores messages for absent users.
    pub inbox: InboxQueue,
    /// The budget of absent recipients over all messages.
    pub absent_budget: AbsentBudget,
    /// Notifies other channels about absent users.
    pub notifier: Notifier,
    /// Keeps stored messages for longer than inboxes, if that is configured.
    pub archive: Option<ArchiveTopic>,
    /// Keeps the messages of rooms; `None` without Redis.
    pub history: Option<RedisRoomHistory>,
    /// The rooms whose messages are kept, and what inboxes get of them.
    pub history_config: history::Config,
    /// What happens for absent recipients when no policy decides.
    pub offline: inbox::Config,
    /// Writes dead letters.
    pub dead_letters: DeadLetters,
    /// The maximum number of records in a batch.
    pub max_batch: usize,
    /// The work that is being retried, and the records it holds.
    pub stalls: Stalls,
    /// The maximum number of keys of a message.
    pub max_keys: usize,
    /// The maximum age of a message; zero means no limit.
    pub max_age: Duration,
    /// Proves redriven records.
    pub redrive_key: CachedRedriveKey,
    /// Traces messages.
    pub tracer: Tracer,
    /// The pipeline's metrics.
    pub metrics: Metrics,
}
