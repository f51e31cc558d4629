//! The redriven records of one partition: all before an offset, and ranges after it.
//!
//! A filtered redrive leaves gaps between the records that it writes. Those must not be skipped for
//! ever, and written records must not be written again. So the committed offset is the first record
//! that was *not* redriven, and the commit's metadata lists the ranges after it as `gap+length`
//! pairs: offset 3 with `2+4,1+1` means that 0 to 2, 5 to 8 and 10 are done. Pure.

use std::collections::BTreeMap;

/// A broker accepts 4,096 bytes (`offset.metadata.max.bytes`).
const MOST_METADATA: usize = 4000;

/// The redriven records of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RedriveProgress {
    next: i64,
    /// Ranges from start to end (exclusive), disjoint, all after `next`.
    ahead: BTreeMap<i64, i64>,
}

impl RedriveProgress {
    /// Only records before this offset are done.
    pub(super) fn from(next: i64) -> Self {
        Self { next, ahead: BTreeMap::new() }
    }

    /// Parses a commit. Foreign metadata is ignored.
    pub(super) fn of_commit(next: i64, metadata: &str) -> Self {
        let mut progress = Self::from(next);
        let mut at = next;
        for pair in metadata.split(',') {
            let Some((gap, length)) = pair.split_once('+') else { break };
            let (Ok(gap @ 1..), Ok(length @ 1..)) = (gap.parse::<i64>(), length.parse::<i64>()) else {
                break;
            };
            let Some(start) = at.checked_add(gap) else { break };
            let Some(end) = start.checked_add(length) else { break };
            progress.ahead.insert(start, end);
            at = end;
        }
        progress
    }

    /// The first record that is not done.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// Whether the record is done.
    pub(super) fn contains(&self, offset: i64) -> bool {
        let range = self.ahead.range(..=offset).next_back();
        offset < self.next || range.is_some_and(|(_, end)| offset < *end)
    }

    /// Marks the record as done.
    pub(super) fn add(&mut self, offset: i64) {
        if self.contains(offset) {
            return;
        }
        let (mut start, mut end) = (offset, offset + 1);
        if let Some((before, _)) = self.ahead.range(..start).next_back().filter(|(_, e)| **e == start) {
            start = *before;
        }
        if let Some(after) = self.ahead.remove(&end) {
            end = after;
        }
        self.ahead.insert(start, end);
        if start == self.next {
            self.next = end;
            self.ahead.remove(&start);
        }
    }

    /// Marks everything before this offset as done: the broker no longer has it.
    pub(super) fn advance(&mut self, next: i64) {
        self.next = self.next.max(next);
        while let Some((start, end)) = self.ahead.pop_first() {
            if start > self.next {
                self.ahead.insert(start, end);
                break;
            }
            self.next = self.next.max(end);
        }
    }

    /// The commit's metadata, and how many done records do not fit into it.
    pub(super) fn metadata(&self) -> (String, u64) {
        let (mut text, mut at, mut forgotten) = (String::new(), self.next, 0);
        for (start, end) in &self.ahead {
            let pair = format!("{}{}+{}", if text.is_empty() { "" } else { "," }, start - at, end - start);
            if forgotten > 0 || text.len() + pair.len() > MOST_METADATA {
                forgotten += end.abs_diff(*start);
                continue;
            }
            text.push_str(&pair);
            at = *end;
        }
        (text, forgotten)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn progress_parses_the_documented_example() {
        let progress = RedriveProgress::of_commit(3, "2+4,1+1");
        let done: Vec<_> = (0..12).filter(|offset| progress.contains(*offset)).collect();
        assert_eq!(done, [0, 1, 2, 5, 6, 7, 8, 10]);
        assert_eq!(progress.metadata(), ("2+4,1+1".to_owned(), 0));
        assert_eq!(RedriveProgress::of_commit(3, "somebody's own"), RedriveProgress::from(3));
        assert_eq!(RedriveProgress::of_commit(3, "-1+2,9223372036854775807+9"), RedriveProgress::from(3));
    }

    #[test]
    fn ranges_that_do_not_fit_are_counted() {
        let mut progress = RedriveProgress::default();
        (1..10_000).step_by(2).for_each(|offset| progress.add(offset));
        let (text, forgotten) = progress.metadata();
        let kept = RedriveProgress::of_commit(0, &text);
        assert!(text.len() <= MOST_METADATA && kept.contains(1) && !kept.contains(9_999));
        assert_eq!((1..10_000).filter(|o| kept.contains(*o)).count() as u64, 5_000 - forgotten);
    }

    proptest! {
        #[test]
        fn progress_equals_a_set(offsets in proptest::collection::vec(0..60i64, 0..60), low in 0..60i64) {
            let (mut progress, mut set) = (RedriveProgress::default(), BTreeSet::new());
            for offset in offsets {
                progress.add(offset);
                set.insert(offset);
            }
            progress.advance(low);
            set.extend(0..low);
            let read = RedriveProgress::of_commit(progress.next(), &progress.metadata().0);
            prop_assert_eq!(&read, &progress);
            prop_assert!((0..70).all(|offset| progress.contains(offset) == set.contains(&offset)));
            prop_assert!(!set.contains(&progress.next()));
        }
    }
}
