//! The headers of dead letters: where a record came from, and why it came here.

use std::borrow::Cow;

use bytes::Bytes;

use crate::decision::PluginVersion;
use crate::message::{
    CometAddr, HEADERS_LEFT_OUT, Header, KEY_LEFT_OUT, MESSAGE_ID, ORIGIN_TOPIC, PROOF, REDRIVE_COMETS,
    REDRIVE_USERS, Record, STAGE, UserId, VALUE_LEFT_OUT, list_of_users,
};
use crate::telemetry::escape::cut;
use crate::telemetry::label_enum;

/// The partition of the original record.
pub const ORIGIN_PARTITION: &str = "halley-origin-partition";
/// The offset of the original record.
pub const ORIGIN_OFFSET: &str = "halley-origin-offset";
/// The record's own timestamp, in milliseconds since 1970. The dead letter has the same one, unless
/// its topic sets timestamps itself or refuses old ones. A redriven record carries this header if its
/// topic refuses the timestamp; it is kept if the record becomes a dead letter again.
pub const ORIGIN_TIMESTAMP: &str = "halley-origin-timestamp";
/// Why, in words.
pub const REASON: &str = "halley-reason";
/// The comets that did not accept it, separated by commas.
pub const FAILED_COMETS: &str = "halley-failed-comets";
/// The absent users for whom it was not stored. The others have had it, but for those at comets
/// that are named as well. See [`crate::message::RedriveUsers`].
pub const FAILED_USERS: &str = "halley-failed-users";
/// How often the message has become a dead letter.
pub const ATTEMPTS: &str = "halley-attempts";
/// The plugin that caused it, with its version: `name@hash`.
pub const PLUGIN: &str = "halley-plugin";

/// Set if the record had no key and the topic requires one: the letter's key is the message id.
pub const KEY_ADDED: &str = "halley-key-added";

/// All headers that the gateway adds; a redrive removes them.
pub(super) const HALLEY_HEADERS: [&str; 18] = [
    MESSAGE_ID,
    PROOF,
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
    KEY_ADDED,
    ATTEMPTS,
    REDRIVE_COMETS,
    FAILED_USERS,
    REDRIVE_USERS,
];

label_enum! {
    /// The stage at which a record became a dead letter.
    pub enum Stage as "stage" {
        /// The record is not a message.
        Decode = "decode",
        /// A policy decided so, or failed.
        Filter = "filter",
        /// The room cannot be read.
        Resolve = "resolve",
        /// The message could not be stored for an absent recipient.
        Offline = "offline",
        /// Comets refused it, or were unreachable and the recipients are unknown.
        Deliver = "deliver",
        /// The archive's database refused a row of it.
        Archive = "archive",
    }
}

label_enum! {
    /// A part that was left out of a letter.
    pub enum LetterPart as "part" {
        /// The record's value.
        Value = "value",
        /// The record's key.
        Key = "key",
        /// The record's own headers.
        Headers = "headers",
    }
}

impl LetterPart {
    /// The header of a letter that lacks this part.
    pub(super) fn header(self) -> &'static str {
        match self {
            Self::Value => VALUE_LEFT_OUT,
            Self::Key => KEY_LEFT_OUT,
            Self::Headers => HEADERS_LEFT_OUT,
        }
    }
}

/// Whether a record was read from a dead-letter topic: a redrive removes these headers. If it were
/// written there again, it would be read again, forever.
pub fn is_dead_letter(record: &Record) -> bool {
    record.header(ORIGIN_TOPIC).is_some() && record.header(STAGE).is_some()
}

/// Maximum number of comets in the header: the record has to stay writable.
const MOST_COMETS: usize = 1_000;
/// Maximum length of their names together, in bytes.
const MOST_COMET_BYTES: usize = 64 * 1024;
/// Maximum length of a reason, in characters.
const MOST_TEXT: usize = 1_000;
/// Marks a truncated list.
pub(super) const MORE_COMETS: &str = "...";

/// How much of a reason is about users for whom the message was not stored, if comets did not accept it
/// either.
const NOT_KEPT_TEXT: usize = 300;

/// Why a record becomes a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterReason {
    /// The stage at which it became a dead letter.
    pub stage: Stage,
    /// The reason as text, truncated to 1,000 characters.
    pub text: String,
    /// The comets that did not accept it.
    pub comets: Vec<CometAddr>,
    /// The users for whom it was not stored. Everyone else has had it, except those at `comets`.
    pub users: Vec<UserId>,
    /// The plugin that caused it.
    pub plugin: Option<PluginVersion>,
}

impl DeadLetterReason {
    /// A reason without comets and plugin.
    pub fn new(stage: Stage, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if let Some((at, _)) = text.char_indices().nth(MOST_TEXT) {
            text.truncate(at);
        }
        Self { stage, text, comets: Vec::new(), users: Vec::new(), plugin: None }
    }

