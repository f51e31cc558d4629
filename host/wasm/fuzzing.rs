//! Arbitrary answers of plugins, and the invariants of what they are turned into.

use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Result, Unstructured};

use crate::decision::FilteredMessage;
use crate::decision::{Disposition, PluginVersion, Verdict};
use crate::membership::{Connection, CurrentPlacement, Grouping, Membership};
use crate::message::{Audience, Message, NamedBy, Origin, Record, fuzzing as messages};
use crate::wasm::bindings::exports::halley::policy::{
    filter, grouping, grouping_columns, offline, retention,
};
use crate::wasm::lift;
use crate::wasm::room::{RoomView, UncheckedRegrouping};

pub(crate) use crate::wasm::compile::fuzzing::check as check_file;

/// The bounds that `lift` promises, repeated so that it is not its own oracle.
const LONGEST_TEXT: usize = 1024;
const LONGEST_GUARD_KEY: usize = 512;
const MOST_GUARDS: usize = 16;
const MOST_COMETS: usize = 1024;

/// Checks one plugin's answers to all hooks.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=3)? {
        0 => check_verdicts(input),
        1 => check_regroupings(input),
        2 => check_kept(input),
        _ => check_disposition(input),
    }
}

/// Several plugins answer for one message.
fn check_verdicts(input: &mut Unstructured<'_>) -> Result<()> {
    let by = PluginVersion { name: "fuzzed".into(), hash: "0123456789ab".into() };
    let mut filtered = FilteredMessage::untouched(message(input)?);
    for _ in 0..input.int_in_range(1..=3)? {
        let before = filtered.clone();
        if lift::apply(verdict(input)?, &mut filtered, &by, NamedBy::Plugin).is_err() {
            assert_eq!(filtered, before, "a refused answer changes nothing");
            continue;
        }
        check_filtered(&filtered, &before);
    }
    Ok(())
}

fn check_filtered(now: &FilteredMessage, before: &FilteredMessage) {
    assert_eq!((&now.message.record, &now.message.id), (&before.message.record, &before.message.id));
    if let Verdict::Drop { reason, .. } | Verdict::DeadLetter { reason, .. } = &now.verdict {
        assert!(reason.len() <= LONGEST_TEXT);
    }
    match (&now.message.audience, &before.message.audience) {
        (Audience::Room(now), Audience::Room(before)) => assert!(now == before || bounded(now.as_str())),
        (Audience::Keys { keys: now, .. }, Audience::Keys { keys: before, .. }) => {
            assert!(now == before || !now.is_empty() && now.iter().all(|key| bounded(key)));
        }
        (now, before) => assert_eq!(now, before, "the kind of audience is not for plugins"),
    }
    let added = &now.guards[before.guards.len()..];
    assert!(added.len() <= MOST_GUARDS);
    for guard in added {
        let key = guard.key.strip_prefix("fuzzed:").expect("under the plugin's own name");
        assert!(!key.is_empty() && key.len() <= LONGEST_GUARD_KEY && guard.ttl >= Duration::from_millis(1));
    }
    let (new, old) = (&now.overrides, &before.overrides);
    let named = new.only.iter().flatten().chain(&new.except).chain(&new.also);
    assert!(named.clone().all(|comet| bounded(comet.as_str())));
    assert!(new.except.len() + new.also.len() <= old.except.len() + old.also.len() + MOST_COMETS);
    if let (Some(new), Some(old)) = (&new.only, &old.only) {
        assert!(new.iter().all(|comet| old.contains(comet)), "a later `only` lets more comets in");
    }
}

