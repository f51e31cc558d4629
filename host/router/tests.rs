//! Tests of the router's rules, by example and by property.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::membership::{Membership, Placement, Regrouping};
use crate::message::RedriveUsers;

fn connection(id: &str, comet: &str, online: bool) -> Connection {
    Connection { id: id.into(), user: Some(format!("u-{id}").into()), comet: comet.into(), online }
}

fn grouping(connections: Vec<Connection>) -> Grouping {
    Grouping::new(Arc::new(Membership::new(connections, 0)))
}

fn shape(plan: &DeliveryPlan) -> Vec<(&str, CallTarget)> {
    plan.deliveries.iter().map(|d| (d.comet.as_str(), d.target.clone())).collect()
}

fn ids(ids: &[&str]) -> CallTarget {
    CallTarget::Connections(ids.iter().map(|id| (*id).into()).collect())
}

#[test]
fn a_room_is_one_call_for_each_comet() {
    let room = RoomId::from("video_123");
    let members =
        vec![connection("c1", "a:1", true), connection("c2", "a:1", true), connection("c3", "b:1", true)];
    let route = Route::new(&grouping(members));
    let plan = DeliveryPlan::room(&room, &route, &Overrides::default());
    assert_eq!(shape(&plan), [("a:1", CallTarget::Room(room.clone())), ("b:1", CallTarget::Room(room))]);
    assert_eq!(plan.deliveries[0].recipients.len(), 2);
    assert!(plan.absent.is_empty());
}

#[test]
fn offline_members_are_absent_and_keep_the_share_whole() {
    let room = RoomId::from("r");
    let members =
        vec![connection("c1", "a:1", true), connection("c2", "a:1", false), connection("c3", "b:1", false)];
    let plan = DeliveryPlan::room(&room, &Route::new(&grouping(members)), &Overrides::default());
    assert_eq!(shape(&plan), [("a:1", CallTarget::Room(room))], "b:1 has nobody who is online");
    let absent: Vec<_> = plan.absent.iter().map(|a| (a.user.as_str(), a.cause)).collect();
    assert_eq!(absent, [("u-c2", AbsenceCause::NotOnline), ("u-c3", AbsenceCause::NotOnline)]);
}

#[test]
fn a_redriven_message_goes_to_its_users_wherever_they_are() {
    let members = vec![
        connection("c1", "a:1", true),
        connection("back", "a:1", true),
        connection("c3", "b:1", true),
        connection("away", "b:1", false),
        connection("later", "b:1", false),
    ];
    let plan = DeliveryPlan::room(&"r".into(), &Route::new(&grouping(members)), &Overrides::default());
    let redriven = |comets: Option<&[CometAddr]>, users: &str| {
        let mut plan = plan.clone();
        plan.only_due(comets, Some(&RedriveUsers::parse(users).expect("a list")));
        let absent: Vec<_> = plan.absent.iter().map(|a| (a.user.to_string(), a.cause)).collect();
        (plan.deliveries, absent)
    };
    let away = |user: &str| (user.to_owned(), AbsenceCause::NotOnline);
    let (deliveries, absent) = redriven(None, "u-back,u-away,gone");
    assert_eq!(deliveries.len(), 1);
    assert_eq!((&deliveries[0].target, deliveries[0].recipients.len()), (&ids(&["back"]), 1));
    assert_eq!(absent, [away("u-away"), ("gone".to_owned(), AbsenceCause::NoConnection)]);
    // The users that are not named may be back.
    let (deliveries, absent) = redriven(None, "u-away,%..");
    assert_eq!((deliveries, absent), (plan.deliveries.clone(), vec![away("u-away"), away("u-later")]));
    // A comet did not accept it either: its recipients get it, and of the others those that are named.
    let (deliveries, absent) = redriven(Some(&["b:1".into()]), "u-back");
    let targets: Vec<_> = deliveries.iter().map(|d| (d.comet.as_str(), d.target.clone())).collect();
    assert_eq!(targets, [("a:1", ids(&["back"])), ("b:1", CallTarget::Room("r".into()))]);
    assert_eq!(absent, [away("u-away"), away("u-later")]);
    let (deliveries, _) = redriven(Some(&["moved:1".into()]), "u-back");
    assert_eq!(deliveries, plan.deliveries, "nobody knows where its own are");
}

