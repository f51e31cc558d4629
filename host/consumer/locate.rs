//! Asks Kafka where partitions start: the topic's id, the group's committed offsets, and the
//! offsets of the log's ends and of timestamps.
//!
//! These calls block the polling thread for a few seconds at most. They run when partitions are
//! assigned, and when a topic turns out to be recreated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::consumer::metadata::CommitMetadata;
use crate::consumer::partition_key::PartitionKey;
use crate::consumer::start_position::{CommittedOffset, StartPosition, StartReason, TopicView};
use crate::kafka::{self, DescribeTopics, StartFrom, TopicState, Topics};

/// Timeout of one request to Kafka.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of describing topics. Some servers that speak Kafka's protocol, such as librdkafka's
/// mock, never answer; then the topics' metadata is requested instead.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A partition whose start is to be found.
#[derive(Clone, Debug)]
pub(super) struct StartRequest {
    pub(super) key: PartitionKey,
    /// The group's committed offset belongs to another log and is ignored.
    pub(super) from_start: bool,
}

/// Where a partition starts.
#[derive(Clone, Debug)]
pub(super) struct LocatedStart {
    pub(super) key: PartitionKey,
    pub(super) position: StartPosition,
    /// The offset of the position; `None` if Kafka did not report it and the partition starts at
    /// the first available record.
    pub(super) offset: Option<i64>,
    /// How many offsets lie between the start and the end, if that was requested.
    pub(super) backlog: i64,
    pub(super) metadata: CommitMetadata,
    /// The decision has to be committed at once.
    pub(super) commit: bool,
    /// The group has never committed anything in this topic.
    pub(super) is_first: bool,
    /// Every record that this log ever had was for the group.
    pub(super) is_whole: bool,
}

/// Finds out where these partitions start. `known` are topics that this process has consumed.
///
/// # Errors
/// When Kafka does not answer in time, or refuses.
pub(super) fn locate(
    consumer: &BaseConsumer<impl ConsumerContext>,
    start: StartFrom,
    wanted: &[StartRequest],
    known: &BTreeSet<std::sync::Arc<str>>,
) -> anyhow::Result<Vec<LocatedStart>> {
    if wanted.is_empty() {
        // An idle member of the group has an empty assignment.
        return Ok(Vec::new());
    }
    let names: BTreeSet<&str> = wanted.iter().map(|wanted| &*wanted.key.0).collect();
    let states = describe(consumer, &names)?;
    let mut committed = committed(consumer, &states).context("the group's committed offsets")?;
    let mut views = BTreeMap::new();
    for (name, state) in states {
        let view = TopicView {
            id: state.id,
            partitions: state.partitions,
            committed: committed.remove(&name).unwrap_or_default(),
            known: known.contains(&*name),
        };
        // The broker has reported an id before, so a missing one is an error.
        let has_ids =
            view.committed.values().any(|at| at.metadata.is_some_and(|metadata| metadata.topic.is_some()));
        anyhow::ensure!(view.id.is_some() || !has_ids, "the brokers did not return the id of topic `{name}`");
        views.insert(name, view);
    }
    let mut located = Vec::with_capacity(wanted.len());
    for StartRequest { key, from_start } in wanted {
        let view = &views[&*key.0];
        let position = match from_start {
            true => StartPosition::Beginning(StartReason::TopicRecreated),
            false => view.position(start, key.1),
        };
        let before = view.committed.get(&key.1);
        let commit = match position {
            StartPosition::Committed(_) => before.and_then(|before| before.metadata) != Some(view.metadata()),
            // Also for an empty partition: records that retention removes before they are read are only
            // noticed if the group has a committed offset.
            StartPosition::Beginning(_) | StartPosition::End | StartPosition::Time(_) => true,
        };
        let offset = if let StartPosition::Committed(offset) = position { Some(offset) } else { None };
        let (key, metadata, is_first) =
            (key.clone(), view.metadata(), view.committed.is_empty() && !view.known);
        let is_whole = view.owns_from_zero(position);
        located.push(LocatedStart {
            key,
            position,
            offset,
            backlog: 0,
            metadata,
            commit,
            is_first,
            is_whole,
        });
    }
    let looked_up = resolve_offsets(consumer, &mut located).context("the ends of partitions");
    // Only the start of a new group comes out the same when it is decided again.
    let may_wait = |at: &LocatedStart| at.position == StartPosition::Beginning(StartReason::NewGroup);
    if located.iter().any(|at| at.commit && at.offset.is_none() && !may_wait(at)) {
        looked_up?;
    }
    Ok(located)
}

