//! The parts that commands need as well: storage, the fleet, and the resolver of recipients.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::archive::{self, ArchivedMessages};
use crate::comets::{self, CometStore, Fleet, MemoryCometStore, ReadOnlyCometStore, RedisCometStore};
use crate::config::Config;
use crate::directory::{self, Directory, MemoryDirectory, RedisDirectory};
use crate::guard::{Guards, MemoryGuards, RedisGuards};
use crate::history::RoomHistoryReader;
use crate::inbox::{self, Inbox, InboxReader, MemoryInbox, OnlineUsers, RedisInbox, RedisInboxReader};
use crate::pipeline::{Resolver, RoomSource, RoutingConfig};
use crate::policy::PluginConfig;
use crate::redis_client::{self, RedisClient};
use crate::redrive_key::{MemoryRedriveKeys, RedisRedriveKeys, RedriveKeys};
use crate::shared_state::{MemorySharedState, RedisSharedState, SharedState};

/// Capacity of the guards of `memory://`.
const MEMORY_GUARDS: usize = 100_000;

/// Capacity of the shared state of `memory://`.
const MEMORY_VALUES: usize = 100_000;

/// State outside of the process, or in memory for the demo.
#[derive(Clone)]
pub struct Storage {
    /// Where connections live.
    pub directory: Arc<dyn Directory>,
    /// The policies' guards.
    pub guards: Arc<dyn Guards>,
    /// State that policies share across gateways.
    pub shared_state: Arc<dyn SharedState>,
    /// Messages for absent users.
    pub inbox: Arc<dyn Inbox>,
    /// Reads them.
    pub inbox_reader: Arc<dyn InboxReader>,
    /// Reads the histories of rooms; `None` if everything is in memory.
    pub history: Option<RoomHistoryReader>,
    /// The comets that all gateways know.
    pub comets: Arc<dyn CometStore>,
    /// The key that proves redriven records.
    pub redrive_keys: Arc<dyn RedriveKeys>,
    /// The Redis client behind all of them; `None` if everything is in memory.
    pub redis: Option<RedisClient>,
}

impl Storage {
    /// Opens what `[redis] url` names: Redis, or `memory://`.
    ///
    /// # Errors
    /// When the URL is invalid. An unreachable Redis is not an error.
    pub fn open(config: &Config, registry: &mut Registry) -> anyhow::Result<Self> {
        if config.redis.is_memory() {
            let directory = MemoryDirectory::new(config.routing.check_online);
            return Ok(Self::memory(directory, config, registry));
        }
        let client = redis_client(config, redis_client::Metrics::register(registry))?;
        let metrics = directory::Metrics::register(registry);
        let inbox_metrics = inbox::Metrics::register(registry);
        let older = ArchivedMessages::open(&config.archive, || archive::ReadMetrics::register(registry))?;
        let RoutingConfig { check_online, max_room_size, cache, .. } = &config.routing;
        let directory = RedisDirectory::new(client.clone(), *check_online, *max_room_size, metrics);
        let directory = directory.remembering(cache);
        Ok(Self {
            directory: Arc::new(directory),
            guards: Arc::new(RedisGuards::new(client.clone())),
            shared_state: Arc::new(RedisSharedState::new(client.clone())),
            inbox: Arc::new(RedisInbox::new(client.clone(), &config.offline, inbox_metrics)),
            inbox_reader: Arc::new(RedisInboxReader::new(client.clone(), &config.offline, older.clone())),
            history: Some(RoomHistoryReader::new(client.clone(), &config.history, older)),
            comets: Arc::new(RedisCometStore::new(client.clone())),
            redrive_keys: Arc::new(RedisRedriveKeys::new(client.clone())),
            redis: Some(client),
        })
    }

    /// Everything in memory, with this directory.
    pub fn memory(directory: MemoryDirectory, config: &Config, registry: &mut Registry) -> Self {
        let inbox_metrics = inbox::Metrics::register(registry);
        let online: OnlineUsers = {
            let directory = directory.clone();
            Box::new(move |user| directory.connection_of(user))
        };
        let inbox = Arc::new(MemoryInbox::new(&config.offline, inbox_metrics, online));
        Self {
            directory: Arc::new(directory),
            guards: Arc::new(MemoryGuards::new(MEMORY_GUARDS)),
            shared_state: Arc::new(MemorySharedState::new(MEMORY_VALUES)),
            inbox: Arc::<MemoryInbox>::clone(&inbox),
            inbox_reader: inbox,
            history: None,
            comets: Arc::new(MemoryCometStore::default()),
            redrive_keys: Arc::new(MemoryRedriveKeys::default()),
            redis: None,
        }
    }

    /// Checks that everything can be read, and written if required; returns how rooms are read.
    ///
    /// # Errors
    /// If it cannot now, or is not permitted.
    pub async fn check(&self, writes: bool) -> Result<String, directory::Unavailable> {
        let how = self.directory.check().await?;
        match &self.redis {
            Some(redis) if writes => {
                redis.check_write_permission().await?;
                Ok(format!("redis at {} permits all that the gateway does; {how}", redis.endpoint()))
            }
            _ => Ok(how),
        }
    }
}

/// The client. If cached rooms are to be exact, Redis reports to the connection that reads rooms which of
/// them change.
fn redis_client(
    config: &Config,
    metrics: redis_client::Metrics,
) -> Result<RedisClient, redis_client::BadUrl> {
    let reads_rooms = config.routing.rooms == RoomSource::Directory;
    if reads_rooms && config.routing.cache.is_exact() {
        RedisClient::with_tracking(&config.redis, metrics, directory::ROOM_KEYS)
    } else {
        RedisClient::new(&config.redis, metrics)
    }
}

/// Whether messages will need to write to Redis: inboxes do, and guards and shared state of
/// policies may.
pub fn writes_to_redis(config: &Config, plugins: &[PluginConfig]) -> bool {
    config.offline.default == inbox::DefaultDisposition::Store
        || !config.history.rooms.is_empty()
        || !plugins.is_empty()
}

/// The fleet, with this store of the comets that all gateways know.
pub(super) fn fleet(
    config: &Config,
    store: Arc<dyn CometStore>,
    registry: &mut Registry,
) -> anyhow::Result<Arc<Fleet>> {
    let timing = comets::CallTimeouts {
        request_timeout: config.delivery.request_timeout,
        delivery_timeout: config.delivery.delivery_timeout,
    };
    Fleet::start(&config.comets, timing, comets::Metrics::register(registry), store)
}

/// The fleet as a gateway would know it, for read-only commands: from discovery, DNS, and the store
/// of the comets that all gateways know. Its warnings report what could not be read. Nothing is
/// written.
///
/// # Errors
/// If a file of `[comets.tls]` cannot be used.
pub async fn observe_fleet(
    config: &Config,
    storage: &Storage,
    registry: &mut Registry,
) -> anyhow::Result<Arc<Fleet>> {
    let fleet = fleet(config, Arc::new(ReadOnlyCometStore(Arc::clone(&storage.comets))), registry)?;
    fleet.resolved().await;
    drop(fleet.share().await);
    Ok(fleet)
}

/// The resolver of recipients.
pub fn resolver(config: &Config, storage: &Storage, fleet: &Arc<Fleet>, registry: &mut Registry) -> Resolver {
    let metrics = directory::CacheMetrics::register(registry);
    let directory = Arc::clone(&storage.directory);
    Resolver::new(directory, Arc::clone(fleet), &config.routing, config.comets.dialect, metrics)
}
