//! Takes traced messages from the queue, and sends their spans in batches.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use parking_lot::Mutex;
use reqwest::Url;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::collector::{CollectorClient, LastReply};
use super::config::Config;
use super::metrics::{DropReason, Metrics};
use super::span::{ProcessedMessage, SpanTemplate};
use crate::telemetry::LogThrottle;

/// How many messages are sent together at most: about a thousand spans.
const BATCH: usize = 256;
/// How long the first one waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the last ones may take when the gateway stops.
const FLUSH: Duration = Duration::from_secs(3);

/// Why the last spans could not be sent.
pub(super) type ExportProblem = Arc<Mutex<Option<String>>>;

/// Sends spans to the collector. Run it with [`Exporter::run`].
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Receiver<ProcessedMessage>,
    template: SpanTemplate,
    exporter: SpanExporter,
    client: CollectorClient,
    endpoint: String,
    metrics: Metrics,
    throttle: LogThrottle,
    pub(super) problem: ExportProblem,
    /// How many spans are on their way.
    on_their_way: u64,
}

impl Exporter {
    pub(super) fn new(
        config: &Config,
        endpoint: &Url,
        (group, instance): (&str, &str),
        queue: mpsc::Receiver<ProcessedMessage>,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let client = CollectorClient::new(config)?;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client.clone())
            .with_endpoint(endpoint.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(config.timeout)
            // The client retries: the exporter would block its thread.
            .with_retry_policy(RetryPolicy::disabled())
            .build()?;
        exporter.set_resource(&resource(instance));
        Ok(Self {
            queue,
            template: SpanTemplate::new(group),
            exporter,
            client,
            endpoint: endpoint.origin().ascii_serialization(),
            metrics,
            throttle: LogThrottle::per_record(),
            problem: ExportProblem::default(),
            on_their_way: 0,
        })
    }

    /// Sends spans until `shutdown`, and then what is left, for up to a few seconds.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let too_late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(FLUSH).await;
        };
        let is_done = tokio::select! {
            () = self.send_all(&shutdown) => true,
            () = too_late => false,
        };
        if is_done {
            return;
        }
        let mut left = self.on_their_way;
        while let Ok(message) = self.queue.try_recv() {
            left += message.span.count();
        }
        self.metrics.dropped(DropReason::Failed, left);
        warn!(spans = left, endpoint = self.endpoint, "the collector did not take the last spans in time");
    }

    async fn send_all(&mut self, shutdown: &CancellationToken) {
        let mut messages = Vec::with_capacity(BATCH);
        while self.collect(&mut messages, shutdown).await {
            let spans = messages.drain(..).flat_map(|message| self.template.spans(message)).collect();
            self.send(spans).await;
        }
    }

    /// Waits for messages; `false` if there will be none.
    async fn collect(&mut self, messages: &mut Vec<ProcessedMessage>, shutdown: &CancellationToken) -> bool {
        let first = tokio::select! {
            biased;
            first = self.queue.recv() => first,
            () = shutdown.cancelled() => None,
        };
        // After a shutdown, what is in the queue is taken as it is.
        messages.extend(first.or_else(|| self.queue.try_recv().ok()));
        let until = Instant::now() + LINGER;
        while (1..BATCH).contains(&messages.len()) {
            let room = BATCH - messages.len();
            tokio::select! {
                biased;
                taken = self.queue.recv_many(messages, room) => if taken == 0 { break },
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep_until(until) => break,
            }
        }
        !messages.is_empty()
    }

    async fn send(&mut self, spans: Vec<SpanData>) {
        self.on_their_way = spans.len() as u64;
        let sent = self.exporter.export(spans).await;
        let count = std::mem::take(&mut self.on_their_way);
        let LastReply { failure, rejected, reason } = std::mem::take(&mut *self.client.last.lock());
        let rejected = rejected.min(count);
        let (why, dropped) = match sent {
            Ok(()) if rejected == 0 => {
                self.metrics.exported(count);
                *self.problem.lock() = None;
                debug!(spans = count, "spans exported");
                return;
            }
            Ok(()) => {
                self.metrics.exported(count - rejected);
                self.metrics.dropped(DropReason::Rejected, rejected);
                (format!("it refused them: {reason}"), rejected)
            }
            Err(error) => {
                self.metrics.dropped(DropReason::Failed, count);
                (failure.unwrap_or_else(|| error.to_string()), count)
            }
        };
        let problem = format!("the collector at {} did not take spans: {why}", self.endpoint);
        if let Some(held_back) = self.throttle.admit() {
            warn!(held_back, spans = dropped, "{problem}; they are dropped, messages are not affected");
        }
        *self.problem.lock() = Some(problem);
    }
}

/// What the spans are of. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` take precedence.
fn resource(instance: &str) -> Resource {
    let ours = [
        Some(KeyValue::new("service.name", "halley")),
        Some(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))),
        (!instance.is_empty()).then(|| KeyValue::new("service.instance.id", instance.to_owned())),
    ];
    let found = Resource::builder().build();
    let name = Key::from_static_str("service.name");
    let is_default = |key: &Key, value: &str| *key == name && value.starts_with("unknown_service");
    let given = found.iter().filter(|(key, value)| !is_default(key, &value.as_str()));
    let given: Vec<_> = given.map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    Resource::builder_empty().with_attributes(ours.into_iter().flatten()).with_attributes(given).build()
}
