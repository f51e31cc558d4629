//! One instance of a plugin: its store, its limits, and its hooks as functions.
//!
//! After any failure an instance is not to be used again: a trap leaves it in a state that
//! its author never thought of. The caller throws it away and starts a fresh one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{Store, Trap};

use crate::message::Message;
use crate::policy::guest::address_space;
use crate::policy::guest::answers;
use crate::policy::guest::batch::{self, Batch};
use crate::policy::guest::bindings::exports::halley::policy::{
    filter, filter_columns, grouping, grouping_columns, offline,
};
use crate::policy::guest::bindings::halley::policy::types;
use crate::policy::guest::failure::Failure;
use crate::policy::guest::host::{HostState, cut};
use crate::policy::guest::module::causes;
use crate::policy::guest::questions::with_messages;
use crate::policy::guest::room::{Answer, Connections, Room};
use crate::policy::guest::shared::Session;
use crate::policy::guest::ticker::{Running, ticks};
use crate::policy::metrics::Limit;
use crate::policy::on_error::FailureKind;
use crate::policy::plugin::Plugin;

/// The least time that instantiation and `init` get: they run once, and build word lists.
const START_DEADLINE: Duration = Duration::from_secs(1);
/// How wasmtime says that an answer or argument is larger than the host takes at once. Its
/// error type is private.
const TOO_MUCH_DATA: &str = "fuel allocated for hostcalls has been exhausted";

/// The most that a failure quotes of what its runtime said, in bytes.
const MAX_WORDS: usize = 1024;

/// What is timed and counted: the index into [`crate::policy::metrics::HOOKS`].
#[derive(Clone, Copy, Debug)]
enum Hook {
    Filter,
    Grouping,
    Offline,
    Init,
}

/// One instance. Belongs to one worker.
pub(in crate::policy) struct Instance {
    plugin: Arc<Plugin>,
    store: Store<HostState>,
    filter: Option<filter::Guest>,
    filter_columns: Option<filter_columns::Guest>,
    grouping: Option<grouping::Guest>,
    grouping_columns: Option<grouping_columns::Guest>,
    offline: Option<offline::Guest>,
}

impl Instance {
    /// Makes a fresh instance and runs its `init`.
    pub(in crate::policy) fn start(plugin: &Arc<Plugin>) -> Result<Self, Failure> {
        let deadline = plugin.config.deadline.max(START_DEADLINE);
        let module = &plugin.module;
        let (mut store, instance) = instantiate(plugin, deadline)?;
        let load = |e: wasmtime::Error| Failure::start(format!("could not be loaded: {}", causes(&e)));
        let hooks = &module.hooks;
        let filter = hooks.filter.as_ref().map(|i| i.load(&mut store, &instance));
        let filter_columns = hooks.filter_columns.as_ref().map(|i| i.load(&mut store, &instance));
        let grouping = hooks.grouping.as_ref().map(|i| i.load(&mut store, &instance));
        let columns = hooks.grouping_columns.as_ref().map(|i| i.load(&mut store, &instance));
        let offline = hooks.offline.as_ref().map(|i| i.load(&mut store, &instance));
        let lifecycle = hooks.lifecycle.as_ref().map(|i| i.load(&mut store, &instance));
        let mut loaded = Self {
            filter: filter.transpose().map_err(load)?,
            filter_columns: filter_columns.transpose().map_err(load)?,
            grouping: grouping.transpose().map_err(load)?,
            grouping_columns: columns.transpose().map_err(load)?,
            offline: offline.transpose().map_err(load)?,
            plugin: Arc::clone(plugin),
            store,
        };
        if let Some(lifecycle) = lifecycle.transpose().map_err(load)? {
            let config = &plugin.services.config;
            let answer = loaded
                .call(Hook::Init, deadline, |store| lifecycle.call_init(store, config))
                .map_err(at_start)?;
            answer
                .map_err(|why| Failure::start(format!("refused its configuration: {}", cut(&why, 1024))))?;
        }
        Ok(loaded)
    }

