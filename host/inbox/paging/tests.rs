//! Pages over the seam, against a model of both stores.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const RETENTION: i64 = 1_000_000;
/// When the pages are read: entries of the stream from before `NOW - RETENTION` are overdue.
const NOW: i64 = 2_000_000;

/// What was stored for a user, in order, and which part each store has.
#[derive(Clone, Debug)]
struct World {
    /// The places; whether a policy kept the message for a shorter time, and that has passed.
    stored: Vec<(Position, bool)>,
    /// The stream has those from here on.
    trimmed: usize,
    /// Those of them before this one are overdue.
    overdue: usize,
    /// The other store has those before this one. `None`: it cannot be read.
    archived: Option<usize>,
    /// The other store has dropped those before this one.
    dropped: usize,
    /// The size of a reply of the stream.
    reply: usize,
}

impl World {
    fn message(&self, index: usize) -> StoredMessage {
        let (position, is_short) = self.stored[index];
        let stored_ms = position.ms as i64;
        StoredMessage {
            id: format!("push/0/{index}/0000000000000000").into(),
            operation: 4,
            room: None,
            body: Bytes::from(vec![b'x'; 200_000 * (index % 2)]),
            sent_ms: index as i64,
            expires_ms: match is_short {
                true => stored_ms + 1,
                false if index < self.overdue => stored_ms + RETENTION,
                false => NOW + 1,
            },
            cause: None,
            reference: None,
        }
    }

    fn range(
        &self,
        indexes: std::ops::Range<usize>,
        (low, high): (Option<Position>, impl Fn(Position) -> bool),
        backwards: bool,
        count: usize,
    ) -> Vec<usize> {
        let is_in = |index: &usize| {
            let (position, _) = self.stored[*index];
            low.is_none_or(|low| position >= low) && high(position)
        };
        let found = indexes.filter(is_in);
        if backwards { found.rev().take(count).collect() } else { found.take(count).collect() }
    }

    fn page(&self, query: PageQuery, has_older: bool) -> Page {
        let mut paging = Paging::new(query, NOW, RETENTION, has_older);
        loop {
            match paging.next() {
                Step::Stream(StreamRange { low, high, count, backwards }) => {
                    let count = count.min(self.reply);
                    let high = |at: Position| high.is_none_or(|high| at < high);
                    let found = self.range(self.trimmed..self.stored.len(), (low, high), backwards, count);
                    let is_last = found.len() < count;
                    let entry = |index: usize| (self.stored[index].0, Some(self.message(index)));
                    paging.take_stream(found.into_iter().map(entry).collect(), is_last);
                }
                Step::Older(range) => {
                    let OlderRange { from, to, limit, backwards, .. } = range;
                    let high = |at: Position| to.is_none_or(|to| at <= to);
                    let rows = self.archived.map(|archived| {
                        let found = self.range(
                            self.dropped.min(archived)..archived,
                            (from, high),
                            backwards,
                            usize::MAX,
                        );
                        let is_kept = |index: &usize| !self.stored[*index].1;
                        let row = |index: usize| {
                            let never = StoredMessage { expires_ms: i64::MAX, ..self.message(index) };
                            (self.stored[index].0, never)
                        };
                        let found: Vec<_> = found.into_iter().filter(is_kept).collect();
                        // Large entries end a reply early.
                        let most = limit.min(self.reply);
                        let entries = found.iter().take(most).map(|index| row(*index)).collect();
                        OlderEntries { entries, are_all: found.len() <= most }
                    });
                    paging.take_older(&range, rows.ok_or(OlderUnavailable("down")));
                }
                Step::Dropped => paging.take_dropped(Ok((self.dropped > 0).then(|| self.stored[0].0.ms))),
                Step::Done => break,
            }
        }
        let is_trimmed = paging.reaches_the_oldest() && self.trimmed > 0;
        paging.finish(is_trimmed)
    }

