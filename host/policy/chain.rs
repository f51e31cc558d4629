//! One worker's instances of one policy set. Batches, rooms and absent users pass through the plugins
//! in configured order; each plugin sees what the ones before it left.
//!
//! The results are plain data: the caller never sees a WebAssembly type.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::decision::{AbsentRecipient, FilteredMessage, OfflineDecision, PolicyStalled};
use crate::membership::Grouping;
use crate::message::{Message, RoomId};
use crate::policy::batch_hook::BatchHook;
use crate::policy::chain_entry::{BatchSource, ChainEntry};
use crate::policy::filter_run::{FilterProgress, FilterRun};
use crate::policy::set::PolicySet;
use crate::wasm::metrics::HookKind;

/// One worker's instances of one set. An instance is created when it is first needed, and again after
/// every failure. Chains share no instances.
#[derive(derive_more::Debug)]
#[debug("Chain of generation {}", set.generation())]
pub struct Chain {
    set: Arc<PolicySet>,
    /// One for each plugin of the set.
    chain_entries: Vec<ChainEntry>,
    /// The number of live chains, this one included.
    chains: Arc<AtomicUsize>,
}

impl PolicySet {
    /// A chain of this set, for one worker.
    pub fn chain(self: &Arc<Self>) -> Chain {
        Chain::new(Arc::clone(self))
    }
}

impl Chain {
    /// For one worker. Instances are created when they are needed.
    fn new(set: Arc<PolicySet>) -> Self {
        let chains = Arc::clone(set.chains());
        chains.fetch_add(1, Relaxed);
        let chain_entries = set.entries().iter().map(|entry| entry.chain_entry()).collect();
        Self { set, chain_entries, chains }
    }

    /// The set that this chain runs.
    pub fn set(&self) -> &Arc<PolicySet> {
        &self.set
    }

    /// The linear memory of all its instances, in bytes.
    pub fn memory(&self) -> usize {
        self.chain_entries.iter().map(ChainEntry::memory).sum()
    }

    /// Runs a batch of one partition through the filters and then through what keeps messages. Returns one result per message, in the same
    /// order. A message that one filter stops is not shown to the ones after it. Shared state appears
    /// empty and writes to it are discarded; see [`Chain::advance`].
    ///
    /// # Errors
    /// When a plugin with `on_error = "stall"` failed. Nothing is decided in that case.
    pub fn filter(
        &mut self,
        topic: &str,
        partition: i32,
        messages: Vec<Message>,
    ) -> Result<Vec<FilteredMessage>, PolicyStalled> {
        let mut run = FilterRun::new(self.set.generation(), messages);
        loop {
            match self.advance(topic, partition, &mut run)? {
                FilterProgress::Done(filtered, _) => return Ok(filtered),
                FilterProgress::NeedsState(keys) => {
                    let nothing = vec![None; keys.len()];
                    run.supply_state(keys, nothing);
                }
            }
        }
    }

    /// Advances a batch as far as possible without waiting: through all filters and then all retention
    /// hooks, or up to a plugin that needs values of its shared state.
    ///
    /// # Errors
    /// When a plugin with `on_error = "stall"` failed. Calling again with the same run continues at
    /// that plugin. Earlier plugins are not called again, and messages that it has already decided
    /// are not shown to it again.
    pub fn advance(
        &mut self,
        topic: &str,
        partition: i32,
        run: &mut FilterRun,
    ) -> Result<FilterProgress, PolicyStalled> {
        if !self.set.sees_batches() || run.batch.is_empty() {
            return Ok(FilterProgress::Done(std::mem::take(&mut run.batch), Vec::new()));
        }
        let source = BatchSource { topic, partition };
        loop {
            let Some(chain_entry) = self.chain_entries.get_mut(run.next) else {
                if run.hook == BatchHook::Retention || !self.set.has(HookKind::Retention) {
                    break;
                }
                run.begin_retention();
                continue;
            };
            if chain_entry.has(run.hook.kind()) {
                let wanted =
                    chain_entry.decide_with_state(source, run).inspect_err(|_| run.forget_state())?;
                if !wanted.is_empty() {
                    return Ok(FilterProgress::NeedsState(wanted));
                }
            }
            run.next_plugin();
        }
        Ok(FilterProgress::Done(std::mem::take(&mut run.batch), std::mem::take(&mut run.writes)))
    }

    /// Runs a room through the groupings. A plugin that fails, or whose answer points outside of the
    /// room, is skipped whatever its `on_error` is, except for `stall`.
    ///
    /// # Errors
    /// When a plugin with `on_error = "stall"` failed.
    pub fn regroup(&mut self, room: &RoomId, grouping: &mut Grouping) -> Result<(), PolicyStalled> {
        for chain_entry in self.chain_entries.iter_mut().filter(|entry| entry.has(HookKind::Grouping)) {
            if let Err(failure) = chain_entry.regroup(room, grouping) {
                chain_entry.plugin.skip_or_stall(&failure)?;
            }
        }
        Ok(())
    }

    /// Asks what to do with a message for absent users. Returns one result per user, in the same
    /// order; `None` where no plugin has an opinion, or where the plugin failed.
    ///
    /// # Errors
    /// When a plugin with `on_error = "stall"` failed.
    pub fn decide(
        &mut self,
        message: &Message,
        absent: &[AbsentRecipient],
    ) -> Result<Vec<Option<OfflineDecision>>, PolicyStalled> {
        let mut decided: Vec<Option<OfflineDecision>> = vec![None; absent.len()];
        for chain_entry in self.chain_entries.iter_mut().filter(|entry| entry.has(HookKind::Offline)) {
            if let Err(failure) = chain_entry.decide(message, absent, &mut decided) {
                chain_entry.plugin.skip_or_stall(&failure)?;
            }
        }
        Ok(decided)
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.chains.fetch_sub(1, Relaxed);
    }
}
