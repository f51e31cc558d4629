//! How partitions are named: as keys, in librdkafka's lists and in log lines.

use std::sync::Arc;

use rdkafka::{Offset, TopicPartitionList};

use crate::consumer::metadata::CommitMetadata;

/// A topic and the number of its partition.
pub(super) type PartitionKey = (Arc<str>, i32);

/// The partitions of a list.
pub(super) fn keys(list: &TopicPartitionList) -> Vec<PartitionKey> {
    list.elements().iter().map(|e| (Arc::from(e.topic()), e.partition())).collect()
}

/// A list of these partitions, without offsets; `None` if there are none.
pub(super) fn list_of(keys: &[PartitionKey]) -> Option<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(keys.len());
    for (topic, number) in keys {
        list.add_partition(topic, *number);
    }
    (!keys.is_empty()).then_some(list)
}

/// One partition's offset, for committing.
pub(super) fn add_offset(
    list: &mut TopicPartitionList,
    topic: &str,
    partition: i32,
    offset: i64,
    metadata: Option<CommitMetadata>,
) {
    let mut element = list.add_partition(topic, partition);
    element.set_offset(Offset::Offset(offset)).expect("an offset of a record is a valid offset");
    if let Some(metadata) = metadata {
        element.set_metadata(metadata.to_string());
    }
}

/// As `topic/partition`.
pub(super) fn names(list: &TopicPartitionList) -> String {
    let names: Vec<_> = list.elements().iter().map(|e| format!("{}/{}", e.topic(), e.partition())).collect();
    names.join(" ")
}

/// As `topic/partition`.
pub(super) fn names_of(keys: &[&PartitionKey]) -> String {
    let names: Vec<_> = keys.iter().map(|(topic, partition)| format!("{topic}/{partition}")).collect();
    names.join(" ")
}

/// As `topic/partition/offset`.
pub(super) fn offsets_of(open: &[(PartitionKey, i64)]) -> String {
    let names: Vec<_> =
        open.iter().map(|((topic, partition), offset)| format!("{topic}/{partition}/{offset}")).collect();
    names.join(" ")
}
