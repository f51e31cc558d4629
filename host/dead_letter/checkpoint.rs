//! Stores the progress of redrives in the committed offsets of a consumer group without members:
//! [`RedriveProgress`] and the identity of the last record are the metadata of a commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::dead_letter::progress::RedriveProgress;
use crate::dead_letter::{DeadLetter, Reader};
use crate::kafka::{self, OffsetRange, REQUEST_TIMEOUT, blocking, metadata_of};

/// The progress of all partitions that have something to read.
pub struct CheckpointStore {
    consumer: Arc<BaseConsumer>,
    topic: String,
    group: String,
    partitions: BTreeMap<i32, PartitionProgress>,
    changed: bool,
    /// Whether a commit refers to an earlier topic of this name.
    recreated: bool,
}

/// The progress of one partition, and the last record of it.
#[derive(Default)]
struct PartitionProgress {
    progress: RedriveProgress,
    last_record: Option<LastRecord>,
}

impl Reader {
    /// The letters that were redriven so far, according to this group.
    ///
    /// # Errors
    /// If Kafka does not answer within 8 s.
    pub async fn redriven(&mut self, config: &kafka::Config, group: &str) -> anyhow::Result<CheckpointStore> {
        CheckpointStore::load(self, &config.dead_letter_topic, group).await
    }
}

impl CheckpointStore {
    /// Reads the group's commits and drops what the topic no longer holds. If another record stands
    /// at the offset of the last redriven one, the topic was recreated, and the progress is void.
    pub(super) async fn load(reader: &mut Reader, topic: &str, group: &str) -> anyhow::Result<Self> {
        let ranges: Vec<_> = reader.records.ranges().cloned().collect();
        let mut list = TopicPartitionList::new();
        for range in &ranges {
            list.add_partition(topic, range.partition);
        }
        let committed = retry_until_deadline(reader.records.consumer(), move |consumer| {
            let committed = consumer.committed_offsets(list.clone(), REQUEST_TIMEOUT)?;
            // Other tools may commit any bytes; rdkafka's own accessor panics on invalid UTF-8.
            let metadata = metadata_of(&committed);
            let elements = committed.elements();
            let known = elements.iter().zip(&metadata).filter_map(|(element, text)| match element.offset() {
                Offset::Offset(next) => {
                    Some((element.partition(), next, String::from_utf8_lossy(text).into_owned()))
                }
                _ => None,
            });
            Ok(known.collect::<Vec<_>>())
        });
        let committed = committed
            .await
            .with_context(|| format!("cannot read the committed progress of group `{group}`"))?;
        let (mut partitions, mut recreated) = (BTreeMap::new(), false);
        for range in ranges {
            let mut done = PartitionProgress::default();
            let commit = committed.iter().find(|(partition, ..)| *partition == range.partition);
            if let Some((_, next, metadata)) = commit {
                let (last_record, gaps) = LastRecord::read(metadata);
                if *next <= range.end && is_same_log(reader, &range, last_record).await? {
                    done =
                        PartitionProgress { progress: RedriveProgress::of_commit(*next, gaps), last_record };
                } else {
                    recreated = true;
                }
            }
            done.progress.advance(range.next);
            partitions.insert(range.partition, done);
        }
        let (topic, group) = (topic.to_owned(), group.to_owned());
        let consumer = Arc::clone(reader.records.consumer());
        Ok(Self { consumer, topic, group, partitions, changed: false, recreated })
    }

    /// Whether the topic was recreated since a letter of it was redriven.
    pub fn recreated(&self) -> bool {
        self.recreated
    }

    /// Whether a letter was redriven.
    pub fn contains(&self, letter: &DeadLetter) -> bool {
        let at = &letter.record.origin;
        self.partitions.get(&at.partition).is_some_and(|done| done.progress.contains(at.offset))
    }

    /// The first record of each partition that is not done.
    pub(super) fn resume_offsets(&self) -> impl Iterator<Item = (i32, i64)> {
        self.partitions.iter().map(|(partition, done)| (*partition, done.progress.next()))
    }

    /// Marks a letter as redriven: the broker has confirmed it.
    pub(super) fn add(&mut self, letter: &DeadLetter) {
        let at = &letter.record.origin;
        let done = self.partitions.entry(at.partition).or_default();
        done.progress.add(at.offset);
        if done.last_record.is_none_or(|last_record| last_record.offset < at.offset) {
            done.last_record = Some(LastRecord { offset: at.offset, fingerprint: letter.fingerprint });
        }
        self.changed = true;
    }

