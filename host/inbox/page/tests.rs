//! Pages of a small inbox.

use bytes::Bytes;

use super::*;

const RETENTION: i64 = 1_000_000;

fn at(ms: u64) -> Position {
    Position { ms, number: 0 }
}

fn message(ms: u64, lifetime: i64) -> StoredMessage {
    StoredMessage {
        id: format!("push/0/{ms}").into(),
        operation: 4,
        room: None,
        body: Bytes::from(vec![b'x'; 1024]),
        sent_ms: 0,
        expires_ms: ms as i64 + lifetime,
        cause: None,
        reference: None,
    }
}

/// The page of entries at 10, 20, ..., 100 of which these are kept, as a store would feed them.
fn page(kept: std::ops::RangeInclusive<u64>, query: PageQuery, now_ms: i64) -> (Vec<u64>, Page) {
    let mut builder = PageBuilder::new(query, now_ms, RETENTION);
    let places = kept.map(|tens| tens * 10);
    let places: Vec<u64> = if query.backwards { places.rev().collect() } else { places.collect() };
    let is_before = |ms: &u64| query.before.is_none_or(|before| at(*ms) < before.position());
    for ms in places.into_iter().filter(is_before) {
        if !builder.push(at(ms), Some(message(ms, RETENTION))) {
            break;
        }
    }
    let page = builder.finish(false);
    (page.entries.iter().map(|entry| entry.position.ms).collect(), page)
}

#[test]
fn pages_go_forward_and_backward_without_a_gap() {
    let mut query = PageQuery { limit: 4, ..PageQuery::default() };
    let mut seen = Vec::new();
    loop {
        let (places, page) = page(1..=10, query, 0);
        seen.extend(places);
        assert!(!page.truncated);
        query.after = page.next;
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
    let mut query = PageQuery { limit: 4, backwards: true, ..PageQuery::default() };
    let mut back = Vec::new();
    loop {
        let (places, page) = page(1..=10, query, 0);
        back.extend(places);
        query.before = page.next;
        if !page.more {
            break;
        }
    }
    seen.reverse();
    assert_eq!(back, seen);
}

#[test]
fn a_page_says_when_something_before_it_is_gone() {
    let after = |cursor| PageQuery { after: Some(cursor), ..PageQuery::default() };
    let truncated = |kept, cursor| page(kept, after(cursor), 0).1.truncated;
    assert!(!truncated(3..=10, Cursor::At(at(30))), "the entry itself is still there");
    assert!(truncated(4..=10, Cursor::At(at(20))));
    assert!(!truncated(3..=10, Cursor::Before(at(30))));
    assert!(truncated(4..=10, Cursor::Before(at(30))));
    assert_eq!(page(3..=4, after(Cursor::Before(at(30))), 0).0, [30, 40]);
    let backwards = PageQuery { backwards: true, ..after(Cursor::At(at(20))) };
    assert!(page(4..=10, backwards, 0).1.truncated);
    assert!(!page(2..=10, backwards, 0).1.truncated);
    let (places, page) = page(1..=10, after(Cursor::At(at(100))), 0);
    assert_eq!((places, page.next, page.truncated), (vec![], Some(Cursor::At(at(100))), false));
}

#[test]
fn expired_entries_are_left_out_and_told() {
    let now = RETENTION + 25;
    let (places, page) = page(1..=4, PageQuery::default(), now);
    assert_eq!((places, page.truncated), (vec![30, 40], true));
    // One that was to be kept for a shorter time is not missed.
    let mut builder = PageBuilder::new(PageQuery::default(), 500_000, RETENTION);
    assert!(builder.push(at(10), Some(message(10, 1_000))));
    assert!(builder.push(at(20), Some(message(20, RETENTION))));
    let page = builder.finish(false);
    assert_eq!((page.entries.len(), page.truncated), (1, false));
}

#[test]
fn pages_are_bounded_in_entries_and_bytes() {
    let most = |limit| PageQuery { limit, ..PageQuery::default() }.most();
    assert_eq!((most(0), most(7), most(501)), (100, 7, 500));
    let mut builder = PageBuilder::new(PageQuery { limit: 500, ..PageQuery::default() }, 0, RETENTION);
    let mut taken = 0;
    while taken < 10 {
        let large = StoredMessage { body: vec![b'x'; 300_000].into(), ..message(taken + 1, RETENTION) };
        if !builder.push(at(taken + 1), Some(large)) {
            break;
        }
        taken += 1;
    }
    let page = builder.finish(false);
    assert_eq!((taken, page.entries.len(), page.more), (3, 3, true));
    let mut builder = PageBuilder::new(PageQuery::default(), 0, RETENTION);
    let huge = StoredMessage { body: vec![b'x'; 3_000_000].into(), ..message(1, RETENTION) };
    assert!(builder.push(at(1), Some(huge)), "at least one");
}

#[test]
fn repeats_within_a_page_are_dropped() {
    let mut builder = PageBuilder::new(PageQuery::default(), 0, RETENTION);
    for ms in [1, 2, 3] {
        assert!(builder.push(at(ms), Some(message(7, RETENTION))));
    }
    let page = builder.finish(false);
    assert_eq!((page.entries.len(), page.next), (1, Some(Cursor::At(at(3)))));
}

#[test]
fn devices_have_short_printable_names() {
    assert!(DeviceId::new("ann's phone").is_ok());
    for name in ["", "a\nb", &"x".repeat(129)] {
        assert!(DeviceId::new(name).is_err(), "{name}");
    }
}