/// Several plugins regroup one room.
fn check_regroupings(input: &mut Unstructured<'_>) -> Result<()> {
    let mut room = grouping_of(input)?;
    for _ in 0..input.int_in_range(1..=3)? {
        let in_columns = input.arbitrary()?;
        let seen = RoomView::of(&room, in_columns);
        let (comets, members) = (seen.comets.len(), seen.members.clone());
        let answer = match in_columns {
            true => UncheckedRegrouping::Columns(regrouping_in_columns(input)?),
            false => UncheckedRegrouping::Records(regrouping(input)?),
        };
        let Ok(checked) = seen.check(answer) else { continue };
        assert!(
            checked.moves.iter().all(|(member, _)| members.contains(member)),
            "moves whom it did not see"
        );
        let most = comets + checked.moves.len();
        room.apply(checked, NamedBy::Plugin).expect("its indexes were checked");
        assert!(room.comets().len() <= most);
        for (_, place) in room.members() {
            if let CurrentPlacement::At(comet) = place {
                assert!(!room.comets()[comet as usize].is_empty(), "a member at no comet");
            }
        }
    }
    Ok(())
}

fn check_kept(input: &mut Unstructured<'_>) -> Result<()> {
    let asked = input.int_in_range(0..=6)?;
    let mut indexes =
        || (0..input.int_in_range(0..=8u8)?).map(|_| index(input)).collect::<Result<Vec<u32>>>();
    let answer = retention::Kept { inbox: indexes()?, history: indexes()? };
    let Ok(kept) = lift::kept(&answer, asked) else { return Ok(()) };
    assert!(kept.is_empty() || kept.len() == asked, "as many as were asked about");
    let named = |indexes: &[u32], at: usize| indexes.contains(&u32::try_from(at).expect("few messages"));
    for (at, retention) in kept.iter().enumerate() {
        assert_eq!(retention.inbox, named(&answer.inbox, at));
        assert_eq!(retention.history, named(&answer.history, at));
    }
    Ok(())
}

fn check_disposition(input: &mut Unstructured<'_>) -> Result<()> {
    let asked = input.int_in_range(0..=4)?;
    let mut given = Vec::new();
    for _ in 0..input.int_in_range(0..=4usize)? {
        given.push(disposition(input)?);
    }
    let count = given.len();
    let Ok(taken) = lift::check_count(given, asked, "dispositions") else {
        assert_ne!(count, asked);
        return Ok(());
    };
    assert_eq!(taken.len(), asked);
    for answer in taken {
        match lift::disposition(answer) {
            Ok(Some(Disposition::Notify { channel })) => assert!(bounded(&channel)),
            Ok(Some(Disposition::Store { retention })) => assert_ne!(retention, Some(Duration::ZERO)),
            Ok(Some(Disposition::Drop) | None) | Err(_) => {}
        }
    }
    Ok(())
}

fn bounded(name: &str) -> bool {
    !name.is_empty() && name.len() <= LONGEST_TEXT
}

fn message(input: &mut Unstructured<'_>) -> Result<Message> {
    let origin = Origin { topic: "push".into(), partition: 0, offset: 0 };
    let record =
        Record { origin, timestamp_ms: None, key: None, value: None, headers: Vec::new(), trusted: false };
    let (audience, operation) = (messages::audience(input)?, input.arbitrary()?);
    Ok(Message {
        id: record.message_id(),
        record: Arc::new(record),
        audience,
        operation,
        body: "body".into(),
    })
}

fn verdict(input: &mut Unstructured<'_>) -> Result<filter::Verdict> {
    Ok(match input.int_in_range(0..=5)? {
        0 => filter::Verdict::Pass,
        1 => filter::Verdict::Drop(text(input)?),
        2 => filter::Verdict::DeadLetter(text(input)?),
        _ => filter::Verdict::Amend(amendment(input)?),
    })
}

fn amendment(input: &mut Unstructured<'_>) -> Result<filter::Amendment> {
    let mut once = Vec::new();
    for _ in 0..input.int_in_range(0..=MOST_GUARDS + 1)? {
        once.push(filter::Once { key: text(input)?, ttl_ms: input.arbitrary()? });
    }
    Ok(filter::Amendment {
        body: input.arbitrary()?,
        operation: input.arbitrary()?,
        room: optional(input, text)?,
        keys: optional(input, some_texts)?,
        only: optional(input, some_texts)?,
        except: some_texts(input)?,
        also: some_texts(input)?,
        once,
    })
}