    /// Commits the progress. Returns how many records did not fit into the commit.
    pub(super) async fn save(&mut self) -> anyhow::Result<u64> {
        let mut forgotten = 0;
        let mut offsets = Vec::new();
        for (partition, PartitionProgress { progress, last_record }) in &self.partitions {
            let (gaps, lost) = progress.metadata();
            forgotten += lost;
            let last_record = last_record.map(|last_record| last_record.to_string()).unwrap_or_default();
            offsets.push((*partition, progress.next(), format!("{last_record}{gaps}")));
        }
        if !self.changed {
            return Ok(forgotten);
        }
        let list = commit_list(&self.topic, &offsets)?;
        let saved = retry_until_deadline(&self.consumer, move |consumer| {
            Ok(consumer.commit(&list, CommitMode::Sync)?)
        });
        saved.await.with_context(|| {
            let group = &self.group;
            format!("cannot commit the progress to group `{group}`; another run repeats the records that were redriven since the last commit")
        })?;
        self.changed = false;
        Ok(forgotten)
    }
}

/// The last redriven record of a partition, as stored in the commit's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, derive_more::Display)]
#[display("@{offset}:{fingerprint:016x};")]
struct LastRecord {
    offset: i64,
    fingerprint: u64,
}

impl LastRecord {
    /// Splits metadata into the mark, if any, and the rest.
    fn read(metadata: &str) -> (Option<Self>, &str) {
        let read = || {
            let (last_record, gaps) = metadata.strip_prefix('@')?.split_once(';')?;
            let (offset, fingerprint) = last_record.split_once(':')?;
            let fingerprint = u64::from_str_radix(fingerprint, 16).ok()?;
            Some((Some(Self { offset: offset.parse().ok()?, fingerprint }), gaps))
        };
        read().unwrap_or((None, metadata))
    }
}

/// Whether the record of a mark still stands at its offset. If it is gone, by retention or
/// compaction, nothing can be concluded.
async fn is_same_log(
    reader: &mut Reader,
    range: &OffsetRange,
    last_record: Option<LastRecord>,
) -> anyhow::Result<bool> {
    let Some(last_record) = last_record else { return Ok(true) };
    if last_record.offset >= range.end {
        return Ok(false);
    }
    if last_record.offset < range.next {
        return Ok(true);
    }
    let there = reader.records.read_at(range.partition, last_record.offset).await?;
    Ok(there.is_none_or(|record| record.fingerprint() == last_record.fingerprint))
}

fn commit_list(topic: &str, offsets: &[(i32, i64, String)]) -> anyhow::Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, next, metadata) in offsets {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Offset::Offset(*next))?;
        if !metadata.is_empty() {
            element.set_metadata(metadata);
        }
    }
    Ok(list)
}

/// Retries for a while: the group's coordinator may be moving or starting.
async fn retry_until_deadline<T: Send + 'static>(
    consumer: &Arc<BaseConsumer>,
    call: impl Fn(&BaseConsumer) -> anyhow::Result<T> + Clone + Send + 'static,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    loop {
        match blocking(consumer, call.clone()).await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::{FutureProducer, FutureRecord};

    use super::*;
    use crate::kafka::{self, MockBroker, cut_metadata};

    #[tokio::test]
    async fn foreign_metadata_is_only_an_offset() {
        let broker = MockBroker::start(&[("dead", 1)]).expect("a free port");
        let config = kafka::Config {
            brokers: broker.brokers(),
            dead_letter_topic: "dead".into(),
            ..kafka::Config::default()
        };
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &config.brokers).set("group.id", "redrive");
        let producer: FutureProducer = client.create().expect("a producer");
        for body in ["a", "b"] {
            let record: FutureRecord<'_, [u8], str> = FutureRecord::to("dead").payload(body);
            producer.send(record, REQUEST_TIMEOUT).await.expect("written");
        }
        let list = commit_list("dead", &[(0, 1, "@0:some\u{e4}".to_owned())]).expect("a list");
        cut_metadata(&list);
        assert!(std::str::from_utf8(&metadata_of(&list)[0]).is_err());
        let consumer: Arc<BaseConsumer> = Arc::new(client.create().expect("a consumer"));
        retry_until_deadline(&consumer, move |consumer| Ok(consumer.commit(&list, CommitMode::Sync)?))
            .await
            .expect("committed");
        let mut reader = Reader::open(&config, "redrive").await.expect("it answers").expect("a topic");
        let checkpoint = reader.redriven(&config, "redrive").await.expect("no panic");
        assert!(!checkpoint.recreated());
        assert_eq!(checkpoint.resume_offsets().collect::<Vec<_>>(), [(0, 1)]);
    }

    #[test]
    fn marks_are_read_as_they_were_written() {
        let last_record = LastRecord { offset: 17, fingerprint: 0xab };
        assert_eq!(last_record.to_string(), "@17:00000000000000ab;");
        assert_eq!(LastRecord::read("@17:00000000000000ab;2+4,1+1"), (Some(last_record), "2+4,1+1"));
        for metadata in ["2+4", "", "@17;2+4", "@a:b;", "somebody's own"] {
            assert_eq!(LastRecord::read(metadata), (None, metadata));
        }
    }
}
