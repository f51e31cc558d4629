//! What is noted of a traced message, and the spans that it becomes.
//!
//! While a message is processed, only times are noted. The exporter's task makes spans of them, as
//! OpenTelemetry's semantic conventions for messaging say
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/>).

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::telemetry::escape::cut;
use crate::telemetry::label_enum;

label_enum! {
    /// A stage with a span of its own.
    pub(crate) enum SpanStage {
        Filter = "filter",
        Guard = "guard",
        Resolve = "resolve",
        Deliver = "deliver",
        Absent = "absent",
        DeadLetter = "dead-letter",
    }
}

impl SpanStage {
    /// Whether it is passed by all messages of a batch together.
    fn is_of_a_batch(self) -> bool {
        matches!(self, Self::Filter | Self::Guard | Self::Resolve)
    }
}

/// The span that a message was sent in, as its headers say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RemoteSpan<'a> {
    pub(crate) trace_id: u128,
    pub(crate) span_id: u64,
    pub(crate) is_sampled: bool,
    pub(crate) state: Option<&'a Bytes>,
}

/// What is noted of a traced message.
#[derive(Clone, Debug)]
pub(crate) struct MessageSpan {
    trace_id: u128,
    span_id: u64,
    /// That of the producer's span; 0 without one.
    parent: u64,
    started: (SystemTime, Instant),
    stages: [Option<(Instant, Instant)>; SpanStage::ALL.len()],
    /// How many messages its batch has.
    pub(crate) batch: usize,
    traceparent: Bytes,
    tracestate: Option<Bytes>,
}

/// A traced message that has its outcome.
#[derive(Debug)]
pub(crate) struct ProcessedMessage {
    pub(crate) span: Box<MessageSpan>,
    pub(crate) ended: Instant,
    /// The message's id.
    pub(crate) id: String,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// The size of its value in bytes.
    pub(crate) size: usize,
    /// How many comets were called.
    pub(crate) comets: usize,
    pub(crate) outcome: &'static str,
    /// Why it failed, if it did.
    pub(crate) error: Option<String>,
}

/// Maximum length of a reason, in characters.
const MOST_TEXT: usize = 200;

impl MessageSpan {
    pub(super) fn begin(
        trace_id: u128,
        parent: Option<RemoteSpan<'_>>,
        started: (SystemTime, Instant),
    ) -> Self {
        let span_id = fastrand::u64(1..);
        Self {
            trace_id,
            span_id,
            parent: parent.as_ref().map_or(0, |parent| parent.span_id),
            started,
            stages: [None; SpanStage::ALL.len()],
            batch: 1,
            traceparent: format!("00-{trace_id:032x}-{span_id:016x}-01").into(),
            tracestate: parent.and_then(|parent| parent.state.cloned()),
        }
    }

    /// The headers that pass it on, `traceparent` and `tracestate`.
    pub(crate) fn headers(&self) -> (&Bytes, Option<&Bytes>) {
        (&self.traceparent, self.tracestate.as_ref())
    }

    /// Notes when a stage was passed.
    pub(crate) fn note(&mut self, stage: SpanStage, from: Instant, to: Instant) {
        self.stages[stage as usize] = Some((from, to));
    }

    /// How many spans it becomes.
    pub(super) fn count(&self) -> u64 {
        1 + self.stages.iter().flatten().count() as u64
    }

    fn at(&self, time: Instant) -> SystemTime {
        let (wall, instant) = self.started;
        // Nothing of it is earlier than its start.
        wall + time.saturating_duration_since(instant)
    }

    fn context(&self, span_id: u64) -> SpanContext {
        let state = self.tracestate.as_deref().and_then(|state| std::str::from_utf8(state).ok());
        let state = state.and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
        SpanContext::new(
            TraceId::from(self.trace_id),
            SpanId::from(span_id),
            TraceFlags::SAMPLED,
            false,
            state,
        )
    }
}

/// What all spans of a gateway have in common.
#[derive(Debug)]
pub(super) struct SpanTemplate {
    scope: InstrumentationScope,
    /// The attributes of every `process`.
    attributes: Vec<KeyValue>,
}

impl SpanTemplate {
    /// For the members of this consumer group.
    pub(super) fn new(group: &str) -> Self {
        let attributes = [
            ("messaging.system", "kafka"),
            ("messaging.operation.type", "process"),
            ("messaging.operation.name", "process"),
        ];
        let attributes = attributes.map(|(key, value)| KeyValue::new(key, value)).into_iter();
        let group = KeyValue::new("messaging.consumer.group.name", group.to_owned());
        let scope = InstrumentationScope::builder("halley").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { scope, attributes: attributes.chain([group]).collect() }
    }