    /// The same, for a message that could not be stored for some absent users either.
    pub fn and_not_kept(self, kept: Self) -> Self {
        // The users come first: there may be many comets, and a long reason is cut.
        let text = format!("{}; {}", cut(&kept.text, NOT_KEPT_TEXT), self.text);
        Self { users: kept.users, text: Self::new(self.stage, text).text, ..self }
    }
}

/// The original headers and ours, without those of an earlier round.
pub(super) fn headers(record: &Record, reason: &DeadLetterReason) -> Vec<Header> {
    let mut headers: Vec<Header> = foreign_headers(record).cloned().collect();
    let origin = &record.origin;
    let text: String = reason.text.chars().take(MOST_TEXT).collect();
    let ours = [
        (MESSAGE_ID, record.message_id().to_string()),
        (ORIGIN_TOPIC, origin.topic.to_string()),
        (ORIGIN_PARTITION, origin.partition.to_string()),
        (ORIGIN_OFFSET, origin.offset.to_string()),
        (STAGE, reason.stage.as_str().to_owned()),
        (REASON, text),
        (ATTEMPTS, (attempts(record) + 1).to_string()),
    ];
    headers.extend(ours.map(|(name, value)| Header::new(name, value)));
    // Parts that were left out when the record was read.
    let notes = record.headers.iter().filter(|h| LetterPart::ALL.iter().any(|part| h.name == part.header()));
    headers.extend(notes.filter(|_| record.trusted).cloned());
    if let Some(timestamp) = own_timestamp(record) {
        headers.push(Header::new(ORIGIN_TIMESTAMP, timestamp.to_string()));
    }
    let (comets, users) = due(record, reason);
    if !comets.is_empty() {
        headers.push(Header::new(FAILED_COMETS, comet_list(&comets)));
    }
    if users.is_some() {
        headers.push(Header { name: FAILED_USERS.into(), value: users });
    }
    if let Some(plugin) = &reason.plugin {
        headers.push(Header::new(PLUGIN, plugin.to_string()));
    }
    headers
}

/// The comets and users that the message still has to reach.
fn due<'a>(record: &Record, reason: &'a DeadLetterReason) -> (Cow<'a, [CometAddr]>, Option<Bytes>) {
    let comets_before = record.redrive_comets();
    let users_before = record.header(REDRIVE_USERS).filter(|_| record.redrive_users().is_some());
    let was_sent = !reason.comets.is_empty() || !reason.users.is_empty();
    // It was not sent again, so nothing has changed.
    if !was_sent {
        return (comets_before.unwrap_or_default().into(), users_before.cloned());
    }
    // It was for these users only. It is not known here which of them are at the comets that did
    // not accept it, so all of them stay due, and nobody else at those comets.
    if users_before.is_some() && comets_before.is_none() && !reason.comets.is_empty() {
        return (Cow::default(), users_before.cloned());
    }
    let users = list_of_users(reason.users.iter().map(UserId::as_str)).map(Bytes::from);
    (Cow::Borrowed(reason.comets.as_slice()), users)
}

/// The comets, up to the limits of the header.
fn comet_list(comets: &[CometAddr]) -> String {
    let (mut names, mut bytes) = (Vec::new(), 0);
    for name in comets.iter().take(MOST_COMETS).map(CometAddr::as_str) {
        bytes += name.len() + 1;
        if bytes > MOST_COMET_BYTES {
            break;
        }
        names.push(name);
    }
    names.extend((names.len() < comets.len()).then_some(MORE_COMETS));
    names.join(",")
}

/// How often the message has become a dead letter, according to a trusted record.
fn attempts(record: &Record) -> u32 {
    let told = record.header(ATTEMPTS).filter(|_| record.trusted);
    told.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok())
        .map_or(0, |attempts: u32| attempts.min(u32::MAX - 1))
}

/// When the message was produced: a redriven record may lack its original timestamp.
fn own_timestamp(record: &Record) -> Option<i64> {
    let told = record
        .header(ORIGIN_TIMESTAMP)
        .filter(|_| record.trusted)
        .and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    told.or(record.timestamp_ms)
}

