//! The stages in which policies speak of messages: filters and their shared state, then guards.

use std::time::Instant;

use parking_lot::Mutex;

use super::{NO_OVERRIDES, PartitionWorker, PassedMessage, PolicyWords};
use crate::dead_letter::{DeadLetterReason, Stage};
use crate::decision::{FilteredMessage, Guard, Retention, StateWrite, Verdict};
use crate::guard;
use crate::message::Message;
use crate::pipeline::metrics::TimedStage;
use crate::pipeline::outcome::MessageOutcome;
use crate::pipeline::parts::Pipeline;
use crate::pipeline::retry::{Cancelled, Retry, retry_until_cancelled};
use crate::pipeline::spans;
use crate::pipeline::trace::{MessageTrace, UnsettledRecord};
use crate::policy::{Chain, FilterProgress, FilterRun};
use crate::stalls::StallStage;
use crate::telemetry::traces::SpanStage;

impl PartitionWorker {
    pub(super) async fn filter(
        &self,
        messages: Vec<Message>,
        pending: &mut [UnsettledRecord],
    ) -> Result<Vec<FilteredMessage>, Cancelled> {
        let since = Instant::now();
        let (filtered, writes) = self.run_filters(messages).await?;
        if !writes.is_empty() {
            // Before the batch continues: after a crash in between, its messages are read again, and
            // the writes happen at least once.
            let write = || self.pipeline.shared_state.write(&writes);
            retry_until_cancelled(self.hold(), StallStage::SharedState, write).await?;
        }
        self.pipeline.metrics.stage(TimedStage::Filter, since);
        spans::note(&self.pipeline.tracer, pending.iter_mut(), SpanStage::Filter, since);
        Ok(filtered)
    }

    /// Runs the filters. If one needs values of its shared state, they are fetched for the whole
    /// batch at once, and the filter runs again. If one stalls, it is retried, or the stage restarts
    /// when another set is active.
    async fn run_filters(
        &self,
        messages: Vec<Message>,
    ) -> Result<(Vec<FilteredMessage>, Vec<StateWrite>), Cancelled> {
        let mut retry = Retry::new(self.hold(), StallStage::Policy);
        // What was decided stays decided even if a plugin stalls, as long as the set is active.
        let run = Mutex::new(FilterRun::new(self.chain.set().generation(), messages));
        loop {
            let advance = |chain: &mut Chain| {
                let mut run = run.lock();
                run.continue_with(chain.set().generation());
                chain.advance(&self.topic, self.partition, &mut run)
            };
            match self.chain.call_again(&mut retry, advance).await? {
                FilterProgress::Done(filtered, writes) => return Ok((filtered, writes)),
                FilterProgress::NeedsState(keys) => {
                    let fetch = || self.pipeline.shared_state.fetch(&keys);
                    let values = retry_until_cancelled(self.hold(), StallStage::SharedState, fetch).await?;
                    run.lock().supply_state(keys, values);
                }
            }
        }
    }

    /// Lets all messages through: no policy sees batches.
    pub(super) fn pass_all(
        &self,
        messages: Vec<Message>,
        pending: Vec<UnsettledRecord>,
    ) -> Vec<PassedMessage> {
        let pass = |(message, pending): (Message, UnsettledRecord)| PassedMessage {
            retention: self.configured_retention(&message),
            message,
            said: None,
            in_history: None,
            pending,
        };
        messages.into_iter().zip(pending).map(pass).collect()
    }

    fn configured_retention(&self, message: &Message) -> Retention {
        let Pipeline { offline, history_config, .. } = &*self.pipeline;
        offline.retention_of(message).and(history_config.retention_of(message))
    }

    /// Finishes the messages that the filters dropped or rejected; collects the guards of the others.
    pub(super) fn sort(
        &self,
        filtered: Vec<FilteredMessage>,
        pending: Vec<UnsettledRecord>,
    ) -> (Vec<PassedMessage>, Vec<(usize, Guard)>) {
        let mut passed = Vec::with_capacity(filtered.len());
        let mut guards = Vec::new();
        for (filtered, pending) in filtered.into_iter().zip(pending) {
            let FilteredMessage { message, verdict, overrides, guards: wanted, retention, trail } = filtered;
            match verdict {
                Verdict::Pass => {
                    guards.extend(wanted.into_iter().map(|guard| (passed.len(), guard)));
                    let retention = retention.and(self.configured_retention(&message));
                    let has_words = overrides != NO_OVERRIDES || !trail.is_empty();
                    let said = has_words.then(|| Box::new(PolicyWords { overrides, trail }));
                    passed.push(PassedMessage { message, said, retention, in_history: None, pending });
                }
                Verdict::Drop { reason, by } => {
                    let trace = MessageTrace::new(message, pending, trail, self.started);
                    self.spawn_delivery(trace, MessageOutcome::Dropped, format_args!("{by}: {reason}"));
                }
                Verdict::DeadLetter { reason, by } => {
                    let mut letter = DeadLetterReason::new(Stage::Filter, reason);
                    letter.plugin = Some(by);
                    let trace = MessageTrace::new(message, pending, trail, self.started);
                    self.dead_letter(trace, letter);
                }
            }
        }
        (passed, guards)
    }

    /// Claims all guards of the batch in one round trip; finishes the messages that a guard stopped.
    pub(super) async fn guard(
        &self,
        mut passed: Vec<PassedMessage>,
        guards: Vec<(usize, Guard)>,
    ) -> Result<Vec<PassedMessage>, Cancelled> {
        if guards.is_empty() {
            return Ok(passed);
        }
        let since = Instant::now();
        let claim = |(at, guard): &(usize, Guard)| guard::GuardClaim {
            key: guard.key.clone(),
            ttl: guard.ttl,
            message: passed[*at].message.id.clone(),
        };
        let claims: Vec<_> = guards.iter().map(claim).collect();
        let claim = || self.pipeline.guards.claim(&claims);
        let may_pass = retry_until_cancelled(self.hold(), StallStage::Guard, claim).await?;
        let records = passed.iter_mut().map(|passed| &mut passed.pending);
        spans::note(&self.pipeline.tracer, records, SpanStage::Guard, since);
        let mut stopped: Vec<Option<Guard>> = passed.iter().map(|_| None).collect();
        for ((at, guard), may_pass) in guards.into_iter().zip(may_pass) {
            if !may_pass {
                stopped[at].get_or_insert(guard);
            }
        }
        let mut remaining = Vec::with_capacity(passed.len());
        for (passed, stopped) in passed.into_iter().zip(stopped) {
            let Some(Guard { key, by, .. }) = stopped else {
                remaining.push(passed);
                continue;
            };
            let trace = passed.into_trace(self.started);
            self.spawn_delivery(trace, MessageOutcome::Dropped, format_args!("{by}: guard `{key}` is taken"));
        }
        self.pipeline.metrics.stage(TimedStage::Guard, since);
        Ok(remaining)
    }
}
