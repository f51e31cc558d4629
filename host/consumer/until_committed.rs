//! Values that are kept until the offset of their record is committed.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Keeps values until the offset of their record is committed, and drops them then. Clones share
/// the values. Nothing is kept longer than the time limit, in case Kafka refuses commits, nor once
/// the partition closes.
#[derive(Clone, Default, derive_more::Debug)]
#[debug("UntilCommitted of {} offsets", _0.lock().values.len())]
pub struct UntilCommitted(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    /// The first offset that is not committed.
    committed: i64,
    is_closed: bool,
    /// By offset.
    values: BTreeMap<i64, Vec<Value>>,
}

struct Value {
    until: Instant,
    /// Only dropped.
    _value: Box<dyn Any + Send>,
}

impl UntilCommitted {
    /// Drops the value when the record at this offset is committed, and after `at_most` in any case.
    pub fn keep(&self, offset: i64, value: impl Any + Send, at_most: Duration) {
        let mut kept = self.0.lock();
        if !kept.is_closed && offset >= kept.committed {
            let value = Value { until: Instant::now() + at_most, _value: Box::new(value) };
            kept.values.entry(offset).or_default().push(value);
        }
    }

    /// All records before this offset are committed.
    pub(super) fn note_committed(&self, offset: i64) {
        let mut kept = self.0.lock();
        kept.committed = offset;
        let rest = kept.values.split_off(&offset);
        let over = std::mem::replace(&mut kept.values, rest);
        drop(kept);
        // Dropped without the lock: values run code.
        drop(over);
    }

    /// Drops the values whose time is up.
    pub(super) fn expire(&self, now: Instant) {
        let mut kept = self.0.lock();
        let mut over = Vec::new();
        kept.values.retain(|_, values| {
            over.extend(values.extract_if(.., |value| value.until <= now));
            !values.is_empty()
        });
        drop(kept);
        drop(over);
    }

    /// Another log begins: offsets start again.
    pub(super) fn reset(&self) {
        drop(std::mem::take(&mut *self.0.lock()));
    }

    /// Drops everything; nothing more is kept.
    pub(super) fn close(&self) {
        let over = std::mem::replace(&mut *self.0.lock(), Kept { is_closed: true, ..Kept::default() });
        drop(over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_value_is_kept_until_its_record_is_committed() {
        let kept = UntilCommitted::default();
        let (five, six) = (Arc::new(()), Arc::new(()));
        kept.keep(5, Arc::clone(&five), LONG);
        kept.keep(6, Arc::clone(&six), LONG);
        kept.note_committed(5);
        assert_eq!(Arc::strong_count(&five), 2, "5 is the first that is not committed");
        kept.note_committed(6);
        assert_eq!((Arc::strong_count(&five), Arc::strong_count(&six)), (1, 2));
        kept.keep(5, Arc::clone(&five), LONG);
        assert_eq!(Arc::strong_count(&five), 1, "it is committed already");
    }

    #[test]
    fn nothing_is_kept_for_ever() {
        let kept = UntilCommitted::default();
        let value = Arc::new(());
        kept.keep(5, Arc::clone(&value), Duration::ZERO);
        kept.keep(5, Arc::clone(&value), LONG);
        kept.expire(Instant::now());
        assert_eq!(Arc::strong_count(&value), 2);
        kept.close();
        kept.keep(5, Arc::clone(&value), LONG);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_new_log_starts_again() {
        let kept = UntilCommitted::default();
        kept.note_committed(100);
        kept.reset();
        let value = Arc::new(());
        kept.keep(0, Arc::clone(&value), LONG);
        assert_eq!(Arc::strong_count(&value), 2);
    }
}