/// Why a record arrived after a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OffsetRegression {
    /// The record was delivered twice.
    Duplicate,
    /// The topic was recreated.
    NewLog,
    /// The log was truncated and continues at this offset, or the group's offset was beyond its end.
    Truncated(i64),
}

/// Finds the reason. `offset` is the record's offset, `expected` the next one that was due.
///
/// # Errors
/// When Kafka does not answer in time, or refuses.
pub(super) fn classify_regression(
    consumer: &BaseConsumer<impl ConsumerContext>,
    (topic, partition): &PartitionKey,
    metadata: Option<CommitMetadata>,
    offset: i64,
    expected: i64,
) -> anyhow::Result<OffsetRegression> {
    let states = describe(consumer, &BTreeSet::from([&**topic]))?;
    let id = states.get(&**topic).and_then(|state| state.id);
    if metadata.is_some_and(|metadata| metadata.is_of_other_topic(id)) {
        return Ok(OffsetRegression::NewLog);
    }
    let (low, end) = consumer.fetch_watermarks(topic, *partition, REQUEST_TIMEOUT)?;
    let same_topic = id.is_some() && metadata.is_some_and(|metadata| metadata.topic == id);
    Ok(OffsetRegression::of(same_topic, offset, expected, low, end))
}

impl OffsetRegression {
    fn of(same_topic: bool, offset: i64, expected: i64, low: i64, end: i64) -> Self {
        match (same_topic, end < expected) {
            // librdkafka compares leader epochs and continues where the log was truncated (KIP-320).
            // Without an epoch it restarts at the first available record. Then it is unknown which
            // records are new, and delivering all of them again would be worse than missing those.
            (true, true) if offset <= low => Self::Truncated(end),
            (true, true) => Self::Truncated(offset),
            (true, false) => Self::Duplicate,
            // The log is shorter than what was read of it.
            (false, true) => Self::NewLog,
            // Without ids: librdkafka has restarted at the first available record.
            (false, false) if offset <= low => Self::NewLog,
            (false, false) => Self::Duplicate,
        }
    }
}

/// The first offsets of partitions, without those that could not be requested.
pub(super) fn low_watermarks(
    consumer: &BaseConsumer<impl ConsumerContext>,
    keys: &[PartitionKey],
) -> BTreeMap<PartitionKey, i64> {
    let wanted = keys.iter().map(|key| (key, Offset::Beginning));
    list_offsets(consumer, wanted).unwrap_or_default()
}

/// Those of these topics that no longer exist, if Kafka reports it without delay.
pub(super) fn deleted<'a>(
    consumer: &BaseConsumer<impl ConsumerContext>,
    topics: impl Iterator<Item = &'a str>,
) -> BTreeSet<std::sync::Arc<str>> {
    let names: Vec<&str> = topics.collect::<BTreeSet<_>>().into_iter().collect();
    if names.is_empty() {
        return BTreeSet::new();
    }
    let question = DescribeTopics::ask(consumer.client(), &names, DESCRIBE_TIMEOUT);
    let Some(Ok(topics)) = question.answer(DESCRIBE_TIMEOUT) else { return BTreeSet::new() };
    let is_unknown = |state: &Result<_, _>| matches!(state, Err(RDKafkaErrorCode::UnknownTopicOrPartition));
    topics
        .iter()
        .filter(|(_, state)| is_unknown(state))
        .map(|(name, _)| std::sync::Arc::from(&**name))
        .collect()
}

fn describe(
    consumer: &BaseConsumer<impl ConsumerContext>,
    names: &BTreeSet<&str>,
) -> anyhow::Result<BTreeMap<String, TopicState>> {
    let names: Vec<&str> = names.iter().copied().collect();
    let question = DescribeTopics::ask(consumer.client(), &names, REQUEST_TIMEOUT);
    let answer = question.answer(DESCRIBE_TIMEOUT);
    let topics = match answer.unwrap_or(Err(RDKafkaErrorCode::OperationTimedOut)) {
        Err(RDKafkaErrorCode::UnsupportedFeature | RDKafkaErrorCode::OperationTimedOut) => {
            without_ids(consumer, &names)?
        }
        topics => topics.map_err(rdkafka::error::KafkaError::MetadataFetch)?,
    };
    let state = |name: &&str| match topics.get(*name) {
        Some(Ok(state)) => Ok(((*name).to_owned(), *state)),
        Some(Err(error)) => Err(anyhow::anyhow!("topic `{name}`: {error}")),
        None => Err(anyhow::anyhow!("kafka did not describe topic `{name}`")),
    };
    names.iter().map(state).collect()
}

