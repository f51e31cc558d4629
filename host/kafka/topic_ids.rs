//! Features of librdkafka for which the `rdkafka` crate has no safe call: topic ids, the metadata of
//! committed offsets as bytes, and the cached first offset of a partition.
//!
//! A topic id (KIP-516) distinguishes a recreated topic from the old one. Brokers before 2.8, and
//! some other servers that speak Kafka's protocol, have none.

#![allow(unsafe_code, reason = "librdkafka's own calls; each block says why it is sound")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::kafka::admin_request::AdminRequest;

/// Identifies one incarnation of a topic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, derive_more::Display, derive_more::Debug)]
#[debug("{self}")]
#[display("{_0:032x}")]
pub(crate) struct TopicId(u128);

impl TopicId {
    /// The id of this number; `None` for zero, which brokers use for "no id".
    pub(crate) fn new(id: u128) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    /// Parses the format of [`fmt::Display`].
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().and_then(Self::new)
    }
}

/// The current description of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TopicState {
    /// Its id, where brokers have them.
    pub(crate) id: Option<TopicId>,
    /// How many partitions it has.
    pub(crate) partitions: i32,
}

/// Topics by name, or why Kafka did not describe one.
pub(crate) type Topics = BTreeMap<String, Result<TopicState, RDKafkaErrorCode>>;

/// A pending request that describes topics.
pub(crate) struct DescribeTopics<'a>(AdminRequest<'a>);

impl<'a> DescribeTopics<'a> {
    /// Requests these topics.
    pub(crate) fn ask<C: ClientContext>(client: &'a Client<C>, topics: &[&str], timeout: Duration) -> Self {
        // Names come from Kafka, which allows no NUL in them.
        let names: Vec<CString> = topics.iter().filter_map(|name| CString::new(*name).ok()).collect();
        let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        Self(AdminRequest::send(client, operation, timeout, |handle, options, queue| {
            // SAFETY: `send` passes valid pointers; the names live until the end of the block, and
            // librdkafka copies them.
            unsafe {
                let wanted =
                    native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
                native::rd_kafka_DescribeTopics(handle, wanted, options, queue);
                native::rd_kafka_TopicCollection_destroy(wanted);
            }
        }))
    }

    /// The response, if it arrives within this time.
    pub(crate) fn answer(&self, within: Duration) -> Option<Result<Topics, RDKafkaErrorCode>> {
        // SAFETY: the event is valid as long as the closure runs.
        self.0.answer(within, |event| unsafe { read_event(event) })
    }
}

/// # Safety
/// The event is a valid one.
unsafe fn read_event(event: *mut native::rd_kafka_event_t) -> Option<Topics> {
    // SAFETY: the caller's.
    unsafe { Some(described(event)?.map(|topic| read_topic(topic)).collect()) }
}

/// The topics that the event of a DescribeTopics request describes; `None` if it is another event.
///
/// # Safety
/// The event is a valid one, and outlives the pointers.
pub(super) unsafe fn described(
    event: *mut native::rd_kafka_event_t,
) -> Option<impl Iterator<Item = *const native::rd_kafka_TopicDescription_t>> {
    // SAFETY: the caller's; all pointers are into the event, and live as long as it.
    unsafe {
        let result = native::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return None;
        }
        let mut count = 0;
        let topics = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Some((0..count).map(move |at| *topics.add(at)))
    }
}

/// # Safety
/// The description is a valid one.
unsafe fn read_topic(
    topic: *const native::rd_kafka_TopicDescription_t,
) -> (String, Result<TopicState, RDKafkaErrorCode>) {
    // SAFETY: the caller's; all pointers are into the description.
    unsafe {
        let name = CStr::from_ptr(native::rd_kafka_TopicDescription_name(topic));
        let name = name.to_string_lossy().into_owned();
        let error = native::rd_kafka_TopicDescription_error(topic);
        let error = RDKafkaErrorCode::from(native::rd_kafka_error_code(error));
        if error != RDKafkaErrorCode::NoError {
            return (name, Err(error));
        }
        let mut partitions = 0;
        native::rd_kafka_TopicDescription_partitions(topic, &raw mut partitions);
        let id = native::rd_kafka_TopicDescription_topic_id(topic);
        let high = native::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned();
        let low = native::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned();
        let id = TopicId::new(u128::from(high) << 64 | u128::from(low));
        (name, Ok(TopicState { id, partitions: i32::try_from(partitions).unwrap_or(i32::MAX) }))
    }
}

/// The metadata of committed offsets, in the list's order. Any program may have written them, and
/// rdkafka's own accessor panics if they are not UTF-8.
pub(crate) fn metadata_of(list: &TopicPartitionList) -> Vec<Vec<u8>> {
    // SAFETY: the list lives for the whole call, and librdkafka keeps `cnt` elements there, each
    // with `metadata_size` bytes at `metadata`.
    unsafe {
        let raw = &*list.ptr();
        let count = usize::try_from(raw.cnt).unwrap_or_default();
        let elements = (0..count).map(|at| &*raw.elems.add(at));
        let bytes = elements.map(|element| match element.metadata_size {
            0 => Vec::new(),
            _ if element.metadata.is_null() => Vec::new(),
            size => std::slice::from_raw_parts(element.metadata.cast::<u8>(), size).to_vec(),
        });
        bytes.collect()
    }
}

/// A partition's first offset, as of the last fetch. Makes no request.
pub(crate) fn cached_low_watermark<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
) -> Option<i64> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the handle lives as long as the client, the name and both numbers as the call.
    let error = unsafe {
        native::rd_kafka_get_watermark_offsets(
            client.native_ptr(),
            topic.as_ptr(),
            partition,
            &raw mut low,
            &raw mut high,
        )
    };
    (RDKafkaErrorCode::from(error) == RDKafkaErrorCode::NoError && low >= 0).then_some(low)
}

/// Cuts the metadata of a list's first element in the middle of its last character, as other tools may
/// write any bytes there.
#[cfg(test)]
pub(crate) fn cut_metadata(list: &TopicPartitionList) {
    // SAFETY: the list has an element with metadata, of which one byte less is read from now on.
    unsafe { (*(*list.ptr()).elems).metadata_size -= 1 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let id = TopicId::new(0x0123_4567_89ab_cdef_0011_2233_4455_6677).expect("is not zero");
        assert_eq!(id.to_string(), "0123456789abcdef0011223344556677");
        assert_eq!(TopicId::parse(&id.to_string()), Some(id));
        for wrong in ["", "0", "00000000000000000000000000000000", "+123456789abcdef0011223344556677"] {
            assert_eq!(TopicId::parse(wrong), None, "{wrong}");
        }
        assert_eq!(TopicId::new(0), None);
    }

    #[test]
    fn metadata_that_is_not_text_is_read_as_bytes() {
        let mut list = TopicPartitionList::new();
        list.add_partition("t", 0).set_metadata("mark");
        list.add_partition("t", 1);
        assert_eq!(metadata_of(&list), [b"mark".to_vec(), Vec::new()]);
        let mut list = TopicPartitionList::new();
        list.add_partition("t", 0).set_metadata("m\u{e4}");
        cut_metadata(&list);
        assert_eq!(metadata_of(&list), [b"m\xc3".to_vec()]);
    }
}