    /// The spans of a message: `process` and its children.
    pub(super) fn spans(&self, message: ProcessedMessage) -> impl Iterator<Item = SpanData> {
        let ProcessedMessage { span, ended, id, topic, partition, offset, size, comets, outcome, error } =
            message;
        let mut attributes = self.attributes.clone();
        attributes.extend([
            KeyValue::new("messaging.destination.name", Arc::clone(&topic)),
            KeyValue::new("messaging.destination.partition.id", partition.to_string()),
            KeyValue::new("messaging.kafka.offset", offset),
            KeyValue::new("messaging.message.id", id),
            KeyValue::new("messaging.message.body.size", i64::try_from(size).unwrap_or(i64::MAX)),
            KeyValue::new("halley.outcome", outcome),
        ]);
        attributes.extend(error.is_some().then(|| KeyValue::new("error.type", outcome)));
        let root = SpanData {
            parent_span_id: SpanId::from(span.parent),
            parent_span_is_remote: span.parent != 0,
            span_kind: SpanKind::Consumer,
            attributes,
            status: error.map_or(Status::Unset, |why| Status::error(cut(&why, MOST_TEXT).into_owned())),
            ..self.span(&span, span.span_id, format!("process {topic}").into(), span.started.1, ended)
        };
        let mut spans = vec![root];
        for (stage, times) in SpanStage::ALL.into_iter().zip(&span.stages) {
            let Some((from, to)) = times else { continue };
            let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            let mut attributes = Vec::new();
            if stage.is_of_a_batch() {
                attributes.push(KeyValue::new("messaging.batch.message_count", number(span.batch)));
            }
            if stage == SpanStage::Deliver {
                attributes.push(KeyValue::new("halley.comets", number(comets)));
            }
            let child = self.span(&span, fastrand::u64(1..), stage.as_str().into(), *from, *to);
            spans.push(SpanData { attributes, ..child });
        }
        spans.into_iter()
    }

    /// A child of a message's span.
    fn span(
        &self,
        of: &MessageSpan,
        span_id: u64,
        name: std::borrow::Cow<'static, str>,
        from: Instant,
        to: Instant,
    ) -> SpanData {
        SpanData {
            span_context: of.context(span_id),
            parent_span_id: SpanId::from(of.span_id),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time: of.at(from),
            end_time: of.at(to),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_message_is_a_span_with_its_stages_as_children() {
        let (wall, now) = (SystemTime::UNIX_EPOCH + Duration::from_secs(7), Instant::now());
        let state = Bytes::from_static(b"rojo=1");
        let parent = RemoteSpan { trace_id: 5, span_id: 6, is_sampled: true, state: Some(&state) };
        let mut span = MessageSpan::begin(5, Some(parent), (wall, now));
        let at = |ms| now + Duration::from_millis(ms);
        span.note(SpanStage::Resolve, at(1), at(2));
        span.note(SpanStage::Deliver, at(3), at(9));
        span.batch = 12;
        assert_eq!(span.count(), 3);
        let message = ProcessedMessage {
            span: Box::new(span),
            ended: at(10),
            id: "push/3/42/0".into(),
            topic: "push".into(),
            partition: 3,
            offset: 42,
            size: 5,
            comets: 2,
            outcome: "dead-lettered",
            error: Some("e".repeat(300)),
        };
        let spans: Vec<SpanData> = SpanTemplate::new("g").spans(message).collect();
        let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["process push", "resolve", "deliver"]);
        let (root, deliver) = (&spans[0], &spans[2]);
        assert_eq!((root.parent_span_id, root.span_kind.clone()), (SpanId::from(6), SpanKind::Consumer));
        assert_eq!((root.start_time, root.end_time), (wall, wall + Duration::from_millis(10)));
        assert_eq!(deliver.start_time, wall + Duration::from_millis(3));
        assert_eq!(deliver.parent_span_id, root.span_context.span_id());
        assert!(spans.iter().all(|span| span.span_context.trace_id() == TraceId::from(5)));
        assert_eq!(root.span_context.trace_state().header(), "rojo=1");
        let value = |span: &SpanData, key: &str| {
            span.attributes.iter().find(|a| a.key.as_str() == key).map(|a| a.value.to_string())
        };
        for (key, expected) in [
            ("messaging.system", "kafka"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", "push"),
            ("messaging.destination.partition.id", "3"),
            ("messaging.kafka.offset", "42"),
            ("messaging.message.id", "push/3/42/0"),
            ("messaging.consumer.group.name", "g"),
            ("halley.outcome", "dead-lettered"),
            ("error.type", "dead-lettered"),
        ] {
            assert_eq!(value(root, key).as_deref(), Some(expected), "{key}");
        }
        assert_eq!(value(&spans[1], "messaging.batch.message_count").as_deref(), Some("12"));
        assert_eq!(value(deliver, "halley.comets").as_deref(), Some("2"));
        assert!(matches!(&root.status, Status::Error { description } if description.len() < 250));
    }
}
