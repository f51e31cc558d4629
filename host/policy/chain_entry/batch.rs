//! Runs a batch through one plugin's filter, or its retention hook.
//!
//! A failure costs only the message that causes it: a failing batch is halved, with fresh instances,
//! until that message is isolated; the plugin's `on_error` applies to it.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::decision::{
    Effect, FailureKind, FilteredMessage, OnError, PolicyStalled, StateKey, StateWrite, Verdict,
};
use crate::message::Message;
use crate::policy::batch_hook::BatchHook;
use crate::policy::chain_entry::ChainEntry;
use crate::policy::chain_entry::pace::CallSize;
use crate::policy::filter_run::{FilterRun, PluginBatch};
use crate::policy::plugin::Plugin;
use crate::policy::rollout::shadow::MirroredBatch;
use crate::wasm::failure::{PluginFailure, PluginLimit};
use crate::wasm::lift::{UncheckedVerdict, UncheckedVerdicts};
use crate::wasm::metrics::{FilterDecision, HookKind};

/// The partition that a batch is of.
#[derive(Clone, Copy)]
pub(in crate::policy) struct BatchSource<'a> {
    pub(in crate::policy) topic: &'a str,
    pub(in crate::policy) partition: i32,
}

/// What a plugin is asked about a batch.
#[derive(Clone, Copy)]
struct BatchCall<'a> {
    source: BatchSource<'a>,
    hook: BatchHook,
}

/// How many calls of one plugin may fail in a row before the rest of the batch fails: enough to isolate one
/// message by halving (and to retry it with a fresh instance), so that a plugin that fails on
/// everything costs only a few deadlines.
fn failures_in_a_row(batch: usize) -> usize {
    batch.max(1).ilog2() as usize + 4
}

/// How many calls may fail in a batch altogether, as a multiple of those in a row: every isolated
/// message starts a new row, and many of them must not cost a deadline each.
const ROWS_PER_BATCH: usize = 8;

impl ChainEntry {
    /// Runs the next hook of a plugin whose state may be shared. Returns the keys that it needs; if
    /// there are any, the batch is unchanged.
    pub(in crate::policy) fn decide_with_state(
        &mut self,
        source: BatchSource<'_>,
        run: &mut FilterRun,
    ) -> Result<Vec<StateKey>, PolicyStalled> {
        let call = BatchCall { source, hook: run.hook };
        let Some(shared) = self.shared.clone() else {
            self.decide_batch(call, run.plugin_batch())?;
            return Ok(Vec::new());
        };
        let before = run.batch.clone();
        shared.open(run.known.clone(), run.is_last_round());
        let result = self.decide_batch(call, run.plugin_batch());
        let closed = shared.close();
        let plugin = &self.plugin.version.name;
        let of_plugin = |key| StateKey { plugin: Arc::clone(plugin), key };
        // Its writes are discarded with its answers.
        if result.is_err() || !closed.wanted.is_empty() {
            run.restore(before);
        }
        if !closed.wanted.is_empty() {
            return Ok(closed.wanted.into_iter().map(of_plugin).collect());
        }
        result?;
        let written = closed.written.into_iter();
        run.writes.extend(written.map(|(key, value)| StateWrite { at: of_plugin(key), value }));
        Ok(Vec::new())
    }

    /// Runs a batch through a hook of a shadow. A stall is a failure like any other here: the
    /// batch is not repeated, and every message that it would hold counts as failed.
    pub(in crate::policy) fn mirror(&mut self, mirrored: &mut MirroredBatch) {
        let MirroredBatch { topic, partition, hook, before: batch, .. } = mirrored;
        let mut answered = vec![false; batch.len()];
        let (batch_seen, answered_seen) = (&mut batch[..], &mut answered[..]);
        let asked = PluginBatch { batch: batch_seen, answered: answered_seen, originals: &mut Vec::new() };
        let call = BatchCall { source: BatchSource { topic, partition: *partition }, hook: *hook };
        let Err(stalled) = self.decide_batch(call, asked) else { return };
        let PolicyStalled { plugin, kind, error } = stalled;
        let text: Arc<str> = error.into();
        for (filtered, _) in batch.iter_mut().zip(answered).filter(|(_, answered)| !answered) {
            let text = Arc::clone(&text);
            filtered.note(&plugin, Effect::Failed { kind, text, then: OnError::Stall });
        }
    }

