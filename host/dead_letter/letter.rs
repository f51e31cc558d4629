//! Reads dead letters back, and selects them by filter. Pure.

use crate::dead_letter::headers::{
    ATTEMPTS, FAILED_COMETS, FAILED_USERS, KEY_ADDED, LetterPart, MORE_COMETS, ORIGIN_OFFSET,
    ORIGIN_PARTITION, ORIGIN_TIMESTAMP, PLUGIN, REASON, Stage, foreign_headers,
};
use crate::message::{Header, MESSAGE_ID, MessageId, ORIGIN_TOPIC, Origin, Record, STAGE};

/// A record of the dead-letter topic and the contents of its headers. Any record can be read as one;
/// missing headers are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The record with its original timestamp; its `origin` is its position in the dead-letter topic.
    pub record: Record,
    /// The message's id: the one that it carries, otherwise the one of its origin.
    pub id: MessageId,
    /// Where the message came from. An unknown partition or offset is -1.
    pub origin: Option<Origin>,
    /// The stage at which processing ended.
    pub stage: String,
    /// The reason as text.
    pub reason: String,
    /// The comets that did not accept it.
    pub comets: Vec<String>,
    /// Whether more comets failed than `comets` lists.
    pub more_comets: bool,
    /// The users for whom it was not stored, encoded as in the header; empty if more than these are
    /// due.
    pub users: String,
    /// How often the message has become a dead letter.
    pub attempts: u32,
    /// The plugin that caused it, `name@hash`; empty if none did.
    pub plugin: String,
    /// The parts that were too large for the dead-letter topic.
    pub left_out: Vec<OmittedPart>,
    /// Distinguishes the record from another one at the same offset, as in a recreated topic.
    pub(super) fingerprint: u64,
}

/// A part of a record that was left out of its dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OmittedPart {
    /// Which.
    pub part: LetterPart,
    /// Its size, its SHA-256, and the broker's error.
    pub note: String,
}

impl DeadLetter {
    /// Reads the headers of a record.
    pub fn of(mut record: Record) -> Self {
        let fingerprint = record.fingerprint();
        let text = |name| {
            record.header(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
        };
        let topic = text(ORIGIN_TOPIC);
        let origin = (!topic.is_empty()).then(|| Origin {
            topic: topic.into(),
            partition: text(ORIGIN_PARTITION).parse().unwrap_or(-1),
            offset: text(ORIGIN_OFFSET).parse().unwrap_or(-1),
        });
        let timestamp_ms = text(ORIGIN_TIMESTAMP).parse().ok();
        let comets = text(FAILED_COMETS);
        let mut comets: Vec<_> = comets.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
        let more_comets = comets.pop_if(|last| last == MORE_COMETS).is_some();
        let attempts = text(ATTEMPTS).parse().unwrap_or(1);
        let (stage, reason, plugin, users) = (text(STAGE), text(REASON), text(PLUGIN), text(FAILED_USERS));
        let parts = LetterPart::ALL.into_iter().filter(|part| record.header(part.header()).is_some());
        let left_out: Vec<_> = parts.map(|part| OmittedPart { part, note: text(part.header()) }).collect();
        let key_is_ours = record.header(KEY_ADDED).is_some();
        record.key.take_if(|_| key_is_ours);
        if left_out.iter().any(|left_out| left_out.part == LetterPart::Value) {
            record.value = None;
        }
        record.timestamp_ms = timestamp_ms.or(record.timestamp_ms);
        // Without a usable id, the record would be identified by its current position.
        let place = origin.as_ref().unwrap_or(&record.origin);
        let id = record.claimed_id().unwrap_or_else(|| record.id_at(place));
        Self {
            id,
            origin,
            stage,
            reason,
            comets,
            more_comets,
            users,
            attempts,
            plugin,
            left_out,
            fingerprint,
            record,
        }
    }

    /// The headers of the record before it became a dead letter.
    pub fn original_headers(&self) -> impl Iterator<Item = &Header> {
        foreign_headers(&self.record)
    }

    /// The original headers and those that identify the message.
    pub(super) fn restored_headers(&self) -> Vec<Header> {
        let ours = [(ATTEMPTS, self.attempts.to_string()), (MESSAGE_ID, self.id.to_string())];
        let ours = ours.map(|(name, value)| Header::new(name, value));
        self.original_headers().cloned().chain(ours).collect()
    }

    /// Whether the value was left out, as opposed to absent from the start.
    pub fn lacks_value(&self) -> bool {
        self.left_out.iter().any(|left_out| left_out.part == LetterPart::Value)
    }

    /// The parts that are missing, as text; `None` if the letter is complete.
    pub fn missing(&self) -> Option<String> {
        let part = |OmittedPart { part, note }: &OmittedPart| {
            let were = if *part == LetterPart::Headers { "were" } else { "was" };
            format!("its {} {were} left out ({note})", part.as_str())
        };
        let parts: Vec<_> = self.left_out.iter().map(part).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// Selects dead letters. The default matches all; every field that is set must match.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The stage.
    pub stage: Option<Stage>,
    /// The plugin that caused it: its name, or `name@hash`.
    pub plugin: Option<String>,
    /// The topic of origin.
    pub topic: Option<String>,
    /// Text in the reason, ignoring case.
    pub reason: Option<String>,
    /// Earliest timestamp (inclusive), in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Latest timestamp (exclusive).
    pub until_ms: Option<i64>,
}

impl Filter {
    /// Whether the filter selects this letter.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let at = letter.record.timestamp_ms;
        let topic = letter.origin.as_ref().map(|origin| &*origin.topic);
        let name = letter.plugin.split('@').next().unwrap_or_default();
        self.stage.is_none_or(|stage| stage.as_str() == letter.stage)
            && self.plugin.as_ref().is_none_or(|plugin| *plugin == letter.plugin || plugin == name)
            && self.topic.as_deref().is_none_or(|wanted| topic == Some(wanted))
            && self.reason.as_ref().is_none_or(|text| contains(&letter.reason, text))
            && self.since_ms.is_none_or(|since| at.is_some_and(|at| at >= since))
            && self.until_ms.is_none_or(|until| at.is_some_and(|at| at < until))
    }
}

fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::dead_letter::headers::{DeadLetterReason, headers};
    use crate::decision::PluginVersion;

