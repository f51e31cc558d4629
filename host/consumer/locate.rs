//! Asks Kafka where partitions begin: what the topic is, what the group has committed there, and
//! the offsets of its ends and of times.
//!
//! Everything here blocks the polling thread, for some seconds at most. It happens when partitions
//! are assigned, and when a topic has turned out to be another one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::consumer::begin::{Because, Committed, Position, TopicView};
use crate::consumer::context::Context;
use crate::consumer::mark::Mark;
use crate::consumer::partitions::Key;
use crate::kafka::{self, Start, TopicQuestion, TopicState, Topics};

/// How long Kafka may take for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take to describe topics. Some that only speak Kafka's protocol, such as
/// librdkafka's mock, never answer that: they are asked for their metadata then.
const DESCRIBED: Duration = Duration::from_secs(2);

/// A partition that is to begin somewhere.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) key: Key,
    /// What the group has committed there is of another log, whatever it says.
    pub(super) from_start: bool,
}

/// Where a partition begins.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) key: Key,
    pub(super) position: Position,
    /// The offset that the position is; `None` where Kafka did not tell, and it is the first that
    /// there is.
    pub(super) offset: Option<i64>,
    /// How many offsets there are from there to the end, where it was asked for.
    pub(super) backlog: i64,
    pub(super) mark: Mark,
    /// It has to be committed at once, so that it stays decided.
    pub(super) commit: bool,
    /// The group has never committed anything in this topic.
    pub(super) is_first: bool,
}

/// Finds out where these partitions begin. `known` are topics that this process had before.
///
/// # Errors
/// When Kafka does not answer in time, or refuses.
pub(super) fn locate(
    consumer: &BaseConsumer<Context>,
    start: Start,
    wanted: &[Wanted],
    known: &BTreeSet<std::sync::Arc<str>>,
) -> anyhow::Result<Vec<Located>> {
    if wanted.is_empty() {
        // A member that waits for partitions is assigned none.
        return Ok(Vec::new());
    }
    let names: BTreeSet<&str> = wanted.iter().map(|wanted| &*wanted.key.0).collect();
    let states = describe(consumer, &names)?;
    let mut committed = committed(consumer, &states).context("what the group has committed")?;
    let mut views = BTreeMap::new();
    for (name, state) in states {
        let view = TopicView {
            id: state.id,
            partitions: state.partitions,
            committed: committed.remove(&name).unwrap_or_default(),
            known: known.contains(&*name),
        };
        // The broker has told it before: then it is not taken for one that has none.
        let has_ids = view.committed.values().any(|at| at.mark.is_some_and(|mark| mark.topic.is_some()));
        anyhow::ensure!(view.id.is_some() || !has_ids, "the brokers do not tell the id of topic `{name}`");
        views.insert(name, view);
    }
    let mut located = Vec::with_capacity(wanted.len());
    for Wanted { key, from_start } in wanted {
        let view = &views[&*key.0];
        let position = match from_start {
            true => Position::Beginning(Because::CreatedAgain),
            false => view.position(start, key.1),
        };
        let before = view.committed.get(&key.1);
        let commit = match position {
            Position::Committed(_) => before.and_then(|before| before.mark) != Some(view.mark()),
            // Nothing is lost when it is decided again.
            Position::Beginning(Because::New) => false,
            Position::Beginning(_) | Position::End | Position::Time(_) => true,
        };
        let offset = if let Position::Committed(offset) = position { Some(offset) } else { None };
        let (key, mark, is_first) = (key.clone(), view.mark(), view.committed.is_empty() && !view.known);
        located.push(Located { key, position, offset, backlog: 0, mark, commit, is_first });
    }
    let looked_up = look_up(consumer, &mut located).context("the ends of partitions");
    if located.iter().any(|at| at.commit && at.offset.is_none()) {
        looked_up?;
    }
    Ok(located)
}

/// What it means that a record came although a later one had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WentBack {
    /// The record came twice.
    Repeated,
    /// The topic is another one.
    AnotherLog,
    /// The log was cut off, and goes on at this offset; or the group's offset was set beyond its end.
    CutOff(i64),
}

/// Finds out what it means. `offset` is the record's, `expected` the one that should have come.
///
/// # Errors
/// When Kafka does not answer in time, or refuses.
pub(super) fn why_back(
    consumer: &BaseConsumer<Context>,
    (topic, partition): &Key,
    mark: Option<Mark>,
    offset: i64,
    expected: i64,
) -> anyhow::Result<WentBack> {
    let states = describe(consumer, &BTreeSet::from([&**topic]))?;
    let id = states.get(&**topic).and_then(|state| state.id);
    if mark.is_some_and(|mark| mark.is_of_another(id)) {
        return Ok(WentBack::AnotherLog);
    }
    let (low, end) = consumer.fetch_watermarks(topic, *partition, ANSWER)?;
    let same_topic = id.is_some() && mark.is_some_and(|mark| mark.topic == id);
    Ok(WentBack::of(same_topic, offset, expected, low, end))
}

impl WentBack {
    fn of(same_topic: bool, offset: i64, expected: i64, low: i64, end: i64) -> Self {
        match (same_topic, end < expected) {
            // librdkafka compares leader epochs and goes on where the log was cut (KIP-320). Without
            // an epoch to compare it begins at the first record that there is: then it is not known
            // what is new, and everything again would be worse than what was written since.
            (true, true) if offset <= low => Self::CutOff(end),
            (true, true) => Self::CutOff(offset),
            (true, false) => Self::Repeated,
            // Shorter than what was read of it.
            (false, true) => Self::AnotherLog,
            // Where ids do not tell, librdkafka has begun at the first record that there is.
            (false, false) if offset <= low => Self::AnotherLog,
            (false, false) => Self::Repeated,
        }
    }
}

