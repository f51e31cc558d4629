//! Fuzzing: arbitrary records of the dead-letter topic, and how they are redriven.

use std::collections::BTreeSet;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;

use super::DeadLetter;
use super::headers::{HALLEY_HEADERS, foreign_headers};
use super::redrive_record::{destination, prove, redrive_record};
use crate::kafka::{Config, OutgoingRecord, TopicSet};
use crate::message::{
    Header, MESSAGE_ID, Origin, PROOF, REDRIVE_COMETS, REDRIVE_USERS, Record, RedriveClaim, RedriveKey,
    RedriveUsers,
};

const DEAD_LETTERS: &str = "push.dead-letter";
const PARTITIONS: i32 = 3;
/// Values that have a meaning in some header.
const VALUES: [&str; 16] = [
    "push",
    "payments",
    "chat.eu",
    "chat.\u{1b}[2J\n",
    DEAD_LETTERS,
    "__consumer_offsets",
    "a:1,b:1",
    "a:1,...",
    "u1,u%2c2",
    ",",
    "%..",
    "2",
    "-1",
    "99999999999999999999",
    "push/0/7",
    "deliver",
];

/// An arbitrary record of the dead-letter topic.
pub(crate) fn record(input: &mut Unstructured<'_>) -> Result<Record> {
    let mut headers = Vec::new();
    for _ in 0..input.int_in_range(0..=9)? {
        let name =
            if input.ratio(7, 8)? { Bytes::from(*input.choose(&HALLEY_HEADERS)?) } else { bytes(input)? };
        let value = match input.int_in_range(0..=7u8)? {
            0 => None,
            1 => Some(bytes(input)?),
            _ => Some(Bytes::from(*input.choose(&VALUES)?)),
        };
        headers.push(Header { name, value });
    }
    Ok(Record {
        origin: Origin { topic: DEAD_LETTERS.into(), partition: 0, offset: input.arbitrary()? },
        timestamp_ms: input.arbitrary()?,
        key: if input.arbitrary()? { Some(bytes(input)?) } else { None },
        value: if input.arbitrary()? { Some(bytes(input)?) } else { None },
        headers,
        trusted: false,
    })
}

/// Checks where a record may be redriven, and for whom.
pub(crate) fn check(letter: &DeadLetter) {
    let topics = vec!["push".to_owned(), "^.*".to_owned()];
    let narrow = Config { topics: vec!["push".into(), "^chat\\.".into()], ..Config::default() };
    let wide = Config { topics, ..Config::default() };
    for (config, is_wide) in [(narrow, false), (wide, true)] {
        let allowed = TopicSet::consumed_with(&config, &[], &[DEAD_LETTERS]);
        for all in [false, true] {
            let Ok(topic) = destination(letter, DEAD_LETTERS, &allowed, all) else { continue };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            assert!(topic.bytes().all(plain) && topic.len() <= 249, "no topic is named {topic:?}");
            assert!(*topic != *DEAD_LETTERS && !topic.starts_with("__"), "{topic:?}");
            assert!(is_wide || &*topic == "push" || topic.starts_with("chat."), "{topic:?}");
            assert!(letter.left_out.is_empty(), "it lacks something");
            check_back(letter, &topic, all);
        }
    }
}

/// Checks that the redriven record is the original, proven, and addressed to those who are still due.
fn check_back(letter: &DeadLetter, topic: &str, all: bool) {
    let key = RedriveKey::from([7; 32]);
    let mut outgoing = redrive_record(letter, PARTITIONS, all);
    prove(&mut outgoing, topic, &key);
    assert!(outgoing.partition.is_none_or(|partition| (0..PARTITIONS).contains(&partition)));
    let mut read = as_read(outgoing, topic);
    assert!(foreign_headers(&read).eq(foreign_headers(&letter.record)), "their headers are theirs");
    assert_eq!((&read.key, &read.value), (&letter.record.key, &letter.record.value));
    for (name, most) in [(MESSAGE_ID, 1), (PROOF, 1), (REDRIVE_COMETS, 1), (REDRIVE_USERS, 1)] {
        let found = read.headers.iter().filter(|header| header.name == name).count();
        assert!(found <= most, "{found} headers {name}");
    }
    assert!(
        matches!(read.claim(), RedriveClaim::Proof(claimed) if key.proves(&claimed)),
        "no gateway believes it"
    );
    read.trusted = true;
    assert_eq!(read.trusted_id().as_ref(), Some(&letter.id), "the message is recognised");
    let (comets, users) = (read.redrive_comets(), read.redrive_users());
    if all {
        assert_eq!((comets, users), (None, None));
        return;
    }
    let failed: BTreeSet<&str> = letter.comets.iter().map(String::as_str).collect();
    let due = comets.iter().flatten().all(|comet| failed.contains(comet.as_str()));
    assert!(due, "{comets:?} of {failed:?}");
    assert!(users.is_none() || users == RedriveUsers::parse(&letter.users));
    let named = !letter.more_comets && (!letter.users.is_empty() || !failed.is_empty());
    assert!(!named || comets.is_some() || users.is_some(), "everyone would get it again");
}

/// The record as a gateway reads it.
fn as_read(outgoing: OutgoingRecord<'_>, topic: &str) -> Record {
    let OutgoingRecord { key, value, timestamp_ms, headers, .. } = outgoing;
    let origin = Origin { topic: topic.into(), partition: 0, offset: 99 };
    let (key, value) = (key.map(|key| key.into_owned().into()), value.map(|value| value.into_owned().into()));
    Record { origin, timestamp_ms, key, value, headers, trusted: false }
}

fn bytes(input: &mut Unstructured<'_>) -> Result<Bytes> {
    Ok(input.arbitrary::<Vec<u8>>()?.into())
}
