//! A batch on its way through the filters of a chain, and then through its retention hooks. It may have
//! to wait for shared state between them. Plain data: it does not know how and from where state is
//! fetched.

use std::collections::HashMap;

use crate::decision::{FilteredMessage, StateKey, StateWrite};
use crate::message::Message;
use crate::policy::batch_hook::BatchHook;
use crate::policy::set::Generation;

/// How often values are fetched for one plugin and batch. More than one round is needed where keys
/// depend on values.
const ROUNDS: usize = 4;

/// A batch between two plugins.
#[derive(Debug)]
pub struct FilterRun {
    pub(super) generation: Generation,
    pub(super) batch: Vec<FilteredMessage>,
    /// The amended messages as they were before the first filter, by index.
    originals: Vec<(usize, Message)>,
    /// The hook that is called next, and the index of the plugin.
    pub(super) hook: BatchHook,
    pub(super) next: usize,
    /// The messages that it has already decided; it stalled on others.
    answered: Vec<bool>,
    /// The values that were fetched for it.
    pub(super) known: HashMap<String, Option<Vec<u8>>>,
    pub(super) rounds: usize,
    pub(super) writes: Vec<StateWrite>,
}

/// A batch as one plugin sees it.
pub(super) struct PluginBatch<'a> {
    pub(super) batch: &'a mut [FilteredMessage],
    /// The messages that it has decided, or failed on with a consequence. They are not shown to it
    /// again.
    pub(super) answered: &'a mut [bool],
    /// The amended messages as they were before the first filter, by index.
    pub(super) originals: &'a mut Vec<(usize, Message)>,
}

impl PluginBatch<'_> {
    /// The message is about to be amended.
    pub(super) fn keep_original(&mut self, at: usize) {
        // Of several filters that amend it, the first one saw the original.
        self.originals.push((at, self.batch[at].message.clone()));
    }
}

/// How far a batch has advanced.
#[derive(Debug)]
pub enum FilterProgress {
    /// Through all plugins. The writes must be stored before the batch continues.
    Done(Vec<FilteredMessage>, Vec<StateWrite>),
    /// A plugin needs these values: fetch them, pass them to [`FilterRun::supply_state`], and continue.
    NeedsState(Vec<StateKey>),
}

impl FilterRun {
    /// A batch before the first filter of this generation's set.
    pub fn new(generation: Generation, messages: Vec<Message>) -> Self {
        let batch: Vec<_> = messages.into_iter().map(FilteredMessage::untouched).collect();
        let answered = vec![false; batch.len()];
        Self {
            generation,
            batch,
            originals: Vec::new(),
            hook: BatchHook::Filter,
            next: 0,
            answered,
            known: HashMap::new(),
            rounds: 0,
            writes: Vec::new(),
        }
    }

    /// Begins again if another set is active than the one that it was begun with.
    pub fn continue_with(&mut self, generation: Generation) {
        if self.generation == generation {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let mut messages: Vec<Message> = batch.into_iter().map(|filtered| filtered.message).collect();
        // Backwards, because a message that was amended twice was kept twice.
        for (at, original) in self.originals.drain(..).rev() {
            messages[at] = original;
        }
        *self = Self::new(generation, messages);
    }

    /// The requested values, in the same order; `None` where there is no value.
    pub fn supply_state(&mut self, keys: Vec<StateKey>, values: Vec<Option<Vec<u8>>>) {
        self.rounds += 1;
        self.known.extend(keys.into_iter().map(|wanted| wanted.key).zip(values));
    }

    /// Whether no more values are fetched for the plugin.
    pub(super) fn is_last_round(&self) -> bool {
        self.rounds >= ROUNDS
    }

    /// The batch as the next plugin sees it.
    pub(super) fn plugin_batch(&mut self) -> PluginBatch<'_> {
        PluginBatch { batch: &mut self.batch, answered: &mut self.answered, originals: &mut self.originals }
    }

    /// Discards what the next plugin decided and restores the batch.
    pub(super) fn restore(&mut self, before: Vec<FilteredMessage>) {
        self.batch = before;
        self.answered.fill(false);
    }

    /// The next plugin stalled. Fetched values are discarded, because they may have changed by the
    /// next call.
    pub(super) fn forget_state(&mut self) {
        self.rounds = 0;
        self.known.clear();
    }

    /// All filters have decided.
    pub(super) fn begin_retention(&mut self) {
        (self.hook, self.next) = (BatchHook::Retention, 0);
    }

    /// Moves on to the next plugin.
    pub(super) fn next_plugin(&mut self) {
        self.next += 1;
        self.answered.fill(false);
        self.rounds = 0;
        self.known.clear();
    }
}