    /// Calls `filter`, in the shape that costs least: one verdict for each message.
    pub(in crate::policy) fn filter(
        &mut self,
        topic: &str,
        partition: i32,
        messages: &[&Message],
    ) -> Result<Vec<filter::Verdict>, Failure> {
        let (source, deadline) = (types::Source { topic, partition }, self.deadline());
        if let Some(hook) = self.filter_columns.take() {
            let batch = Batch::of(messages);
            let answer =
                self.call(Hook::Filter, deadline, |store| hook.call_filter(store, source, batch.lend()));
            self.filter_columns = Some(hook);
            let verdicts = answers::one_each(answer?, messages.len(), "verdicts");
            return Ok(verdicts?.into_iter().map(batch::verdict).collect());
        }
        let Some(hook) = self.filter.take() else { return Ok(Vec::new()) };
        let answer = with_messages(messages, |records| {
            self.call(Hook::Filter, deadline, |store| hook.call_filter(store, source, records))
        });
        self.filter = Some(hook);
        answers::one_each(answer?, messages.len(), "verdicts")
    }

    /// Calls `regroup` about a room in the shape that this plugin takes. What it answers is not
    /// checked yet; `None` where it does not regroup.
    pub(in crate::policy) fn regroup(
        &mut self,
        id: &str,
        room: &Room<'_>,
    ) -> Result<Option<Answer>, Failure> {
        let (comets, deadline) = (&room.comets, self.deadline());
        match &room.connections {
            Connections::Columns(columns) => {
                let Some(hook) = self.grouping_columns.take() else { return Ok(None) };
                let answer = self.call(Hook::Grouping, deadline, |store| {
                    hook.call_regroup(store, id, comets, columns.lend())
                });
                self.grouping_columns = Some(hook);
                answer.map(|answer| Some(Answer::Columns(answer)))
            }
            Connections::Records(records) => {
                let Some(hook) = self.grouping.take() else { return Ok(None) };
                let answer = self
                    .call(Hook::Grouping, deadline, |store| hook.call_regroup(store, id, comets, records));
                self.grouping = Some(hook);
                answer.map(|answer| Some(Answer::Records(answer)))
            }
        }
    }

    /// Calls `decide`: one disposition for each recipient.
    pub(in crate::policy) fn decide(
        &mut self,
        source: types::Source<'_>,
        message: types::Message<'_>,
        absent: &[offline::Absent<'_>],
    ) -> Result<Vec<offline::Disposition>, Failure> {
        let Some(hook) = self.offline.take() else { return Ok(Vec::new()) };
        let answer = self
            .call(Hook::Offline, self.deadline(), |store| hook.call_decide(store, source, message, absent));
        self.offline = Some(hook);
        answers::one_each(answer?, absent.len(), "dispositions")
    }

    /// Its linear memory and its tables, in bytes.
    pub(in crate::policy) fn memory(&self) -> usize {
        self.store.data().memory.used
    }

    /// Its state is this from now on, and not the process's own.
    pub(in crate::policy) fn sharing(mut self, session: Option<&Arc<Session>>) -> Self {
        if let Some(session) = session {
            self.store.data_mut().shared = Some(Arc::clone(session));
        }
        self
    }

    fn deadline(&self) -> Duration {
        self.plugin.config.deadline
    }

    /// Every call of guest code goes through here.
    fn call<R>(
        &mut self,
        hook: Hook,
        deadline: Duration,
        work: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, Failure> {
        let _running = Running::begin();
        self.store.set_epoch_deadline(ticks(deadline));
        let memory = &mut self.store.data_mut().memory;
        (memory.refused, memory.no_room) = (false, false);
        let begun = Instant::now();
        // A bug of the engine's is treated like a trap: a message must not end the process, nor
        // come again and again because it did.
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut self.store)))
            .unwrap_or_else(|_| Err(wasmtime::Error::msg("the engine panicked")));
        self.plugin.services.metrics.called(hook as usize, begun.elapsed().as_secs_f64());
        count_memory(&self.store, &self.plugin, result.is_err());
        let printed = self.store.data().log_output();
        result.map_err(|e| with_words(failure(&e, &self.store, &self.plugin, deadline), printed))
    }
}

