//! The host's functions without a host: a clock that tests set, and a log, counters, gauges and state
//! in memory.
//!
//! They act on the current [`Gateway`] of this thread: the one of the harness that called the policy,
//! or the thread's own if policy code is called directly.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use crate::log::Level;

/// The maximum size of a key and of a value of the state, in bytes: the gateway's own limits.
const MAX_KEY: usize = 512;
const MAX_VALUE: usize = 64 * 1024;

/// The host's data for one policy.
#[derive(Clone, Default)]
pub(super) struct Gateway(Rc<RefCell<GatewayState>>);

#[derive(Default)]
struct GatewayState {
    now: Duration,
    logged: Vec<(Level, String)>,
    counters: HashMap<String, u64>,
    gauges: HashMap<String, f64>,
    /// Values and their expiry.
    state: HashMap<String, (Vec<u8>, Option<Duration>)>,
}

thread_local! {
    static AT_WORK: RefCell<Gateway> = RefCell::default();
}

impl Gateway {
    /// Runs policy code with this gateway as the current one.
    pub(super) fn around<R>(&self, body: impl FnOnce() -> R) -> R {
        let before = AT_WORK.replace(self.clone());
        let result = body();
        AT_WORK.replace(before);
        result
    }

    pub(super) fn now(&self) -> Duration {
        self.0.borrow().now
    }

    pub(super) fn set_now(&self, now: Duration) {
        self.0.borrow_mut().now = now;
    }

    pub(super) fn logged(&self) -> Vec<(Level, String)> {
        self.0.borrow().logged.clone()
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        self.0.borrow().counters.get(name).copied().unwrap_or(0)
    }

    pub(super) fn gauge(&self, name: &str) -> Option<f64> {
        self.0.borrow().gauges.get(name).copied()
    }
}

fn at_work<R>(body: impl FnOnce(&mut GatewayState) -> R) -> R {
    AT_WORK.with_borrow(|gateway| body(&mut gateway.0.borrow_mut()))
}

pub(crate) fn log(level: Level, message: &str) {
    at_work(|kept| kept.logged.push((level, message.to_owned())));
}

pub(crate) fn now() -> u64 {
    at_work(|kept| kept.now.as_millis() as u64)
}

pub(crate) fn counter_add(name: &str, value: u64) {
    at_work(|kept| *kept.counters.entry(name.to_owned()).or_default() += value);
}

pub(crate) fn gauge_set(name: &str, value: f64) {
    at_work(|kept| kept.gauges.insert(name.to_owned(), value));
}

pub(crate) fn state_get(key: &str) -> Option<Vec<u8>> {
    at_work(|kept| {
        let (value, expires) = kept.state.get(key)?;
        expires.is_none_or(|at| at > kept.now).then(|| value.clone())
    })
}

pub(crate) fn state_set(key: &str, value: &[u8], ttl_ms: Option<u64>) -> Result<(), String> {
    for (what, size, most) in [("key", key.len(), MAX_KEY), ("value", value.len(), MAX_VALUE)] {
        if size > most {
            return Err(format!("the {what} has {size} bytes; the limit is {most}"));
        }
    }
    at_work(|kept| {
        let expires = ttl_ms.map(|ttl| kept.now.saturating_add(Duration::from_millis(ttl)));
        kept.state.insert(key.to_owned(), (value.to_vec(), expires));
    });
    Ok(())
}

pub(crate) fn state_delete(key: &str) {
    at_work(|kept| kept.state.remove(key));
}
