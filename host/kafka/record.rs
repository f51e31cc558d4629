//! Copies records out of librdkafka's memory, and headers into it. Only here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rdkafka::message::{BorrowedMessage, Message as _, OwnedHeaders};

use crate::kafka::native::{self, Headers};
use crate::message::{Header, Origin, RawHeader, RawRecord, Record, RecordLimits, VALUE_LEFT_OUT};
use crate::panics;

/// Copies a record out of librdkafka's memory. Never panics: a part that cannot be read is omitted
/// and noted in a header. `topic` is the topic of the last record: most are of the same, and share its
/// name.
pub(crate) fn copy(
    message: &BorrowedMessage<'_>,
    limits: &RecordLimits,
    topic: &mut Option<Arc<str>>,
) -> Record {
    let copied = catch_unwind(AssertUnwindSafe(|| raw(message, topic).copy(limits)));
    copied.unwrap_or_else(|panic| {
        let why = format!("cannot be read, which is a bug of the gateway: {}", panics::text(&*panic));
        Record {
            origin: origin(message, &mut None),
            timestamp_ms: None,
            key: None,
            value: None,
            headers: vec![Header::new(VALUE_LEFT_OUT, why)],
            trusted: true,
        }
    })
}

fn origin(message: &BorrowedMessage<'_>, known: &mut Option<Arc<str>>) -> Origin {
    let name = message.topic();
    let topic = match known {
        Some(topic) if **topic == *name => Arc::clone(topic),
        _ => Arc::clone(known.insert(name.into())),
    };
    Origin { topic, partition: message.partition(), offset: message.offset() }
}

fn raw<'a>(
    message: &'a BorrowedMessage<'_>,
    topic: &mut Option<Arc<str>>,
) -> RawRecord<'a, impl Iterator<Item = RawHeader<'a>> + Clone + use<'a>> {
    let headers = Headers::of(message).map(|all| all.into_iter().flat_map(Headers::into_iter));
    RawRecord {
        origin: origin(message, topic),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key(),
        value: message.payload(),
        headers,
    }
}

/// Headers as librdkafka takes them.
pub(super) fn to_native(headers: &[Header]) -> OwnedHeaders {
    let mut all = OwnedHeaders::new_with_capacity(headers.len());
    for header in headers {
        native::add(&mut all, &header.name, header.value.as_deref());
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    use rdkafka::{ClientConfig, Offset, TopicPartitionList};

    use super::*;

    fn header(name: &'static [u8], value: Option<&'static [u8]>) -> Header {
        Header { name: Bytes::from_static(name), value: value.map(Bytes::from_static) }
    }

    /// A record with these headers, written to Kafka and read back.
    fn through_kafka(headers: &[Header]) -> Record {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("a topic");
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        let producer: BaseProducer = client.create().expect("a producer");
        let record = BaseRecord::to("t").key("key").payload("value").headers(to_native(headers));
        producer.send(record).map_err(|(error, _)| error).expect("queued");
        producer.flush(Duration::from_secs(10)).expect("written");
        let consumer: BaseConsumer = client.create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("t", 0, Offset::Beginning).expect("an offset");
        consumer.assign(&list).expect("assigned");
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < until, "no record");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                return copy(&message, &RecordLimits::NONE, &mut None);
            }
        }
    }

    #[test]
    fn header_names_of_any_bytes_are_read_and_written() {
        let headers = [
            header(b"\xc6\xb5\xb5\xc0", Some(b"1")),
            header(b"", Some(b"")),
            header(b"no value", None),
            header(b"trace", Some(b"\x00\xff")),
            header(b"trace", Some(b"again")),
        ];
        let record = through_kafka(&headers);
        assert_eq!(record.headers, headers);
        assert_eq!(
            (record.key.as_deref(), record.value.as_deref()),
            (Some(&b"key"[..]), Some(&b"value"[..]))
        );
        assert!(through_kafka(&[]).headers.is_empty());
        // librdkafka hands names out as C strings.
        assert_eq!(through_kafka(&[header(b"a\x00b", None)]).headers, [header(b"a", None)]);
    }

    #[test]
    fn more_headers_than_librdkafka_reads_are_named() {
        let many = vec![header(b"", None); 100_001];
        let record = through_kafka(&many);
        let [note, id] = &record.headers[..] else { panic!("{} headers", record.headers.len()) };
        assert_eq!((&*note.name, &*id.name), (&b"halley-message-id"[..], &b"halley-headers-left-out"[..]));
    }
}
