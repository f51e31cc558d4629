//! The checker finds planted faults, and nothing else.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const COMETS: [&str; 2] = ["east", "west"];
const ROOMS: [&str; 2] = ["lobby", "studio"];
const PER_ROOM: u64 = 20;

fn user(room: &str, comet: &str) -> String {
    format!("user-{room}-{comet}")
}

/// A faultless run.
fn faultless() -> History {
    let mut history = History::default();
    let began = Instant::now();
    for room in ROOMS {
        let users = |comet: &&str| ((*comet).to_owned(), vec![user(room, comet)]);
        history.rooms.insert(room.to_owned(), COMETS.iter().map(users).collect());
    }
    for number in 0..PER_ROOM {
        for (partition, room) in ROOMS.iter().enumerate() {
            let sent = SentMessage::new(room, number, format!("push/{partition}/{number}/0a1b"));
            for comet in COMETS {
                history.received.push(receipt(&sent, comet, began + Duration::from_millis(number)));
            }
            history.sent.push(sent);
        }
    }
    history
}

fn receipt(sent: &SentMessage, comet: &str, at: Instant) -> ReceivedMessage {
    let (room, number, id) = (sent.room.clone(), sent.number, sent.id.clone());
    ReceivedMessage { comet: comet.to_owned(), to: room.clone(), room, number, id, version: Some(0), at }
}

/// Plants a fault, named as in the report, and returns the report.
fn planted(fault: &str, at: usize) -> (Occurrence, Report) {
    let mut history = faultless();
    let chosen = history.received[at].clone();
    match fault {
        "lost" => drop(history.received.remove(at)),
        "repeated" => history.received.push(chosen.clone()),
        "reordered" => {
            let moved = history.received.remove(at);
            history.received.push(moved);
        }
        "another room" => history.received[at].to = "garage".to_owned(),
        "another comet" => history.received[at].comet = "north".to_owned(),
        "another id" => history.received[at].id = "push/7/7/0a1b".to_owned(),
        "went back" => history.received[..at].iter_mut().for_each(|receipt| receipt.version = Some(1)),
        _ => unreachable!("{fault}"),
    }
    (Occurrence::of(&chosen), history.check())
}

#[test]
fn a_faultless_run_has_no_faults() {
    let report = faultless().check();
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    assert_eq!((report.sent, report.received), (40, 80));
}

#[test]
fn a_repeat_is_excused_by_a_log_line_in_between() {
    let mut history = faultless();
    let chosen = history.received[7].clone();
    let second = Duration::from_secs(1);
    history.received.push(ReceivedMessage { at: chosen.at + 3 * second, ..chosen.clone() });
    let excused = |comet: Option<&str>, after: Duration| {
        let at = chosen.at + after;
        let excuses = vec![Excuse { comet: comet.map(str::to_owned), from: at, until: at }];
        let report = History { excuses, ..history.clone() }.check();
        assert_eq!(report.excused.len() + report.repeated.len(), 1, "{report}");
        report.repeated.is_empty()
    };
    assert!(excused(Some(&chosen.comet), 2 * second) && excused(None, 2 * second));
    assert!(!excused(Some("another"), 2 * second), "it is about another comet");
    assert!(!excused(None, 4 * second), "it was later");
    let before = History {
        excuses: vec![Excuse { comet: None, from: chosen.at - 2 * second, until: chosen.at - second }],
        ..history
    };
    assert_eq!(before.check().repeated.len(), 1, "it was before");
}

#[test]
fn a_misrouted_message_is_also_lost() {
    for fault in ["another room", "another comet", "another id"] {
        let (_, report) = planted(fault, 7);
        assert_eq!((report.misrouted.len(), report.lost.len()), (1, 1), "{fault}: {report}");
    }
}

#[test]
fn stored_dropped_and_dead_messages_are_not_lost() {
    let faults: [fn(&mut History, &SentMessage) -> bool; 3] = [
        |history, sent| history.kept.insert((sent.id.clone(), user(&sent.room, "east"))),
        |history, sent| history.dropped.insert(sent.id.clone()),
        |history, sent| history.dead_lettered.insert(sent.id.clone()),
    ];
    for pay in faults {
        let mut history = faultless();
        let sent = history.sent[6].clone();
        pay(&mut history, &sent);
        let at =
            history.received.iter().position(|r| r.id == sent.id && r.comet == "east").expect("received");
        let late = history.received.remove(at);
        history.check().assert_nothing_lost_or_reordered();
        history.received.push(late);
        history.check().assert_nothing_lost_or_reordered();
    }
}

#[test]
fn refused_messages_may_come_late_but_must_come() {
    let mut history = faultless();
    let late = history.received.remove(7);
    history.refused.insert((late.id.clone(), late.comet.clone()));
    assert_eq!(history.check().lost, [Occurrence::of(&late)]);
    history.received.push(late);
    history.check().assert_nothing_lost_or_reordered();
}

