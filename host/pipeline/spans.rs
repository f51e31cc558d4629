//! Which messages have a span, and what is noted in it: the pipeline's side of
//! [traces](crate::telemetry::traces).
//!
//! A record that is not traced costs one branch where spans are noted. Its trace context is passed on as it
//! came; that of a traced one names the gateway's span.

use std::fmt::Display;
use std::time::{Instant, SystemTime};

use crate::message::{Record, TraceContext};
use crate::pipeline::outcome::MessageOutcome;
use crate::pipeline::trace::{MessageTrace, UnsettledRecord};
use crate::telemetry::traces::{MessageSpan, ProcessedMessage, RemoteSpan, SpanStage, Tracer};

/// The span of a record, if it is traced. Its batch of this size started then.
pub(super) fn begin(
    tracer: &Tracer,
    record: &Record,
    started: (SystemTime, Instant),
    batch: usize,
) -> Option<Box<MessageSpan>> {
    let parent = || record.trace_context().map(remote_span);
    let mut span = tracer.begin(started, parent)?;
    span.batch = batch;
    Some(span)
}

fn remote_span(context: TraceContext<'_>) -> RemoteSpan<'_> {
    RemoteSpan {
        trace_id: context.trace_id(),
        span_id: context.parent_id(),
        is_sampled: context.is_sampled(),
        state: context.state(),
    }
}

/// Notes a stage that these records have passed together.
pub(super) fn note<'a>(
    tracer: &Tracer,
    records: impl Iterator<Item = &'a mut UnsettledRecord>,
    stage: SpanStage,
    since: Instant,
) {
    if !tracer.is_on() {
        return;
    }
    let now = Instant::now();
    records.filter_map(|record| record.span.as_mut()).for_each(|span| span.note(stage, since, now));
}

/// Ends a span: its message has its outcome, after calls to this many comets.
pub(super) fn finish(
    tracer: &Tracer,
    span: Box<MessageSpan>,
    record: &Record,
    comets: usize,
    outcome: MessageOutcome,
    reason: &dyn Display,
) {
    tracer.finish(ProcessedMessage {
        span,
        ended: Instant::now(),
        id: record.message_id().to_string(),
        topic: record.origin.topic.clone(),
        partition: record.origin.partition,
        offset: record.origin.offset,
        size: record.value.as_ref().map_or(0, bytes::Bytes::len),
        comets,
        outcome: outcome.as_str(),
        error: outcome.is_failure().then(|| reason.to_string()),
    });
}

impl UnsettledRecord {
    /// The trace context that is passed on with the message of this record.
    pub(super) fn trace_context<'a>(&'a self, record: &'a Record) -> Option<TraceContext<'a>> {
        match &self.span {
            None => record.trace_context(),
            Some(span) => {
                let (parent, state) = span.headers();
                TraceContext::new(parent, state)
            }
        }
    }
}

impl MessageTrace {
    /// The trace context that is passed on with the message.
    pub(super) fn context(&self) -> Option<TraceContext<'_>> {
        self.pending.trace_context(&self.record)
    }

    /// Notes a stage that the message has passed since then.
    pub(super) fn note(&mut self, stage: SpanStage, since: Instant) {
        if let Some(span) = &mut self.pending.span {
            span.note(stage, since, Instant::now());
        }
    }

    /// Ends the message's span.
    pub(super) fn finish_span(&mut self, tracer: &Tracer, outcome: MessageOutcome, reason: &dyn Display) {
        if let Some(span) = self.pending.span.take() {
            finish(tracer, span, &self.record, self.calls().len(), outcome, reason);
        }
    }
}
