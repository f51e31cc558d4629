//! Records that cannot be delivered, kept with their reason.
//!
//! A dead letter is the record as it came (key, value, headers, timestamp) with headers of
//! ours behind the original ones. Writing returns once the broker has confirmed it; the
//! record's offset may be committed only then.
//!
//! [`Reader`] reads them back and [`redrive`] brings them to their topics of origin once what
//! was wrong is mended; nothing in a running gateway does either.

mod back;
mod letter;
mod order;
mod progress;
mod read;
mod redrive;
mod remembered;

use crate::decision::PluginVersion;
use crate::kafka::{NotWritten, Outgoing, Producer};
use crate::message::{CometAddr, HEADERS_LEFT_OUT, Header, KEY_LEFT_OUT, MESSAGE_ID, Record, VALUE_LEFT_OUT};

pub use letter::{DeadLetter, Filter};
pub use order::{Fate, Order, Summary};
pub use read::Reader;
pub use redrive::redrive;

/// The topic that the record was read from.
pub const ORIGIN_TOPIC: &str = "halley-origin-topic";
/// The partition that the record was read from.
pub const ORIGIN_PARTITION: &str = "halley-origin-partition";
/// The offset that the record was read from.
pub const ORIGIN_OFFSET: &str = "halley-origin-offset";
/// The record's own timestamp, in milliseconds since 1970. The dead letter has the same, unless
/// its topic stamps records itself or refuses old ones. A redriven record has this header where
/// its topic refuses the timestamp; should it come here again, the header is kept.
pub const ORIGIN_TIMESTAMP: &str = "halley-origin-timestamp";
/// The station where its way ended: `decode`, `filter`, `offline` or `deliver`.
pub const STAGE: &str = "halley-stage";
/// Why, in words.
pub const REASON: &str = "halley-reason";
/// The comets that did not take it, separated by commas.
pub const FAILED_COMETS: &str = "halley-failed-comets";
/// The plugin that decided, with its version: `name@hash`.
pub const PLUGIN: &str = "halley-plugin";

/// All headers that the gateway adds, for taking them off again.
const OURS: [&str; 12] = [
    MESSAGE_ID,
    ORIGIN_TOPIC,
    ORIGIN_PARTITION,
    ORIGIN_OFFSET,
    ORIGIN_TIMESTAMP,
    STAGE,
    REASON,
    FAILED_COMETS,
    PLUGIN,
    VALUE_LEFT_OUT,
    KEY_LEFT_OUT,
    HEADERS_LEFT_OUT,
];

/// The station where a record's way ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It is no message.
    Decode,
    /// A policy said so, or failed.
    Filter,
    /// An absent recipient's inbox could not take it.
    Offline,
    /// Comets refused it, or were unreachable and nobody knows for whom it was.
    Deliver,
}

impl Stage {
    /// All stages, in the order in which a message passes them.
    pub const ALL: [Self; 4] = [Self::Decode, Self::Filter, Self::Offline, Self::Deliver];

    /// The stage as it stands in headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Filter => "filter",
            Self::Offline => "offline",
            Self::Deliver => "deliver",
        }
    }
}

/// The most comets that the header names: a record has to stay writable.
const MOST_COMETS: usize = 100;

/// Why a record is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Where its way ended.
    pub stage: Stage,
    /// Why, in words; cut to 1,000 characters.
    pub text: String,
    /// The comets that did not take it.
    pub comets: Vec<CometAddr>,
    /// The plugin that decided.
    pub plugin: Option<PluginVersion>,
}

impl Reason {
    /// A reason without comets and plugin.
    pub fn new(stage: Stage, text: impl Into<String>) -> Self {
        Self { stage, text: text.into(), comets: Vec::new(), plugin: None }
    }
}

/// Writes dead letters. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters {
    producer: Producer,
    topic: String,
}

impl DeadLetters {
    /// Dead letters to this topic.
    pub fn new(producer: Producer, topic: String) -> Self {
        Self { producer, topic }
    }

