//! Traces of messages, over OTLP: off unless `[traces] endpoint` names a collector.
//!
//! A message that is traced has one span, `process`, with a child for each stage; all others cost one
//! branch. Spans go to a bounded queue and from there to the collector in batches, by one task. A collector
//! that is slow or away never delays a message: what does not fit into the queue is dropped and counted.
//!
//! # Layout
//! - `config`: `[traces]`. `sampler`: which messages are traced. Pure.
//! - `span`: what is noted of a traced message, and the spans that it becomes.
//! - `export`: the queue and its task. `collector`: the HTTP client with its limits.

mod collector;
mod config;
mod export;
mod metrics;
mod sampler;
mod span;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::mistake::Mistake;
use collector::CollectorClient;
pub use config::Config;
use export::ExportProblem;
pub use export::Exporter;
use metrics::{DropReason, Metrics};
pub use sampler::Sampler;
pub(crate) use span::{MessageSpan, ProcessedMessage, RemoteSpan, SpanStage};

/// How many traced messages wait for the collector at most.
const QUEUE: usize = 2_048;

/// Decides which messages are traced, and takes their spans. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<ActiveTracer>>);

#[derive(Debug)]
struct ActiveTracer {
    sampler: Sampler,
    sample_ratio: f64,
    queue: mpsc::Sender<ProcessedMessage>,
    metrics: Metrics,
    problem: ExportProblem,
}

/// What is wrong with the file of headers.
pub fn headers_problem(config: &Config) -> Option<Mistake> {
    collector::read_headers(config).err().map(|error| Mistake::about("traces.headers_file", error))
}

/// Asks the collector to take no spans; `None` if nothing is traced.
pub async fn probe(config: &Config) -> Option<anyhow::Result<String>> {
    let endpoint = config.endpoint().ok()??;
    let asked = async {
        CollectorClient::new(config)?.probe(&endpoint).await?;
        Ok(format!("takes spans at {endpoint}"))
    };
    Some(asked.await)
}

impl Tracer {
    /// The tracer of a gateway, with the exporter that has to run. `member` is its consumer group, and its name
    /// there if it has one. Without an endpoint, nothing is traced.
    ///
    /// # Errors
    /// If the headers or the endpoint cannot be used.
    pub fn start(
        config: &Config,
        member: (&str, &str),
        registry: &mut Registry,
    ) -> anyhow::Result<(Self, Option<Exporter>)> {
        let metrics = Metrics::register(registry);
        let Some(endpoint) = config.endpoint()? else { return Ok((Self::default(), None)) };
        let (queue, receiver) = mpsc::channel(QUEUE);
        let exporter = Exporter::new(config, &endpoint, member, receiver, metrics.clone())
            .context("cannot send traces; check [traces]")?;
        let Config { sampler, sample_ratio, .. } = *config;
        let problem = Arc::clone(&exporter.problem);
        let active = ActiveTracer { sampler, sample_ratio, queue, metrics, problem };
        Ok((Self(Some(Arc::new(active))), Some(exporter)))
    }

    /// What keeps spans from the collector, if anything does.
    pub fn warning(&self) -> Option<String> {
        let problem = self.0.as_ref()?.problem.lock().clone()?;
        Some(format!("traces: {problem}; spans are dropped, messages are not affected"))
    }

    /// Whether any message may be traced.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins the span of a message whose processing started then, if it is traced. `parent` is the
    /// producer's span.
    pub(crate) fn begin<'a>(
        &self,
        started: (SystemTime, Instant),
        parent: impl FnOnce() -> Option<RemoteSpan<'a>>,
    ) -> Option<Box<MessageSpan>> {
        let active = self.0.as_ref()?;
        let parent = parent();
        let trace_id = parent.as_ref().map_or_else(|| fastrand::u128(1..), |parent| parent.trace_id);
        let parent_is_sampled = parent.as_ref().map(|parent| parent.is_sampled);
        let is_sampled = active.sampler.samples(active.sample_ratio, trace_id, parent_is_sampled);
        is_sampled.then(|| Box::new(MessageSpan::begin(trace_id, parent, started)))
    }

    /// Takes the span of a message that has its outcome.
    pub(crate) fn finish(&self, message: ProcessedMessage) {
        let Some(active) = &self.0 else { return };
        if let Err(refused) = active.queue.try_send(message) {
            let (mpsc::error::TrySendError::Full(message) | mpsc::error::TrySendError::Closed(message)) =
                refused;
            active.metrics.dropped(DropReason::QueueFull, message.span.count());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_queue_has_no_room_for_is_dropped_and_counted() {
        let (queue, mut receiver) = mpsc::channel(1);
        let metrics = Metrics::register(&mut Registry::default());
        let (sampler, problem) = (Sampler::Ratio, ExportProblem::default());
        let active = ActiveTracer { sampler, sample_ratio: 1.0, queue, metrics: metrics.clone(), problem };
        let tracer = Tracer(Some(Arc::new(active)));
        let now = Instant::now();
        for offset in 0..3 {
            let mut span = tracer.begin((SystemTime::now(), now), || None).expect("all are traced");
            span.note(SpanStage::Resolve, now, now);
            tracer.finish(ProcessedMessage {
                span,
                ended: now,
                id: String::new(),
                topic: "push".into(),
                partition: 0,
                offset,
                size: 0,
                comets: 0,
                outcome: "delivered",
                error: None,
            });
        }
        assert_eq!(receiver.recv().await.map(|message| message.offset), Some(0));
        assert!(receiver.try_recv().is_err());
        assert_eq!(metrics.count_of(DropReason::QueueFull), 4, "two spans of each of the others");
        assert!(Tracer::default().begin((SystemTime::now(), now), || unreachable!("it is off")).is_none());
    }
}
