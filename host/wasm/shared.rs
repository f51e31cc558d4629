//! One plugin's view of the state that gateways share, during one batch.
//!
//! A hook cannot wait, so nothing is fetched while it runs. Reads of unknown keys are recorded. The
//! call's result is then discarded; the caller fetches the values for the whole batch at once and
//! calls again. Writes are buffered, visible to later calls, and returned at the end. Writes of a
//! failed call are discarded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::wasm::state::{MAX_KEY, StateError, check_size};
use crate::wasm::state_usage::{QuotaExceeded, StateUsage};

/// The maximum number of keys that are fetched at once.
const MAX_WANTED: usize = 1_000;
/// The maximum size of one batch's writes, in bytes of keys and values.
const MAX_WRITTEN: usize = 16 * 1024 * 1024;
/// The longest time to live, and the default.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a write to the shared state is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SharedStateError {
    #[error(transparent)]
    Size(#[from] StateError),
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    #[error("one batch would write more than {MAX_WRITTEN} bytes")]
    Batch,
    #[error("shared state is available in `filter` only")]
    Closed,
}

/// How a call violated a limit on reads: the second half of a sentence that begins with the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadViolation {
    #[error("reads different keys of its shared state on every call")]
    Unstable,
    #[error("reads more than {MAX_WANTED} keys of its shared state in a batch")]
    TooMany,
}

/// A value and its time to live; `None` for a deleted key.
pub(crate) type WrittenValue = Option<(Vec<u8>, Duration)>;

/// Connects one plugin's instance and its chain. Closed outside of `filter`.
#[derive(Debug)]
pub(crate) struct SharedStateSession {
    batch: Mutex<BatchState>,
    /// How much shared state the plugin uses, and its limit.
    usage: Arc<StateUsage>,
    most: usize,
}

#[derive(Debug, Default)]
struct BatchState {
    is_open: bool,
    /// Whether no more values can be fetched.
    is_last: bool,
    known: HashMap<String, Option<Vec<u8>>>,
    /// Written by calls that succeeded.
    written: BTreeMap<String, WrittenValue>,
    /// Bytes of these.
    size: usize,
    /// By how much they increase the plugin's total.
    growth: usize,
    wanted: BTreeSet<String>,
    call: CallState,
}

/// What the current call did.
#[derive(Debug, Default)]
struct CallState {
    written: BTreeMap<String, WrittenValue>,
    /// Bytes of these.
    size: usize,
    growth: usize,
    wanted: BTreeSet<String>,
    violation: Option<ReadViolation>,
}

/// The result of a batch.
pub(crate) struct BatchResult {
    /// The keys to fetch. If there are any, the rest is meaningless.
    pub(crate) wanted: Vec<String>,
    pub(crate) written: BTreeMap<String, WrittenValue>,
}

impl SharedStateSession {
    /// For a plugin with this account and this limit in bytes.
    pub(crate) fn new(usage: Arc<StateUsage>, most: usize) -> Self {
        Self { batch: Mutex::default(), usage, most }
    }

    /// Begins a batch with the fetched values. In the last round, reading an unknown key is a
    /// failure.
    pub(crate) fn open(&self, known: HashMap<String, Option<Vec<u8>>>, is_last: bool) {
        *self.batch.lock() = BatchState { is_open: true, is_last, known, ..BatchState::default() };
    }

    /// Ends the batch.
    pub(crate) fn close(&self) -> BatchResult {
        let batch = std::mem::take(&mut *self.batch.lock());
        if batch.wanted.is_empty() {
            let now = Instant::now();
            for (key, written) in &batch.written {
                let value = written.as_ref().map(|(value, ttl)| (value.len(), *ttl));
                self.usage.note(key, value, now);
            }
        }
        BatchResult { wanted: batch.wanted.into_iter().collect(), written: batch.written }
    }

    /// Ends a call. Its writes are kept if it succeeded; its reads are kept always, since it may have
    /// failed for lack of a value.
    ///
    /// # Errors
    /// When it violated a limit.
    pub(crate) fn end_call(&self, succeeded: bool) -> Result<(), ReadViolation> {
        let mut batch = self.batch.lock();
        let call = std::mem::take(&mut batch.call);
        if let Some(violation) = call.violation {
            return Err(violation);
        }
        batch.wanted.extend(call.wanted);
        if succeeded {
            batch.growth += call.growth;
            for (key, written) in call.written {
                let more = size(&key, &written);
                let replaced = batch.written.get(&key).map_or(0, |old| size(&key, old));
                batch.size = batch.size - replaced + more;
                batch.written.insert(key, written);
            }
        }
        Ok(())
    }