    /// All pages from a place to the end: what is in them, and how many are truncated.
    fn pages(&self, mut query: PageQuery, has_older: bool) -> (Vec<i64>, usize) {
        let (mut seen, mut truncated) = (Vec::new(), 0);
        for _ in 0..1_000 {
            let page = self.page(query, has_older);
            let before = seen.len();
            seen.extend(page.entries.iter().map(|entry| entry.message.sent_ms));
            truncated += usize::from(page.truncated);
            let place = if query.backwards { &mut query.before } else { &mut query.after };
            let is_progress = seen.len() > before || *place != page.next;
            assert!(!page.more || is_progress, "a page that has more makes progress");
            *place = page.next;
            if !page.more {
                return (seen, truncated);
            }
        }
        panic!("no end");
    }

    /// Whether the archive has the message at the seam.
    fn has_caught_up(&self) -> bool {
        let seam = self.overdue.max(self.trimmed);
        let live = (seam..self.stored.len()).find(|index| !self.stored[*index].1);
        self.archived.is_some_and(|archived| archived > live.unwrap_or(seam) || live.is_none())
    }

    fn unexpired(&self, indexes: impl Iterator<Item = usize>) -> Vec<i64> {
        indexes.filter(|index| !self.stored[*index].1).map(|index| index as i64).collect()
    }
}

prop_compose! {
    fn worlds()(
        steps in prop::collection::vec((0_u64..3, prop::bool::weighted(0.1)), 1..60),
        cuts in (0.0..1.0_f64, 0.0..1.0_f64, 0.0..1.0_f64),
        reply in 4_usize..12,
    ) -> World {
        let (mut ms, mut number, mut stored) = (1_000_u64, 0, Vec::new());
        for (step, is_short) in steps {
            (ms, number) = if step == 0 { (ms, number + 1) } else { (ms + step, 0) };
            stored.push((Position { ms, number }, is_short));
        }
        let all = stored.len();
        let part = |of: f64, from: usize| from + ((all - from) as f64 * of) as usize;
        let trimmed = part(cuts.0, 0);
        let overdue = part(cuts.1, trimmed);
        // The archive has what the stream lacks, and perhaps more.
        let archived = Some(part(cuts.2, overdue.max(trimmed)).max(1));
        World { stored, trimmed, overdue, archived, dropped: 0, reply }
    }
}

fn limited(limit: usize) -> PageQuery {
    PageQuery { limit, ..PageQuery::default() }
}

