//! One worker's instances of one set: the chain that batches, rooms and the absent go
//! through, in configured order, each plugin seeing what the ones before it left.
//!
//! What fails costs only the message it fails on: a failing batch is halved, with fresh
//! instances, until what it fails on stands alone; that gets the plugin's `on_error`. The
//! caller never learns of WebAssembly.

use std::ops::Range;
use std::sync::Arc;

use crate::decision::{Absent, Disposition, Guard, Overrides, PluginVersion, Verdict};
use crate::membership::Grouping;
use crate::message::{Message, RoomId};
use crate::policy::answers;
use crate::policy::bindings::exports::halley::policy::{filter, offline as wit};
use crate::policy::bindings::halley::policy::types::Source;
use crate::policy::config::OnError;
use crate::policy::instance::{Failure, FailureKind, Instance};
use crate::policy::plugin::Plugin;
use crate::policy::questions::{self, Room, with_messages};
use crate::policy::set::PolicySet;

/// The most calls of one plugin that may fail within one batch. One message on which a
/// plugin fails is found among 128 within it (eight halvings, and once more with a fresh
/// instance); a plugin that fails on everything costs no more than this many deadlines.
const FAILURES_PER_BATCH: usize = 10;

/// What the filters made of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filtered {
    /// The message as amended.
    pub message: Message,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Which comets get it.
    pub overrides: Overrides,
    /// What has to let it through.
    pub guards: Vec<Guard>,
    /// One entry for each plugin that did anything but pass.
    pub trail: Vec<Decision>,
}

/// What one plugin did to a message, in words: for logs and `halley explain`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Decision {
    /// Who decided.
    pub by: PluginVersion,
    /// Such as `amended body, room`, `dropped: spam`, `failed: trapped: ...`.
    pub what: String,
}

/// What a plugin decided for one absent recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// What becomes of the message.
    pub disposition: Disposition,
    /// Who decided.
    pub by: PluginVersion,
}

/// A plugin with `on_error = "stall"` failed: nothing was decided. The caller waits and asks
/// again, with whatever set is in force then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plugin {plugin} {error}; its partition waits (on_error = \"stall\") until it is mended or replaced")]
pub struct Stalled {
    /// The plugin that failed.
    pub plugin: PluginVersion,
    /// How.
    pub error: String,
}

/// One worker's instances of one set. Instances are made when they are first needed and
/// after every failure; their memory is this chain's own.
pub struct Chain {
    set: Arc<PolicySet>,
    /// One for each plugin of the set.
    links: Vec<Link>,
}

/// A plugin with this chain's instance of it.
struct Link {
    plugin: Arc<Plugin>,
    instance: Option<Instance>,
}

impl Chain {
    pub(super) fn new(set: Arc<PolicySet>) -> Self {
        let link = |plugin: &Arc<Plugin>| Link { plugin: Arc::clone(plugin), instance: None };
        let links = set.plugins().iter().map(link).collect();
        Self { set, links }
    }

    /// The set that this is a chain of.
    pub fn set(&self) -> &Arc<PolicySet> {
        &self.set
    }

    /// Runs a batch of one partition through the filters. Answers in the same order and
    /// number. A message that one filter stops is not shown to the ones after it.
    ///
    /// # Errors
    /// When a plugin with `on_error = "stall"` failed; nothing is decided then.
    pub fn filter(
        &mut self,
        topic: &str,
        partition: i32,
        messages: Vec<Message>,
    ) -> Result<Vec<Filtered>, Stalled> {
        let mut batch: Vec<Filtered> = messages.into_iter().map(Filtered::untouched).collect();
        if !self.set.has_filter() || batch.is_empty() {
            return Ok(batch);
        }
        let source = Source { topic, partition };
        outside_async(|| {
            for link in self.links.iter_mut().filter(|link| link.plugin.module.hooks.filter.is_some()) {
                link.filter(&source, &mut batch)?;
            }
            Ok(batch)
        })
    }

    /// Runs a room through the groupings. A plugin that fails, or whose answer points
    /// outside of the room, is skipped whatever its `on_error`, except `stall`.
    ///
    /// # Errors
    /// When a plugin with `on_error = "stall"` failed.
    pub fn regroup(&mut self, room: &RoomId, grouping: &mut Grouping) -> Result<(), Stalled> {
        if !self.set.has_grouping() {
            return Ok(());
        }
        outside_async(|| {
            for link in self.links.iter_mut().filter(|link| link.plugin.module.hooks.grouping.is_some()) {
                if let Err(failure) = link.regroup(room, grouping) {
                    link.plugin.skip_or_stall(&failure)?;
                }
            }
            Ok(())
        })
    }