    /// Whether the current call will be repeated: its side effects are discarded.
    pub(crate) fn needs_refetch(&self) -> bool {
        let batch = self.batch.lock();
        !batch.wanted.is_empty() || !batch.call.wanted.is_empty()
    }

    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let batch = &mut *self.batch.lock();
        if !batch.is_open || key.len() > MAX_KEY {
            return None;
        }
        if let Some(written) = batch.call.written.get(key).or_else(|| batch.written.get(key)) {
            return written.as_ref().map(|(value, _)| value.clone());
        }
        if let Some(known) = batch.known.get(key) {
            return known.clone();
        }
        if batch.is_last {
            batch.call.violation = Some(ReadViolation::Unstable);
        } else if batch.wanted.len() + batch.call.wanted.len() >= MAX_WANTED {
            batch.call.violation = Some(ReadViolation::TooMany);
        } else {
            batch.call.wanted.insert(key.to_owned());
        }
        None
    }

    /// # Errors
    /// Names the limit that was exceeded; nothing is changed then.
    pub(crate) fn set(
        &self,
        key: String,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> Result<(), SharedStateError> {
        check_size(&key, &value)?;
        let ttl = ttl.unwrap_or(LONGEST).clamp(Duration::from_millis(1), LONGEST);
        self.write(key, Some((value, ttl)))
    }

    pub(crate) fn delete(&self, key: String) {
        if key.len() <= MAX_KEY {
            // If it cannot be recorded, the plugin could do nothing about it either.
            drop(self.write(key, None));
        }
    }

    fn write(&self, key: String, written: WrittenValue) -> Result<(), SharedStateError> {
        let mut batch = self.batch.lock();
        if !batch.is_open {
            return Err(SharedStateError::Closed);
        }
        let replaced = batch.call.written.get(&key).map_or(0, |old| size(&key, old));
        let in_call = batch.call.size - replaced + size(&key, &written);
        if batch.size + in_call > MAX_WRITTEN {
            return Err(SharedStateError::Batch);
        }
        if let Some((value, _)) = &written {
            let growth = self.usage.growth(&key, value.len());
            self.usage.fits(batch.growth + batch.call.growth + growth, self.most, Instant::now())?;
            batch.call.growth += growth;
        }
        batch.call.size = in_call;
        batch.call.written.insert(key, written);
        Ok(())
    }
}

fn size(key: &str, written: &WrittenValue) -> usize {
    key.len() + written.as_ref().map_or(0, |(value, _)| value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest value, in bytes.
    const VALUE: usize = 64 * 1024;

    #[test]
    fn unknown_keys_are_requested_and_writes_are_visible() {
        let session = SharedStateSession::new(Arc::default(), usize::MAX);
        assert!(session.set("a".into(), vec![1], None).is_err(), "closed");
        session.open(HashMap::new(), false);
        assert_eq!(session.get("a"), None);
        session.end_call(true).unwrap();
        assert!(session.needs_refetch());
        assert_eq!(session.close().wanted, ["a"]);

        session.open([("a".to_owned(), Some(vec![7]))].into(), false);
        assert_eq!(session.get("a"), Some(vec![7]));
        session.set("a".into(), vec![8], Some(Duration::ZERO)).unwrap();
        session.end_call(true).unwrap();
        session.set("a".into(), vec![9], None).unwrap();
        session.end_call(false).unwrap();
        assert_eq!(session.get("a"), Some(vec![8]), "what a failed call wrote is forgotten");
        session.delete("b".into());
        session.end_call(true).unwrap();
        let closed = session.close();
        assert_eq!((closed.wanted.len(), closed.written["b"].clone()), (0, None));
        assert_eq!(closed.written["a"], Some((vec![8], Duration::from_millis(1))));
    }

    #[test]
    fn limits_are_named() {
        let session = SharedStateSession::new(Arc::default(), usize::MAX);
        session.open(HashMap::new(), false);
        assert_eq!(session.set("k".repeat(513), vec![], None), Err(StateError::Key(513).into()));
        let long = session.set("k".into(), vec![0; VALUE + 1], None);
        assert_eq!(long, Err(StateError::Value(VALUE + 1).into()));
        session.set("k".into(), vec![], Some(Duration::MAX)).unwrap();
        let fit = (0..300).filter(|n| session.set(format!("{n}"), vec![0; VALUE], None).is_ok()).count();
        assert_eq!(fit, 255);
        (0..=MAX_WANTED).for_each(|n| assert_eq!(session.get(&format!("read {n}")), None));
        assert!(session.end_call(true).unwrap_err().to_string().contains("more than 1000 keys"));
        session.open(HashMap::new(), true);
        assert_eq!(session.get("a"), None);
        assert_eq!(session.end_call(true), Err(ReadViolation::Unstable));
    }

    #[test]
    fn the_quota_spans_batches_and_workers() {
        let usage = Arc::<StateUsage>::default();
        let session = |most| SharedStateSession::new(Arc::clone(&usage), most);
        let write = |session: &SharedStateSession, from: usize, count: usize| {
            session.open(HashMap::new(), true);
            let fit =
                (from..from + count).filter(|n| session.set(format!("{n}"), vec![0; VALUE], None).is_ok());
            let fit = fit.count();
            session.end_call(true).unwrap();
            session.close();
            fit
        };
        let most = 10 * (VALUE + 200);
        assert_eq!(write(&session(most), 0, 8), 8);
        assert_eq!(write(&session(most), 100, 8), 2, "of another worker as well");
        assert_eq!(write(&session(most), 0, 8), 8, "what is there may be written again");
        let forgetful = session(most);
        forgetful.open(HashMap::new(), true);
        forgetful.delete("0".into());
        forgetful.end_call(true).unwrap();
        forgetful.close();
        assert_eq!(write(&session(most), 200, 2), 1);
    }
}
