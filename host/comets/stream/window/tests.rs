//! The window of a stream: examples, and a property over random steps.

use super::*;
use crate::comets::proto::delivery::{Missing, Refused};
use proptest::prelude::*;

/// Message numbers.
impl Messages for std::ops::Range<u64> {
    fn count(&self) -> usize {
        (self.end - self.start) as usize
    }

    fn split_first(&mut self, count: usize) -> Self {
        let first = self.start..self.start + count as u64;
        self.start = first.end;
        first
    }
}

type Window = SendWindow<std::ops::Range<u64>>;

/// Sends messages of this size together.
fn send(window: &mut Window, count: u64, bytes: usize, now: Instant) {
    let first = window.sent() + 1;
    (0..count).for_each(|at| assert_eq!(window.take_credit(bytes), first + at));
    window.push(first..first + count, now);
}

const MUCH: Credit = Credit { messages: u64::MAX, bytes: u64::MAX };

fn up_to(up_to: u64) -> Acks {
    Acks { up_to, ..Acks::default() }
}

/// All in one item.
fn sent(count: u64) -> Window {
    let mut window = SendWindow::new(MUCH);
    send(&mut window, count, 1, Instant::now());
    window
}

/// What an acknowledgement settles.
fn settled(window: &mut Window, acks: Acks) -> Vec<(u64, Settled)> {
    let mut all = Vec::new();
    let settle = |numbers: std::ops::Range<u64>, how: Settled| {
        all.extend(numbers.map(|number| (number, how.clone())));
    };
    let progress = window.acknowledge(acks, Instant::now(), settle);
    assert_eq!(progress.expect("allowed").settled, all.len());
    all
}

#[test]
fn exceptions_count_before_what_up_to_covers() {
    let mut window = sent(5);
    let acks = Acks {
        up_to: 3,
        also: vec![5, 1],
        missing: vec![Missing { seq: 2, ids: vec!["c".into()] }],
        refused: vec![Refused { seq: 3, reason: "no".into() }],
    };
    let wanted = [
        (3, Settled::Refused("no".into())),
        (2, Settled::Missing(vec!["c".into()])),
        (5, Settled::Acknowledged),
        (1, Settled::Acknowledged),
    ];
    assert_eq!(settled(&mut window, acks), wanted);
    assert_eq!((window.unsettled(), window.sent()), (1, 5));
    assert_eq!(settled(&mut window, Acks { also: vec![2], ..up_to(4) }), [(4, Settled::Acknowledged)]);
    assert!(window.oldest_sent().is_none());
}

#[test]
fn a_frame_that_breaks_the_protocol_changes_nothing() {
    let mut window = sent(3);
    settled(&mut window, up_to(2));
    let none = |acks| window.acknowledge(acks, Instant::now(), |_, _| panic!("settled"));
    let named = |named| Err(Violation::NotSent { named, sent: 3 });
    let mut none = none;
    assert_eq!(none(up_to(4)), named(4));
    assert_eq!(none(Acks { also: vec![3, 9], ..up_to(3) }), named(9));
    let missing = vec![Missing { seq: 5, ids: Vec::new() }];
    assert_eq!(none(Acks { missing, ..up_to(3) }), named(5));
    let refused = vec![Refused { seq: 6, reason: String::new() }];
    assert_eq!(none(Acks { refused, ..up_to(3) }), named(6));
    assert_eq!(none(up_to(1)), Err(Violation::WentBack { now: 1, before: 2 }));
    assert_eq!(none(up_to(0)).map(|progress| progress.settled), Ok(0), "nothing new");
    assert_eq!(window.into_unsettled().flatten().collect::<Vec<_>>(), [3]);
}

#[test]
fn credit_bounds_messages_and_bytes_and_never_shrinks() {
    let mut window = SendWindow::new(Credit { messages: 2, bytes: 10 });
    assert!(window.allows(10) && window.allows(11), "a large message goes alone");
    send(&mut window, 1, 6, Instant::now());
    assert!(window.allows(4) && !window.allows(5));
    send(&mut window, 1, 4, Instant::now());
    assert!(!window.allows(0), "no credit for messages");
    assert_eq!(window.grant(Credit { messages: 3, bytes: 9 }), Err(Violation::CreditShrank));
    assert_eq!(window.grant(Credit { messages: 1, bytes: 90 }), Err(Violation::CreditShrank));
    window.grant(Credit { messages: 3, bytes: 10 }).expect("more");
    assert!(window.allows(0) && !window.allows(1));
    settled(&mut window, up_to(2));
    assert!(window.allows(100));
}

