//! A batch on its way through the filters of a chain, which may have to wait for shared state
//! between them. Plain data: who fetches it, and from where, is not known here.

use std::collections::HashMap;

use crate::decision::{Filtered, StateKey, StateWrite};
use crate::message::Message;
use crate::policy::set::Generation;

/// How often values are fetched for one plugin and batch: keys that depend on values, on values,
/// and so on.
const ROUNDS: usize = 4;

/// A batch between two filters.
#[derive(Debug)]
pub struct Pass {
    pub(super) generation: Generation,
    pub(super) batch: Vec<Filtered>,
    /// The plugin that is asked next.
    pub(super) next: usize,
    /// For which messages it has answered already: it stalled on others.
    answered: Vec<bool>,
    /// What was fetched for it.
    pub(super) known: HashMap<String, Option<Vec<u8>>>,
    pub(super) rounds: usize,
    pub(super) writes: Vec<StateWrite>,
}

/// A batch, as one plugin is asked about it.
pub(super) struct Asked<'a> {
    pub(super) batch: &'a mut [Filtered],
    /// For which messages it has answered, or failed with a consequence. They are not shown to it
    /// again.
    pub(super) answered: &'a mut [bool],
}

/// How far a batch came.
#[derive(Debug)]
pub enum Step {
    /// Through all filters. What they wrote has to be written before the batch goes on.
    Decided(Vec<Filtered>, Vec<StateWrite>),
    /// A plugin needs these values: fetch them, [`Pass::learn`] them, and go on.
    Wants(Vec<StateKey>),
}

impl Pass {
    /// Before the first filter of this generation's set.
    pub fn new(generation: Generation, messages: Vec<Message>) -> Self {
        let batch: Vec<_> = messages.into_iter().map(Filtered::untouched).collect();
        let answered = vec![false; batch.len()];
        Self { generation, batch, next: 0, answered, known: HashMap::new(), rounds: 0, writes: Vec::new() }
    }

    /// The set whose filters it goes through.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What was wanted, in the same order; `None` where there is no value.
    pub fn learn(&mut self, keys: Vec<StateKey>, values: Vec<Option<Vec<u8>>>) {
        self.rounds += 1;
        self.known.extend(keys.into_iter().map(|wanted| wanted.key).zip(values));
    }

    /// Whether nothing more is fetched for the plugin.
    pub(super) fn is_last_round(&self) -> bool {
        self.rounds >= ROUNDS
    }

    /// What the next plugin is asked about.
    pub(super) fn asked(&mut self) -> Asked<'_> {
        Asked { batch: &mut self.batch, answered: &mut self.answered }
    }

    /// Nothing that the next plugin said counts: the batch is as it was before it.
    pub(super) fn take_back(&mut self, before: Vec<Filtered>) {
        self.batch = before;
        self.answered.fill(false);
    }

    /// The next plugin failed, and nothing passes without it. When it is asked again, values may
    /// be others than they are now.
    pub(super) fn stalled(&mut self) {
        self.rounds = 0;
        self.known.clear();
    }

    /// On to the next plugin.
    pub(super) fn passed_one(&mut self) {
        self.next += 1;
        self.answered.fill(false);
        self.rounds = 0;
        self.known.clear();
    }
}