    /// Runs the undecided messages of a batch through the plugin's hook, or its candidate's.
    fn decide_batch(&mut self, call: BatchCall<'_>, mut asked: PluginBatch<'_>) -> Result<(), PolicyStalled> {
        let asked = &mut asked;
        let is_open = |at: &usize| matches!(asked.batch[*at].verdict, Verdict::Pass) && !asked.answered[*at];
        let open: Vec<usize> = (0..asked.batch.len()).filter(is_open).collect();
        let Some(rollout) = self.rollout.clone() else { return self.decide_open(call, asked, &open) };
        if let Some(canary) = &mut self.canary {
            let (canarys, own): (Vec<usize>, Vec<usize>) =
                open.into_iter().partition(|at| rollout.decides_for(&asked.batch[*at].message.audience));
            canary.decide_open(call, asked, &canarys)?;
            return self.decide_open(call, asked, &own);
        }
        let take = |batch: &[FilteredMessage]| open.iter().map(|at| batch[*at].clone()).collect::<Vec<_>>();
        let before = take(asked.batch);
        self.decide_open(call, asked, &open)?;
        if let Some(shadow) = rollout.shadow.as_ref().filter(|_| !self.needs_refetch()) {
            let BatchCall { source: BatchSource { topic, partition }, hook } = call;
            let (topic, is_first) = (topic.to_owned(), self.is_first_hook(hook));
            let after = take(asked.batch);
            shadow.show(MirroredBatch { topic, partition, hook, is_first, before, after });
        }
        Ok(())
    }

    /// Whether the messages of this hook's calls count in statistics: not twice, if the plugin filters
    /// them as well.
    fn is_first_hook(&self, hook: BatchHook) -> bool {
        hook == BatchHook::Filter || !self.has(HookKind::Filter)
    }

    fn decide_open(
        &mut self,
        call: BatchCall<'_>,
        asked: &mut PluginBatch<'_>,
        open: &[usize],
    ) -> Result<(), PolicyStalled> {
        // The ranges of `open` that the plugin still has to decide; the first one is last.
        let everything = 0..open.len();
        let mut stretches = vec![everything];
        let in_a_row = failures_in_a_row(open.len());
        let (mut row, mut failures) = (0, 0);
        while let Some(stretch) = stretches.pop() {
            let indexes = &open[stretch.clone()];
            if indexes.is_empty() {
                continue;
            }
            if let Some(failure) = self.over_budget() {
                let rest = stretches.iter().cloned().flatten().map(|at| open[at]);
                let unasked: Vec<usize> = indexes.iter().copied().chain(rest).collect();
                self.plugin.context.metrics.unasked(unasked.len());
                return self.apply_on_error(&failure, call.hook, asked, unasked.into_iter());
            }
            let used = self.instance.is_some();
            let failure = match self.verdicts(call, asked.batch, indexes) {
                Ok(verdicts) => {
                    row = 0;
                    self.apply(verdicts, call.hook, asked, indexes)?;
                    continue;
                }
                Err(failure) => failure,
            };
            row += 1;
            failures += 1;
            let worn_out = row >= in_a_row || failures >= in_a_row * ROWS_PER_BATCH;
            let hopeless = worn_out || failure.kind == FailureKind::Start || self.over_budget().is_some();
            if hopeless {
                let rest = stretches.iter().cloned().flatten().map(|at| open[at]);
                let failed = indexes.iter().copied().chain(rest);
                return self.apply_on_error(&failure, call.hook, asked, failed);
            }
            if indexes.len() == 1 && used {
                // The instance may be the cause: memory that leaked over many calls.
                stretches.push(stretch);
                continue;
            }
            if indexes.len() == 1 || self.plugin.on_error(&failure) == OnError::Stall {
                self.apply_on_error(&failure, call.hook, asked, indexes.iter().copied())?;
                continue;
            }
            let (first, second) = halves(stretch);
            stretches.push(second);
            stretches.push(first);
        }
        Ok(())
    }

