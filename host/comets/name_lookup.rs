//! Resolves the names of comets, on a bounded number of threads.
//!
//! The system's resolver blocks a thread while a DNS server does not answer, and cannot be
//! cancelled. A room may name a thousand comets, each of which is dialled repeatedly: without a
//! bound, their look-ups would take every blocking thread of the process and delay its shutdown. So
//! look-ups have their own limit of threads, with one look-up per name at a time. A name backs off
//! after a slow failure, and names that resolved before do not wait behind those that never did.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::backoff::Backoff;

/// Threads for names that never resolved, and for those that did.
const MAX_UNPROVEN_LOOKUPS: usize = 24;
const MAX_PROVEN_LOOKUPS: usize = 8;
/// If a look-up fails after this long, the DNS server did not answer.
const SLOW: Duration = Duration::from_secs(1);
/// How long a name then backs off, at first and at most.
const REST: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// How many names are remembered.
const MAX_NAMES: usize = 8_192;

/// The addresses (their ports are meaningless), or the error.
type LookupResult = Result<Arc<[SocketAddr]>, Arc<str>>;
type ResolveFn = dyn Fn(&str) -> std::io::Result<Vec<SocketAddr>> + Send + Sync;

/// Resolves names. Clones share their threads.
#[derive(Clone)]
pub(super) struct NameLookup(Arc<LookupState>);

struct LookupState {
    resolver: Box<ResolveFn>,
    names: Mutex<HashMap<String, NameEntry>>,
    unproven: Arc<Semaphore>,
    proven: Arc<Semaphore>,
}

#[derive(Default)]
struct NameEntry {
    running: Option<watch::Receiver<Option<LookupResult>>>,
    /// The last look-up succeeded.
    proven: bool,
    backoff: Option<NameBackoff>,
}

struct NameBackoff {
    until: Instant,
    backoff: Backoff,
    why: Arc<str>,
}

impl Default for NameLookup {
    fn default() -> Self {
        Self::new(|name| Ok((name, 0).to_socket_addrs()?.collect()))
    }
}

impl NameLookup {
    fn new(resolver: impl Fn(&str) -> std::io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(LookupState {
            resolver: Box::new(resolver),
            names: Mutex::default(),
            unproven: Arc::new(Semaphore::new(MAX_UNPROVEN_LOOKUPS)),
            proven: Arc::new(Semaphore::new(MAX_PROVEN_LOOKUPS)),
        }))
    }

    /// The addresses of a name. Dropping the future stops waiting; a running look-up continues, and
    /// its result is kept for the next caller.
    pub(super) async fn look_up(&self, name: &str) -> LookupResult {
        let mut running = match self.0.begun(name) {
            Ok(running) => running,
            Err(answer) => match answer {
                Some(resting) => return Err(resting),
                None => self.0.begin(name).await?,
            },
        };
        let found = running.wait_for(Option::is_some).await;
        found.ok().and_then(|found| found.clone()).unwrap_or_else(|| Err("its look-up was cancelled".into()))
    }
}

impl LookupState {
    /// The running look-up, if any. The error is the last failure of a name that is backing off,
    /// `None` if a look-up may start.
    fn begun(&self, name: &str) -> Result<watch::Receiver<Option<LookupResult>>, Option<Arc<str>>> {
        let names = self.names.lock();
        let Some(entry) = names.get(name) else { return Err(None) };
        if let Some(running) = &entry.running {
            return Ok(running.clone());
        }
        match &entry.backoff {
            Some(rest) if Instant::now() < rest.until => Err(Some(Arc::clone(&rest.why))),
            _ => Err(None),
        }
    }

    /// Starts a look-up as soon as a thread is free, unless one is running by then.
    async fn begin(self: &Arc<Self>, name: &str) -> Result<watch::Receiver<Option<LookupResult>>, Arc<str>> {
        let is_proven = self.names.lock().get(name).is_some_and(|entry| entry.proven);
        let threads = if is_proven { &self.proven } else { &self.unproven };
        let thread = Arc::clone(threads).acquire_owned().await;
        let thread = thread.map_err(|_| Arc::from("name look-ups have ended"))?;
        match self.begun(name) {
            Ok(running) => return Ok(running),
            Err(Some(resting)) => return Err(resting),
            Err(None) => {}
        }
        let (done, running) = watch::channel(None);
        self.note_begun(name, running.clone());
        let (inner, name) = (Arc::clone(self), name.to_owned());
        tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let found = (inner.resolver)(&name).map(Arc::from).map_err(|error| Arc::from(error.to_string()));
            inner.note_found(&name, &found, started.elapsed());
            done.send_replace(Some(found));
            drop(thread);
        });
        Ok(running)
    }

    fn note_begun(&self, name: &str, running: watch::Receiver<Option<LookupResult>>) {
        let mut names = self.names.lock();
        if names.len() >= MAX_NAMES {
            names.retain(|_, entry| entry.running.is_some());
        }
        names.entry(name.to_owned()).or_default().running = Some(running);
    }

    fn note_found(&self, name: &str, found: &LookupResult, took: Duration) {
        let mut names = self.names.lock();
        let entry = names.entry(name.to_owned()).or_default();
        entry.running = None;
        entry.proven = found.is_ok();
        entry.backoff = match found {
            Err(why) if took >= SLOW => {
                let mut backoff = entry.backoff.as_ref().map_or(REST, |rest| rest.backoff);
                let until = Instant::now() + backoff.next_wait(fastrand::f64());
                let why = format!("its name could not be looked up: {why}; the DNS server took {took:.0?}");
                Some(NameBackoff { until, backoff, why: why.into() })
            }
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Names that begin with `dead` take long, and fail.
    #[allow(clippy::disallowed_methods, reason = "a resolver that blocks its thread is what this is about")]
    fn lookup(took: Duration, asked: &Arc<AtomicUsize>) -> NameLookup {
        let asked = Arc::clone(asked);
        NameLookup::new(move |name| {
            asked.fetch_add(1, Ordering::Relaxed);
            if name.starts_with("dead") {
                std::thread::sleep(took);
                return Err(std::io::Error::other("no answer"));
            }
            Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))])
        })
    }

    #[tokio::test]
    async fn a_name_is_resolved_once_for_all_callers() {
        let asked = Arc::default();
        let lookup = lookup(Duration::from_millis(100), &asked);
        let all = futures_util::future::join_all((0..50).map(|_| lookup.look_up("dead"))).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(lookup.look_up("there").await.is_ok());
    }

    #[tokio::test]
    async fn unanswered_look_ups_do_not_block_proven_names() {
        let asked = Arc::default();
        let lookup = lookup(Duration::from_millis(1_500), &asked);
        lookup.look_up("there").await.expect("found");
        let mut waiting = tokio::task::JoinSet::new();
        for number in 0..200 {
            let lookup = lookup.clone();
            waiting.spawn(async move { lookup.look_up(&format!("dead-{number}")).await });
        }
        while lookup.0.unproven.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        lookup.look_up("there").await.expect("found while they are busy");
        assert_eq!(asked.load(Ordering::Relaxed), 2 + MAX_UNPROVEN_LOOKUPS);
        waiting.abort_all();
    }

    #[tokio::test]
    async fn a_name_without_an_answer_backs_off() {
        let asked = Arc::default();
        let lookup = lookup(SLOW, &asked);
        let first = lookup.look_up("dead").await.expect_err("no answer");
        assert_eq!(&*first, "no answer");
        let again = lookup.look_up("dead").await.expect_err("it rests");
        assert!(again.contains("could not be looked up"), "{again}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
