//! The table of known comets: who gets a BROADCAST, who has to make room for whom, who is
//! forgotten.
//!
//! Trust decides. What the configuration, DNS and discovery name is always known and always gets
//! BROADCASTs. What entries of the directory name gets them, too, as long as it was named lately
//! or answers. What only a producer (`server`) or a policy named gets what is sent there and
//! nothing else, and has a budget of its own: however many addresses records name, they push
//! out only each other.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::breaker::State;
use super::comet::Comet;
use super::job::{Source, Standing};
use crate::message::CometAddr;

/// The comets by address, and what was known of those that are not there any more.
#[derive(Default)]
pub(super) struct Known {
    pub(super) comets: HashMap<CometAddr, Arc<Comet>>,
    /// When the directory last named comets that were forgotten since: the list that gateways
    /// share still has them.
    pub(super) forgotten: HashMap<CometAddr, u64>,
    pub(super) closed: bool,
}

/// For how long what is known holds, and how much of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_comets: usize,
    pub(super) max_named: usize,
    pub(super) stale_after: Duration,
    pub(super) remember: Duration,
    pub(super) idle_after: Duration,
    /// How long a comet that only records named has to answer for the first time, when others
    /// need its place.
    pub(super) chance: Duration,
}

/// That there was no room for a comet, for the readiness warnings.
#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<Option<(Instant, String)>>);

/// For how long after the last time it stands there.
const LASTS: Duration = Duration::from_secs(30);

impl Crowd {
    pub(super) fn note(&self, full: &str, now: Instant) {
        *self.0.lock() = Some((now, full.to_owned()));
    }

    /// The warning, while it has not been long.
    pub(super) fn warning(&self, now: Instant) -> Option<String> {
        let last = self.0.lock();
        let (_, full) = last.as_ref().filter(|(at, _)| now.duration_since(*at) < LASTS)?;
        Some(format!("comets that are not known yet cannot be reached: {full}"))
    }
}

/// No room for another comet: which limit, and the key that raises it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{most} comets {kind}; raise [comets] {key} if that is right")]
pub(super) struct Full {
    most: usize,
    kind: &'static str,
    key: &'static str,
}

impl Limits {
    /// Whether a BROADCAST has to reach this comet.
    pub(super) fn gets_broadcasts(&self, standing: &Standing, now_ms: u64) -> bool {
        match standing.source() {
            Source::Configured | Source::Dns | Source::Discovery => true,
            Source::Directory => !self.is_presumed_gone(standing, now_ms),
            Source::Named | Source::Retired => false,
        }
    }

    /// Whether no entry of the directory has named it lately.
    pub(super) fn is_stale(&self, standing: &Standing, now_ms: u64) -> bool {
        now_ms.saturating_sub(standing.named_at()) > millis(self.stale_after)
    }

    /// No entry has named it lately, and it does not answer: a comet that ended, or came back
    /// under another address.
    fn is_presumed_gone(&self, standing: &Standing, now_ms: u64) -> bool {
        self.is_stale(standing, now_ms) && standing.state() != State::Closed
    }

    fn is_over(&self, standing: &Standing, now_ms: u64) -> bool {
        let is_silent = standing.unsettled() == 0 && standing.silent_for() >= self.idle_after;
        match standing.source() {
            Source::Configured | Source::Dns | Source::Discovery => false,
            Source::Named | Source::Retired => is_silent,
            Source::Directory => {
                let is_out_of_mind = now_ms.saturating_sub(standing.named_at()) > millis(self.remember);
                is_silent && (is_out_of_mind || self.is_presumed_gone(standing, now_ms))
            }
        }
    }
}

impl Known {
    /// Whether this is a comet that the configuration, discovery or the directory named.
    pub(super) fn has_own(&self, address: &CometAddr) -> bool {
        self.comets.get(address).is_some_and(|comet| comet.standing.source().is_own())
    }

