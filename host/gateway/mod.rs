//! Builds every part and owns every task: the one place where the order of starting and
//! stopping stands.
//!
//! Starting: policies (a set that is refused stops the start), Redis and producers (both
//! connect by themselves, now or later), comets, the pipeline, and only then the consumer.
//! Stopping is the reverse: the consumer stops fetching, workers finish what they began, the
//! offsets are committed, and then the rest goes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::blocking::run_blocking;
use crate::comets::{self, CometStore, Fleet, MemoryCometStore, RedisCometStore};
use crate::consumer::{self, Consumer, Limits, Stopped};
use crate::dead_letter::{self, DeadLetters};
use crate::directory::{self, Directory, MemoryDirectory, RedisDirectory};
use crate::guard::{Guards, MemoryGuards, RedisGuards};
use crate::kafka::{self, Producer};
use crate::offline::{self, Inbox, InboxQueue, MemoryInbox, Notifier, RedisInbox};
use crate::panics;
use crate::pipeline::{self, Pipeline, Resolver};
use crate::policy::{self, Policies};
use crate::redis_client::{self, RedisClient};
use crate::redrive_key::{KnownKey, MemoryRedriveKeys, RedisRedriveKeys, RedriveKeys};
use crate::shared_state::{MemorySharedState, RedisSharedState, SharedState};
use crate::stalls::Stalls;
use crate::telemetry;

mod handle;
mod verify;

pub use handle::{Handle, Steered};
pub use verify::{probe, verify};

/// What the gateway is built from: the modules' own configurations.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Where records come from.
    pub kafka: kafka::Config,
    /// The directory's Redis, and the gateway's own keys in it.
    pub redis: redis_client::Config,
    /// How recipients are found.
    pub routing: pipeline::RoutingConfig,
    /// The comets and how they are called.
    pub comets: comets::Config,
    /// How long and how much.
    pub delivery: pipeline::DeliveryConfig,
    /// What becomes of the absent.
    pub offline: offline::Config,
    /// Where versions of policies are kept.
    pub policies: policy::PoliciesConfig,
    /// The policies to start with, in the order in which they are asked.
    pub plugins: Vec<policy::PluginConfig>,
}

/// What is kept outside of the process, or for the demo inside of it.
#[derive(Clone)]
pub struct Storage {
    /// Who is where.
    pub directory: Arc<dyn Directory>,
    /// The policies' guards.
    pub guards: Arc<dyn Guards>,
    /// What policies keep for all gateways.
    pub shared_state: Arc<dyn SharedState>,
    /// Messages for the absent.
    pub inbox: Arc<dyn Inbox>,
    /// What all gateways know of comets.
    pub comets: Arc<dyn CometStore>,
    /// The key that proves redriven records.
    pub redrive_keys: Arc<dyn RedriveKeys>,
    /// The Redis behind all of them; `None` when everything is in memory.
    pub redis: Option<RedisClient>,
}

impl Storage {
    /// Opens what `[redis] url` names: Redis, or `memory://`.
    ///
    /// # Errors
    /// When the URL is none. A Redis that is away is no error.
    pub fn open(config: &Config, registry: &mut Registry) -> anyhow::Result<Self> {
        if config.redis.is_memory() {
            let directory = MemoryDirectory::new(config.routing.check_online);
            return Ok(Self::memory(directory, config, registry));
        }
        let client = RedisClient::new(&config.redis, redis_client::Metrics::register(registry))?;
        let metrics = directory::Metrics::register(registry);
        let inbox_metrics = offline::Metrics::register(registry);
        Ok(Self {
            directory: Arc::new(RedisDirectory::new(
                client.clone(),
                config.routing.check_online,
                config.routing.max_room,
                metrics,
            )),
            guards: Arc::new(RedisGuards::new(client.clone())),
            shared_state: Arc::new(RedisSharedState::new(client.clone())),
            inbox: Arc::new(RedisInbox::new(client.clone(), &config.offline, inbox_metrics)),
            comets: Arc::new(RedisCometStore::new(client.clone())),
            redrive_keys: Arc::new(RedisRedriveKeys::new(client.clone())),
            redis: Some(client),
        })
    }

    /// Everything in memory, around this directory.
    pub fn memory(directory: MemoryDirectory, config: &Config, registry: &mut Registry) -> Self {
        let inbox_metrics = offline::Metrics::register(registry);
        Self {
            directory: Arc::new(directory),
            guards: Arc::new(MemoryGuards::new(MEMORY_GUARDS)),
            shared_state: Arc::new(MemorySharedState::new(MEMORY_VALUES)),
            inbox: Arc::new(MemoryInbox::new(&config.offline, inbox_metrics)),
            comets: Arc::new(MemoryCometStore::default()),
            redrive_keys: Arc::new(MemoryRedriveKeys::default()),
            redis: None,
        }
    }

