//! The status of comets, and what a BROADCAST reaches: for the admin API and `explain`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use super::breaker::BreakerState;
use super::source::{ChannelMode, Source};
use super::state::CometState;
use crate::message::CometAddr;

/// The status of one comet.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CometStatus {
    /// Its address.
    pub address: CometAddr,
    /// How it came to be known.
    pub source: Source,
    /// Whether BROADCASTs go there.
    pub broadcasts: bool,
    /// When an entry of the directory last named it, as far as gateways have seen.
    pub directory_named: Option<String>,
    /// How messages reach it now.
    pub delivery: ChannelMode,
    /// Whether calls are made.
    pub breaker: BreakerState,
    /// Messages in its queue.
    pub waiting: usize,
    /// Messages in flight.
    pub in_flight: usize,
    /// Messages that it has acknowledged since it became known.
    pub sent: u64,
    /// Messages that it has not accepted since it became known.
    pub failed: u64,
    /// The last error.
    pub last_error: Option<String>,
}

impl CometStatus {
    pub(super) fn of(state: &CometState, broadcasts: bool) -> Self {
        let in_flight = state.in_flight().load(Ordering::Relaxed);
        let named_at = Some(state.named_at()).filter(|at| *at > 0);
        let rfc3339 =
            |at| humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at)).to_string();
        Self {
            address: state.address.clone(),
            source: state.source(),
            broadcasts,
            directory_named: named_at.map(rfc3339),
            delivery: state.channel_mode(),
            breaker: state.breaker_state(),
            waiting: state.unsettled().saturating_sub(in_flight),
            in_flight,
            sent: state.metrics.success.get(),
            failed: state.metrics.failed.get(),
            last_error: state.last_error().map(|error| match state.source() {
                // A producer that names addresses must not learn here what listens there.
                Source::Named if !state.has_answered() => NEVER_ANSWERED.to_owned(),
                _ => error,
            }),
        }
    }
}

/// The error shown for a comet that only records or plugins named and that never answered.
const NEVER_ANSWERED: &str = "it has never answered like a comet; see its dead letters and the debug log";

/// The comets that a BROADCAST would reach.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BroadcastReach {
    /// The comets, in order of address.
    pub comets: Vec<CometAddr>,
    /// How many of them have which source.
    pub sources: BTreeMap<Source, usize>,
    /// Comets that the directory named before but not lately, and that do not answer: excluded.
    pub left_out: Vec<CometAddr>,
    #[serde(skip)]
    retention: Duration,
}

/// How many addresses one line names.
const MOST_SHOWN: usize = 20;

impl BroadcastReach {
    pub(super) fn of(statuses: &[CometStatus], retention: Duration) -> Self {
        let mut reach =
            Self { comets: Vec::new(), sources: BTreeMap::new(), left_out: Vec::new(), retention };
        for status in statuses {
            if status.broadcasts {
                reach.comets.push(status.address.clone());
                *reach.sources.entry(status.source).or_default() += 1;
            } else if status.source == Source::Directory {
                reach.left_out.push(status.address.clone());
            }
        }
        reach
    }

    /// Whether an operator lists comets: then the result does not depend on sightings.
    fn has_wanted(&self) -> bool {
        self.sources.keys().any(|source| source.is_configured())
    }

    /// Why the result may be incomplete.
    pub fn caveat(&self) -> Option<String> {
        let retention = humantime::format_duration(self.retention);
        (!self.has_wanted()).then(|| {
            format!(
                "no comet is configured: only comets that an entry of the directory has named lately are known ([comets] retention = {retention}); list all comets in [comets] nodes, or configure [comets.discovery]"
            )
        })
    }
}

impl fmt::Display for BroadcastReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.comets.len() {
            0 => return f.write_str("broadcasts reach nobody: no comet is known"),
            1 => f.write_str("broadcasts reach 1 comet: ")?,
            many => write!(f, "broadcasts reach {many} comets: ")?,
        }
        let shown: Vec<_> = self.comets.iter().take(MOST_SHOWN).map(CometAddr::as_str).collect();
        f.write_str(&shown.join(", "))?;
        if self.comets.len() > MOST_SHOWN { f.write_str(", ...") } else { Ok(()) }
    }
}