/// The first offsets of partitions; those that could not be asked for are left out.
pub(super) fn lows(consumer: &BaseConsumer<Context>, keys: &[Key]) -> BTreeMap<Key, i64> {
    let wanted = keys.iter().map(|key| (key, Offset::Beginning));
    list_offsets(consumer, wanted).unwrap_or_default()
}

fn describe(
    consumer: &BaseConsumer<Context>,
    names: &BTreeSet<&str>,
) -> anyhow::Result<BTreeMap<String, TopicState>> {
    let names: Vec<&str> = names.iter().copied().collect();
    let question = TopicQuestion::ask(consumer.client(), &names, ANSWER);
    let answer = question.answer(DESCRIBED);
    let topics = match answer.unwrap_or(Err(RDKafkaErrorCode::OperationTimedOut)) {
        Err(RDKafkaErrorCode::UnsupportedFeature | RDKafkaErrorCode::OperationTimedOut) => {
            without_ids(consumer, &names)?
        }
        topics => topics.map_err(rdkafka::error::KafkaError::MetadataFetch)?,
    };
    let state = |name: &&str| match topics.get(*name) {
        Some(Ok(state)) => Ok(((*name).to_owned(), *state)),
        Some(Err(error)) => Err(anyhow::anyhow!("topic `{name}`: {error}")),
        None => Err(anyhow::anyhow!("topic `{name}` was not described")),
    };
    names.iter().map(state).collect()
}

/// For brokers that tell nothing of topic ids.
fn without_ids(consumer: &BaseConsumer<Context>, names: &[&str]) -> anyhow::Result<Topics> {
    let mut topics = Topics::new();
    for name in names {
        let metadata = consumer.fetch_metadata(Some(name), ANSWER)?;
        let found = metadata.topics().iter().find(|topic| topic.name() == *name);
        let partitions = found.map_or(0, |topic| topic.partitions().len());
        anyhow::ensure!(partitions > 0, "the brokers tell nothing of topic `{name}`");
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        topics.insert((*name).to_owned(), Ok(TopicState { id: None, partitions }));
    }
    Ok(topics)
}

/// What the group has committed in all partitions of these topics.
fn committed(
    consumer: &BaseConsumer<Context>,
    topics: &BTreeMap<String, TopicState>,
) -> anyhow::Result<BTreeMap<String, BTreeMap<i32, Committed>>> {
    let mut list = TopicPartitionList::new();
    for (topic, state) in topics {
        for partition in 0..state.partitions {
            list.add_partition(topic, partition);
        }
    }
    let found = consumer.committed_offsets(list, ANSWER)?;
    let metadata = kafka::metadata_of(&found);
    let mut committed: BTreeMap<String, BTreeMap<i32, Committed>> = BTreeMap::new();
    for (element, metadata) in found.elements().iter().zip(metadata) {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            let of_topic = committed.entry(element.topic().to_owned()).or_default();
            of_topic.insert(element.partition(), Committed { offset, mark: Mark::parse(&metadata) });
        }
    }
    Ok(committed)
}

/// Turns positions into offsets.
fn look_up(consumer: &BaseConsumer<Context>, located: &mut [Located]) -> anyhow::Result<()> {
    let all = || located.iter().filter(|at| at.offset.is_none());
    let wanted = all().map(|at| match at.position {
        Position::Time(time) => (&at.key, Offset::Offset(time)),
        Position::End => (&at.key, Offset::End),
        Position::Beginning(_) | Position::Committed(_) => (&at.key, Offset::Beginning),
    });
    let begins = list_offsets(consumer, wanted)?;
    let ends = list_offsets(consumer, all().map(|at| (&at.key, Offset::End)))?;
    for at in located.iter_mut().filter(|at| at.offset.is_none()) {
        let end = *ends.get(&at.key).context("no answer for a partition")?;
        // There may be no record of that time or later yet.
        let offset = begins.get(&at.key).copied().unwrap_or(end).min(end);
        at.offset = Some(offset);
        at.backlog = end - offset;
    }
    Ok(())
}

/// One request to each leader: the offset of a time, in milliseconds, of the beginning or the end.
/// Partitions without one are left out.
fn list_offsets<'a>(
    consumer: &BaseConsumer<Context>,
    wanted: impl Iterator<Item = (&'a Key, Offset)>,
) -> anyhow::Result<BTreeMap<Key, i64>> {
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
    for element in consumer.offsets_for_times(list, ANSWER)?.elements() {
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
    fn what_an_offset_that_goes_back_means() {
        let of = WentBack::of;
        assert_eq!(of(true, 7, 9, 0, 20), WentBack::Repeated);
        assert_eq!(of(true, 0, 9, 0, 20), WentBack::Repeated, "the same topic's log is not shorter");
        assert_eq!(of(true, 15, 20, 0, 18), WentBack::CutOff(15), "where librdkafka found the cut");
        assert_eq!(of(true, 3, 20, 3, 18), WentBack::CutOff(18), "an offset that was set beyond the end");
        assert_eq!(of(false, 3, 20, 3, 18), WentBack::AnotherLog);
        assert_eq!(of(false, 0, 9, 0, 20), WentBack::AnotherLog);
        assert_eq!(of(false, 7, 9, 0, 20), WentBack::Repeated);
    }
}