proptest! {
    #[test]
    fn pages_pass_the_seam_without_gap_or_repeat(world in worlds(), limit in 1_usize..20) {
        prop_assume!(world.has_caught_up());
        let expected = world.unexpired(0..world.stored.len());
        let (seen, truncated) = world.pages(limited(limit), true);
        prop_assert_eq!(&seen, &expected);
        prop_assert!(truncated == 0 || expected.is_empty());
        let (mut back, truncated) = world.pages(PageQuery { backwards: true, ..limited(limit) }, true);
        back.reverse();
        prop_assert_eq!(&back, &expected);
        prop_assert!(truncated == 0 || expected.is_empty());
    }

    #[test]
    fn pages_begin_and_end_anywhere(world in worlds(), limit in 1_usize..20, from: prop::sample::Index, to: prop::sample::Index) {
        prop_assume!(world.has_caught_up());
        let (from, to) = (from.index(world.stored.len()), to.index(world.stored.len()));
        // A place where a message is; that of one that has expired early shows nothing.
        prop_assume!(!world.stored[from].1 && !world.stored[to].1);
        let (after, before) = (Cursor::At(world.stored[from].0), Cursor::Before(world.stored[to].0));
        let expected = world.unexpired(from + 1..to);
        let query = PageQuery { after: Some(after), before: Some(before), ..limited(limit) };
        let (seen, truncated) = world.pages(query, true);
        prop_assert_eq!(&seen, &expected);
        prop_assert!(truncated == 0 || to <= from, "{} truncated", truncated);
        let (mut back, truncated) = world.pages(PageQuery { backwards: true, ..query }, true);
        back.reverse();
        prop_assert_eq!(&back, &expected);
        prop_assert!(truncated == 0 || to <= from, "{} truncated backwards", truncated);
    }

    #[test]
    fn what_neither_store_has_is_told(world in worlds(), limit in 1_usize..20, archived: prop::sample::Index) {
        let seam = world.overdue.max(world.trimmed);
        // The archive is behind by at least one message that would be seen.
        let archived = archived.index(seam.max(1));
        let lost = world.unexpired(archived..seam);
        prop_assume!(!lost.is_empty() && !world.unexpired(seam..world.stored.len()).is_empty());
        prop_assume!(world.stored.get(seam).is_some_and(|(_, is_short)| !is_short));
        let world = World { archived: Some(archived), ..world };
        for backwards in [false, true] {
            let (seen, truncated) = world.pages(PageQuery { backwards, ..limited(limit) }, true);
            prop_assert_eq!(seen.len() + lost.len(), world.unexpired(0..world.stored.len()).len());
            prop_assert!(truncated > 0);
        }
    }

    #[test]
    fn what_the_archive_has_dropped_is_told(world in worlds(), limit in 1_usize..20, dropped: prop::sample::Index, from: prop::sample::Index) {
        prop_assume!(world.has_caught_up());
        let seam = world.overdue.max(world.trimmed);
        // Places of the same millisecond are not told apart.
        prop_assume!(seam > 0 && world.stored.get(seam).is_none_or(|(at, _)| at.ms > world.stored[0].0.ms));
        let world = World { dropped: 1 + dropped.index(seam), ..world };
        let expected = world.unexpired(world.dropped..world.stored.len());
        for backwards in [false, true] {
            let (mut seen, truncated) = world.pages(PageQuery { backwards, ..limited(limit) }, true);
            if backwards {
                seen.reverse();
            }
            prop_assert_eq!(&seen, &expected);
            prop_assert!(truncated > 0);
        }
        // After a place that is kept, nothing is missing.
        let from = from.index(world.stored.len());
        prop_assume!(from >= world.dropped && !world.stored[from].1);
        let query = PageQuery { after: Some(Cursor::At(world.stored[from].0)), ..limited(limit) };
        let (seen, truncated) = world.pages(query, true);
        prop_assert_eq!(seen, world.unexpired(from + 1..world.stored.len()));
        prop_assert_eq!(truncated, 0);
    }

    #[test]
    fn without_the_archive_pages_are_those_of_the_stream(world in worlds(), limit in 1_usize..20, backwards: bool) {
        let world = World { archived: None, ..world };
        let seam = world.overdue.max(world.trimmed);
        let mut expected = world.unexpired(seam..world.stored.len());
        if backwards {
            expected.reverse();
        }
        let query = PageQuery { backwards, ..limited(limit) };
        for has_older in [false, true] {
            let (seen, truncated) = world.pages(query, has_older);
            prop_assert_eq!(&seen, &expected);
            let is_gone = world.trimmed > 0 || !world.unexpired(world.trimmed..seam).is_empty();
            prop_assert!(truncated > 0 || !is_gone, "{} {}", has_older, truncated);
        }
        let page = world.page(query, true);
        prop_assert!(page.warning.is_some() || page.more);
    }
}

#[test]
fn an_entry_of_a_full_stream_costs_no_look_elsewhere() {
    let stored: Vec<_> = (1..=5).map(|ms| (Position { ms, number: 0 }, false)).collect();
    let mut paging =
        Paging::new(PageQuery { after: Some(Cursor::At(stored[1].0)), ..limited(9) }, NOW, RETENTION, true);
    let world = World { stored, trimmed: 1, overdue: 0, archived: None, dropped: 0, reply: 9 };
    let entries = (1..5).map(|index| (world.stored[index].0, Some(world.message(index)))).collect();
    assert!(matches!(paging.next(), Step::Stream(_)));
    paging.take_stream(entries, true);
    assert_eq!(paging.next(), Step::Done);
    let page = paging.finish(false);
    assert_eq!((page.entries.len(), page.truncated, page.warning), (3, false, None));
}

#[test]
fn a_new_inbox_is_complete_before_its_messages_are_archived() {
    let stored: Vec<_> = (1..=5).map(|ms| (Position { ms, number: 0 }, false)).collect();
    let world = World { stored, trimmed: 0, overdue: 0, archived: Some(0), dropped: 0, reply: 9 };
    for backwards in [false, true] {
        let page = world.page(PageQuery { backwards, ..limited(9) }, true);
        assert_eq!((page.entries.len(), page.truncated, page.warning), (5, false, None));
    }
}
