//! Tests of the watermark, by example and against a plain model.

use proptest::prelude::*;

use super::{OffsetTracker, UnsettledCount};

#[test]
fn the_watermark_waits_for_the_oldest_record() {
    let offsets = OffsetTracker::default();
    let [a, b, c] = [10, 11, 14].map(|offset| offsets.admit(offset, 100, None));
    assert_eq!(offsets.watermark(), None);
    b.settle();
    assert_eq!(offsets.watermark(), None);
    a.settle();
    assert_eq!(offsets.watermark(), Some(12));
    assert_eq!(offsets.unsettled(), UnsettledCount { records: 1, bytes: 100 });
    c.settle();
    assert_eq!(offsets.watermark(), Some(15));
    assert_eq!(offsets.unsettled(), UnsettledCount::default());
}

#[test]
fn the_first_unsettled_record_tells_its_age() {
    let offsets = OffsetTracker::default();
    let [a, b, c] = [(0, Some(7)), (1, None), (2, Some(5))].map(|(offset, at)| offsets.admit(offset, 1, at));
    assert_eq!(offsets.first_timestamp_ms(), Some(7), "the watermark waits for this one");
    c.settle();
    a.settle();
    assert_eq!(offsets.first_timestamp_ms(), None, "Kafka does not know");
    b.settle();
    assert_eq!(offsets.first_timestamp_ms(), None);
}

#[test]
fn a_dropped_handle_holds_the_watermark() {
    let offsets = OffsetTracker::default();
    let [a, b, c] = [0, 1, 2].map(|offset| offsets.admit(offset, 1, None));
    a.settle();
    drop(b);
    c.settle();
    assert_eq!(offsets.watermark(), Some(1));
    assert_eq!(offsets.unsettled().records, 1);
}

#[test]
fn a_duplicate_record_counts_once() {
    let offsets = OffsetTracker::default();
    let first = offsets.admit(5, 10, None);
    let again = offsets.admit(5, 10, None);
    assert_eq!(offsets.unsettled(), UnsettledCount { records: 1, bytes: 10 });
    again.settle();
    assert_eq!(offsets.watermark(), None, "the first one has no outcome yet");
    first.settle();
    assert_eq!(offsets.watermark(), Some(6));
    assert_eq!(offsets.unsettled(), UnsettledCount::default());
}

#[test]
fn the_watermark_never_moves_back() {
    let offsets = OffsetTracker::default();
    offsets.admit(500, 1, None).settle();
    let back = offsets.admit(0, 1, None);
    assert_eq!(offsets.unsettled().records, 0, "it is of another log and counts for nothing");
    back.settle();
    assert_eq!(offsets.watermark(), Some(501));
}

#[test]
fn offsets_without_records_are_skipped_when_all_is_settled() {
    let offsets = OffsetTracker::default();
    let open = offsets.admit(3, 1, None);
    offsets.skip_to(9);
    assert_eq!(offsets.watermark(), None, "the record at 3 has no outcome yet");
    open.settle();
    offsets.skip_to(9);
    assert_eq!(offsets.watermark(), Some(9));
    offsets.skip_to(4);
    assert_eq!(offsets.watermark(), Some(9), "never back");
    offsets.admit(9, 1, None).settle();
    assert_eq!(offsets.watermark(), Some(10));
}

proptest! {
    /// Against the plain model: the watermark is one past the last of the longest settled
    /// run at the front, whatever the order, the gaps and the dropped handles.
    #[test]
    fn it_agrees_with_the_model(
        gaps in proptest::collection::vec(1i64..4, 1..60),
        fates in proptest::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.9)), 0..60),
    ) {
        let offsets = OffsetTracker::default();
        let mut offset = 0;
        let mut admitted = Vec::new();
        for gap in gaps {
            offset += gap;
            admitted.push((offset, Some(offsets.admit(offset, 7, None)), false));
        }
        let count = admitted.len();
        for (which, settle) in fates {
            let (_, ack, settled) = &mut admitted[which.index(count)];
            match ack.take() {
                Some(ack) if settle => { ack.settle(); *settled = true; }
                lost => drop(lost),
            }
            let run = admitted.iter().take_while(|(_, _, settled)| *settled).last();
            prop_assert_eq!(offsets.watermark(), run.map(|(offset, _, _)| offset + 1));
            let open = admitted.iter().filter(|(_, _, settled)| !settled).count();
            prop_assert_eq!(offsets.unsettled(), UnsettledCount { records: open, bytes: 7 * open });
        }
    }
}
