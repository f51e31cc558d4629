//! What is written to a letter's topic of origin. Pure.

use crate::dead_letter::{DeadLetter, ORIGIN_TIMESTAMP};
use crate::kafka::{Fit, NotWritten, Outgoing, Refusal};
use crate::message::{Content, PROOF, REDRIVE_COMETS, REDRIVE_USERS, RedriveKey};

/// The letter as the record that it was, for a topic with so many partitions. It says which comets
/// it is for, those that did not take it, or which users, those whom it was not kept for; unless
/// `all` are to have it. [`prove`] is still to come.
pub(super) fn back(letter: &DeadLetter, partitions: i32, all: bool) -> Outgoing<'_> {
    let origin = letter.origin.as_ref().map(|origin| origin.partition);
    let mut record = Outgoing {
        headers: letter.restored_headers(),
        // Where it was: producers of other languages spread keys differently.
        partition: origin.filter(|partition| (0..partitions).contains(partition)),
        ..Outgoing::copy_of(&letter.record)
    };
    if all {
        return record;
    }
    if !letter.users.is_empty() {
        record.add_header(REDRIVE_USERS, letter.users.clone());
    } else if !letter.comets.is_empty() && !letter.more_comets {
        record.add_header(REDRIVE_COMETS, letter.comets.join(","));
    }
    record
}

/// Proves that the record was redriven to this topic.
pub(super) fn prove(record: &mut Outgoing<'_>, topic: &str, key: &RedriveKey) {
    record.headers.retain(|header| header.name != PROOF);
    let headers = record.headers.iter().map(|header| (&*header.name, header.value.as_deref()));
    let content = Content::of(topic, headers, record.key.as_deref(), record.value.as_deref());
    record.add_header(PROOF, key.prove(&content));
}

/// Gives a record that its topic finds too old, or too new, the time of now, and its own in a
/// header. Everything else that a topic refuses stays refused.
pub(super) struct Restamp<'a> {
    pub(super) topic: &'a str,
    pub(super) key: &'a RedriveKey,
}

impl Fit for Restamp<'_> {
    fn fit<'a>(&self, mut record: Outgoing<'a>, error: &NotWritten) -> Option<Outgoing<'a>> {
        if error.refusal != Some(Refusal::Timestamp) {
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
    use crate::message::{Claim, Header, MESSAGE_ID, Origin, Record};

    /// The record as a gateway reads it.
    fn read(outgoing: Outgoing<'_>, topic: &str) -> Record {
        let Outgoing { key, value, timestamp_ms, headers, .. } = outgoing;
        let bytes = |bytes: Option<std::borrow::Cow<'_, [u8]>>| bytes.map(|b| b.into_owned().into());
        let origin = Origin { topic: topic.into(), partition: 0, offset: 99 };
        Record { origin, timestamp_ms, key: bytes(key), value: bytes(value), headers, trusted: false }
    }

    #[test]
    fn what_is_redriven_is_proven_also_with_the_time_of_now() {
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
        let mut outgoing = back(&letter, 1, false);
        prove(&mut outgoing, "push", &key);
        let is_proven =
            |record: Record| matches!(record.claim(), Claim::Proof(claimed) if key.proves(&claimed));
        assert!(is_proven(read(outgoing.clone(), "push")));
        assert!(!is_proven(read(outgoing.clone(), "payments")), "it was written to another topic");
        let old =
            NotWritten { topic: "push".into(), reason: "old".into(), refusal: Some(Refusal::Timestamp) };
        let restamped = Restamp { topic: "push", key: &key }.fit(outgoing, &old).expect("taken");
        let record = read(restamped, "push");
        assert!(record.header(ORIGIN_TIMESTAMP).is_some() && is_proven(record));
    }
}
