//! Moves a group past records that cannot be read, such as a batch that cannot be decompressed.
//!
//! While a group has members, Kafka refuses to change its offsets from outside. So the gateways
//! have to be stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::topic_ids::metadata_of;
use crate::kafka::topic_reader::{REQUEST_TIMEOUT, blocking, no_answer, partitions};
use crate::kafka::{Config, refused};

/// Which records to skip.
#[derive(Clone, Debug)]
pub struct SkipRequest {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The next offset to read; `None` finds the first readable one.
    pub to: Option<i64>,
}

/// The skipped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkippedRange {
    /// The first skipped offset.
    pub from: i64,
    /// The next offset to read.
    pub to: i64,
}

/// Skips records for the configured group.
///
/// # Errors
/// When Kafka does not answer, the group has members, or there is nothing to skip.
pub async fn skip(config: &Config, skip: SkipRequest) -> anyhow::Result<SkippedRange> {
    let mut client = config.client();
    client
        .set("group.id", &config.group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false");
    let consumer: Arc<BaseConsumer> = Arc::new(client.create().map_err(refused)?);
    let group = config.group.clone();
    let number = skip.partition;
    let topic = skip.topic.clone();
    let numbers = blocking(&consumer, move |consumer| partitions(consumer, &topic)).await;
    let Some(numbers) = numbers.with_context(|| no_answer(&config.brokers))? else {
        anyhow::bail!("topic `{}` not found; check --topic and `[kafka] brokers`", skip.topic);
    };
    let count = numbers.len();
    anyhow::ensure!(
        numbers.contains(&number),
        "topic `{}` has no partition {number}: it has {count}, from 0 on",
        skip.topic
    );
    blocking(&consumer, move |consumer| pass_over(consumer, &group, &skip)).await
}

/// Whether an error means that no client can read a batch.
pub(crate) fn is_unreadable(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        BadCompression, BadMessage, CriticalSystemResource, InvalidMessage, InvalidMessageSize,
        MessageSizeTooLarge, NotImplemented, Underflow,
    };
    matches!(
        code,
        BadCompression
            | BadMessage
            | CriticalSystemResource
            | InvalidMessage
            | InvalidMessageSize
            | MessageSizeTooLarge
            | NotImplemented
            | Underflow
    )
}

fn pass_over(consumer: &BaseConsumer, group: &str, skip: &SkipRequest) -> anyhow::Result<SkippedRange> {
    let SkipRequest { topic, partition, to } = skip;
    refuse_members(consumer, group)?;
    let (low, end) = consumer
        .fetch_watermarks(topic, *partition, REQUEST_TIMEOUT)
        .with_context(|| format!("`{topic}` partition {partition}"))?;
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, *partition);
    let committed = consumer.committed_offsets(asked, REQUEST_TIMEOUT)?;
    let from = match committed.elements().first().map(|element| element.offset()) {
        Some(Offset::Offset(offset)) => offset.max(low),
        _ => low,
    };
    anyhow::ensure!(
        from < end,
        "the group `{group}` has read `{topic}` partition {partition} to its end, {end}"
    );
    let to = match to {
        Some(to) => *to,
        None => first_readable(end, from, |offset| can_read(consumer, topic, *partition, offset))?,
    };
    anyhow::ensure!(from < to && to <= end, "--to has to be after {from} and at most {end}, the end");
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(topic, *partition);
    element.set_offset(Offset::Offset(to))?;
    // The gateways' metadata names the incarnation of the topic.
    if let Some(mark) = metadata_of(&committed).first().and_then(|bytes| std::str::from_utf8(bytes).ok()) {
        element.set_metadata(mark);
    }
    consumer.commit(&list, CommitMode::Sync).with_context(|| {
        format!("the group `{group}` has members, or may not be written; stop its gateways first")
    })?;
    Ok(SkippedRange { from, to })
}

fn refuse_members(consumer: &BaseConsumer, group: &str) -> anyhow::Result<()> {
    let groups = consumer.fetch_group_list(Some(group), REQUEST_TIMEOUT)?;
    let members: usize = groups.groups().iter().map(|group| group.members().len()).sum();
    anyhow::ensure!(
        members == 0,
        "the group `{group}` has members ({members}): stop the gateways first, or wait until the session of a crashed one has expired"
    );
    Ok(())
}

/// The first readable offset after `from`; `end` if there is none. A batch is unreadable at each of
/// its offsets, so this finds its end by doubling the step and then bisecting.
fn first_readable(
    end: i64,
    from: i64,
    mut can_read: impl FnMut(i64) -> anyhow::Result<bool>,
) -> anyhow::Result<i64> {
    anyhow::ensure!(!can_read(from)?, "the record at {from} can be read; to skip it anyway, pass --to");
    let (mut bad, mut step) = (from, 1);
    let mut good = loop {
        let next = bad.saturating_add(step);
        if next >= end {
            break end;
        }
        if can_read(next)? {
            break next;
        }
        (bad, step) = (next, step.saturating_mul(2));
    };
    while bad + 1 < good {
        let middle = bad + (good - bad) / 2;
        if can_read(middle)? { good = middle } else { bad = middle }
    }
    Ok(good)
}

fn can_read(consumer: &BaseConsumer, topic: &str, partition: i32, offset: i64) -> anyhow::Result<bool> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&list)?;
    let until = Instant::now() + REQUEST_TIMEOUT;
    while Instant::now() < until {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) if message.partition() == partition && message.offset() >= offset => {
                return Ok(true);
            }
            Some(Err(KafkaError::MessageConsumption(code))) if is_unreadable(code) => return Ok(false),
            _ => {}
        }
    }
    anyhow::bail!("kafka returns neither a record nor an error at offset {offset}; pass --to")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offset of 0 to 99 that is found if these ranges cannot be read.
    fn found(from: i64, unreadable: Option<std::ops::Range<i64>>) -> anyhow::Result<i64> {
        let mut asked = 0;
        let answer = first_readable(100, from, |offset| {
            asked += 1;
            Ok(!unreadable.as_ref().is_some_and(|range| range.contains(&offset)))
        });
        assert!(asked <= 20, "{asked} questions");
        answer
    }

    #[test]
    fn the_end_of_a_batch_is_found() {
        for end in 6..100 {
            assert_eq!(found(5, Some(5..end)).ok(), Some(end), "{end}");
        }
        assert_eq!(found(5, Some(2..9)).ok(), Some(9), "also from its middle");
        assert_eq!(found(95, Some(90..100)).ok(), Some(100), "also at the end of the log");
        assert!(found(5, None).is_err(), "there is nothing to skip");
    }
}