    fn verdicts(
        &mut self,
        BatchCall { source, hook }: BatchCall<'_>,
        batch: &[FilteredMessage],
        indexes: &[usize],
    ) -> Result<UncheckedVerdicts, PluginFailure> {
        let asked: Vec<&Message> = indexes.iter().map(|at| &batch[*at].message).collect();
        let begun = Instant::now();
        let BatchSource { topic, partition } = source;
        let size = CallSize::of(hook.kind(), asked.len());
        let mut verdicts = self.with_instance(size, |instance| match hook {
            BatchHook::Filter => instance.filter(topic, partition, &asked),
            BatchHook::Retention => instance.retain(topic, partition, &asked),
        });
        if let Some(shared) = &self.shared
            && let Err(why) = shared.end_call(verdicts.is_ok())
        {
            let limit = Some(PluginLimit::State);
            let failure = PluginFailure::new(FailureKind::BadAnswer, limit, why.to_string());
            verdicts = Err(self.record_failure(failure));
        }
        if self.needs_refetch() {
            return verdicts;
        }
        // Failed messages are retried in halves; they count once they are not retried any more.
        let answered = if verdicts.is_ok() && self.is_first_hook(hook) { asked.len() } else { 0 };
        self.plugin.stats.record_messages(answered, begun.elapsed());
        verdicts
    }

    /// Whether this batch will be repeated with values of the shared state.
    fn needs_refetch(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.needs_refetch())
    }

    /// Applies verdicts; an invalid one costs only its own message.
    fn apply(
        &self,
        mut verdicts: UncheckedVerdicts,
        hook: BatchHook,
        asked: &mut PluginBatch<'_>,
        indexes: &[usize],
    ) -> Result<(), PolicyStalled> {
        if self.needs_refetch() {
            return Ok(());
        }
        let mut passed = 0;
        let mut applied = Ok(());
        for (number, at) in indexes.iter().enumerate() {
            match verdicts.take(number) {
                None => passed += 1,
                Some(verdict) => applied = self.apply_one(verdict, hook, asked, *at),
            }
            if applied.is_err() {
                break;
            }
            asked.answered[*at] = true;
        }
        if self.is_first_hook(hook) {
            self.plugin.context.metrics.decided(FilterDecision::Pass, passed);
        }
        applied
    }

    fn apply_one(
        &self,
        verdict: UncheckedVerdict,
        hook: BatchHook,
        asked: &mut PluginBatch<'_>,
        at: usize,
    ) -> Result<(), PolicyStalled> {
        let (decision, is_cut) = verdict.decision();
        self.plugin.count(decision, is_cut);
        if decision == FilterDecision::Amend {
            asked.keep_original(at);
        }
        let named_by = self.plugin.config.comets.named_by();
        match verdict.apply(&mut asked.batch[at], &self.plugin.version, named_by) {
            Ok(()) => Ok(()),
            Err(failure) => {
                let failure = self.record_failure(failure);
                self.apply_on_error(&failure, hook, asked, std::iter::once(at))
            }
        }
    }

    /// Applies the plugin's `on_error` to these messages.
    fn apply_on_error(
        &self,
        failure: &PluginFailure,
        hook: BatchHook,
        asked: &mut PluginBatch<'_>,
        indexes: impl Iterator<Item = usize>,
    ) -> Result<(), PolicyStalled> {
        if self.needs_refetch() {
            return Ok(());
        }
        let plugin = &self.plugin;
        let by = &plugin.version;
        let on_error = plugin.on_error(failure);
        let indexes: Vec<usize> = indexes.collect();
        if !failure.is_address_space_exhausted() {
            if self.is_first_hook(hook) {
                plugin.stats.record_messages(indexes.len(), Duration::ZERO);
            }
            plugin.stats.record_errors(indexes.len());
        }
        plugin.report_failure(failure, indexes.len());
        let reason = format!("plugin {by} {failure}");
        let text: Arc<str> = failure.message.as_str().into();
        for at in indexes {
            let filtered = &mut asked.batch[at];
            match on_error {
                OnError::Pass => {}
                OnError::Drop => {
                    filtered.verdict = Verdict::Drop { reason: reason.clone(), by: by.clone() };
                }
                OnError::DeadLetter => {
                    filtered.verdict = Verdict::DeadLetter { reason: reason.clone(), by: by.clone() };
                }
                OnError::Stall => return Err(plugin.stalled(failure)),
            }
            let (kind, text) = (failure.kind, Arc::clone(&text));
            filtered.note(by, Effect::Failed { kind, text, then: on_error });
            asked.answered[at] = true;
        }
        Ok(())
    }
}

impl Plugin {
    fn count(&self, decision: FilterDecision, is_cut: bool) {
        self.context.metrics.decided(decision, 1);
        if is_cut {
            self.context.metrics.hit(PluginLimit::Output);
        }
        if matches!(decision, FilterDecision::Drop | FilterDecision::DeadLetter) {
            self.stats.record_stopped();
        }
    }
}

fn halves(stretch: Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = stretch.start + stretch.len() / 2;
    (stretch.start..middle, middle..stretch.end)
}