    /// Whether everything can be read, and written where it has to be; says how rooms are read.
    ///
    /// # Errors
    /// When it cannot be now, or may not be.
    pub async fn check(&self, writes: bool) -> Result<String, directory::Unavailable> {
        let how = self.directory.check().await?;
        match &self.redis {
            Some(redis) if writes => redis.may_write().await?,
            _ => {}
        }
        Ok(how)
    }
}

impl Config {
    /// Whether messages will need to write to Redis: inboxes do, and guards and shared state of
    /// policies may.
    pub fn writes_to_redis(&self) -> bool {
        self.offline.default == offline::DefaultDisposition::Store || !self.plugins.is_empty()
    }
}

/// A running gateway. Stop it with [`Gateway::stop`]; dropping it abandons what is in flight.
pub struct Gateway {
    handle: Handle,
    consumer: Consumer,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// How many claims `memory://` remembers.
const MEMORY_GUARDS: usize = 100_000;

/// How many values of policies `memory://` remembers.
const MEMORY_VALUES: usize = 100_000;

/// How often the directory is asked whether it is there.
const CHECK_EVERY: Duration = Duration::from_secs(1);

impl Gateway {
    /// Starts everything. `sources` says which plugins are wanted; it is asked again whenever
    /// something changes, and the answer takes effect while the gateway runs. `registry` may have
    /// metrics of those around the gateway already.
    ///
    /// # Errors
    /// When policies are refused, or a part cannot be built from its configuration.
    pub async fn start(
        config: &Config,
        sources: policy::Sources,
        mut registry: Registry,
    ) -> anyhow::Result<Self> {
        let storage = Storage::open(config, &mut registry)?;
        Self::start_with(config, sources, storage, registry).await
    }