#[test]
fn moving_a_member_makes_both_shares_partial() {
    let members = ["c1", "c2", "c3"].map(|id| connection(id, if id == "c3" { "b:1" } else { "a:1" }, true));
    let mut grouping = grouping(members.to_vec());
    let moves = vec![(0, Placement::Comet("b:1".into()))];
    grouping.apply(Regrouping { moves, ..Default::default() }, NamedBy::Plugin).expect("in range");
    let plan = DeliveryPlan::room(&"r".into(), &Route::new(&grouping), &Overrides::default());
    assert_eq!(shape(&plan), [("b:1", ids(&["c1", "c3"])), ("a:1", ids(&["c2"]))]);
}

#[test]
fn a_redirected_share_stays_whole_and_is_merged() {
    let members = vec![connection("c1", "a:1", true), connection("c2", "b:1", true)];
    let mut grouping = grouping(members);
    let redirects = vec![(0, "b:1".into())];
    grouping.apply(Regrouping { redirects, ..Default::default() }, NamedBy::Plugin).expect("in range");
    let plan = DeliveryPlan::room(&"r".into(), &Route::new(&grouping), &Overrides::default());
    assert_eq!(shape(&plan), [("b:1", CallTarget::Room("r".into()))]);
    assert_eq!(plan.deliveries[0].recipients.len(), 2);
}

#[test]
fn overrides_restrict_and_extend() {
    let members = vec![connection("c1", "a:1", true), connection("c2", "b:1", true)];
    let route = Route::new(&grouping(members));
    let room = RoomId::from("r");
    let overrides = Overrides {
        only: Some(vec!["a:1".into()]),
        except: vec!["d:1".into()],
        also: vec!["a:1".into(), "c:1".into(), "d:1".into()],
        trusted: vec!["d:1".into()],
    };
    let plan = DeliveryPlan::room(&room, &route, &overrides);
    assert_eq!(shape(&plan), [("a:1", CallTarget::Room(room.clone())), ("c:1", CallTarget::Room(room))]);
    assert_eq!(plan.withheld, 1);
}

#[test]
fn keys_are_grouped_by_comet_and_the_missing_are_absent() {
    let found = vec![
        (Arc::from("u1"), Some(connection("c1", "a:1", true))),
        (Arc::from("c1"), Some(connection("c1", "a:1", true))),
        (Arc::from("u2"), Some(connection("c2", "b:1", false))),
        (Arc::from("u3"), None),
    ];
    let plan = DeliveryPlan::keys(found, IdKind::Ambiguous, &Overrides::default());
    assert_eq!(shape(&plan), [("a:1", ids(&["c1"]))]);
    let absent: Vec<_> = plan.absent.iter().map(|a| (a.user.as_str(), a.cause)).collect();
    assert_eq!(absent, [("u-c2", AbsenceCause::NotOnline), ("u3", AbsenceCause::NoConnection)]);
    let identities: Vec<_> = plan.absent.iter().map(|a| a.identity).collect();
    assert_eq!(identities, [IdKind::User, IdKind::Ambiguous]);
}