    /// Writes one; returns once the broker has confirmed it.
    ///
    /// # Errors
    /// When the broker did not confirm it: the record has no outcome yet.
    pub async fn write(&self, record: &Record, reason: &Reason) -> Result<(), NotWritten> {
        let outgoing = Outgoing {
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            timestamp_ms: record.timestamp_ms,
            headers: headers(record, reason),
            partition: None,
        };
        self.producer.write(&self.topic, outgoing).await
    }
}

/// The original headers, less those of an earlier round, and ours.
fn headers(record: &Record, reason: &Reason) -> Vec<Header> {
    let mut headers: Vec<Header> = theirs(record).cloned().collect();
    let origin = &record.origin;
    let text: String = reason.text.chars().take(1000).collect();
    let ours = [
        (MESSAGE_ID, record.message_id().to_string()),
        (ORIGIN_TOPIC, origin.topic.to_string()),
        (ORIGIN_PARTITION, origin.partition.to_string()),
        (ORIGIN_OFFSET, origin.offset.to_string()),
        (STAGE, reason.stage.as_str().to_owned()),
        (REASON, text),
    ];
    headers.extend(ours.map(|(name, value)| Header::new(name, value)));
    // What was too large to be read is named in the record already.
    let left_out = [VALUE_LEFT_OUT, KEY_LEFT_OUT, HEADERS_LEFT_OUT];
    headers.extend(record.headers.iter().filter(|h| left_out.iter().any(|name| h.name == name)).cloned());
    if let Some(timestamp) = own_timestamp(record) {
        headers.push(Header::new(ORIGIN_TIMESTAMP, timestamp.to_string()));
    }
    if !reason.comets.is_empty() {
        let comets: Vec<_> = reason.comets.iter().take(MOST_COMETS).map(CometAddr::as_str).collect();
        headers.push(Header::new(FAILED_COMETS, comets.join(",")));
    }
    if let Some(plugin) = &reason.plugin {
        headers.push(Header::new(PLUGIN, plugin.to_string()));
    }
    headers
}

/// When the message was produced: a redrive may have had to leave the record's own time out.
fn own_timestamp(record: &Record) -> Option<i64> {
    let told = record.header(ORIGIN_TIMESTAMP).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    told.or(record.timestamp_ms)
}

/// The record's headers without those that the gateway adds.
fn theirs(record: &Record) -> impl Iterator<Item = &Header> {
    record.headers.iter().filter(|header| OURS.iter().all(|ours| header.name != ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Origin;

    #[test]
    fn the_time_that_a_redrive_left_out_is_kept() {
        let time = |value: &'static str| Header::new(ORIGIN_TIMESTAMP, value);
        let record = |headers| Record {
            origin: Origin { topic: "push".into(), partition: 2, offset: 9 },
            timestamp_ms: Some(2_000),
            key: None,
            value: None,
            headers,
        };
        assert_eq!(own_timestamp(&record(vec![time("1000")])), Some(1_000));
        assert_eq!(own_timestamp(&record(vec![time("moon")])), Some(2_000));
        assert_eq!(own_timestamp(&record(Vec::new())), Some(2_000));
    }

    #[test]
    fn headers_of_an_earlier_round_are_replaced_and_the_id_is_kept() {
        let record = Record {
            origin: Origin { topic: "push".into(), partition: 2, offset: 9 },
            timestamp_ms: Some(1_000),
            key: None,
            value: None,
            headers: vec![
                Header::new("trace", "1"),
                Header::new(MESSAGE_ID, "push/0/7"),
                Header::new(REASON, "old"),
            ],
        };
        let mut reason = Reason::new(Stage::Deliver, "refused");
        reason.comets = vec!["a:1".into(), "b:1".into()];
        let headers = headers(&record, &reason);
        let expected = [
            ("trace", "1"),
            (MESSAGE_ID, "push/0/7"),
            (ORIGIN_TOPIC, "push"),
            (ORIGIN_PARTITION, "2"),
            (ORIGIN_OFFSET, "9"),
            (STAGE, "deliver"),
            (REASON, "refused"),
            (ORIGIN_TIMESTAMP, "1000"),
            (FAILED_COMETS, "a:1,b:1"),
        ];
        assert_eq!(headers, expected.map(|(name, value)| Header::new(name, value)));
    }
}
