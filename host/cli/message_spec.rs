//! A message in JSON or TOML, as people write it: for `halley explain` and `halley plugin`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smart_default::SmartDefault;

use crate::message::{Audience, Header, Message, Origin, Record, encode};
use crate::time::to_record_ms;

/// The default operation: goim's number of a message to users.
pub(super) const OPERATION: i32 = 4;

/// A message; exactly one of `room`, `keys` and `everyone` is set.
#[derive(SmartDefault, Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MessageSpec {
    pub(super) room: Option<String>,
    pub(super) keys: Vec<String>,
    pub(super) server: Option<String>,
    pub(super) everyone: bool,
    #[default(OPERATION)]
    pub(super) operation: i32,
    pub(super) speed: i32,
    pub(super) body: String,
    /// For bodies that are not text; excludes `body`.
    pub(super) body_base64: Option<String>,
    pub(super) headers: BTreeMap<String, String>,
    /// When it was produced.
    #[serde(with = "humantime_serde")]
    pub(super) at: Option<SystemTime>,
}

impl MessageSpec {
    /// The message of a record at this offset.
    ///
    /// # Errors
    /// If there is not exactly one audience, or the body is invalid.
    pub(super) fn into_message(self, topic: &str, offset: i64) -> anyhow::Result<Message> {
        let value = encode(&self.audience()?, self.operation, &self.bytes()?);
        let header =
            |(name, value): (String, String)| Header { name: name.into(), value: Some(value.into()) };
        let record = Record {
            origin: Origin { topic: topic.into(), partition: 0, offset },
            timestamp_ms: self.at.map(to_record_ms),
            key: None,
            value: Some(value),
            headers: self.headers.into_iter().map(header).collect(),
            trusted: false,
        };
        Ok(Message::decode(Arc::new(record))?)
    }

    fn audience(&self) -> anyhow::Result<Audience> {
        let keys: Vec<Arc<str>> = self.keys.iter().map(|key| Arc::from(key.as_str())).collect();
        match (&self.room, keys.is_empty(), self.everyone) {
            (Some(room), true, false) => Ok(Audience::Room(room.as_str().into())),
            (None, false, false) => {
                Ok(Audience::Keys { server: self.server.as_deref().map(Arc::from), keys })
            }
            (None, true, true) => Ok(Audience::Everyone { speed: self.speed }),
            _ => anyhow::bail!("a message needs exactly one of `room`, `keys` and `everyone`"),
        }
    }

    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        match &self.body_base64 {
            None => Ok(self.body.clone().into_bytes()),
            Some(_) if !self.body.is_empty() => {
                anyhow::bail!("a message has either `body` or `body_base64`, not both")
            }
            Some(text) => STANDARD.decode(text).map_err(|why| anyhow::anyhow!("`body_base64`: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: &str) -> anyhow::Result<Message> {
        serde_json::from_str::<MessageSpec>(json)?.into_message("push", 7)
    }

    #[test]
    fn a_message_is_for_one_audience() {
        let for_room = message(r#"{"room":"r","body":"hi","headers":{"a":"b"}}"#).unwrap();
        assert_eq!((for_room.operation, &for_room.body[..]), (OPERATION, &b"hi"[..]));
        assert_eq!(for_room.record.origin.offset, 7);
        let for_keys = message(r#"{"keys":["k"],"server":"s","operation":5}"#).unwrap();
        assert_eq!(for_keys.audience, Audience::Keys { server: Some("s".into()), keys: vec!["k".into()] });
        for wrong in [r#"{}"#, r#"{"room":"r","everyone":true}"#, r#"{"room":"r","keys":["k"]}"#] {
            assert!(message(wrong).unwrap_err().to_string().contains("exactly one of"), "{wrong}");
        }
        assert!(message(r#"{"rooom":"r"}"#).unwrap_err().to_string().contains("unknown field `rooom`"));
    }

    #[test]
    fn bodies_that_are_not_text_and_times_are_read() {
        let bytes = message(r#"{"room":"r","body_base64":"/wA=","at":"1970-01-01T00:00:01Z"}"#).unwrap();
        assert_eq!((&bytes.body[..], bytes.record.timestamp_ms), (&[0xff, 0][..], Some(1000)));
        assert!(
            message(r#"{"room":"r","body":"a","body_base64":"/wA="}"#)
                .unwrap_err()
                .to_string()
                .contains("or")
        );
        assert!(
            message(r#"{"room":"r","body_base64":"?"}"#).unwrap_err().to_string().contains("body_base64")
        );
    }
}
