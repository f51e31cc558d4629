//! Where a redrive's progress is kept: in the committed offsets of a consumer group that
//! nobody joins, with what [`Progress`] has to add as their metadata.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::dead_letter::Reader;
use crate::dead_letter::progress::Progress;
use crate::kafka::{ANSWER, blocking};

/// The progress of all partitions with something to read.
pub(super) struct Remembered {
    consumer: Arc<BaseConsumer>,
    topic: String,
    group: String,
    partitions: BTreeMap<i32, Progress>,
    changed: bool,
}

impl Remembered {
    /// Reads what the group has committed, and forgets what the topic no longer holds.
    pub(super) async fn load(reader: &Reader, topic: &str, group: &str) -> anyhow::Result<Self> {
        let mut list = TopicPartitionList::new();
        for span in reader.records.spans() {
            list.add_partition(topic, span.partition);
        }
        let committed = patiently(reader.records.consumer(), move |consumer| {
            let committed = consumer.committed_offsets(list.clone(), ANSWER)?;
            let elements = committed.elements();
            let known = elements.iter().filter_map(|element| match element.offset() {
                Offset::Offset(next) => Some((element.partition(), next, element.metadata().to_owned())),
                _ => None,
            });
            Ok(known.collect::<Vec<_>>())
        });
        let committed =
            committed.await.with_context(|| format!("cannot read what group `{group}` has done"))?;
        let mut partitions = BTreeMap::new();
        for span in reader.records.spans() {
            // A commit past the end was made for a topic that has been deleted since.
            let commit = committed
                .iter()
                .find(|(partition, next, _)| *partition == span.partition && *next <= span.end);
            let mut progress = commit
                .map_or_else(Progress::default, |(_, next, metadata)| Progress::of_commit(*next, metadata));
            progress.advance(span.next);
            partitions.insert(span.partition, progress);
        }
        let (topic, group) = (topic.to_owned(), group.to_owned());
        Ok(Self { consumer: Arc::clone(reader.records.consumer()), topic, group, partitions, changed: false })
    }

    /// The first record of each partition that is not done.
    pub(super) fn firsts(&self) -> impl Iterator<Item = (i32, i64)> {
        self.partitions.iter().map(|(partition, progress)| (*partition, progress.next()))
    }

    /// Whether a record was redriven.
    pub(super) fn contains(&self, partition: i32, offset: i64) -> bool {
        self.partitions.get(&partition).is_some_and(|progress| progress.contains(offset))
    }

    /// A record was redriven: the broker has confirmed it.
    pub(super) fn add(&mut self, partition: i32, offset: i64) {
        self.partitions.entry(partition).or_default().add(offset);
        self.changed = true;
    }

    /// Commits what was added. Returns how many records had no place in the commit.
    pub(super) async fn save(&mut self) -> anyhow::Result<u64> {
        let mut forgotten = 0;
        let mut offsets = Vec::new();
        for (partition, progress) in &self.partitions {
            let (metadata, lost) = progress.metadata();
            forgotten += lost;
            offsets.push((*partition, progress.next(), metadata));
        }
        if !self.changed {
            return Ok(forgotten);
        }
        let list = commit_list(&self.topic, &offsets)?;
        let saved = patiently(&self.consumer, move |consumer| Ok(consumer.commit(&list, CommitMode::Sync)?));
        saved.await.with_context(|| {
            let group = &self.group;
            format!("cannot commit the progress to group `{group}`; another run repeats what was redriven since the last commit")
        })?;
        self.changed = false;
        Ok(forgotten)
    }
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

/// Tries again for a while: the group's coordinator may be moving or only starting.
async fn patiently<T: Send + 'static>(
    consumer: &Arc<BaseConsumer>,
    call: impl Fn(&BaseConsumer) -> anyhow::Result<T> + Clone + Send + 'static,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + ANSWER;
    loop {
        match blocking(consumer, call.clone()).await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
            done => return done,
        }
    }
}