/// The record's headers without those that the gateway adds.
pub(super) fn foreign_headers(record: &Record) -> impl Iterator<Item = &Header> {
    record.headers.iter().filter(|header| HALLEY_HEADERS.iter().all(|ours| header.name != ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Origin;

    #[test]
    fn the_original_timestamp_is_kept() {
        let time = |value: &'static str| Header::new(ORIGIN_TIMESTAMP, value);
        let record = |headers| Record {
            origin: Origin { topic: "push".into(), partition: 2, offset: 9 },
            timestamp_ms: Some(2_000),
            key: None,
            value: None,
            headers,
            trusted: true,
        };
        assert_eq!(own_timestamp(&record(vec![time("1000")])), Some(1_000));
        assert_eq!(own_timestamp(&record(vec![time("moon")])), Some(2_000));
        assert_eq!(own_timestamp(&record(Vec::new())), Some(2_000));
        let forged = Record { trusted: false, ..record(vec![time("1000"), Header::new(ATTEMPTS, "7")]) };
        assert_eq!((own_timestamp(&forged), attempts(&forged)), (Some(2_000), 0));
    }

    #[test]
    fn an_unsent_redriven_message_stays_due_at_the_same_comets() {
        let record = Record {
            origin: Origin { topic: "push".into(), partition: 2, offset: 9 },
            timestamp_ms: None,
            key: None,
            value: None,
            headers: vec![
                Header::new(MESSAGE_ID, "push/0/7"),
                Header::new(REDRIVE_COMETS, "a:1"),
                Header::new(ATTEMPTS, "2"),
            ],
            trusted: true,
        };
        let told = |reason: DeadLetterReason, name: &str| {
            let headers = headers(&record, &reason);
            let found = headers.into_iter().find(|header| header.name == name);
            found.and_then(|header| header.value).map(|value| String::from_utf8_lossy(&value).into_owned())
        };
        let before = DeadLetterReason::new(Stage::Filter, "spam");
        assert_eq!(told(before.clone(), FAILED_COMETS).as_deref(), Some("a:1"));
        assert_eq!(told(before.clone(), ATTEMPTS).as_deref(), Some("3"));
        assert_eq!(told(before, REDRIVE_COMETS), None);
        let comets: Vec<CometAddr> = (0..1_001).map(|n| format!("c:{n}").into()).collect();
        let many =
            told(DeadLetterReason { comets, ..DeadLetterReason::new(Stage::Deliver, "") }, FAILED_COMETS);
        assert!(many.is_some_and(|many| many.starts_with("c:0,") && many.ends_with(",c:999,...")));
        let long: Vec<CometAddr> = (0..500).map(|n| format!("{}:{n}", "c".repeat(250)).into()).collect();
        let many = told(
            DeadLetterReason { comets: long, ..DeadLetterReason::new(Stage::Deliver, "") },
            FAILED_COMETS,
        );
        assert!(many.is_some_and(|many| many.len() <= MOST_COMET_BYTES + 4 && many.ends_with(",...")));
    }

    #[test]
    fn a_message_is_due_at_comets_and_at_users_until_it_was_sent_there() {
        let redriven = |comets: &[&'static str], users: &[&'static str]| Record {
            origin: Origin { topic: "push".into(), partition: 2, offset: 9 },
            timestamp_ms: None,
            key: None,
            value: None,
            headers: [(MESSAGE_ID, "push/0/7")]
                .into_iter()
                .chain(comets.iter().map(|comet| (REDRIVE_COMETS, *comet)))
                .chain(users.iter().map(|user| (REDRIVE_USERS, *user)))
                .map(|(name, value)| Header::new(name, value))
                .collect(),
            trusted: true,
        };
        let failed = |comets: &[&str], users: &[&str]| DeadLetterReason {
            comets: comets.iter().map(|comet| (*comet).into()).collect(),
            users: users.iter().map(|user| (*user).into()).collect(),
            ..DeadLetterReason::new(Stage::Deliver, "no")
        };
        /// Comets, and users.
        type Names<'a> = [&'a [&'a str]; 2];
        let table: [(Names<'_>, Names<'_>, [&str; 2]); 7] = [
            ([&[], &[]], [&["a:1"], &["u"]], ["a:1", "u"]),
            ([&["a:1"], &["u"]], [&[], &[]], ["a:1", "u"]),
            ([&["a:1"], &["u"]], [&["a:1"], &[]], ["a:1", ""]),
            ([&["a:1"], &["u"]], [&[], &["u"]], ["", "u"]),
            ([&[], &["u,v"]], [&["a:1"], &[]], ["", "u,v"]),
            ([&[], &["u,v"]], [&["a:1"], &["v"]], ["", "u,v"]),
            ([&[], &["u,v"]], [&[], &["v"]], ["", "v"]),
        ];
        for ([comets, users], [failed_comets, failed_users], expected) in table {
            let (record, reason) = (redriven(comets, users), failed(failed_comets, failed_users));
            let headers = headers(&record, &reason);
            let value = |name: &str| {
                let found = headers.iter().find(|header| header.name == name);
                found.and_then(|header| header.value.as_deref()).map(String::from_utf8_lossy)
            };
            let told = [FAILED_COMETS, FAILED_USERS].map(|name| value(name).unwrap_or_default());
            assert_eq!(told, expected, "{comets:?} {users:?}, then {reason:?}");
        }
    }

    #[test]
    fn earlier_headers_are_replaced_and_the_id_is_kept() {
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
            trusted: true,
        };
        let mut reason = DeadLetterReason::new(Stage::Deliver, "refused");
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
            (ATTEMPTS, "1"),
            (ORIGIN_TIMESTAMP, "1000"),
            (FAILED_COMETS, "a:1,b:1"),
        ];
        assert_eq!(headers, expected.map(|(name, value)| Header::new(name, value)));
    }
}
