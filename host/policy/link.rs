//! One plugin in a chain, and the chain's instance of it.
//!
//! What fails costs only the message it fails on: a failing batch is halved, with fresh
//! instances, until what it fails on stands alone; that gets the plugin's `on_error`.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::decision::{Absent, Verdict};
use crate::membership::Grouping;
use crate::message::{Message, RoomId};
use crate::policy::guest::answers;
use crate::policy::guest::bindings::exports::halley::policy::{filter, offline as wit};
use crate::policy::guest::bindings::halley::policy::types::Source;
use crate::policy::guest::instance::{Failure, Instance};
use crate::policy::guest::module::Hooks;
use crate::policy::guest::questions::{self, Room, with_messages};
use crate::policy::metrics;
use crate::policy::on_error::{FailureKind, OnError};
use crate::policy::outcome::{Decided, Filtered, Stalled};
use crate::policy::plugin::Plugin;
use crate::policy::trial::Seen;

/// How many calls of one plugin may fail in a row before it is given up on for the batch:
/// enough to find one message by halving (and to ask once more with a fresh instance), so that
/// a plugin that fails on everything costs only a few deadlines.
fn failures_in_a_row(batch: usize) -> usize {
    batch.max(1).ilog2() as usize + 4
}

/// How many may fail in a batch altogether, as a multiple of those in a row: every message
/// that is found starts a new row, and many of them must not cost a deadline each for ever.
const ROWS_PER_BATCH: usize = 8;

/// A plugin with a chain's instance of it, which is made when it is needed.
pub(super) struct Link {
    pub(super) plugin: Arc<Plugin>,
    instance: Option<Instance>,
    /// Of the candidate that decides for some rooms, when there is one.
    canary: Option<Box<Self>>,
}

impl Link {
    /// With the plugin's candidate, where it has one.
    pub(super) fn new(plugin: Arc<Plugin>) -> Self {
        let canary = plugin.trial.as_ref().filter(|trial| trial.shadow.is_none());
        let canary = canary.map(|trial| Box::new(Self::alone(Arc::clone(&trial.candidate))));
        Self { plugin, instance: None, canary }
    }

    /// Without any candidate.
    pub(super) fn alone(plugin: Arc<Plugin>) -> Self {
        Self { plugin, instance: None, canary: None }
    }

    /// What the plugin exports.
    pub(super) fn hooks(&self) -> &Hooks {
        &self.plugin.module.hooks
    }

    /// Runs what is still open of a batch through the plugin's filter, or its candidate's.
    pub(super) fn filter(&mut self, source: &Source<'_>, batch: &mut [Filtered]) -> Result<(), Stalled> {
        let open: Vec<usize> = (0..batch.len()).filter(|at| batch[*at].verdict == Verdict::Pass).collect();
        let plugin = Arc::clone(&self.plugin);
        let Some(trial) = &plugin.trial else { return self.filter_open(source, batch, &open) };
        if let Some(canary) = &mut self.canary {
            let (canarys, own): (Vec<usize>, Vec<usize>) =
                open.into_iter().partition(|at| trial.decides_for(&batch[*at].message.audience));
            canary.filter_open(source, batch, &canarys)?;
            return self.filter_open(source, batch, &own);
        }
        let take = |batch: &[Filtered]| open.iter().map(|at| batch[*at].clone()).collect::<Vec<_>>();
        let before = take(batch);
        self.filter_open(source, batch, &open)?;
        if let Some(shadow) = &trial.shadow {
            let (topic, partition) = (source.topic.to_owned(), source.partition);
            shadow.show(Seen { topic, partition, before, after: take(batch) });
        }
        Ok(())
    }

