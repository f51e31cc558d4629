//! The offset tracker under many interleavings of threads, by shuttle, whose locks switch to a random
//! other thread whenever they are taken: `cargo test --features models --lib model::`.
//!
//! A failure prints the seed that reproduces it (`SHUTTLE_RANDOM_SEED`).

use shuttle::sync::{self, Arc, Mutex};
use shuttle::thread;

use super::{AckHandle, OffsetTracker};

/// The number of interleavings.
const RUNS: usize = 3_000;
const RECORDS: i64 = 6;

#[test]
fn the_watermark_never_passes_an_unsettled_record() {
    shuttle::check_random(|| settle_in_threads(None), RUNS);
}

#[test]
fn a_handle_dropped_in_any_thread_holds_the_watermark() {
    shuttle::check_random(|| settle_in_threads(Some(3)), RUNS);
}

/// One thread admits, three settle, each in its own order, and one commits.
/// The handle of the record `lost` is dropped.
fn settle_in_threads(lost: Option<i64>) {
    let offsets = OffsetTracker::default();
    // Offsets about to be settled: noted first, so that the watermark never passes them.
    let begun: Arc<Mutex<Vec<i64>>> = Arc::default();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| sync::mpsc::channel()).unzip();
    let mut threads = Vec::new();
    for receiver in receivers {
        let begun = Arc::clone(&begun);
        threads.push(thread::spawn(move || {
            for (offset, ack) in receiver {
                if Some(offset) == lost {
                    drop(ack);
                    continue;
                }
                begun.lock().unwrap().push(offset);
                AckHandle::settle(ack);
            }
        }));
    }
    let committer = {
        let (offsets, begun) = (offsets.clone(), Arc::clone(&begun));
        thread::spawn(move || commit(&offsets, &begun))
    };
    for offset in 0..RECORDS {
        let ack = offsets.admit(offset, 10, None);
        senders[offset as usize % 3].send((offset, ack)).expect("its thread runs");
    }
    drop(senders);
    threads.into_iter().for_each(|thread| thread.join().expect("settles"));
    committer.join().expect("commits");

    assert_eq!(offsets.watermark(), Some(lost.unwrap_or(RECORDS)));
    let left = usize::from(lost.is_some());
    assert_eq!((offsets.unsettled().records, offsets.unsettled().bytes), (left, 10 * left));
}

/// Does what the polling thread does: reads the watermark repeatedly.
fn commit(offsets: &OffsetTracker, begun: &Mutex<Vec<i64>>) {
    let mut committed = 0;
    for _ in 0..8 {
        let watermark = offsets.watermark().unwrap_or(0);
        assert!(watermark >= committed, "back from {committed} to {watermark}");
        let begun = begun.lock().unwrap();
        let open = (0..watermark).find(|offset| !begun.contains(offset));
        assert_eq!(open, None, "the watermark is {watermark}");
        committed = watermark;
    }
}