fn regrouping(input: &mut Unstructured<'_>) -> Result<grouping::Regrouping> {
    let mut answer = grouping::Regrouping { redirects: Vec::new(), moves: Vec::new() };
    for _ in 0..input.int_in_range(0..=4)? {
        answer.redirects.push(grouping::Redirect { comet: index(input)?, to: text(input)? });
    }
    for _ in 0..input.int_in_range(0..=6)? {
        let to = match input.int_in_range(0..=2)? {
            0 => grouping::Placement::Comet(text(input)?),
            1 => grouping::Placement::Skip,
            _ => grouping::Placement::Offline,
        };
        answer.moves.push(grouping::Move { connection: index(input)?, to });
    }
    Ok(answer)
}

fn regrouping_in_columns(input: &mut Unstructured<'_>) -> Result<grouping_columns::Regrouping> {
    let grouping::Regrouping { redirects, moves } = regrouping(input)?;
    let redirect = |grouping::Redirect { comet, to }| grouping_columns::Redirect { comet, to };
    let mut answer = grouping_columns::Regrouping {
        redirects: redirects.into_iter().map(redirect).collect(),
        places: Vec::new(),
        moved: Vec::new(),
        to: Vec::new(),
    };
    for grouping::Move { connection, to } in moves {
        answer.places.push(match to {
            grouping::Placement::Comet(to) => grouping_columns::Placement::Comet(to),
            grouping::Placement::Skip => grouping_columns::Placement::Skip,
            grouping::Placement::Offline => grouping_columns::Placement::Offline,
        });
        answer.moved.push(connection);
        answer.to.push(index(input)?);
    }
    if input.ratio(1u8, 8)? {
        answer.to.pop();
    }
    Ok(answer)
}

fn disposition(input: &mut Unstructured<'_>) -> Result<offline::Disposition> {
    Ok(match input.int_in_range(0..=3)? {
        0 => offline::Disposition::Pass,
        1 => offline::Disposition::Drop,
        2 => offline::Disposition::Store(input.arbitrary()?),
        _ => offline::Disposition::Notify(text(input)?),
    })
}

/// A room of up to eight connections on up to four comets.
fn grouping_of(input: &mut Unstructured<'_>) -> Result<Grouping> {
    let mut connections = Vec::new();
    for number in 0..input.int_in_range(0..=8u8)? {
        let comet = format!("comet-{}:1", input.int_in_range(0..=3u8)?).into();
        let id = format!("c{number}").into();
        connections.push(Connection { id, user: None, comet, online: input.arbitrary()? });
    }
    Ok(Grouping::new(Arc::new(Membership::new(connections, 0))))
}

/// Usually an index that points into the room.
fn index(input: &mut Unstructured<'_>) -> Result<u32> {
    if input.ratio(1, 8)? { input.arbitrary() } else { input.int_in_range(0..=8) }
}

/// Any text; one in eight is about as long as the bounds.
fn text(input: &mut Unstructured<'_>) -> Result<String> {
    if input.ratio(1, 8)? {
        let lengths = [LONGEST_GUARD_KEY, LONGEST_TEXT];
        let length = input.choose(&lengths)? - 2 + input.int_in_range(0..=4)?;
        // Two bytes each, so that a cut falls inside of a character.
        return Ok(if input.arbitrary()? { "x".repeat(length) } else { "é".repeat(length / 2 + 1) });
    }
    input.arbitrary()
}

/// Some texts; occasionally about as many as the bounds allow.
fn some_texts(input: &mut Unstructured<'_>) -> Result<Vec<String>> {
    if input.ratio(1, 32)? {
        let count = MOST_COMETS - 1 + input.int_in_range(0..=2)?;
        return Ok((0..count).map(|number| format!("comet-{number}:1")).collect());
    }
    (0..input.int_in_range(0..=4)?).map(|_| text(input)).collect()
}

fn optional<T>(
    input: &mut Unstructured<'_>,
    some: impl FnOnce(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Option<T>> {
    if input.arbitrary()? { some(input).map(Some) } else { Ok(None) }
}