#[test]
fn the_age_is_that_of_the_oldest_unsettled_message() {
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let mut window = SendWindow::new(MUCH);
    for at in 0..3 {
        send(&mut window, 1, 0, start + at * second);
    }
    let mut acknowledge = |acks, at| window.acknowledge(acks, at, |_, _| ()).expect("allowed");
    let progress = acknowledge(Acks { also: vec![2], ..up_to(0) }, start + 3 * second);
    assert_eq!(progress, Progress { settled: 1, took: None });
    let progress = acknowledge(up_to(1), start + 4 * second);
    assert_eq!(progress, Progress { settled: 1, took: Some(4 * second) });
    assert_eq!(window.oldest_sent(), Some(start + 2 * second));
}

/// What a comet and a gateway do.
#[derive(Clone, Debug)]
enum Step {
    /// Up to N messages of this size, in one item.
    Send(u64, usize),
    Acks(Acks),
    Credit(Credit),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0u64..30;
    let acks = (number.clone(), proptest::collection::vec(number.clone(), 0..4), number.clone(), number)
        .prop_map(|(up_to, also, missing, refused)| Acks {
            up_to,
            also,
            missing: vec![Missing { seq: missing, ids: Vec::new() }],
            refused: vec![Refused { seq: refused, reason: String::new() }],
        });
    prop_oneof![
        (1u64..4, 0usize..20).prop_map(|(count, size)| Step::Send(count, size)),
        acks.prop_map(Step::Acks),
        (0u64..40, 0u64..200).prop_map(|(messages, bytes)| Step::Credit(Credit { messages, bytes })),
    ]
}

proptest! {
    /// Against a map of numbers: each message is settled once or left at the end, in order; credit
    /// is kept; a violation changes nothing.
    #[test]
    fn every_message_is_settled_once_or_left(steps in proptest::collection::vec(step(), 1..60)) {
        let mut window = Window::new(Credit { messages: 5, bytes: 50 });
        let (mut open, mut sent, mut last_up_to) = (std::collections::BTreeSet::new(), 0, 0);
        let (mut credit, mut bytes) = (Credit { messages: 5, bytes: 50 }, 0);
        for step in steps {
            match step {
                Step::Send(count, size) => {
                    let first = sent + 1;
                    for _ in 0..count {
                        let fits = bytes + size as u64 <= credit.bytes || open.is_empty();
                        prop_assert_eq!(window.allows(size), sent < credit.messages && fits);
                        if window.allows(size) {
                            (sent, bytes) = (sent + 1, bytes + size as u64);
                            prop_assert_eq!(window.take_credit(size), sent);
                            open.insert(sent);
                        }
                    }
                    if first <= sent {
                        window.push(first..sent + 1, Instant::now());
                    }
                }
                Step::Credit(more) => {
                    let grows = more.messages >= credit.messages && more.bytes >= credit.bytes;
                    prop_assert_eq!(window.grant(more).is_ok(), grows);
                    if grows { credit = more; }
                }
                Step::Acks(acks) => {
                    let mut settled = Vec::new();
                    let result = window.acknowledge(acks.clone(), Instant::now(), |n, _| settled.extend(n));
                    let up_to = if acks.up_to == 0 { last_up_to } else { acks.up_to };
                    let named = acks.also.iter().copied().chain([up_to, acks.missing[0].seq, acks.refused[0].seq]);
                    let is_allowed = named.clone().all(|named| named <= sent) && up_to >= last_up_to;
                    prop_assert_eq!(result.is_ok(), is_allowed);
                    let expected: std::collections::BTreeSet<u64> = if is_allowed {
                        last_up_to = up_to;
                        let named: Vec<u64> = named.collect();
                        open.iter().copied().filter(|n| *n <= up_to || named.contains(n)).collect()
                    } else {
                        Default::default()
                    };
                    prop_assert_eq!(settled.len(), expected.len());
                    for number in settled {
                        prop_assert!(expected.contains(&number) && open.remove(&number));
                    }
                }
            }
            prop_assert_eq!(window.unsettled(), open.len());
            prop_assert_eq!(window.oldest_sent().is_some(), !open.is_empty());
        }
        prop_assert!(window.into_unsettled().flatten().eq(open));
    }
}
