//! Builds every part and owns every task: the only place that defines the order of start and stop.
//!
//! Start: policies (a refused set aborts the start), Redis and producers (both connect in the
//! background), comets, the pipeline, and finally the consumer. Stop in reverse: the consumer stops
//! fetching, workers finish their records, offsets are committed, and then everything else stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::archive::{self, ArchiveTopic};
use crate::blocking::run_blocking;
use crate::comets::Fleet;
use crate::config::Config;
use crate::consumer::{self, Consumer, ConsumerLimits, StopOutcome};
use crate::dead_letter::{self, DeadLetters};
use crate::history::{self, RedisRoomHistory};
use crate::inbox::{InboxQueue, Notifier};
use crate::kafka::Producer;
use crate::panics;
use crate::pipeline::{self, Pipeline};
use crate::policy::{self, PluginConfig, Policies};
use crate::redrive_key::CachedRedriveKey;
use crate::stalls::Stalls;
use crate::telemetry;
use crate::telemetry::traces::Tracer;

mod archiver;
mod erasure;
mod handle;
mod parts;
mod returning;
mod verify;

pub use crate::directory::CachedAge;
pub use archiver::{ArchiverStatus, RunningArchiver};
pub use erasure::{EraseError, Erased, Erasure};
pub use handle::{Handle, OperatorResult};
pub use parts::{Storage, observe_fleet, resolver, writes_to_redis};
pub use returning::check_replay;
pub use verify::{probe, verify};

/// A running gateway. Stop it with [`Gateway::stop`]; dropping it abandons records in flight.
pub struct Gateway {
    handle: Handle,
    consumer: Consumer,
    archiver: Option<RunningArchiver>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// How often the directory is checked for reachability.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Gateway {
    /// Starts everything, with these plugins. `sources` returns the desired plugins; it is called again
    /// on every change, and the result takes effect while the gateway runs. `registry` may already
    /// contain the caller's metrics.
    ///
    /// # Errors
    /// If policies are refused, or a part cannot be built from its configuration.
    pub async fn start(
        config: &Config,
        plugins: Vec<PluginConfig>,
        sources: policy::PolicySources,
        mut registry: Registry,
    ) -> anyhow::Result<Self> {
        let storage = Storage::open(config, &mut registry)?;
        Self::start_with(config, plugins, sources, storage, registry).await
    }

