//! One plugin in a chain, and the chain's instance of it.
//!
//! A failed instance is discarded, and the call is retried once with a fresh one. `batch` runs a batch
//! through the filter, however often the plugin fails.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;

use crate::blocking::run_in_place;
use crate::decision::{AbsentRecipient, FailureKind, OfflineDecision, OnError, PolicyStalled};
use crate::membership::Grouping;
use crate::message::{Message, RoomId};
use crate::policy::chain_entry::pace::{CallPace, CallSize};
use crate::policy::config::StateScope;
use crate::policy::plugin::Plugin;
use crate::policy::rollout::candidate::Rollout;
use crate::policy::time_budget::TimeBudget;
use crate::wasm::failure::PluginFailure;
use crate::wasm::instance::Instance;
use crate::wasm::lift::UncheckedDisposition;
use crate::wasm::metrics::HookKind;
use crate::wasm::module::Hooks;
use crate::wasm::room::RoomView;
use crate::wasm::shared::SharedStateSession;

mod batch;
mod pace;

pub(super) use batch::BatchSource;

/// A plugin with this chain's instance of it, which is created when it is needed.
pub(super) struct ChainEntry {
    pub(super) plugin: Arc<Plugin>,
    /// A candidate next to it.
    rollout: Option<Arc<Rollout>>,
    instance: Option<Instance>,
    /// With `state = "shared"`.
    pub(super) shared: Option<Arc<SharedStateSession>>,
    /// The candidate that decides for some rooms, if there is one.
    canary: Option<Box<Self>>,
    budget: TimeBudget,
    pace: CallPace,
    /// The kind of its last failure past a deadline.
    late: FailureKind,
    /// Set while the plugin is not called.
    over_budget_guard: Option<OverBudgetGuard>,
}

impl ChainEntry {
    /// With the plugin's candidate, if there is one.
    pub(super) fn new(plugin: Arc<Plugin>, rollout: Option<Arc<Rollout>>) -> Self {
        let canary = rollout.as_ref().filter(|rollout| rollout.shadow.is_none());
        let canary = canary.map(|rollout| Box::new(Self::without_canary(Arc::clone(&rollout.candidate))));
        let mut chain_entry = Self { canary, rollout, ..Self::without_canary(plugin) };
        // State belongs to the name: a batch that both versions decide uses one state.
        if let (Some(canary), Some(shared)) = (&mut chain_entry.canary, &chain_entry.shared) {
            canary.shared = Some(Arc::clone(shared));
        }
        chain_entry
    }

    /// Without a candidate.
    pub(super) fn without_canary(plugin: Arc<Plugin>) -> Self {
        let shared = (plugin.config.state == StateScope::Shared).then(|| Arc::new(plugin.session()));
        let budget = TimeBudget::new(plugin.config.deadline, plugin.config.time_budget.0, Instant::now());
        Self {
            plugin,
            rollout: None,
            instance: None,
            shared,
            canary: None,
            budget,
            pace: CallPace::default(),
            late: FailureKind::Deadline,
            over_budget_guard: None,
        }
    }