#[test]
fn the_speed_of_a_broadcast_is_divided_over_the_comets() {
    let comets: Vec<CometAddr> = ["a:1", "b:1", "c:1"].map(CometAddr::from).to_vec();
    let speeds = |speed| {
        let plan = DeliveryPlan::everywhere(&comets, &CallTarget::Everyone { speed }, &Overrides::default());
        let speed = |d: &Delivery| match d.target {
            CallTarget::Everyone { speed } => speed,
            _ => panic!("a broadcast"),
        };
        plan.deliveries.iter().map(speed).collect::<Vec<_>>()
    };
    assert_eq!(speeds(10), [4, 3, 3], "they add up to it");
    assert_eq!(speeds(2), [1, 1, 1], "a limit never becomes no limit");
    assert_eq!(speeds(i32::MAX).iter().map(|speed| i64::from(*speed)).sum::<i64>(), i64::from(i32::MAX));
    assert_eq!((speeds(0), speeds(-7)), (vec![0; 3], vec![0; 3]), "no limit stays none");
}

#[test]
fn a_connection_without_a_user_is_not_a_user() {
    let anonymous = Connection { user: None, ..connection("c1", "a:1", true) };
    let route = Route::new(&grouping(vec![anonymous]));
    let absent = route.shares[0].recipients[0].absent(AbsenceCause::CometUnreachable);
    assert_eq!((absent.user.as_str(), absent.identity), ("c1", IdKind::Connection));
}

/// The same user on these connections, each with its placement by policies.
fn devices(devices: &[(&str, &str, Placement)]) -> Grouping {
    let of_ann =
        |id: &str, comet: &str| Connection { user: Some("ann".into()), ..connection(id, comet, true) };
    let members: Vec<_> = devices.iter().map(|(id, comet, _)| of_ann(id, comet)).collect();
    let mut grouping = grouping(members);
    let moves = devices.iter().enumerate().map(|(at, (_, _, to))| (at as u32, to.clone())).collect();
    grouping.apply(Regrouping { moves, ..Default::default() }, NamedBy::Plugin).expect("in range");
    grouping
}

#[test]
fn a_user_reached_on_one_device_is_not_absent_on_another() {
    let stays = |comet: &str| Placement::Comet(comet.into());
    let both = devices(&[("phone", "a:1", Placement::Offline), ("browser", "b:1", stays("b:1"))]);
    let route = Route::new(&both);
    let room = RoomId::from("r");
    assert!(DeliveryPlan::room(&room, &route, &Overrides::default()).absent.is_empty());
    let not_there = Overrides { except: vec!["b:1".into()], ..Overrides::default() };
    let absent = DeliveryPlan::room(&room, &route, &not_there).absent;
    assert_eq!(absent.iter().map(|a| a.user.as_str()).collect::<Vec<_>>(), ["ann"], "withheld there");

    let neither = devices(&[("phone", "a:1", Placement::Offline), ("browser", "b:1", Placement::Offline)]);
    assert_eq!(Route::new(&neither).absent.len(), 1, "two devices are one recipient");
    assert!(!route.has_multi_device_users());
    assert!(
        Route::new(&devices(&[("p", "a:1", stays("a:1")), ("b", "b:1", stays("b:1"))]))
            .has_multi_device_users()
    );
}

fn placements() -> impl Strategy<Value = Placement> {
    prop_oneof![
        (0..5u8).prop_map(|n| Placement::Comet(format!("comet-{n}:1").into())),
        Just(Placement::Skip),
        Just(Placement::Offline),
    ]
}