    fn filter_open(
        &mut self,
        source: &Source<'_>,
        batch: &mut [Filtered],
        open: &[usize],
    ) -> Result<(), Stalled> {
        // Stretches of `open` that are still to be asked about; the first one on top.
        let everything = 0..open.len();
        let mut stretches = vec![everything];
        let in_a_row = failures_in_a_row(open.len());
        let (mut row, mut failures) = (0, 0);
        while let Some(stretch) = stretches.pop() {
            let indexes = &open[stretch.clone()];
            if indexes.is_empty() {
                continue;
            }
            let used = self.instance.is_some();
            let failure = match self.verdicts(source, batch, indexes) {
                Ok(verdicts) => {
                    row = 0;
                    self.apply(verdicts, batch, indexes)?;
                    continue;
                }
                Err(failure) => failure,
            };
            row += 1;
            failures += 1;
            let worn_out = row >= in_a_row || failures >= in_a_row * ROWS_PER_BATCH;
            let hopeless = worn_out || failure.kind == FailureKind::Start;
            if hopeless {
                let rest = stretches.iter().cloned().flatten().map(|at| open[at]);
                return self.give_up_on(&failure, batch, indexes.iter().copied().chain(rest));
            }
            if indexes.len() == 1 && used {
                // It may have been the instance: memory that leaked away over many calls.
                stretches.push(stretch);
                continue;
            }
            if indexes.len() == 1 || self.plugin.config.on_error.on(failure.kind) == OnError::Stall {
                self.give_up_on(&failure, batch, indexes.iter().copied())?;
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
        source: &Source<'_>,
        batch: &[Filtered],
        indexes: &[usize],
    ) -> Result<Vec<filter::Verdict>, Failure> {
        let asked: Vec<&Message> = indexes.iter().map(|at| &batch[*at].message).collect();
        let begun = Instant::now();
        let verdicts = self.with_instance(|instance| {
            with_messages(&asked, |messages| instance.filter(source.topic, source.partition, messages))
        });
        // What fails is asked about again, in halves; it counts when it is given up on.
        let answered = if verdicts.is_ok() { asked.len() } else { 0 };
        self.plugin.tally.asked(answered, begun.elapsed());
        verdicts
    }

    /// Applies verdicts; one that makes no sense costs its own message only.
    fn apply(
        &self,
        verdicts: Vec<filter::Verdict>,
        batch: &mut [Filtered],
        indexes: &[usize],
    ) -> Result<(), Stalled> {
        for (verdict, at) in verdicts.into_iter().zip(indexes) {
            self.plugin.count(&verdict);
            if let Err(why) = answers::apply(verdict, &mut batch[*at], &self.plugin.version) {
                let failure = Failure::bad_answer(why);
                self.plugin.services.metrics.failed(failure.kind.as_str());
                self.give_up_on(&failure, batch, std::iter::once(*at))?;
            }
        }
        Ok(())
    }

    /// The plugin failed on these messages: they get its `on_error`.
    fn give_up_on(
        &self,
        failure: &Failure,
        batch: &mut [Filtered],
        indexes: impl Iterator<Item = usize>,
    ) -> Result<(), Stalled> {
        let plugin = &self.plugin;
        let by = &plugin.version;
        let on_error = plugin.config.on_error.on(failure.kind);
        let indexes: Vec<usize> = indexes.collect();
        plugin.tally.asked(indexes.len(), Duration::ZERO);
        plugin.tally.failed(indexes.len());
        plugin.complain(failure, indexes.len());
        let reason = format!("plugin {by} {failure}");
        for at in indexes {
            let filtered = &mut batch[at];
            let consequence = match on_error {
                OnError::Pass => "passed on without it",
                OnError::Drop => {
                    filtered.verdict = Verdict::Drop { reason: reason.clone(), by: by.clone() };
                    "dropped"
                }
                OnError::DeadLetter => {
                    filtered.verdict = Verdict::DeadLetter { reason: reason.clone(), by: by.clone() };
                    "dead-lettered"
                }
                OnError::Stall => return Err(plugin.stalled(failure)),
            };
            filtered.note(by, format!("failed: {failure}; {consequence}"));
        }
        Ok(())
    }

    /// Lets the plugin regroup a room; on failure the room is as it was.
    pub(super) fn regroup(&mut self, room: &RoomId, grouping: &mut Grouping) -> Result<(), Failure> {
        if let (Some(canary), Some(trial)) = (&mut self.canary, &self.plugin.trial)
            && trial.decides_for_room(room.as_str())
        {
            return canary.regroup(room, grouping);
        }
        let seen = Room::of(grouping);
        let answer = self.twice(|instance| instance.regroup(room.as_str(), &seen))?;
        let checked = answers::regrouping(answer, seen.comets.len(), &seen.members);
        let applied = checked.and_then(|changes| grouping.apply(changes).map_err(|e| e.to_string()));
        applied.map_err(|why| self.bad_answer(why))
    }

    /// Asks the plugin about the recipients that are undecided; on failure they stay so.
    pub(super) fn decide(
        &mut self,
        message: &Message,
        absent: &[Absent],
        decided: &mut [Option<Decided>],
    ) -> Result<(), Failure> {
        if let (Some(canary), Some(trial)) = (&mut self.canary, &self.plugin.trial)
            && trial.decides_for(&message.audience)
        {
            return canary.decide(message, absent, decided);
        }
        let open: Vec<usize> = (0..absent.len()).filter(|at| decided[*at].is_none()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let asked: Vec<wit::Absent<'_>> = open.iter().map(|at| questions::absent(&absent[*at])).collect();
        let origin = &message.record.origin;
        let answer = self.twice(|instance| {
            let source = Source { topic: &origin.topic, partition: origin.partition };
            questions::with_message(message, |message| instance.decide(source, message, &asked))
        })?;
        let checked: Result<Vec<_>, String> = answer.into_iter().map(answers::disposition).collect();
        let checked = checked.map_err(|why| self.bad_answer(why))?;
        for (disposition, at) in checked.into_iter().zip(open) {
            let by = self.plugin.version.clone();
            decided[at] = disposition.map(|disposition| Decided { disposition, by });
        }
        Ok(())
    }

    fn bad_answer(&self, why: String) -> Failure {
        let failure = Failure::bad_answer(why);
        self.plugin.services.metrics.failed(failure.kind.as_str());
        failure
    }

    /// Calls this chain's instance, and a fresh one when the one at hand fails.
    fn twice<R>(&mut self, call: impl Fn(&mut Instance) -> Result<R, Failure>) -> Result<R, Failure> {
        let used = self.instance.is_some();
        match self.with_instance(&call) {
            Err(_) if used => self.with_instance(&call),
            result => result,
        }
    }

    /// Calls this chain's instance, which is made where there is none and thrown away when
    /// the call fails.
    fn with_instance<R>(
        &mut self,
        call: impl FnOnce(&mut Instance) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let result = match &mut self.instance {
            Some(instance) => call(instance),
            None => Instance::start(&self.plugin).and_then(|fresh| call(self.instance.insert(fresh))),
        };
        if let Err(failure) = &result {
            self.instance = None;
            self.plugin.services.metrics.failed(failure.kind.as_str());
        }
        result
    }
}

impl Plugin {
    /// For hooks where a failure means that the plugin has no say, unless it stalls.
    pub(super) fn skip_or_stall(&self, failure: &Failure) -> Result<(), Stalled> {
        self.complain(failure, 1);
        match self.config.on_error.on(failure.kind) {
            OnError::Stall => Err(self.stalled(failure)),
            OnError::Pass | OnError::Drop | OnError::DeadLetter => Ok(()),
        }
    }

    fn count(&self, verdict: &filter::Verdict) {
        let decision = match verdict {
            filter::Verdict::Pass => metrics::Decision::Pass,
            filter::Verdict::Drop(_) => metrics::Decision::Drop,
            filter::Verdict::DeadLetter(_) => metrics::Decision::DeadLetter,
            filter::Verdict::Amend(_) => metrics::Decision::Amend,
        };
        self.services.metrics.decided(decision);
        if matches!(decision, metrics::Decision::Drop | metrics::Decision::DeadLetter) {
            self.tally.stopped();
        }
    }

    fn stalled(&self, failure: &Failure) -> Stalled {
        Stalled { plugin: self.version.clone(), error: failure.to_string() }
    }

    /// It failed on so many messages. One line now and then, for a plugin may fail on every
    /// message; and an alarm when that is too often.
    fn complain(&self, failure: &Failure, messages: usize) {
        let plugin = &self.version;
        tracing::debug!(%plugin, %failure, "a plugin failed");
        if let Some(missed) = self.services.complaints.admit() {
            let on_error = self.config.on_error.on(failure.kind).as_str();
            tracing::warn!(%plugin, on_error, missed, "a plugin failed: it {failure}");
        }
        if self.failures.note(messages, Instant::now()) {
            self.raise_alarm(failure);
        }
    }
}

fn halves(stretch: Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = stretch.start + stretch.len() / 2;
    (stretch.start..middle, middle..stretch.end)
}
