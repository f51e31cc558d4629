//! The other two hooks: grouping and offline.

use super::*;
use crate::decision::{AbsenceCause, AbsentRecipient, Disposition, IdKind};
use crate::membership::{Connection, CurrentPlacement, Grouping, Membership};
use crate::message::RoomId;

fn grouping() -> Grouping {
    let connection = |id: &str, user: &str, comet: &str| Connection {
        id: id.into(),
        user: Some(user.into()),
        comet: comet.into(),
        online: true,
    };
    let connections =
        [connection("c1", "away", "a:1"), connection("c2", "u2", "b:1"), connection("c3", "u3", "b:1")];
    Grouping::new(Arc::new(Membership::new(connections, 0)))
}

fn places(grouping: &Grouping) -> Vec<CurrentPlacement> {
    grouping.members().map(|(_, place)| place).collect()
}

const UNTOUCHED: [CurrentPlacement; 3] =
    [CurrentPlacement::At(0), CurrentPlacement::At(1), CurrentPlacement::At(1)];

#[test]
fn a_room_is_regrouped_plugin_by_plugin() {
    let set = Engine::new().set(&[unruly("p"), unruly("q")]);
    let mut room = grouping();
    set.chain().regroup(&"drain".into(), &mut room).unwrap();
    assert_eq!(room.comets(), ["elsewhere:1".into(), "b:1".into()]);
    // The first plugin skips c3, so c2 is the last one that the second plugin sees.
    assert_eq!(
        places(&room),
        [CurrentPlacement::Offline, CurrentPlacement::Skipped, CurrentPlacement::Skipped]
    );
}

#[test]
fn a_grouping_that_fails_is_skipped() {
    for on_error in [OnError::Pass, OnError::Drop, OnError::DeadLetter] {
        let set = Engine::new().set(&[with(unruly("p"), on_error)]);
        for bad in ["trap", "loop", "eat", "bad-move", "bad-redirect", "no-address"] {
            let mut room = grouping();
            set.chain().regroup(&RoomId::from(bad), &mut room).unwrap();
            assert_eq!(places(&room), UNTOUCHED, "{bad}");
        }
    }
    let stall = Engine::new().set(&[with(unruly("p"), OnError::Stall)]);
    let error = stall.chain().regroup(&"bad-move".into(), &mut grouping()).unwrap_err().error;
    assert_eq!(error, "moves connection 1000000, but the room has 3 connections");
}

fn absent(users: &[&str]) -> Vec<AbsentRecipient> {
    let absent = |user: &&str| AbsentRecipient {
        by_policy: false,
        user: (*user).into(),
        identity: IdKind::User,
        connection: None,
        cause: AbsenceCause::NotOnline,
    };
    users.iter().map(absent).collect()
}

#[test]
fn the_first_plugin_with_an_opinion_decides() {
    let set = Engine::new().set(&[unruly("p"), unruly("q")]);
    let users = absent(&["drop", "someone", "store", "store-60", "notify"]);
    let decided = set.chain().decide(&room("hello"), &users).unwrap();
    let dispositions: Vec<Option<Disposition>> =
        decided.iter().map(|decided| decided.as_ref().map(|d| d.disposition.clone())).collect();
    let minute = Some(std::time::Duration::from_secs(60));
    let expected = [
        Some(Disposition::Drop),
        None,
        Some(Disposition::Store { retention: None }),
        Some(Disposition::Store { retention: minute }),
        Some(Disposition::Notify { channel: "apns".into() }),
    ];
    assert_eq!(dispositions, expected);
    assert_eq!(&*decided[0].as_ref().unwrap().by.name, "p");
}

#[test]
fn a_plugin_that_fails_has_no_opinion() {
    let set = Engine::new().set(&[with(unruly("p"), OnError::DeadLetter)]);
    let mut chain = set.chain();
    for body in ["trap", "loop", "eat", "few"] {
        assert_eq!(chain.decide(&room(body), &absent(&["drop"])).unwrap(), [None], "{body}");
    }
    for user in ["store-0", "notify-nobody"] {
        assert_eq!(chain.decide(&room("hello"), &absent(&[user, "drop"])).unwrap(), [None, None], "{user}");
    }
    let stall = Engine::new().set(&[with(unruly("p"), OnError::Stall)]);
    stall.chain().decide(&room("trap"), &absent(&["drop"])).unwrap_err();
}

#[test]
fn a_room_crosses_in_columns_where_the_plugin_takes_them() {
    let config = configured(PluginConfig::new("p", guest("bench_grouping")), serde_json::json!({}));
    let set = Engine::new().set(&[config, unruly("q")]);
    let connection = |id: &str, user: Option<&str>, online| Connection {
        id: id.into(),
        user: user.map(Into::into),
        comet: "a:1".into(),
        online,
    };
    // Ids that end in 77 are left out if the connection is online and has a user.
    let connections = [
        connection("静_77", Some("user_安"), true),
        connection("c_78", Some("user_1"), true),
        connection("c_77", None, true),
        connection("", Some("user_2"), true),
        connection("c_177", Some("user_3"), false),
        connection("c_277", Some("user_4"), true),
    ];
    let mut room = Grouping::new(Arc::new(Membership::new(connections, 0)));
    set.chain().regroup(&"video_1".into(), &mut room).unwrap();
    let left_out = places(&room).iter().map(|place| *place == CurrentPlacement::Skipped).collect::<Vec<_>>();
    assert_eq!(left_out, [true, false, false, false, false, true]);
    // The second plugin sees four connections, and skips the last one.
    set.chain().regroup(&"drain".into(), &mut room).unwrap();
    let skipped = places(&room).iter().filter(|place| **place == CurrentPlacement::Skipped).count();
    assert_eq!(skipped, 3);
}
