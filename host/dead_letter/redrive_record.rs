//! Builds the record that is written to a letter's topic of origin. Pure.

use std::sync::Arc;

use crate::dead_letter::{DeadLetter, FAILED_USERS, ORIGIN_TIMESTAMP};
use crate::kafka::{FitRecord, OutgoingRecord, TopicSet, WriteError, WriteRefusal, topic_problem};
use crate::message::{Origin, PROOF, ProofContent, REDRIVE_COMETS, REDRIVE_USERS, RedriveKey, RedriveUsers};
use crate::telemetry::escape::cut;

/// Why a letter cannot go back to its topic.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRedrivable {
    #[error("it comes from the dead-letter topic itself")]
    DeadLetterTopic,
    #[error("it has no `halley-origin-topic` header")]
    NoOrigin,
    #[error(
        "its origin is `{topic}`, which is not one of `[kafka] topics`; if that is right, allow it with `--allow-topic`",
        topic = cut(.0, 249)
    )]
    NotAllowed(Arc<str>),
    #[error("{missing}; it may still stand at {origin}")]
    Incomplete { missing: String, origin: String },
    /// Gateways ignore a list that they cannot read: everyone would get the message again.
    #[error(
        "its `{FAILED_USERS}` header names nobody, or is longer than gateways write; `--all-comets` sends it to all of its recipients"
    )]
    Users,
}

/// The topic that a letter goes back to, if it is allowed.
///
/// # Errors
/// Why it cannot go back.
pub(super) fn destination(
    letter: &DeadLetter,
    dead_letters: &str,
    allowed: &TopicSet,
    all: bool,
) -> Result<Arc<str>, NotRedrivable> {
    let topic = match &letter.origin {
        Some(origin) if *origin.topic != *dead_letters => Arc::clone(&origin.topic),
        Some(_) => return Err(NotRedrivable::DeadLetterTopic),
        None => return Err(NotRedrivable::NoOrigin),
    };
    if topic_problem("", &topic).is_some() || !allowed.contains(&topic) {
        return Err(NotRedrivable::NotAllowed(topic));
    }
    if let Some(missing) = letter.missing() {
        let origin = letter.origin.as_ref().map(Origin::to_string).unwrap_or_default();
        return Err(NotRedrivable::Incomplete { missing, origin });
    }
    if !all && !letter.users.is_empty() && RedriveUsers::parse(&letter.users).is_none() {
        return Err(NotRedrivable::Users);
    }
    Ok(topic)
}

/// Restores the original record of a letter, for a topic with this many partitions. Its headers limit
/// it to the comets that did not accept it, and to the users for whom it was not stored, unless `all`
/// is set or the letter does not name all of these comets. [`prove`] has to be called next.
pub(super) fn redrive_record(letter: &DeadLetter, partitions: i32, all: bool) -> OutgoingRecord<'_> {
    let origin = letter.origin.as_ref().map(|origin| origin.partition);
    let mut record = OutgoingRecord {
        headers: letter.restored_headers(),
        // The original partition: producers in other languages spread keys differently.
        partition: origin.filter(|partition| (0..partitions).contains(partition)),
        ..OutgoingRecord::copy_of(&letter.record)
    };
    if all || letter.more_comets {
        return record;
    }
    if !letter.users.is_empty() {
        record.add_header(REDRIVE_USERS, letter.users.clone());
    }
    if !letter.comets.is_empty() {
        record.add_header(REDRIVE_COMETS, letter.comets.join(","));
    }
    record
}

/// Adds the proof that the record was redriven to this topic.
pub(super) fn prove(record: &mut OutgoingRecord<'_>, topic: &str, key: &RedriveKey) {
    record.headers.retain(|header| header.name != PROOF);
    let headers = record.headers.iter().map(|header| (&*header.name, header.value.as_deref()));
    let content = ProofContent::of(topic, headers, record.key.as_deref(), record.value.as_deref());
    record.add_header(PROOF, key.prove(&content));
}

/// Gives a record whose timestamp its topic refuses the current time, and keeps the original in a
/// header. All other refusals stand.
pub(super) struct Restamp<'a> {
    pub(super) topic: &'a str,
    pub(super) key: &'a RedriveKey,
}

impl FitRecord for Restamp<'_> {
    fn fit<'a>(&self, mut record: OutgoingRecord<'a>, error: &WriteError) -> Option<OutgoingRecord<'a>> {
        if error.refusal != Some(WriteRefusal::Timestamp) {
            return None;
        }
        let time = record.timestamp_ms.take()?;
        record.add_header(ORIGIN_TIMESTAMP, time.to_string());
        prove(&mut record, self.topic, self.key);
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Header, MESSAGE_ID, Origin, Record, RedriveClaim};

    /// The record as a gateway reads it.
    fn read(outgoing: OutgoingRecord<'_>, topic: &str) -> Record {
        let OutgoingRecord { key, value, timestamp_ms, headers, .. } = outgoing;
        let bytes = |bytes: Option<std::borrow::Cow<'_, [u8]>>| bytes.map(|b| b.into_owned().into());
        let origin = Origin { topic: topic.into(), partition: 0, offset: 99 };
        Record { origin, timestamp_ms, key: bytes(key), value: bytes(value), headers, trusted: false }
    }

    #[test]
    fn redriven_records_are_proven_also_when_restamped() {
        let key = RedriveKey::from([7; 32]);
        let letter = DeadLetter::of(Record {
            origin: Origin { topic: "push.dead-letter".into(), partition: 0, offset: 5 },
            timestamp_ms: Some(1_000),
            key: Some("key".into()),
            value: Some("value".into()),
            headers: vec![
                Header::new(MESSAGE_ID, "push/0/7"),
                Header::new(crate::dead_letter::ORIGIN_TOPIC, "push"),
                Header::new(crate::dead_letter::FAILED_COMETS, "a:1"),
                Header::new(PROOF, "1:forged"),
            ],
            trusted: false,
        });
        let mut outgoing = redrive_record(&letter, 1, false);
        prove(&mut outgoing, "push", &key);
        let is_proven =
            |record: Record| matches!(record.claim(), RedriveClaim::Proof(claimed) if key.proves(&claimed));
        assert!(is_proven(read(outgoing.clone(), "push")));
        assert!(!is_proven(read(outgoing.clone(), "payments")), "it was written to another topic");
        let old =
            WriteError { topic: "push".into(), reason: "old".into(), refusal: Some(WriteRefusal::Timestamp) };
        let restamped = Restamp { topic: "push", key: &key }.fit(outgoing, &old).expect("taken");
        let record = read(restamped, "push");
        assert!(record.header(ORIGIN_TIMESTAMP).is_some() && is_proven(record));
    }
}