proptest! {
    /// Whatever comets and policies do: each user gets exactly one outcome, live or as one
    /// absent recipient, as long as any of the user's connections had to be reached.
    #[test]
    fn each_user_is_one_recipient(
        members in proptest::collection::vec((0..6u8, 0..4u8, 0..3u8), 0..24),
        down in proptest::collection::hash_set(0..4u8, 0..4),
    ) {
        // With `place` 1, a policy treats the connection as offline; user 0 is offline.
        let online = |user: u8| user != 0;
        let connections = members.iter().enumerate().map(|(n, (user, comet, _))| Connection {
            id: format!("c{n}").into(),
            user: Some(format!("u{user}").into()),
            comet: format!("comet-{comet}:1").into(),
            online: online(*user),
        });
        let mut grouping = grouping(connections.collect());
        let offline = members.iter().enumerate().filter(|(_, (_, _, place))| *place == 1);
        let moves = offline.map(|(n, _)| (n as u32, Placement::Offline)).collect();
        grouping.apply(Regrouping { moves, ..Default::default() }, NamedBy::Plugin).expect("in range");
        let route = Route::new(&grouping);
        let plan = DeliveryPlan::room(&"r".into(), &route, &Overrides::default());

        let is_down = |comet: &CometAddr| down.iter().any(|n| *comet == format!("comet-{n}:1").into());
        let (lost, taken): (Vec<_>, Vec<_>) = plan.deliveries.iter().partition(|d| is_down(&d.comet));
        let unreachable = lost.iter().flat_map(|d| d.recipients.iter()).map(|r| r.absent(AbsenceCause::CometUnreachable));
        let all = plan.absent.iter().cloned().chain(unreachable);
        let reached = taken.iter().flat_map(|d| d.recipients.iter());
        let live: std::collections::HashSet<_> = reached.clone().map(|r| r.name().to_owned()).collect();
        let absent: Vec<_> = distinct_absent(all, reached).into_iter().map(|a| a.user.to_string()).collect();
        for user in 0..6u8 {
            let name = format!("u{user}");
            let times = absent.iter().filter(|absent| **absent == name).count();
            let expected = usize::from(members.iter().any(|m| m.0 == user) && !live.contains(&name));
            prop_assert_eq!(times, expected, "{}", name);
        }
    }

    /// Whatever policies do to a room: no recipient is lost or reached twice, a comet gets
    /// one call, and a whole share is exactly what a call for the room reaches there.
    #[test]
    fn everyone_is_accounted_for_once(
        members in proptest::collection::vec((0..4u8, any::<bool>()), 0..40),
        moves in proptest::collection::vec((any::<prop::sample::Index>(), placements()), 0..12),
        redirects in proptest::collection::vec((any::<prop::sample::Index>(), 0..5u8), 0..3),
    ) {
        let connections: Vec<_> = members.iter().enumerate()
            .map(|(n, (comet, online))| connection(&format!("c{n}"), &format!("comet-{comet}:1"), *online))
            .collect();
        let mut grouping = grouping(connections.clone());
        if !connections.is_empty() {
            let comets = grouping.comets().len();
            let regrouping = Regrouping {
                redirects: redirects.iter()
                    .map(|(at, to)| (at.index(comets) as u32, format!("comet-{to}:1").into())).collect(),
                moves: moves.into_iter().map(|(at, to)| (at.index(connections.len()) as u32, to)).collect(),
            };
            grouping.apply(regrouping, NamedBy::Plugin).expect("in range");
        }
        let route = Route::new(&grouping);

        let mut reached = HashMap::new();
        for share in &route.shares {
            for recipient in share.recipients.iter() {
                let before = reached.insert(recipient.connection.clone(), share.comet.clone());
                prop_assert_eq!(before, None);
            }
        }
        prop_assert_eq!(reached.len() + route.absent.len() + route.skipped, connections.len());

        let mut comets: Vec<_> = route.shares.iter().map(|share| share.comet.clone()).collect();
        comets.sort();
        comets.dedup();
        prop_assert_eq!(comets.len(), route.shares.len());

        // A BroadcastRoom at an address reaches the members that are connected there now.
        for share in route.shares.iter().filter(|share| share.part == ShareKind::Whole) {
            let at_home = grouping.members()
                .filter(|(member, _)| grouping.comets()[member.comet as usize] == share.comet);
            for (member, place) in at_home {
                let here = matches!(place, CurrentPlacement::At(at) if grouping.comets()[at as usize] == share.comet);
                prop_assert!(here, "{:?} was moved away from a whole part", member);
            }
            for recipient in share.recipients.iter() {
                let (member, _) = grouping.members().find(|(m, _)| m.id == recipient.connection).expect("known");
                prop_assert_eq!(&grouping.comets()[member.comet as usize], &share.comet);
            }
        }
    }
}