    /// As [`Gateway::start`], with this storage.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with(
        config: &Config,
        plugins: Vec<PluginConfig>,
        sources: policy::PolicySources,
        storage: Storage,
        mut registry: Registry,
    ) -> anyhow::Result<Self> {
        telemetry::register(&mut registry);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let setup = policy::PolicyDependencies::of_gateway(&config.policies, &mut registry)?;
        // Compiling may take long, and the caller may cancel the start meanwhile.
        let writes = writes_to_redis(config, &plugins);
        let start = move || Policies::start_with(setup, &plugins);
        let policies = run_blocking("preparing the plugins", start).await??;
        let stalls = Stalls::register(&mut registry);
        let (inbox, writer) = InboxQueue::new(Arc::clone(&storage.inbox), &config.offline);
        let mut pipeline = build_pipeline(config, policies, &storage, inbox, stalls.clone(), &mut registry)?;
        let member = (&*config.kafka.group, &*config.kafka.instance_id);
        let (tracer, exporter) = Tracer::start(&config.traces, member, &mut registry)?;
        if let Some(exporter) = exporter {
            tasks.spawn(panics::abort_on_panic("the exporter of spans", exporter.run(shutdown.clone())));
        }
        pipeline.tracer = tracer;
        let pipeline = Arc::new(pipeline);
        tasks.spawn(panics::abort_on_panic("the writer of inboxes", writer.run(shutdown.clone())));

        log_reach(&pipeline.fleet).await;
        let consumer = start_consumer(config, &pipeline, &tasks, stalls, &mut registry)?;
        let keep_current = {
            let (pipeline, shutdown) = (Arc::clone(&pipeline), shutdown.clone());
            async move {
                shutdown.run_until_cancelled(pipeline.resolver.keep_current()).await;
            }
        };
        tasks.spawn(panics::abort_on_panic("the leases of cached routes", keep_current));
        let archiver = match config.archive.has_database() {
            true => Some(RunningArchiver::start(config, pipeline.dead_letters.clone(), &mut registry)?),
            false => None,
        };
        let replay = returning::start(config, &storage, &pipeline, &mut registry, (&tasks, &shutdown))?;
        let directory = watch_directory(&storage, writes, &tasks, &shutdown);
        tasks.spawn(policy::watch(Arc::clone(&pipeline.policies), sources, shutdown.clone()));
        tasks.spawn(policy::supervise(Arc::clone(&pipeline.policies), shutdown.clone()));
        let handle = Handle {
            readiness: handle::ReadinessMetrics::register(&mut registry),
            registry: Arc::new(registry),
            pipeline,
            inbox: Arc::clone(&storage.inbox_reader),
            history: storage.history.clone(),
            erasure: Erasure::new(config)?,
            kafka: consumer.health(),
            memory: consumer.memory(),
            directory,
            archiver: archiver.as_ref().map(RunningArchiver::status),
            replay,
            others: Arc::default(),
            stopping: Arc::default(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        Ok(Self { handle, consumer, archiver, tasks, shutdown })
    }

    /// A view for the admin API.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until Kafka has fenced this process out of the group: time to stop.
    pub async fn until_fenced(&self) {
        self.handle.kafka.until_fenced().await;
    }

    /// Stops fetching, finishes records in flight within `grace`, commits, and leaves the group.
    pub async fn stop(self, grace: Duration) -> StopOutcome {
        self.handle.stopping.store(true, Ordering::Release);
        info!(grace = ?grace, "stopping: finishing what is in flight");
        let archiver = async {
            match self.archiver {
                Some(archiver) => Some(archiver.stop(grace).await),
                None => None,
            }
        };
        let (stopped, archived) = tokio::join!(self.consumer.stop(grace), archiver);
        if let Some(archived) = archived.filter(|archived| *archived != StopOutcome::Drained) {
            warn!(outcome = ?archived, "the archiver did not finish: its last records are archived again");
        }
        self.shutdown.cancel();
        self.tasks.close();
        let rest = async {
            self.handle.pipeline.fleet.close().await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(Duration::from_secs(5), rest).await.is_err() {
            warn!("some tasks did not end in time and are aborted");
        }
        match stopped {
            StopOutcome::Drained => info!("stopped: all records in flight were finished and committed"),
            StopOutcome::Incomplete(leftover) => warn!("stopped: {leftover}; these are delivered again"),
            StopOutcome::Fenced => {
                error!(
                    "stopped: kafka has fenced this process out of the consumer group; check that no other process uses its `[kafka] instance_id`, then restart it (with `group.protocol` = \"consumer\", the name of a process that was killed is free after its session, 45s by default)"
                )
            }
            StopOutcome::TimedOut => {
                error!("kafka did not close in time; the last settled records may be redelivered")
            }
        }
        stopped
    }
}

/// Joins the consumer group; each assigned partition gets a worker of the pipeline.
fn start_consumer(
    config: &Config,
    pipeline: &Arc<Pipeline>,
    tasks: &TaskTracker,
    stalls: Stalls,
    registry: &mut Registry,
) -> anyhow::Result<Consumer> {
    let consumer_metrics = consumer::Metrics::register(registry);
    let limits = ConsumerLimits {
        records: config.delivery.max_in_flight,
        bytes: usize::try_from(config.delivery.max_in_flight_bytes.as_u64()).unwrap_or(usize::MAX),
        record: config.delivery.record_limits(),
        memory: config.delivery.memory_limit.bytes(),
    };
    let spawn_worker = {
        let (tasks, pipeline) = (tasks.clone(), Arc::clone(pipeline));
        let runtime = tokio::runtime::Handle::current();
        move |stream| {
            drop(tasks.spawn_on(
                panics::abort_on_panic("a partition's worker", Arc::clone(&pipeline).run(stream)),
                &runtime,
            ))
        }
    };
    let ours = [
        config.kafka.dead_letter_topic.as_str(),
        config.offline.notify_topic.as_str(),
        config.archive.topic.as_str(),
    ];
    let spawn_worker = Box::new(spawn_worker);
    Consumer::start(&config.kafka, &ours, limits, consumer_metrics, stalls, spawn_worker)
        .context("cannot start the Kafka consumer; check [kafka] and its properties")
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
        Producer::new(&config.kafka).context("cannot create the Kafka producer; check [kafka] properties")?;
    let fleet = parts::fleet(config, Arc::clone(&storage.comets), registry)?;
    let resolver = resolver(config, storage, &fleet, registry);
    Ok(Pipeline {
        policies,
        resolver,
        guards: Arc::clone(&storage.guards),
        shared_state: Arc::clone(&storage.shared_state),
        fleet,
        inbox,
        absent_budget: pipeline::AbsentBudget::new(config.offline.max_in_flight),
        archive: config.archive.enabled.then(|| {
            let metrics = archive::TopicMetrics::register(registry);
            ArchiveTopic::new(producer.clone(), &config.archive.topic, metrics)
        }),
        notifier: Notifier::new(producer, config.offline.notify_topic.clone()),
        history: storage.redis.clone().map(|client| {
            RedisRoomHistory::new(client, &config.history, history::Metrics::register(registry))
        }),
        history_config: config.history.clone(),
        offline: config.offline.clone(),
        dead_letters: DeadLetters::start(&config.kafka, dead_letter::Metrics::register(registry))?,
        max_batch: config.delivery.max_batch,
        stalls,
        max_keys: config.delivery.max_keys,
        max_age: config.delivery.max_age,
        redrive_key: CachedRedriveKey::new(Arc::clone(&storage.redrive_keys)),
        tracer: Tracer::default(),
        metrics: pipeline::Metrics::register(registry),
    })
}

/// How long the start waits for the shared list of comets. BROADCASTs wait longer.
const SHARE_TIMEOUT: Duration = Duration::from_secs(3);

/// Waits until the fleet has loaded what it can at the start, so that the first BROADCAST reaches all
/// comets, and logs them.
async fn log_reach(fleet: &Fleet) {
    fleet.resolved().await;
    // The fleet reports a store that cannot be used.
    drop(tokio::time::timeout(SHARE_TIMEOUT, fleet.share()).await);
    let reach = fleet.reach();
    match reach.caveat() {
        Some(caveat) if reach.comets.is_empty() => {
            warn!("{reach} yet, and each becomes a dead letter until one is; {caveat}");
        }
        Some(caveat) => info!("{reach}; {caveat}"),
        None => info!("{reach}"),
    }
}

/// Checks the directory once per second, for readiness and the log.
fn watch_directory(
    storage: &Storage,
    writes: bool,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> watch::Receiver<Option<String>> {
    let (report, problem) = watch::channel(Some("redis: not checked yet".to_owned()));
    let (storage, shutdown) = (storage.clone(), shutdown.clone());
    let check = async move {
        loop {
            let was_up = report.borrow().is_none();
            // Permissions rarely change; one that is revoked later is noticed when it is needed.
            let checked = storage.check(writes && !was_up).await;
            match &checked {
                Ok(how) if !was_up => info!(how, "directory reachable"),
                // The Redis client has logged it.
                Err(error) if was_up => debug!(%error, "directory unreachable; holding records"),
                _ => {}
            }
            report.send_replace(checked.err().map(|error| error.to_string()));
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    };
    tasks.spawn(async move { shutdown.run_until_cancelled(check).await });
    problem
}
