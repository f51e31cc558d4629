//! One instance of a plugin: its store, its limits, and its hooks as functions.
//!
//! After any failure an instance must not be used again: a trap leaves it in a state that its author
//! never considered. The caller discards it and starts a fresh one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use wasmtime::{Store, Trap};

use crate::decision::{AbsentRecipient, FailureKind};
use crate::message::Message;
use crate::wasm::address_space;
use crate::wasm::batch::{MessageColumns, RetentionRows};
use crate::wasm::bindings::exports::halley::policy::{
    filter, filter_columns, grouping, grouping_columns, offline, retention,
};
use crate::wasm::bindings::halley::policy::types;
use crate::wasm::epoch::{RunningGuest, ticks};
use crate::wasm::failure::{PluginFailure, PluginLimit, causes};
use crate::wasm::host::{HostState, PluginContext, cut};
use crate::wasm::lift::{self, UncheckedDisposition, UncheckedVerdicts};
use crate::wasm::lower::{self, with_messages};
use crate::wasm::metrics::HookKind;
use crate::wasm::module::Module;
use crate::wasm::room::{RoomConnections, RoomView, UncheckedRegrouping};
use crate::wasm::shared::SharedStateSession;

/// The minimum time for instantiation and `init`: they run once, and build word lists.
const START_DEADLINE: Duration = Duration::from_secs(1);
/// wasmtime's error when an answer or argument exceeds the host's limit. The error type is private.
const TOO_MUCH_DATA: &str = "fuel allocated for hostcalls has been exhausted";

/// How much guest output a failure quotes, in bytes.
const MAX_QUOTED_OUTPUT: usize = 1024;

/// Limits on one instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InstanceLimits {
    /// The maximum duration of one call. Its start gets at least a second.
    pub(crate) deadline: Duration,
    /// The maximum size of its linear memories and tables together.
    pub(crate) memory: ByteSize,
}

/// One instance. Belongs to one worker.
pub(crate) struct Instance {
    guest: GuestStore,
    filter: Option<filter::Guest>,
    filter_columns: Option<filter_columns::Guest>,
    retention: Option<retention::Guest>,
    grouping: Option<grouping::Guest>,
    grouping_columns: Option<grouping_columns::Guest>,
    offline: Option<offline::Guest>,
}

impl Instance {
    /// Creates an instance and runs its `init`.
    pub(crate) fn start(
        module: &Module,
        context: &Arc<PluginContext>,
        limits: InstanceLimits,
    ) -> Result<Self, PluginFailure> {
        let Reserved { mut guest, instance } = Reserved::new(module, context, limits)?;
        let (hooks, store) = (&module.hooks, &mut guest.store);
        let lifecycle = load(&hooks.lifecycle, |i| i.load(&mut *store, &instance))?;
        let filter = load(&hooks.filter, |i| i.load(&mut *store, &instance))?;
        let filter_columns = load(&hooks.filter_columns, |i| i.load(&mut *store, &instance))?;
        let retention = load(&hooks.retention, |i| i.load(&mut *store, &instance))?;
        let grouping = load(&hooks.grouping, |i| i.load(&mut *store, &instance))?;
        let grouping_columns = load(&hooks.grouping_columns, |i| i.load(&mut *store, &instance))?;
        let offline = load(&hooks.offline, |i| i.load(&mut *store, &instance))?;
        if let Some(lifecycle) = lifecycle {
            let answer = guest.call(HookKind::Init, |store| lifecycle.call_init(store, &context.config));
            let refused = |why: String| PluginFailure::refused_configuration(cut(&why, 1024));
            answer.map_err(at_start)?.map_err(refused)?;
        }
        Ok(Self { guest, filter, filter_columns, retention, grouping, grouping_columns, offline })
    }

    /// The schema of the plugin's settings, from an instance of its own; `None` if it does not export one.
    /// `init` is not called.
    pub(crate) fn settings_schema(
        module: &Module,
        context: &Arc<PluginContext>,
        limits: InstanceLimits,
    ) -> Result<Option<String>, PluginFailure> {
        let Some(indices) = &module.hooks.settings else { return Ok(None) };
        let Reserved { mut guest, instance } = Reserved::new(module, context, limits)?;
        let settings = indices.load(&mut guest.store, &instance).map_err(|e| not_loaded(&e))?;
        guest.run(limits.at_start(), |store| settings.call_schema(store)).map(Some)
    }