    /// The dead letter of a record.
    fn dead(record: &Record, reason: &DeadLetterReason) -> DeadLetter {
        let origin = Origin { topic: "push.dead-letter".into(), partition: 0, offset: 5 };
        DeadLetter::of(Record { origin, headers: headers(record, reason), ..record.clone() })
    }

    fn example() -> (Record, DeadLetterReason) {
        let record = Record {
            origin: Origin { topic: "push".into(), partition: 2, offset: 9 },
            timestamp_ms: Some(1_000),
            key: None,
            value: None,
            headers: Vec::new(),
            trusted: false,
        };
        let plugin = Some(PluginVersion { name: "spam".into(), hash: "0a1b".into() });
        let comets = vec!["a:1".into(), "b:1".into()];
        (record, DeadLetterReason { comets, plugin, ..DeadLetterReason::new(Stage::Filter, "Contains SPAM") })
    }

    #[test]
    fn a_letter_is_read_as_written() {
        let (record, reason) = example();
        let letter = dead(&record, &reason);
        assert_eq!((&letter.id, &letter.origin), (&record.message_id(), &Some(record.origin)));
        assert_eq!(
            (&*letter.stage, &*letter.reason, &*letter.plugin),
            ("filter", "Contains SPAM", "spam@0a1b")
        );
        assert_eq!(letter.comets, ["a:1", "b:1"]);
    }

    #[test]
    fn a_foreign_record_has_no_origin() {
        let (record, _) = example();
        let letter = DeadLetter::of(record.clone());
        assert_eq!((&letter.origin, &letter.id), (&None, &record.message_id()));
        assert!(Filter::default().matches(&letter));
        assert!(!Filter { topic: Some("push".into()), ..Filter::default() }.matches(&letter));
    }

    #[test]
    fn every_part_of_a_filter_must_agree() {
        let (record, reason) = example();
        let letter = dead(&record, &reason);
        let all = Filter {
            stage: Some(Stage::Filter),
            plugin: Some("spam".into()),
            topic: Some("push".into()),
            reason: Some("spam".into()),
            since_ms: Some(1_000),
            until_ms: Some(1_001),
        };
        assert!(all.matches(&letter));
        let others = [
            Filter { stage: Some(Stage::Decode), ..all.clone() },
            Filter { plugin: Some("spa".into()), ..all.clone() },
            Filter { topic: Some("pus".into()), ..all.clone() },
            Filter { reason: Some("ham".into()), ..all.clone() },
            Filter { since_ms: Some(1_001), ..all.clone() },
            Filter { until_ms: Some(1_000), ..all.clone() },
        ];
        for other in others {
            assert!(!other.matches(&letter), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn a_dead_letter_s_headers_are_restored(
            names in vec(vec(any::<u8>(), 0..8), 0..6), values in vec(proptest::option::of(vec(any::<u8>(), 0..8)), 6),
            text in ".{0,40}", partition in 0..99i32, offset in 0..i64::MAX,
        ) {
            let (mut record, mut reason) = example();
            record.origin.partition = partition;
            record.origin.offset = offset;
            let pairs = names.into_iter().zip(values);
            record.headers = pairs.map(|(name, value)| Header { name: name.into(), value: value.map(Into::into) }).collect();
            reason.text = text;
            // Two rounds: a redriven record that becomes a dead letter again.
            let mut redriven = record.clone();
            for _ in 0..2 {
                let letter = dead(&redriven, &reason);
                prop_assert!(letter.original_headers().eq(record.headers.iter()));
                prop_assert_eq!(&letter.id, &record.message_id());
                redriven.headers = letter.restored_headers();
                redriven.origin.offset = 1;
                // Its proof is valid.
                redriven.trusted = true;
            }
            let id = redriven.headers.pop().expect("the id");
            prop_assert_eq!(id.name, MESSAGE_ID);
            let attempts = redriven.headers.pop().expect("the attempts");
            prop_assert_eq!((attempts.name, attempts.value), (ATTEMPTS.into(), Some("2".into())));
            prop_assert_eq!(redriven.headers, record.headers);
        }
    }
}
