//! How comets are doing and what a BROADCAST reaches: for people, the admin API and `explain`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use super::breaker::State;
use super::job::{Source, Standing};
use crate::message::CometAddr;

/// How one comet is doing, for people and the admin API.
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
    /// Whether calls are made.
    pub breaker: State,
    /// Messages that wait in its lanes.
    pub waiting: usize,
    /// Messages whose call is under way.
    pub in_flight: usize,
    /// Messages that it acknowledged since it is known.
    pub sent: u64,
    /// Messages that it did not take since it is known.
    pub failed: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

impl CometStatus {
    pub(super) fn of(standing: &Standing, broadcasts: bool) -> Self {
        let in_flight = standing.in_flight().load(Ordering::Relaxed);
        let named_at = Some(standing.named_at()).filter(|at| *at > 0);
        let rfc3339 =
            |at| humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(at)).to_string();
        Self {
            address: standing.address.clone(),
            source: standing.source(),
            broadcasts,
            directory_named: named_at.map(rfc3339),
            breaker: standing.state(),
            waiting: standing.unsettled().saturating_sub(in_flight),
            in_flight,
            sent: standing.metrics.success.get(),
            failed: standing.metrics.failed.get(),
            last_error: standing.last_error().map(|error| match standing.source() {
                // Whoever names addresses must not learn here what is behind them.
                Source::Named if !standing.has_answered() => NEVER_ANSWERED.to_owned(),
                _ => error,
            }),
        }
    }
}

/// What is told of a comet that only records or plugins named and that never answered.
const NEVER_ANSWERED: &str =
    "it has never answered as a comet does; its dead letters and the debug log say more";

/// What a BROADCAST would reach, and what is not known of that.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reach {
    /// The comets, in order of address.
    pub comets: Vec<CometAddr>,
    /// How many of them came to be known in which way.
    pub sources: BTreeMap<Source, usize>,
    /// Comets that the directory named once, that it has not named lately, and that do not
    /// answer: left out.
    pub left_out: Vec<CometAddr>,
    #[serde(skip)]
    remember: Duration,
}

/// How many addresses one line names.
const MOST_SHOWN: usize = 20;

impl Reach {
    pub(super) fn of(statuses: &[CometStatus], remember: Duration) -> Self {
        let mut reach = Self { comets: Vec::new(), sources: BTreeMap::new(), left_out: Vec::new(), remember };
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

    /// Whether an operator named comets: then the list does not depend on what was seen.
    fn has_wanted(&self) -> bool {
        self.sources.keys().any(|source| source.is_wanted())
    }

    /// What this does not know.
    pub fn caveat(&self) -> Option<String> {
        let remember = humantime::format_duration(self.remember);
        (!self.has_wanted()).then(|| {
            format!(
                "no comet is configured: those are known that an entry of the directory named to a gateway within the last {remember}; list all of them in [comets] nodes, or name a [comets.discovery]"
            )
        })
    }
}

impl fmt::Display for Reach {
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