    /// Calls `filter` in the cheapest shape that the plugin exports. Returns one verdict per message.
    pub(crate) fn filter(
        &mut self,
        topic: &str,
        partition: i32,
        messages: &[&Message],
    ) -> Result<UncheckedVerdicts, PluginFailure> {
        let source = types::Source { topic, partition };
        if let Some(hook) = &self.filter_columns {
            let batch = MessageColumns::of(messages);
            let answer =
                self.guest.call(HookKind::Filter, |store| hook.call_filter(store, source, batch.lend()))?;
            return lift::check_count(answer, messages.len(), "verdicts").map(UncheckedVerdicts::Columns);
        }
        let Some(hook) = &self.filter else { return Ok(UncheckedVerdicts::Records(Vec::new())) };
        let answer = with_messages(messages, |records| {
            self.guest.call(HookKind::Filter, |store| hook.call_filter(store, source, records))
        })?;
        lift::check_count(answer, messages.len(), "verdicts").map(UncheckedVerdicts::Records)
    }

    /// Calls `retain`. Returns where each message is kept.
    pub(crate) fn retain(
        &mut self,
        topic: &str,
        partition: i32,
        messages: &[&Message],
    ) -> Result<UncheckedVerdicts, PluginFailure> {
        let Some(hook) = &self.retention else { return Ok(UncheckedVerdicts::Kept(Vec::new())) };
        let source = types::Source { topic, partition };
        let batch = MessageColumns::of(messages);
        let rows = RetentionRows::of(&batch);
        let answer = self
            .guest
            .call(HookKind::Retention, |store| hook.call_retain(store, source, rows.lend(&batch)))?;
        lift::kept(&answer, messages.len()).map(UncheckedVerdicts::Kept)
    }

    /// Calls `regroup` for a room, in the shape that this plugin takes. The answer is not checked
    /// yet; `None` if the plugin has no such hook.
    pub(crate) fn regroup(
        &mut self,
        id: &str,
        room: &RoomView<'_>,
    ) -> Result<Option<UncheckedRegrouping>, PluginFailure> {
        let (comets, guest) = (&room.comets, &mut self.guest);
        match &room.connections {
            RoomConnections::Columns(columns) => {
                let Some(hook) = &self.grouping_columns else { return Ok(None) };
                let answer = guest
                    .call(HookKind::Grouping, |store| hook.call_regroup(store, id, comets, columns.lend()));
                answer.map(|answer| Some(UncheckedRegrouping::Columns(answer)))
            }
            RoomConnections::Records(records) => {
                let Some(hook) = &self.grouping else { return Ok(None) };
                let answer =
                    guest.call(HookKind::Grouping, |store| hook.call_regroup(store, id, comets, records));
                answer.map(|answer| Some(UncheckedRegrouping::Records(answer)))
            }
        }
    }

    /// Calls `decide`. Returns one disposition per recipient.
    pub(crate) fn decide(
        &mut self,
        message: &Message,
        absent: &[&AbsentRecipient],
    ) -> Result<Vec<UncheckedDisposition>, PluginFailure> {
        let Some(hook) = &self.offline else { return Ok(Vec::new()) };
        let origin = &message.record.origin;
        let source = types::Source { topic: &origin.topic, partition: origin.partition };
        let asked: Vec<_> = absent.iter().map(|absent| lower::absent(absent)).collect();
        let answer = with_messages(&[message], |messages| {
            self.guest
                .call(HookKind::Offline, |store| hook.call_decide(store, source, messages[0].clone(), &asked))
        })?;
        let dispositions = lift::check_count(answer, absent.len(), "dispositions")?;
        Ok(dispositions.into_iter().map(UncheckedDisposition).collect())
    }

    /// The size of its linear memory and its tables, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.guest.store.data().memory.used
    }

    /// Uses this shared state instead of the process's own.
    pub(crate) fn with_shared_state(mut self, session: Option<&Arc<SharedStateSession>>) -> Self {
        if let Some(session) = session {
            self.guest.store.data_mut().shared = Some(Arc::clone(session));
        }
        self
    }
}

/// A store, and what bounds the calls of its guest.
struct GuestStore {
    context: Arc<PluginContext>,
    limits: InstanceLimits,
    store: Store<HostState>,
}

impl GuestStore {
    /// Calls a hook, and counts and times the call.
    fn call<R>(
        &mut self,
        hook: HookKind,
        work: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, PluginFailure> {
        let begun = Instant::now();
        let deadline = if hook == HookKind::Init { self.limits.at_start() } else { self.limits.deadline };
        let result = self.run(deadline, work);
        self.context.metrics.called(hook, begun.elapsed().as_secs_f64());
        result
    }

    /// Every call of guest code goes through here.
    fn run<R>(
        &mut self,
        deadline: Duration,
        work: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, PluginFailure> {
        let _running = RunningGuest::begin();
        self.store.set_epoch_deadline(ticks(deadline));
        let memory = &mut self.store.data_mut().memory;
        (memory.refused, memory.address_space_exhausted) = (false, false);
        // A panic of the engine is treated like a trap: a message must not end the process, and then
        // end it again after every restart.
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut self.store)))
            .unwrap_or_else(|_| Err(wasmtime::Error::msg("the engine panicked")));
        // A plugin may survive a refused allocation: nothing failed, but the limit was reached.
        if self.store.data().memory.refused && result.is_ok() {
            self.context.metrics.hit(PluginLimit::Memory);
        }
        let printed = self.store.data().log_output();
        let limits = InstanceLimits { deadline, ..self.limits };
        result.map_err(|e| with_guest_output(failure(&e, &self.store, limits), printed))
    }
}

