//! The clock behind the plugins' deadlines: a thread that advances the engine's epoch while guests
//! run, and sleeps once none has run for a second, so that an idle gateway does not wake up two
//! hundred times a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use wasmtime::Engine;

/// The resolution of plugins' deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// After how many ticks without a guest a ticker sleeps.
const IDLE_TICKS: u32 = 200;

/// The running guests and the sleeping tickers of the whole process, since a store does not know its
/// ticker.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
static SLEEPING: AtomicUsize = AtomicUsize::new(0);
static WAKE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

/// A running guest; deadlines are counted until it is dropped.
#[derive(Debug)]
pub(crate) struct RunningGuest(());

impl RunningGuest {
    pub(crate) fn begin() -> Self {
        RUNNING.fetch_add(1, Ordering::SeqCst);
        if SLEEPING.load(Ordering::SeqCst) > 0 {
            wake_tickers();
        }
        Self(())
    }
}

impl Drop for RunningGuest {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Wakes the sleeping tickers. A ticker that is about to sleep holds the lock while it checks whether
/// it may.
fn wake_tickers() {
    let (lock, bell) = &WAKE;
    drop(lock.lock());
    bell.notify_all();
}

/// The ticker's thread. Dropping this ends the thread and joins it. The thread holds the engine
/// weakly, so it keeps nothing alive.
#[derive(Debug)]
pub(crate) struct EpochTicker {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EpochTicker {
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let engine = engine.weak();
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ended);
        let tick = move || {
            let mut idle = 0;
            while !is_ended.load(Ordering::SeqCst) {
                #[allow(clippy::disallowed_methods, reason = "a clock waits for time")]
                std::thread::sleep(TICK);
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
                idle = if RUNNING.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
                if idle >= IDLE_TICKS {
                    drop(engine);
                    sleep_until_needed(&is_ended);
                    idle = 0;
                }
            }
        };
        let thread = std::thread::Builder::new().name("halley-epochs".into()).spawn(tick)?;
        Ok(Self { ended, thread: Some(thread) })
    }
}

fn sleep_until_needed(ended: &AtomicBool) {
    let (lock, bell) = &WAKE;
    let mut guard = lock.lock();
    SLEEPING.fetch_add(1, Ordering::SeqCst);
    while RUNNING.load(Ordering::SeqCst) == 0 && !ended.load(Ordering::SeqCst) {
        bell.wait(&mut guard);
    }
    SLEEPING.fetch_sub(1, Ordering::SeqCst);
}

impl Drop for EpochTicker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        wake_tickers();
        if let Some(thread) = self.thread.take() {
            // The thread cannot panic; and if it did, there would be nothing left to do.
            let _ = thread.join();
        }
    }
}

/// A deadline in ticks: rounded up, plus one because the current tick has begun.
pub(crate) fn ticks(deadline: Duration) -> u64 {
    let whole = deadline.as_nanos().div_ceil(TICK.as_nanos());
    u64::try_from(whole).unwrap_or(u64::MAX - 1).saturating_add(1).min(u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_rounded_up() {
        assert_eq!(ticks(Duration::from_millis(1)), 2);
        assert_eq!(ticks(Duration::from_millis(50)), 11);
        assert_eq!(ticks(Duration::from_millis(51)), 12);
        assert_eq!(ticks(Duration::MAX), u64::from(u32::MAX));
    }

    #[test]
    fn dropping_the_ticker_ends_its_thread() {
        let engine = Engine::default();
        drop(EpochTicker::start(&engine).unwrap());
    }

    #[test]
    fn a_sleeping_ticker_wakes_for_a_guest_and_for_its_drop() {
        let ended = Arc::new(AtomicBool::new(false));
        let sleeper = |ended: &Arc<AtomicBool>| {
            let ended = Arc::clone(ended);
            std::thread::spawn(move || sleep_until_needed(&ended))
        };
        let woken = sleeper(&ended);
        let running = RunningGuest::begin();
        woken.join().unwrap();
        drop(running);
        let woken = sleeper(&ended);
        ended.store(true, Ordering::SeqCst);
        wake_tickers();
        woken.join().unwrap();
    }
}