#[test]
fn a_room_with_a_user_without_the_message_has_lost_it() {
    let mut history = faultless();
    let sent = history.sent[0].clone();
    let users = history.rooms.get_mut(&sent.room).and_then(|comets| comets.get_mut("east"));
    users.expect("a room on east").push("another".to_owned());
    history.kept.insert((sent.id.clone(), user(&sent.room, "east")));
    history.received.retain(|receipt| receipt.id != sent.id || receipt.comet != "east");
    assert_eq!(history.check().lost.len(), 1);
}

#[test]
fn a_recreated_topic_owes_only_what_it_holds() {
    let mut history = faultless();
    // The first ten of each room were in a deleted topic; offsets restarted.
    for sent in &mut history.sent {
        let is_new = sent.number >= PER_ROOM / 2;
        (sent.incarnation, sent.offset) = if is_new { (1, sent.offset - 10) } else { (0, sent.offset) };
    }
    history.incarnation = 1;
    let began = history.received[0].at;
    let undelivered = |receipt: &ReceivedMessage| receipt.number != 9 && receipt.number != 12;
    history.received.retain(undelivered);
    let report = history.check();
    assert_eq!(report.lost.len(), 4, "number 12 is lost, number 9 is gone with its topic: {report}");
    assert!(report.lost.iter().all(|at| at.number == 12), "{report}");

    // In the old topic, 15 were committed: that does not apply to offset 3 of the new one.
    let at = began + Duration::from_millis(11);
    let committed = [(0, 15), (1, 15)].into();
    history.interruptions.push(Interruption { from: at, until: at, incarnation: 0, committed, read: at });
    assert_eq!(history.check().committed_undelivered, []);
    let again = history.received.iter().find(|receipt| receipt.number == 10).expect("arrived").clone();
    history.received.push(ReceivedMessage { at: at + Duration::from_millis(20), ..again });
    assert_eq!(history.check().unexplained, [], "nothing of it was committed when the gateway died");
}

#[test]
fn committed_messages_must_have_arrived() {
    let mut history = faultless();
    let began = history.received[0].at;
    // Numbers 0 to 4 had arrived; six of the first partition were committed.
    let at = began + Duration::from_micros(4500);
    history.interruptions.push(Interruption {
        from: at,
        until: at,
        incarnation: 0,
        committed: [(0, 6), (1, 5)].into(),
        read: at,
    });
    let early = history.check().committed_undelivered;
    let expected =
        COMETS.map(|comet| Occurrence { comet: comet.to_owned(), room: "lobby".to_owned(), number: 5 });
    assert_eq!(early, expected);
}

proptest! {
    #[test]
    fn one_planted_fault_is_found_and_no_other(
        fault in prop::sample::select(vec!["lost", "repeated", "reordered", "went back"]),
        at in any::<Index>(),
    ) {
        // Neither the last of a comet and room, which nothing follows, nor the first, which follows
        // nothing.
        let last = faultless().received.len() - 4;
        let (chosen, report) = planted(fault, 4 + at.index(last - 4));
        let found = |of: &str| if fault == of { vec![chosen.clone()] } else { Vec::new() };
        prop_assert_eq!(&report.lost, &found("lost"));
        prop_assert_eq!(&report.repeated, &found("repeated"));
        prop_assert_eq!(&report.unexplained, &found("repeated"));
        prop_assert_eq!(&report.reordered, &found("reordered"));
        // One per comet and room whose later messages were decided by the older version.
        prop_assert_eq!(!report.version_regressed.is_empty(), fault == "went back");
        prop_assert!(report.misrouted.is_empty() && report.committed_undelivered.is_empty());
    }

    #[test]
    fn repeats_are_explained_exactly_from_the_committed_offset_on(
        died_after in 1..PER_ROOM,
        uncommitted in 0..PER_ROOM,
    ) {
        let history = faultless();
        let committed = died_after.saturating_sub(uncommitted);
        let at = history.received[0].at + Duration::from_millis(died_after) - Duration::from_micros(1);
        let later = at + Duration::from_secs(1);
        for from in [committed, committed.saturating_sub(1)] {
            let mut history = history.clone();
            let (mut before, after): (Vec<_>, Vec<_>) =
                std::mem::take(&mut history.received).into_iter().partition(|receipt| receipt.at < at);
            let again: Vec<_> = before.iter().filter(|receipt| receipt.number >= from).cloned().collect();
            before.extend(again.into_iter().chain(after).map(|receipt| ReceivedMessage { at: later, ..receipt }));
            history.received = before;
            let offsets = [(0, committed as i64), (1, committed as i64)].into();
            let died = Interruption { from: at, until: at, incarnation: 0, committed: offsets, read: at };
            history.interruptions.push(died);
            let report = history.check();
            report.assert_nothing_lost_or_reordered();
            let too_many = committed - from;
            prop_assert_eq!(report.repeated.len() as u64, 4 * (died_after - from));
            prop_assert_eq!(report.unexplained.len() as u64, 4 * too_many);
        }
    }
}