/// For brokers without topic ids.
fn without_ids(consumer: &BaseConsumer<impl ConsumerContext>, names: &[&str]) -> anyhow::Result<Topics> {
    let mut topics = Topics::new();
    for name in names {
        let metadata = consumer.fetch_metadata(Some(name), REQUEST_TIMEOUT)?;
        let found = metadata.topics().iter().find(|topic| topic.name() == *name);
        let partitions = found.map_or(0, |topic| topic.partitions().len());
        anyhow::ensure!(partitions > 0, "the brokers do not know topic `{name}`");
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        topics.insert((*name).to_owned(), Ok(TopicState { id: None, partitions }));
    }
    Ok(topics)
}

/// What the group has committed in all partitions of these topics.
fn committed(
    consumer: &BaseConsumer<impl ConsumerContext>,
    topics: &BTreeMap<String, TopicState>,
) -> anyhow::Result<BTreeMap<String, BTreeMap<i32, CommittedOffset>>> {
    let mut list = TopicPartitionList::new();
    for (topic, state) in topics {
        for partition in 0..state.partitions {
            list.add_partition(topic, partition);
        }
    }
    let found = consumer.committed_offsets(list, REQUEST_TIMEOUT)?;
    let metadata = kafka::metadata_of(&found);
    let mut committed: BTreeMap<String, BTreeMap<i32, CommittedOffset>> = BTreeMap::new();
    for (element, metadata) in found.elements().iter().zip(metadata) {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            let of_topic = committed.entry(element.topic().to_owned()).or_default();
            of_topic.insert(
                element.partition(),
                CommittedOffset { offset, metadata: CommitMetadata::parse(&metadata) },
            );
        }
    }
    Ok(committed)
}

/// Turns positions into offsets.
fn resolve_offsets(
    consumer: &BaseConsumer<impl ConsumerContext>,
    located: &mut [LocatedStart],
) -> anyhow::Result<()> {
    let all = || located.iter().filter(|at| at.offset.is_none());
    let wanted = all().map(|at| match at.position {
        StartPosition::Time(time) => (&at.key, Offset::Offset(time)),
        StartPosition::End => (&at.key, Offset::End),
        StartPosition::Beginning(_) | StartPosition::Committed(_) => (&at.key, Offset::Beginning),
    });
    let begins = list_offsets(consumer, wanted)?;
    let ends = list_offsets(consumer, all().map(|at| (&at.key, Offset::End)))?;
    for at in located.iter_mut().filter(|at| at.offset.is_none()) {
        let end = *ends.get(&at.key).context("no answer for a partition")?;
        // There may be no record at or after that time yet.
        let offset = begins.get(&at.key).copied().unwrap_or(end).min(end);
        at.offset = Some(offset);
        at.backlog = end - offset;
    }
    Ok(())
}

/// One request to each leader: the offset of a timestamp in milliseconds, of the beginning or of
/// the end. Partitions without one are omitted.
fn list_offsets<'a>(
    consumer: &BaseConsumer<impl ConsumerContext>,
    wanted: impl Iterator<Item = (&'a PartitionKey, Offset)>,
) -> anyhow::Result<BTreeMap<PartitionKey, i64>> {
    let mut list = TopicPartitionList::new();
    let mut keys = BTreeMap::new();
    for (key, offset) in wanted {
        list.add_partition_offset(&key.0, key.1, offset)?;
        keys.insert((&*key.0, key.1), key);
    }
    let mut offsets = BTreeMap::new();
    if keys.is_empty() {
        return Ok(offsets);
    }
    for element in consumer.offsets_for_times(list, REQUEST_TIMEOUT)?.elements() {
        element.error()?;
        let key = keys.get(&(element.topic(), element.partition()));
        if let (Some(key), Offset::Offset(offset)) = (key, element.offset()) {
            offsets.insert((*key).clone(), offset);
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_regression_is_classified() {
        let of = OffsetRegression::of;
        assert_eq!(of(true, 7, 9, 0, 20), OffsetRegression::Duplicate);
        assert_eq!(of(true, 0, 9, 0, 20), OffsetRegression::Duplicate, "the same topic's log is not shorter");
        assert_eq!(
            of(true, 15, 20, 0, 18),
            OffsetRegression::Truncated(15),
            "where librdkafka found the cut"
        );
        assert_eq!(
            of(true, 3, 20, 3, 18),
            OffsetRegression::Truncated(18),
            "an offset that was set beyond the end"
        );
        assert_eq!(of(false, 3, 20, 3, 18), OffsetRegression::NewLog);
        assert_eq!(of(false, 0, 9, 0, 20), OffsetRegression::NewLog);
        assert_eq!(of(false, 7, 9, 0, 20), OffsetRegression::Duplicate);
    }
}