    /// Notes that an entry of the directory named a comet. False where that changes what it counts
    /// for, or that it is known at all.
    pub(super) fn note_sighting(&self, address: &CometAddr, at_ms: u64) -> bool {
        match self.comets.get(address).filter(|comet| !comet.is_dead()) {
            Some(comet) => {
                comet.standing.note_named(at_ms);
                match comet.standing.source() {
                    // An operator took it out; what was seen before says nothing against that.
                    Source::Retired => at_ms <= comet.standing.retired_at(),
                    source => source != Source::Named,
                }
            }
            // What was seen before it was forgotten is no news.
            None => self.closed || self.forgotten.get(address).is_some_and(|named_at| *named_at >= at_ms),
        }
    }

    /// Takes the comets out that are over, and returns them.
    pub(super) fn tidy(&mut self, limits: &Limits, now_ms: u64) -> Vec<Arc<Comet>> {
        let over: Vec<_> =
            self.comets.values().filter(|comet| limits.is_over(&comet.standing, now_ms)).cloned().collect();
        for comet in &over {
            self.take_out(&comet.standing.address);
        }
        let since = now_ms.saturating_sub(millis(limits.remember));
        self.forgotten.retain(|_, named_at| *named_at >= since);
        over
    }

    /// Makes room for one more comet of this source; returns the one that had to go.
    pub(super) fn make_room(&mut self, source: Source, limits: &Limits) -> Result<Option<Arc<Comet>>, Full> {
        let named = self.comets.values().filter(|comet| comet.standing.source() == Source::Named).count();
        let (full, kind, most, key) = match source {
            // What an operator wrote down is not refused.
            Source::Configured | Source::Dns | Source::Discovery => return Ok(None),
            Source::Named if named >= limits.max_named => {
                (true, "that only records and policies named are known", limits.max_named, "max_named")
            }
            _ => (self.comets.len() >= limits.max_comets, "are known", limits.max_comets, "max_comets"),
        };
        if !full {
            return Ok(None);
        }
        let first = self.first_to_go(source, limits).ok_or(Full { most, kind, key })?;
        Ok(self.take_out(&first))
    }

    /// Who has to go for a comet of this source: one that never answered before one that did, of
    /// those one that only records named before one of the directory, and then the one that has
    /// been silent for longest. Nobody who has something to do, but for one that only records named
    /// and that has had its chance to answer: it gives up what waits for it.
    fn first_to_go(&self, source: Source, limits: &Limits) -> Option<CometAddr> {
        let may_go = |standing: &Standing| {
            let of = standing.source();
            let is_lesser = match source {
                Source::Named => of == Source::Named || of == Source::Retired,
                // One of the directory goes only where it never answered.
                _ => {
                    matches!(of, Source::Named | Source::Retired)
                        || (of == Source::Directory && !standing.has_answered())
                }
            };
            // One that was called and never answered holds no place for longer than that takes.
            let is_silent = standing.source() == Source::Named
                && !standing.has_answered()
                && standing.silent_for() >= limits.chance;
            is_lesser && (standing.unsettled() == 0 || is_silent)
        };
        let candidates =
            self.comets.values().map(|comet| &comet.standing).filter(|standing| may_go(standing));
        let order = |standing: &&Arc<Standing>| {
            let is_of_directory = standing.source() == Source::Directory;
            (is_of_directory, standing.has_answered(), Reverse(standing.silent_for()))
        };
        candidates.min_by_key(order).map(|standing| standing.address.clone())
    }

    fn take_out(&mut self, address: &CometAddr) -> Option<Arc<Comet>> {
        let comet = self.comets.remove(address)?;
        if comet.standing.named_at() > 0 && self.forgotten.len() < MAX_FORGOTTEN {
            self.forgotten.insert(address.clone(), comet.standing.named_at());
        }
        Some(comet)
    }
}

/// How many forgotten comets are remembered as such.
const MAX_FORGOTTEN: usize = 10_000;

/// A time in milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970-01-01 UTC.
pub(super) fn now_ms() -> u64 {
    crate::time::to_ms(std::time::SystemTime::now())
}