/// As many instances of these plugins together as there are workers, each with its memory, and not
/// yet started: what a worker has no room for is not to come in force.
///
/// # Errors
/// The first plugin that there is no room for, and why.
pub(in crate::policy) fn check_room<'a>(
    plugins: impl Iterator<Item = &'a Arc<Plugin>> + Clone,
    workers: usize,
) -> Result<(), (&'a Arc<Plugin>, Failure)> {
    let mut held = Vec::new();
    for _ in 0..workers.max(1) {
        for plugin in plugins.clone() {
            let deadline = plugin.config.deadline.max(START_DEADLINE);
            held.push(instantiate(plugin, deadline).map_err(|failure| (plugin, failure))?);
        }
    }
    Ok(())
}

/// A store with an instance in it that has not been told its configuration.
fn instantiate(
    plugin: &Arc<Plugin>,
    deadline: Duration,
) -> Result<(Store<HostState>, wasmtime::component::Instance), Failure> {
    let mut store = Store::new(plugin.module.pre.engine(), plugin.host_state());
    store.limiter(|state| &mut state.memory);
    // What a call hands to the host is copied; aliased strings could make a gigabyte of
    // a kilobyte. No honest answer is larger than the memory it comes from.
    store.set_hostcall_fuel(plugin.memory());
    let _running = Running::begin();
    store.set_epoch_deadline(ticks(deadline));
    let started = plugin.module.pre.instantiate(&mut store);
    count_memory(&store, plugin, started.is_err());
    match started {
        Ok(instance) => Ok((store, instance)),
        Err(error) => {
            let printed = store.data().log_output();
            Err(at_start(with_words(failure(&error, &store, plugin, deadline), printed)))
        }
    }
}

fn at_start(failure: Failure) -> Failure {
    if failure.is_no_room() {
        return failure;
    }
    Failure { limit: failure.limit, ..Failure::start(format!("could not start: {failure}")) }
}

/// The failure with what its runtime said of it, such as an exception and where it was thrown: the
/// end of that, in one line.
fn with_words(failure: Failure, printed: Option<String>) -> Failure {
    let lines = printed.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty());
    let words = lines.collect::<Vec<_>>().join(" | ").replace(char::is_control, " ");
    if words.is_empty() {
        return failure;
    }
    let begin = words.ceil_char_boundary(words.len().saturating_sub(MAX_WORDS));
    let cut = if begin > 0 { "..." } else { "" };
    Failure { message: format!("{failure}; it said: {cut}{}", &words[begin..]), ..failure }
}

/// A plugin may go on without the memory that it wanted: nothing failed, and the limit was hit.
fn count_memory(store: &Store<HostState>, plugin: &Plugin, failed: bool) {
    if store.data().memory.refused && !failed {
        plugin.services.metrics.hit(Limit::Memory);
    }
}

/// Reads from wasmtime's error what it was that failed.
fn failure(
    error: &wasmtime::Error,
    store: &Store<HostState>,
    plugin: &Plugin,
    deadline: Duration,
) -> Failure {
    if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        let message = format!("ran past its deadline of {deadline:?}");
        return Failure::new(FailureKind::Deadline, Some(Limit::Time), message);
    }
    if store.data().memory.refused {
        let message = format!("wanted more memory than its {}", plugin.config.memory);
        return Failure::new(FailureKind::Memory, Some(Limit::Memory), message);
    }
    if store.data().memory.no_room || address_space::is_refusal(error) {
        let why = cut(&error.root_cause().to_string(), 256).replace('\n', " ");
        let remedy = address_space::REMEDY;
        return Failure::no_room(format!("has no room in this process: {why}; {remedy}"));
    }
    let cause = error.root_cause().to_string();
    if cause.contains(TOO_MUCH_DATA) {
        let message = format!("passed more data than its memory of {} can hold", plugin.config.memory);
        return Failure::too_large(message);
    }
    let message = format!("trapped: {}", cut(&cause, 512).replace('\n', " "));
    Failure::new(FailureKind::Trap, None, message)
}