    /// Asks what becomes of a message for those who are away. Answers in the same order and
    /// number; `None` where no plugin had an opinion, or the ones that would have failed.
    ///
    /// # Errors
    /// When a plugin with `on_error = "stall"` failed.
    pub fn decide(&mut self, message: &Message, absent: &[Absent]) -> Result<Vec<Option<Decided>>, Stalled> {
        let mut decided: Vec<Option<Decided>> = vec![None; absent.len()];
        if !self.set.has_offline() || absent.is_empty() {
            return Ok(decided);
        }
        outside_async(|| {
            for link in self.links.iter_mut().filter(|link| link.plugin.module.hooks.offline.is_some()) {
                if let Err(failure) = link.decide(message, absent, &mut decided) {
                    link.plugin.skip_or_stall(&failure)?;
                }
            }
            Ok(decided)
        })
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("generation", &self.set.generation()).finish_non_exhaustive()
    }
}

impl Link {
    fn filter(&mut self, source: &Source<'_>, batch: &mut [Filtered]) -> Result<(), Stalled> {
        let open: Vec<usize> = (0..batch.len()).filter(|at| batch[*at].verdict == Verdict::Pass).collect();
        // Stretches of `open` that are still to be asked about; the first one on top.
        let everything = 0..open.len();
        let mut stretches = vec![everything];
        let mut failures = 0;
        while let Some(stretch) = stretches.pop() {
            let indexes = &open[stretch.clone()];
            if indexes.is_empty() {
                continue;
            }
            let used = self.instance.is_some();
            let failure = match self.verdicts(source, batch, indexes) {
                Ok(verdicts) => {
                    self.apply(verdicts, batch, indexes)?;
                    continue;
                }
                Err(failure) => failure,
            };
            failures += 1;
            let hopeless = failures >= FAILURES_PER_BATCH || failure.kind == FailureKind::Start;
            if hopeless {
                let rest = stretches.iter().cloned().flatten().map(|at| open[at]);
                return self.give_up_on(&failure, batch, indexes.iter().copied().chain(rest));
            }
            if indexes.len() == 1 && used {
                // It may have been the instance: memory that leaked away over many calls.
                stretches.push(stretch);
                continue;
            }
            if indexes.len() == 1 || self.plugin.config.on_error == OnError::Stall {
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
        self.with_instance(|instance| {
            with_messages(&asked, |messages| instance.filter(source.topic, source.partition, messages))
        })
    }

    /// Applies verdicts; one that makes no sense costs its own message only.
    fn apply(
        &self,
        verdicts: Vec<filter::Verdict>,
        batch: &mut [Filtered],
        indexes: &[usize],
    ) -> Result<(), Stalled> {
        for (verdict, at) in verdicts.into_iter().zip(indexes) {
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
        plugin.complain(failure);
        let reason = format!("plugin {by} {failure}");
        for at in indexes {
            let filtered = &mut batch[at];
            let consequence = match plugin.config.on_error {
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

    fn regroup(&mut self, room: &RoomId, grouping: &mut Grouping) -> Result<(), Failure> {
        let seen = Room::of(grouping);
        let answer = self.twice(|instance| instance.regroup(room.as_str(), &seen))?;
        let checked = answers::regrouping(answer, seen.comets.len(), &seen.members);
        let applied = checked.and_then(|changes| grouping.apply(changes).map_err(|e| e.to_string()));
        applied.map_err(|why| self.bad_answer(why))
    }

    fn decide(
        &mut self,
        message: &Message,
        absent: &[Absent],
        decided: &mut [Option<Decided>],
    ) -> Result<(), Failure> {
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
    fn skip_or_stall(&self, failure: &Failure) -> Result<(), Stalled> {
        self.complain(failure);
        match self.config.on_error {
            OnError::Stall => Err(self.stalled(failure)),
            OnError::Pass | OnError::Drop | OnError::DeadLetter => Ok(()),
        }
    }

    fn stalled(&self, failure: &Failure) -> Stalled {
        Stalled { plugin: self.version.clone(), error: failure.to_string() }
    }

    /// One line now and then: a plugin may fail on every message.
    fn complain(&self, failure: &Failure) {
        let plugin = &self.version;
        tracing::debug!(%plugin, %failure, "a plugin failed");
        if let Some(missed) = self.services.complaints.admit() {
            let on_error = self.config.on_error.as_str();
            tracing::warn!(%plugin, on_error, missed, "a plugin failed: it {failure}");
        }
    }
}

impl Filtered {
    /// A message that no filter has seen.
    fn untouched(message: Message) -> Self {
        Self {
            message,
            verdict: Verdict::Pass,
            overrides: Overrides::default(),
            guards: Vec::new(),
            trail: Vec::new(),
        }
    }
}

fn halves(stretch: Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = stretch.start + stretch.len() / 2;
    (stretch.start..middle, middle..stretch.end)
}

/// Runs guest code where it may take its time: other tasks move to other threads, and
/// wasmtime-wasi may block. A single-threaded runtime (tests) has no other thread; there,
/// one is made.
pub(super) fn outside_async<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Err(_) => work(),
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) => std::thread::scope(|scope| match scope.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }),
    }
}
