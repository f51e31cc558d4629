//! The table of known comets: which get BROADCASTs, which are evicted for others, and which are
//! forgotten.
//!
//! The source decides. Comets from the configuration, DNS and discovery are always known and always
//! get BROADCASTs. Comets in the directory get them while they were named lately or answer. Comets
//! that only a producer (`server`) or a policy named get the calls sent to them and nothing else,
//! and have a separate limit: however many addresses records name, they evict only each other.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::comet::Comet;
use super::limits::TableLimits;
use super::source::Source;
use super::state::CometState;
use crate::message::CometAddr;
use crate::time::millis;

/// The comets by address, and the sightings of forgotten ones.
#[derive(Default)]
pub(super) struct CometTable {
    pub(super) comets: HashMap<CometAddr, Arc<Comet>, RandomState>,
    /// When the directory last named comets that were forgotten since. The shared list still has
    /// them.
    pub(super) forgotten: HashMap<CometAddr, u64>,
    pub(super) closed: bool,
}

/// The table is full: which limit, and the key that raises it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{most} comets {kind}; raise [comets] {key} if that is expected")]
pub(super) struct TableFull {
    most: usize,
    kind: &'static str,
    key: &'static str,
}

impl CometTable {
    /// Whether this is a comet that the configuration, discovery or the directory named.
    pub(super) fn has_trusted(&self, address: &CometAddr) -> bool {
        self.comets.get(address).is_some_and(|comet| comet.state.source().is_trusted())
    }

    /// Records that an entry of the directory named a comet. False if that makes the comet known, or
    /// changes its source.
    pub(super) fn note_sighting(&self, address: &CometAddr, at_ms: u64) -> bool {
        match self.comets.get(address).filter(|comet| !comet.is_dead()) {
            Some(comet) => {
                comet.state.note_named(at_ms);
                match comet.state.source() {
                    // An operator removed it; earlier sightings do not override that.
                    Source::Retired => at_ms <= comet.state.retired_at(),
                    source => source != Source::Named,
                }
            }
            // A sighting from before it was forgotten is not new.
            None => self.closed || self.forgotten.get(address).is_some_and(|named_at| *named_at >= at_ms),
        }
    }

    /// Removes expired comets, and returns them.
    pub(super) fn evict_idle(&mut self, limits: &TableLimits, now_ms: u64) -> Vec<Arc<Comet>> {
        let over: Vec<_> =
            self.comets.values().filter(|comet| limits.is_expired(&comet.state, now_ms)).cloned().collect();
        for comet in &over {
            self.remove_comet(&comet.state.address);
        }
        let since = now_ms.saturating_sub(millis(limits.retention));
        self.forgotten.retain(|_, named_at| *named_at >= since);
        over
    }

    /// Makes room for a comet of this source; returns the evicted one, if any.
    pub(super) fn make_room(
        &mut self,
        source: Source,
        limits: &TableLimits,
    ) -> Result<Option<Arc<Comet>>, TableFull> {
        let named = self.comets.values().filter(|comet| comet.state.source() == Source::Named).count();
        let (full, kind, most, key) = match source {
            // Comets that an operator lists are never refused.
            Source::Configured | Source::Dns | Source::Discovery => return Ok(None),
            Source::Named if named >= limits.max_named => {
                (true, "that only records or policies named are known", limits.max_named, "max_named")
            }
            _ => (self.comets.len() >= limits.max_comets, "are known", limits.max_comets, "max_comets"),
        };
        if !full {
            return Ok(None);
        }
        let first = self.eviction_candidate(source, limits).ok_or(TableFull { most, kind, key })?;
        Ok(self.remove_comet(&first))
    }

    /// The comet to evict for one of this source. Comets that only records named go before those of
    /// the directory, then those that never answered, then the one that has been silent longest.
    /// A comet with queued calls stays, unless only records named it and it has not given a first
    /// answer in time: then its queued calls fail.
    fn eviction_candidate(&self, source: Source, limits: &TableLimits) -> Option<CometAddr> {
        let may_go = |state: &CometState| {
            let of = state.source();
            let is_lesser = match source {
                Source::Named => of == Source::Named || of == Source::Retired,
                // A comet of the directory is evicted only if it never answered.
                _ => {
                    matches!(of, Source::Named | Source::Retired)
                        || (of == Source::Directory && !state.has_answered())
                }
            };
            // A comet that was called and has not answered in time can be evicted.
            let is_silent = state.source() == Source::Named
                && !state.has_answered()
                && state.silent_for() >= limits.first_answer_timeout;
            is_lesser && (state.unsettled() == 0 || is_silent)
        };
        let candidates = self.comets.values().map(|comet| &comet.state).filter(|state| may_go(state));
        let order = |state: &&Arc<CometState>| {
            let is_of_directory = state.source() == Source::Directory;
            (is_of_directory, state.has_answered(), Reverse(state.silent_for()))
        };
        candidates.min_by_key(order).map(|state| state.address.clone())
    }

    fn remove_comet(&mut self, address: &CometAddr) -> Option<Arc<Comet>> {
        let comet = self.comets.remove(address)?;
        if comet.state.named_at() > 0 && self.forgotten.len() < MAX_FORGOTTEN {
            self.forgotten.insert(address.clone(), comet.state.named_at());
        }
        Some(comet)
    }
}

/// How many forgotten comets are remembered.
const MAX_FORGOTTEN: usize = 10_000;