    /// The linear memory of its instance, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.instance.as_ref().map_or(0, Instance::memory)
    }

    /// Whether the plugin or its candidate exports a hook.
    pub(super) fn has(&self, hook: HookKind) -> bool {
        let candidate = self.rollout.as_ref().map(|rollout| &rollout.candidate);
        std::iter::once(&self.plugin).chain(candidate).any(|plugin| plugin.module.hooks.has(hook))
    }

    /// What the plugin exports.
    fn hooks(&self) -> &Hooks {
        &self.plugin.module.hooks
    }

    /// Lets the plugin regroup a room; on failure the room is unchanged.
    pub(super) fn regroup(&mut self, room: &RoomId, grouping: &mut Grouping) -> Result<(), PluginFailure> {
        if let (Some(canary), Some(rollout)) = (&mut self.canary, &self.rollout)
            && rollout.decides_for_room(room.as_str())
        {
            return canary.regroup(room, grouping);
        }
        let seen = RoomView::of(grouping, self.hooks().columns());
        let size = CallSize::of(HookKind::Grouping, seen.members.len());
        let answer = self.call_with_retry(size, |instance| instance.regroup(room.as_str(), &seen))?;
        let Some(answer) = answer else { return Ok(()) };
        let named_by = self.plugin.config.comets.named_by();
        let applied = seen.check(answer).and_then(|changes| {
            grouping.apply(changes, named_by).map_err(|e| PluginFailure::bad_answer(e.to_string()))
        });
        applied.map_err(|failure| self.record_failure(failure))
    }

    /// Asks the plugin about the undecided recipients; on failure they stay undecided.
    pub(super) fn decide(
        &mut self,
        message: &Message,
        absent: &[AbsentRecipient],
        decided: &mut [Option<OfflineDecision>],
    ) -> Result<(), PluginFailure> {
        if let (Some(canary), Some(rollout)) = (&mut self.canary, &self.rollout)
            && rollout.decides_for(&message.audience)
        {
            return canary.decide(message, absent, decided);
        }
        let open: Vec<usize> = (0..absent.len()).filter(|at| decided[*at].is_none()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let asked: Vec<&AbsentRecipient> = open.iter().map(|at| &absent[*at]).collect();
        let size = CallSize::of(HookKind::Offline, asked.len());
        let answer = self.call_with_retry(size, |instance| instance.decide(message, &asked))?;
        let checked: Result<Vec<_>, PluginFailure> =
            answer.into_iter().map(UncheckedDisposition::check).collect();
        let checked = checked.map_err(|failure| self.record_failure(failure))?;
        for (disposition, at) in checked.into_iter().zip(open) {
            let by = self.plugin.version.clone();
            decided[at] = disposition.map(|disposition| OfflineDecision { disposition, by });
        }
        Ok(())
    }

    /// Records a failure in the metrics and returns it.
    fn record_failure(&self, failure: PluginFailure) -> PluginFailure {
        self.plugin.context.metrics.failed(failure.kind, failure.limit);
        failure
    }

    /// Why the plugin must not be called now, if so.
    fn over_budget(&mut self) -> Option<PluginFailure> {
        if !self.budget.is_over() || !self.plugin.enforces_time_budget() {
            return None;
        }
        let rest = self.budget.remaining_pause(Instant::now())?;
        let plugin = &self.plugin;
        self.over_budget_guard.get_or_insert_with(|| OverBudgetGuard::begin(plugin));
        Some(PluginFailure::over_budget(self.late, rest))
    }

    /// Charges the duration of a call to the budget.
    fn spend<R>(&mut self, result: &Result<R, PluginFailure>, begun: Instant) {
        match result {
            Err(failure) if failure.is_late() => {
                self.late = failure.kind;
                let now = Instant::now();
                // Only the deadline is charged: delays by a busy machine are not the plugin's fault.
                let took = match failure.kind {
                    FailureKind::Start => now - begun,
                    _ => self.plugin.config.deadline,
                };
                if self.budget.record_overrun(took, now) && self.plugin.failures.trip() {
                    self.plugin.raise_alarm("too much time in calls past its deadline".to_owned(), failure);
                }
            }
            Ok(_) if self.budget.is_over() && self.budget.record_success(Instant::now()) => {
                self.over_budget_guard = None
            }
            _ => {}
        }
    }

    /// Calls this chain's instance, and retries with a fresh one if it was used before and fails.
    fn call_with_retry<R: Send>(
        &mut self,
        size: CallSize,
        call: impl Fn(&mut Instance) -> Result<R, PluginFailure> + Sync,
    ) -> Result<R, PluginFailure> {
        if let Some(failure) = self.over_budget() {
            self.plugin.context.metrics.unasked(1);
            return Err(failure);
        }
        let used = self.instance.is_some();
        match self.with_instance(size, &call) {
            Err(_) if used && self.over_budget().is_none() => self.with_instance(size, &call),
            result => result,
        }
    }

    /// Calls this chain's instance. It is created if needed, and discarded when the call fails. Unless
    /// the call is expected to be short, the thread's other tasks move to other threads.
    fn with_instance<R: Send>(
        &mut self,
        size: CallSize,
        call: impl FnOnce(&mut Instance) -> Result<R, PluginFailure> + Send,
    ) -> Result<R, PluginFailure> {
        let begun = Instant::now();
        let is_short = self.pace.is_short(size, self.plugin.config.deadline);
        let result = match &mut self.instance {
            Some(instance) if is_short => call(instance),
            Some(instance) => run_in_place(|| call(instance)),
            slot @ None => {
                let (plugin, shared) = (&self.plugin, self.shared.as_ref());
                run_in_place(|| {
                    let fresh = plugin.start()?;
                    call(slot.insert(fresh.with_shared_state(shared)))
                })
            }
        };
        self.pace.record(size, begun.elapsed());
        self.spend(&result, begun);
        if let Err(failure) = &result {
            self.instance = None;
            self.plugin.context.metrics.failed(failure.kind, failure.limit);
        }
        result
    }
}

/// A worker does not call the plugin for now; counted until this is dropped.
struct OverBudgetGuard(Gauge);

impl OverBudgetGuard {
    fn begin(plugin: &Plugin) -> Self {
        let gauge = plugin.context.metrics.over_budget().clone();
        gauge.inc();
        if let Some(missed) = plugin.context.over_budget.admit() {
            let plugin = &plugin.version;
            tracing::warn!(
                %plugin,
                missed,
                "a plugin exceeded its deadline too often: its `on_error` decides without calling it; \
                 it is called again from time to time"
            );
        }
        Self(gauge)
    }
}

impl Drop for OverBudgetGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Plugin {
    /// For hooks where a failure means that the plugin has no opinion, unless it stalls.
    pub(super) fn skip_or_stall(&self, failure: &PluginFailure) -> Result<(), PolicyStalled> {
        self.report_failure(failure, 1);
        match self.on_error(failure) {
            OnError::Stall => Err(self.stalled(failure)),
            OnError::Pass | OnError::Drop | OnError::DeadLetter => Ok(()),
        }
    }

    /// The action for this failure. If the process has no room for the plugin, its messages neither
    /// pass, nor are they dropped or dead-lettered: the plugin was not asked.
    fn on_error(&self, failure: &PluginFailure) -> OnError {
        if failure.is_address_space_exhausted() {
            OnError::Stall
        } else {
            self.config.on_error.on(failure.kind)
        }
    }

    fn stalled(&self, failure: &PluginFailure) -> PolicyStalled {
        PolicyStalled { plugin: self.version.clone(), kind: failure.kind, error: failure.to_string() }
    }

    /// Records that the plugin failed on this many messages. Logs are throttled, because a plugin may
    /// fail on every message. Raises an alarm when it fails too often.
    fn report_failure(&self, failure: &PluginFailure, messages: usize) {
        let plugin = &self.version;
        tracing::debug!(%plugin, %failure, "a plugin failed");
        if let Some(missed) = self.context.failure_log.admit() {
            let on_error = self.on_error(failure).as_str();
            tracing::warn!(%plugin, on_error, missed, "a plugin failed: it {failure}");
        }
        // Another version would find no room either.
        if !failure.is_address_space_exhausted() && self.failures.note(messages, Instant::now()) {
            self.raise_alarm(self.failures.limit(), failure);
        }
    }
}