    /// As [`Gateway::start`], around this storage.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with(
        config: &Config,
        sources: policy::Sources,
        storage: Storage,
        mut registry: Registry,
    ) -> anyhow::Result<Self> {
        telemetry::register(&mut registry);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        // The versions first: their lock says that the folder is ours.
        let versions = config.policies.versions()?;
        let runtime = policy::Runtime::with(&mut registry, config.policies.runtime())?;
        // Compiling may take long; whoever waits for the start may give it up meanwhile.
        let plugins = config.plugins.clone();
        let start = move || Policies::start_with(runtime, &plugins, versions);
        let policies = run_blocking("preparing the plugins", start).await??;
        let stalls = Stalls::register(&mut registry);
        let (inbox, writer) = InboxQueue::new(Arc::clone(&storage.inbox), &config.offline);
        let pipeline =
            Arc::new(build_pipeline(config, policies, &storage, inbox, stalls.clone(), &mut registry)?);
        tasks.spawn(panics::fatal("the writer of inboxes", writer.run(shutdown.clone())));

        announce_reach(&pipeline.fleet).await;
        let consumer_metrics = consumer::Metrics::register(&mut registry);
        let limits = Limits {
            records: config.delivery.max_in_flight,
            bytes: usize::try_from(config.delivery.max_in_flight_bytes.as_u64()).unwrap_or(usize::MAX),
            record: config.delivery.record_limits(),
            memory: config.delivery.memory_limit.bytes(),
        };
        let spawn_worker = {
            let (tasks, pipeline) = (tasks.clone(), Arc::clone(&pipeline));
            let runtime = tokio::runtime::Handle::current();
            move |feed| {
                drop(tasks.spawn_on(
                    panics::fatal("a partition's worker", Arc::clone(&pipeline).run(feed)),
                    &runtime,
                ))
            }
        };
        let ours = [config.kafka.dead_letter_topic.as_str(), config.offline.notify_topic.as_str()];
        let spawn_worker = Box::new(spawn_worker);
        let consumer = Consumer::start(&config.kafka, &ours, limits, consumer_metrics, stalls, spawn_worker)
            .context("cannot start the Kafka consumer; check [kafka] and its properties")?;

        let directory = watch_directory(&storage, config.writes_to_redis(), &tasks, &shutdown);
        tasks.spawn(policy::watch(Arc::clone(&pipeline.policies), sources, shutdown.clone()));
        tasks.spawn(policy::supervise(Arc::clone(&pipeline.policies), shutdown.clone()));
        let handle = Handle {
            registry: Arc::new(registry),
            pipeline,
            kafka: consumer.health(),
            memory: consumer.memory(),
            directory,
            stopping: Arc::default(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        Ok(Self { handle, consumer, tasks, shutdown })
    }

    /// A view for the admin API.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until Kafka has shut this process out of the group for good: time to stop.
    pub async fn until_shut_out(&self) {
        self.handle.kafka.until_shut_out().await;
    }

    /// Stops fetching, finishes what is in flight within `grace`, commits, leaves the group.
    pub async fn stop(self, grace: Duration) -> Stopped {
        self.handle.stopping.store(true, Ordering::Release);
        info!(grace = ?grace, "stopping: finishing what is in flight");
        let stopped = self.consumer.stop(grace).await;
        self.shutdown.cancel();
        self.tasks.close();
        let rest = async {
            self.handle.pipeline.fleet.close().await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(Duration::from_secs(5), rest).await.is_err() {
            warn!("some tasks did not end in time and are cut off");
        }
        match stopped {
            Stopped::Drained => info!("stopped: everything in flight was finished and committed"),
            Stopped::Abandoned(records) => {
                warn!(
                    records,
                    "stopped at the end of the grace period; these records will be delivered again"
                );
            }
            Stopped::ShutOut => {
                error!(
                    "stopped: kafka has shut this process out of the consumer group; check that no other process has its `[kafka] instance`, then start it again"
                )
            }
            Stopped::Hung => {
                error!("Kafka did not let go in time; what was settled last may be delivered again")
            }
        }
        stopped
    }
}

fn build_pipeline(
    config: &Config,
    policies: Arc<Policies>,
    storage: &Storage,
    inbox: InboxQueue,
    stalls: Stalls,
    registry: &mut Registry,
) -> anyhow::Result<Pipeline> {
    let producer =
        Producer::new(&config.kafka).context("cannot make the Kafka producer; check [kafka] properties")?;
    let timing =
        comets::Timing { timeout: config.delivery.timeout, give_up_after: config.delivery.give_up_after };
    let store = Arc::clone(&storage.comets);
    let fleet = Fleet::start(&config.comets, timing, comets::Metrics::register(registry), store);
    Ok(Pipeline {
        policies,
        resolver: Resolver::new(
            Arc::clone(&storage.directory),
            Arc::clone(&fleet),
            &config.routing,
            config.comets.dialect,
            directory::CacheMetrics::register(registry),
        ),
        guards: Arc::clone(&storage.guards),
        shared_state: Arc::clone(&storage.shared_state),
        fleet,
        inbox,
        waiting: pipeline::Waiting::new(config.offline.max_in_flight),
        notifier: Notifier::new(producer, config.offline.notify_topic.clone()),
        offline: config.offline.clone(),
        dead_letters: DeadLetters::start(&config.kafka, dead_letter::Metrics::register(registry))?,
        max_batch: config.delivery.max_batch,
        stalls,
        max_keys: config.delivery.max_keys,
        max_age: config.delivery.max_age,
        redrive_key: KnownKey::new(Arc::clone(&storage.redrive_keys)),
        metrics: pipeline::Metrics::register(registry),
    })
}

/// How long the start waits for what all gateways know of comets. A BROADCAST waits on.
const SHARE_WITHIN: Duration = Duration::from_secs(3);

/// Waits until the fleet knows what it can know at the start, so that the first BROADCAST reaches
/// all comets; logs which those are.
async fn announce_reach(fleet: &Fleet) {
    fleet.resolved().await;
    // A store that cannot be used is reported by the fleet.
    drop(tokio::time::timeout(SHARE_WITHIN, fleet.share()).await);
    let reach = fleet.reach();
    match reach.caveat() {
        Some(caveat) if reach.comets.is_empty() => {
            warn!("{reach} yet, and each becomes a dead letter until one is; {caveat}");
        }
        Some(caveat) => info!("{reach}; {caveat}"),
        None => info!("{reach}"),
    }
}

/// Asks the directory once a second whether it is there, for readiness and the log.
fn watch_directory(
    storage: &Storage,
    writes: bool,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> watch::Receiver<Option<String>> {
    let (report, problem) = watch::channel(Some("redis: not asked yet".to_owned()));
    let (storage, shutdown) = (storage.clone(), shutdown.clone());
    let check = async move {
        loop {
            let was_up = report.borrow().is_none();
            // Rights seldom change; what is missing later shows when it is needed.
            let checked = storage.check(writes && !was_up).await;
            match &checked {
                Ok(how) if !was_up => info!(how, "the directory is there"),
                // The client of Redis has logged it.
                Err(error) if was_up => debug!(%error, "the directory is away; records are held"),
                _ => {}
            }
            report.send_replace(checked.err().map(|error| error.to_string()));
            tokio::time::sleep(CHECK_EVERY).await;
        }
    };
    tasks.spawn(async move { shutdown.run_until_cancelled(check).await });
    problem
}