/// An export of an instance, if the plugin has it.
fn load<I, E>(
    indices: &Option<I>,
    load: impl FnOnce(&I) -> wasmtime::Result<E>,
) -> Result<Option<E>, PluginFailure> {
    indices.as_ref().map(load).transpose().map_err(|e| not_loaded(&e))
}

fn not_loaded(error: &wasmtime::Error) -> PluginFailure {
    PluginFailure::start(format!("could not be loaded: {}", causes(error)))
}

impl InstanceLimits {
    /// Instantiation and `init` run once, and build word lists.
    fn at_start(self) -> Duration {
        self.deadline.max(START_DEADLINE)
    }

    /// The limit on the memory, in bytes.
    fn bytes(self) -> usize {
        usize::try_from(self.memory.as_u64()).unwrap_or(usize::MAX)
    }
}

/// The memory of an instance that has not been initialized.
pub(crate) struct Reserved {
    guest: GuestStore,
    instance: wasmtime::component::Instance,
}

impl Reserved {
    /// Creates a store with an instance.
    pub(crate) fn new(
        module: &Module,
        context: &Arc<PluginContext>,
        limits: InstanceLimits,
    ) -> Result<Self, PluginFailure> {
        let state = HostState::new(Arc::clone(context), limits.bytes());
        let mut store = Store::new(module.pre.engine(), state);
        store.limiter(|state| &mut state.memory);
        // Data that a call passes to the host is copied; aliased strings could turn a kilobyte into a
        // gigabyte. No valid answer is larger than the memory it comes from.
        store.set_hostcall_fuel(limits.bytes());
        let mut guest = GuestStore { context: Arc::clone(context), limits, store };
        let started = guest.run(limits.at_start(), |store| module.pre.instantiate(store));
        Ok(Self { instance: started.map_err(at_start)?, guest })
    }
}

fn at_start(failure: PluginFailure) -> PluginFailure {
    if failure.is_address_space_exhausted() {
        return failure;
    }
    PluginFailure { limit: failure.limit, ..PluginFailure::start(format!("could not start: {failure}")) }
}

/// Appends what the guest printed, such as an exception and its stack trace: the end of it, on one
/// line.
fn with_guest_output(failure: PluginFailure, printed: Option<String>) -> PluginFailure {
    let lines = printed.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty());
    let words = lines.collect::<Vec<_>>().join(" | ").replace(char::is_control, " ");
    if words.is_empty() {
        return failure;
    }
    let begin = words.ceil_char_boundary(words.len().saturating_sub(MAX_QUOTED_OUTPUT));
    let cut = if begin > 0 { "..." } else { "" };
    PluginFailure { message: format!("{failure}; it printed: {cut}{}", &words[begin..]), ..failure }
}

/// Derives the failure from wasmtime's error.
fn failure(error: &wasmtime::Error, store: &Store<HostState>, limits: InstanceLimits) -> PluginFailure {
    let InstanceLimits { deadline, memory } = limits;
    if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        let message = format!("exceeded its deadline of {deadline:?}");
        return PluginFailure::new(FailureKind::Deadline, Some(PluginLimit::Time), message);
    }
    if store.data().memory.refused {
        let message = format!("exceeded its memory limit of {memory}");
        return PluginFailure::new(FailureKind::Memory, Some(PluginLimit::Memory), message);
    }
    if store.data().memory.address_space_exhausted || address_space::is_refusal(error) {
        let why = cut(&error.root_cause().to_string(), 256).replace('\n', " ");
        let remedy = address_space::REMEDY;
        return PluginFailure::address_space_exhausted(format!(
            "has no room in this process: {why}; {remedy}"
        ));
    }
    let cause = error.root_cause().to_string();
    if cause.contains(TOO_MUCH_DATA) {
        let message = format!("passed more data than its memory of {memory} can hold");
        return PluginFailure::too_large(message);
    }
    let message = format!("trapped: {}", cut(&cause, 512).replace('\n', " "));
    PluginFailure::new(FailureKind::Trap, None, message)
}
