//! Produces records as `logic` does, and malformed ones.

use bytes::Bytes;
use halley::message::{Audience, encode};
use rdkafka::producer::FutureRecord;

use super::{ANSWER, ConsumedRecord, Kafka, raw};

impl Kafka {
    /// Produces a message as `logic` does and waits for the broker's acknowledgement. Returns the id
    /// that the gateway gives it.
    ///
    /// A room's messages have the room as the record's key, so that they share a partition.
    pub async fn produce(
        &self,
        topic: &str,
        audience: Audience,
        operation: i32,
        body: impl AsRef<[u8]>,
    ) -> String {
        let key = match &audience {
            Audience::Room(room) => Some(room.to_string()),
            Audience::Keys { keys, .. } => keys.first().map(|key| key.to_string()),
            Audience::Everyone { .. } => None,
        };
        let value = encode(&audience, operation, body.as_ref());
        self.produce_record(topic, key.as_deref(), Some(&value), &[]).await
    }

    /// Produces a ROOM message.
    pub async fn produce_room(&self, topic: &str, room: &str, body: impl AsRef<[u8]>) -> String {
        self.produce(topic, Audience::Room(room.into()), 4, body).await
    }

    /// Produces a ROOM message without a key: it goes to any partition.
    pub async fn produce_room_anywhere(&self, topic: &str, room: &str, body: impl AsRef<[u8]>) -> String {
        let value = encode(&Audience::Room(room.into()), 4, body.as_ref());
        self.produce_record(topic, None, Some(&value), &[]).await
    }

    /// Produces a ROOM message with a timestamp, in milliseconds since 1970.
    pub async fn produce_room_at(&self, topic: &str, room: &str, body: &str, timestamp_ms: i64) -> String {
        let value = encode(&Audience::Room(room.into()), 4, body.as_bytes());
        self.produce_record_of(topic, Some(room), Some(&value), &[], Some(timestamp_ms)).await
    }

    /// Produces a PUSH message for connection or user ids, with or without the comet's name.
    pub async fn produce_keys(
        &self,
        topic: &str,
        server: Option<&str>,
        keys: &[&str],
        body: impl AsRef<[u8]>,
    ) -> String {
        let keys = keys.iter().map(|key| (*key).into()).collect();
        self.produce(topic, Audience::Keys { server: server.map(Into::into), keys }, 4, body).await
    }

    /// Produces a BROADCAST message.
    pub async fn produce_everyone(&self, topic: &str, speed: i32, body: impl AsRef<[u8]>) -> String {
        self.produce(topic, Audience::Everyone { speed }, 4, body).await
    }

    /// Produces any record, including a tombstone; returns the id that the gateway gives it.
    pub async fn produce_record(
        &self,
        topic: &str,
        key: Option<&str>,
        value: Option<&[u8]>,
        headers: &[(&str, &str)],
    ) -> String {
        self.produce_record_of(topic, key, value, headers, None).await
    }

    /// The same with a timestamp, in milliseconds since 1970.
    pub async fn produce_record_of(
        &self,
        topic: &str,
        key: Option<&str>,
        value: Option<&[u8]>,
        headers: &[(&str, &str)],
        timestamp_ms: Option<i64>,
    ) -> String {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        self.produce_raw(topic, key, value, &headers, timestamp_ms).await
    }

    /// The same with headers whose names need not be UTF-8.
    pub async fn produce_raw(
        &self,
        topic: &str,
        key: Option<&str>,
        value: Option<&[u8]>,
        headers: &[(&[u8], &[u8])],
        timestamp_ms: Option<i64>,
    ) -> String {
        let headers = Some(raw::headers(headers));
        let record = FutureRecord { headers, ..FutureRecord::<str, [u8]>::to(topic) };
        let record = FutureRecord { key, payload: value, timestamp: timestamp_ms, ..record };
        let sent = self.producer.send(record, ANSWER).await;
        let at = sent.unwrap_or_else(|(e, _)| panic!("topic {topic} does not take the record: {e}"));
        let written = ConsumedRecord {
            partition: at.partition,
            offset: at.offset,
            key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            value: value.map(Bytes::copy_from_slice),
            headers: Vec::new(),
            // Only known now if the topic sets it.
            timestamp_ms: at.timestamp.to_millis(),
        };
        if at.offset >= 0 {
            return written.id(topic);
        }
        // A retry after the broker died: it has the record already, and does not say where.
        let same = |record: &ConsumedRecord| (&record.key, &record.value) == (&written.key, &written.value);
        let records = self.read_all(topic);
        let mut found = records.iter().filter(|record| same(record));
        let id = found.next().expect("the record is acknowledged").id(topic);
        assert_eq!(found.next(), None, "which of these is the record?");
        id
    }
}
