//! A running archiver: the consumer of the archive topic, its workers, and the upkeep of the tables.
//! Part of a gateway, or a process of its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::archive::{self, Archiver};
use crate::config::Config;
use crate::consumer::{self, Consumer, ConsumerLimits, Health, StopOutcome};
use crate::dead_letter::{self, DeadLetters};
use crate::kafka;
use crate::panics;
use crate::stalls::Stalls;

/// Bytes of archive records in flight.
const IN_FLIGHT_BYTES: usize = 128 << 20;

/// The names of the archive consumer's lag, in records and in seconds.
const ARCHIVE_LAG: [&str; 2] = ["halley_archive_consumer_lag", "halley_archive_consumer_lag_seconds"];

/// A running archiver. Stop it with [`RunningArchiver::stop`].
pub struct RunningArchiver {
    consumer: Consumer,
    archiver: Arc<Archiver>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// What an archiver reports.
#[derive(Clone)]
pub struct ArchiverStatus {
    archiver: Arc<Archiver>,
    kafka: Health,
}

impl ArchiverStatus {
    /// Why nothing is archived now.
    pub fn problem(&self) -> Option<String> {
        self.kafka.problem()
    }

    /// What needs attention.
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.kafka.problem().into_iter().chain(self.archiver.warnings());
        warnings.map(|warning| format!("archive: {warning}")).collect()
    }
}

/// What `/readyz` of an archiver says, as a metric.
#[derive(derive_more::Debug)]
struct ReadinessCollector(#[debug(skip)] Health);

impl Collector for ReadinessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let ready = ConstGauge::new(i64::from(self.0.problem().is_none()));
        let help = "Whether the archiver reads its topic (1): `/readyz` says why not.";
        ready.encode(encoder.encode_descriptor("halley_archive_ready", help, None, ready.metric_type())?)
    }
}

impl RunningArchiver {
    /// Joins the archivers' group. `registry` gets the archiver's metrics; those of its consumer would
    /// have the names of a gateway's, so only its lag is among them.
    ///
    /// # Errors
    /// When `[archive] url` or a Kafka property cannot be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        config: &Config,
        dead_letters: DeadLetters,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        let (stalls, metrics) = (Stalls::default(), archive::Metrics::register(registry));
        let archiver = Archiver::new(&config.archive, dead_letters, metrics, stalls.clone())?;
        let archiver = Arc::new(archiver);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let spawn_worker = {
            let (tasks, archiver) = (tasks.clone(), Arc::clone(&archiver));
            let runtime = tokio::runtime::Handle::current();
            move |stream| {
                let work = Arc::clone(&archiver).run(stream);
                drop(tasks.spawn_on(panics::abort_on_panic("an archiver's worker", work), &runtime));
            }
        };
        let limits = ConsumerLimits {
            records: config.delivery.max_in_flight,
            bytes: IN_FLIGHT_BYTES,
            record: config.delivery.record_limits(),
            memory: config.delivery.memory_limit.bytes(),
        };
        let kafka = kafka::Config {
            topics: vec![config.archive.topic.clone()],
            group: config.archive.group.clone(),
            start: kafka::StartFrom::Oldest,
            // The name of the gateway's member in another group.
            instance_id: String::new(),
            ..config.kafka.clone()
        };
        let consumer_metrics = consumer::Metrics::register(&mut Registry::default());
        registry.register_collector(Box::new(consumer_metrics.lag_collector(ARCHIVE_LAG)));
        let consumer = Consumer::start(&kafka, &[], limits, consumer_metrics, stalls, Box::new(spawn_worker))
            .context("cannot start the consumer of the archive topic; check [kafka] and [archive]")?;
        registry.register_collector(Box::new(ReadinessCollector(consumer.health())));
        let upkeep = Arc::clone(&archiver).maintain(shutdown.clone());
        tasks.spawn(panics::abort_on_panic("the archive's upkeep", upkeep));
        Ok(Self { consumer, archiver, tasks, shutdown })
    }

    /// As [`RunningArchiver::start`], in a process of its own.
    ///
    /// # Errors
    /// As [`RunningArchiver::start`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_alone(config: &Config, registry: &mut Registry) -> anyhow::Result<Self> {
        let dead_letters = DeadLetters::start(&config.kafka, dead_letter::Metrics::register(registry))?;
        Self::start(config, dead_letters, registry)
    }

    /// What it reports while it runs.
    pub fn status(&self) -> ArchiverStatus {
        ArchiverStatus { archiver: Arc::clone(&self.archiver), kafka: self.consumer.health() }
    }

    /// Waits until Kafka has fenced this process out of the group.
    pub async fn until_fenced(&self) {
        self.consumer.health().until_fenced().await;
    }

    /// Stops fetching, writes what it has within `grace`, commits, and leaves the group.
    pub async fn stop(self, grace: Duration) -> StopOutcome {
        let stopped = self.consumer.stop(grace).await;
        self.shutdown.cancel();
        self.tasks.close();
        drop(tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await);
        stopped
    }
}
