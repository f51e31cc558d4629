//! Positions partitions at their start: when they are assigned, and again when their topic turns
//! out to be recreated.
//!
//! The decision is committed with the topic's id before the first record is accepted. So a process
//! that dies at any moment leaves either the decision, or offsets that its successor recognises as
//! those of another log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use tracing::{debug, error, info, warn};

use crate::consumer::context::Context;
use crate::consumer::locate::{self, LocatedStart, OffsetRegression, StartRequest};
use crate::consumer::metadata::CommitMetadata;
use crate::consumer::partition::LogPosition;
use crate::consumer::partition_key::{PartitionKey, add_offset, keys};
use crate::consumer::start_position::{StartPosition, StartReason};
use crate::kafka::{self, StartFrom, Topics};

/// Timeout of a seek.
const SEEK: Duration = Duration::from_secs(5);

impl Context {
    /// Finds the start of partitions that are being assigned. Returns them with their offsets.
    /// If Kafka does not answer in time, they read from the end, and those records are dropped
    /// until [`Context::retry_positions`] has found the start.
    pub(super) fn position_assigned(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> TopicPartitionList {
        let wanted: Vec<_> =
            keys(list).into_iter().map(|key| StartRequest { key, from_start: false }).collect();
        let located = self.locate(consumer, &wanted).and_then(|located| {
            commit(consumer, &located)?;
            Ok(located)
        });
        let mut placed = TopicPartitionList::new();
        match located {
            Ok(located) => {
                for at in &located {
                    let offset = at.offset.map_or(Offset::Beginning, Offset::Offset);
                    add(&mut placed, &at.key, offset);
                    self.partitions().begin(&at.key, at.offset, at.metadata);
                }
                self.log_starts(&located);
            }
            Err(error) => {
                self.hold_unpositioned(&error);
                wanted.iter().for_each(|wanted| add(&mut placed, &wanted.key, Offset::End));
            }
        }
        placed
    }

    /// Retries to position the partitions that have no known position.
    pub(super) fn retry_positions(&self, consumer: &BaseConsumer<Self>) {
        self.unpositioned.store(false, Ordering::Relaxed);
        self.resolve_suspects(consumer);
        let mut wanted = Vec::new();
        let unpositioned = self.partitions().unpositioned();
        for (key, log_position) in unpositioned {
            if let LogPosition::Unknown { from_start } = log_position {
                wanted.push(StartRequest { key, from_start });
            }
        }
        // All together at first; after a failure one at a time, since a single partition may be
        // the cause.
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        if attempt > 0 && !wanted.is_empty() {
            let turn = attempt % wanted.len();
            wanted = vec![wanted.swap_remove(turn)];
        }
        if !wanted.is_empty()
            && let Err(error) = self.seek(consumer, &wanted)
        {
            return self.hold_unpositioned(&error);
        }
        if self.partitions().unpositioned().is_empty() {
            self.attempts.store(0, Ordering::Relaxed);
        } else {
            self.unpositioned.store(true, Ordering::Relaxed);
        }
    }

    fn seek(&self, consumer: &BaseConsumer<Self>, wanted: &[StartRequest]) -> anyhow::Result<()> {
        let located = self.locate(consumer, wanted)?;
        self.seek_located(consumer, &located)?;
        self.log_starts(&located);
        Ok(())
    }

    fn seek_located(&self, consumer: &BaseConsumer<Self>, located: &[LocatedStart]) -> anyhow::Result<()> {
        // A stored offset of an older log would otherwise be committed over this decision.
        let mut stored = TopicPartitionList::new();
        let mut places = TopicPartitionList::new();
        for at in located {
            let (topic, number) = &at.key;
            if let Some(offset) = at.offset {
                add_offset(&mut stored, topic, *number, offset, Some(at.metadata));
            }
            add(&mut places, &at.key, at.offset.map_or(Offset::Beginning, Offset::Offset));
        }
        consumer.store_offsets(&stored)?;
        commit(consumer, located)?;
        for element in consumer.seek_partitions(places, SEEK)?.elements() {
            element.error()?;
        }
        for at in located {
            self.partitions().begin(&at.key, at.offset, at.metadata);
        }
        Ok(())
    }

    fn locate(
        &self,
        consumer: &BaseConsumer<Self>,
        wanted: &[StartRequest],
    ) -> anyhow::Result<Vec<LocatedStart>> {
        let known = self.partitions().known();
        locate::locate(consumer, self.start, wanted, &known)
    }

    fn hold_unpositioned(&self, error: &anyhow::Error) {
        self.unpositioned.store(true, Ordering::Relaxed);
        let cause = format!("cannot find the start offset in kafka: {error:#}; holding records, retrying");
        let mut partitions = self.partitions();
        for (key, _) in partitions.unpositioned() {
            partitions.hold(&self.stalls, &key, None, &cause);
        }
    }

    /// A record arrived after a later one.
    pub(super) fn note_regression(&self, (topic, partition): &PartitionKey, offset: i64) {
        debug!(topic = &**topic, partition, offset, "an offset went back");
        self.unpositioned.store(true, Ordering::Relaxed);
    }

    /// Finds out whether partitions whose offsets regressed have a new log.
    fn resolve_suspects(&self, consumer: &BaseConsumer<Self>) {
        let unpositioned = self.partitions().unpositioned();
        for (key, log_position) in unpositioned {
            let LogPosition::Suspect { offset } = log_position else { continue };
            let seen = self
                .partitions()
                .get_mut(&key)
                .map(|partition| (partition.metadata(), partition.next_offset()));
            let Some((metadata, Some(expected))) = seen else { continue };
            match locate::classify_regression(consumer, &key, metadata, offset, expected) {
                Ok(OffsetRegression::Truncated(at)) => {
                    self.resume_after_truncation(consumer, &key, metadata, expected, at)
                }
                Ok(OffsetRegression::NewLog) => {
                    let in_flight = self.partitions().get_mut(&key).map_or(0, |p| p.reset_log(true));
                    self.note_recreated(&key, in_flight);
                }
                Ok(OffsetRegression::Duplicate) => self.resume_log(consumer, &key),
                Err(error) => self.hold_unpositioned(&error),
            }
        }
    }

    /// The log of the same topic ends before the group's offset: continues at this offset and
    /// commits it explicitly, since the watermark never moves back.
    fn resume_after_truncation(
        &self,
        consumer: &BaseConsumer<Self>,
        key: &PartitionKey,
        metadata: Option<CommitMetadata>,
        expected: i64,
        at: i64,
    ) {
        let Some(metadata) = metadata else { return };
        let in_flight = self.partitions().get_mut(key).map_or(0, |partition| partition.reset_log(false));
        error!(
            topic = &*key.0,
            partition = key.1,
            from = at,
            to = expected,
            in_flight,
            "the log ends before the group's offset: the brokers lost its last records, or the offset was set beyond the end; continuing at `from`; earlier records from there on were delivered or are lost"
        );
        let position = StartPosition::Committed(at);
        let key = key.clone();
        let located = LocatedStart {
            key,
            position,
            offset: Some(at),
            backlog: 0,
            metadata,
            commit: true,
            is_first: false,
            is_whole: false,
        };
        if let Err(error) = self.seek_located(consumer, &[located]) {
            self.hold_unpositioned(&error);
        }
    }

    /// The record was delivered twice: continues after the last one.
    fn resume_log(&self, consumer: &BaseConsumer<Self>, key: &PartitionKey) {
        let next = self.partitions().get_mut(key).and_then(|partition| partition.resume_log());
        let Some(next) = next else { return };
        let mut list = TopicPartitionList::new();
        add(&mut list, key, Offset::Offset(next));
        if let Err(error) = consumer.seek_partitions(list, SEEK) {
            // The next record is out of order as well and is handled then.
            debug!(topic = &*key.0, partition = key.1, %error, "cannot seek to the next record");
        }
    }

    /// Kafka has described the topics.
    pub(super) fn update_topics(&self, topics: &Topics) {
        for (topic, state) in topics {
            let Ok(state) = state else { continue };
            let others = self.partitions().update_topic_id(topic, state.id);
            for (key, in_flight) in others {
                self.note_recreated(&key, in_flight);
                self.unpositioned.store(true, Ordering::Relaxed);
            }
        }
    }

    fn note_recreated(&self, (topic, partition): &PartitionKey, in_flight: usize) {
        self.metrics.topics_recreated();
        warn!(
            topic = &**topic,
            partition,
            in_flight,
            "the topic was deleted and created again: reading it from the beginning; records in flight of the old one are still delivered"
        );
    }

    /// Logs where partitions start, as far as an operator should know.
    fn log_starts(&self, located: &[LocatedStart]) {
        let mut new: BTreeMap<Arc<str>, (usize, i64)> = BTreeMap::new();
        for at in located {
            let (topic, partition) = (&*at.key.0, at.key.1);
            if let Some(low) = at.offset.filter(|low| at.is_whole && *low > 0) {
                self.lost((topic, partition), 0, low);
            }
            match at.position {
                StartPosition::Beginning(StartReason::TopicRecreated) => info!(
                    topic,
                    partition,
                    offset = at.offset,
                    "starting at the beginning: the group's committed offset belongs to a deleted topic"
                ),
                StartPosition::Beginning(StartReason::PartitionAdded) => {
                    info!(
                        topic,
                        partition,
                        offset = at.offset,
                        "starting a newly added partition at the beginning"
                    );
                }
                StartPosition::Committed(_) => {}
                StartPosition::Beginning(StartReason::NewGroup)
                | StartPosition::End
                | StartPosition::Time(_)
                    if at.is_first =>
                {
                    let of_topic = new.entry(Arc::clone(&at.key.0)).or_default();
                    *of_topic = (of_topic.0 + 1, of_topic.1 + at.backlog);
                }
                StartPosition::Beginning(StartReason::NewGroup)
                | StartPosition::End
                | StartPosition::Time(_) => {}
            }
        }
        for (topic, (partitions, records)) in new {
            let (topic, start) = (&*topic, self.start);
            match start {
                StartFrom::Newest => info!(topic, partitions, "a new consumer group starts with new records"),
                StartFrom::Oldest | StartFrom::At(_) if records == 0 => {
                    info!(topic, partitions, %start, "a new consumer group starts; the topic has no backlog");
                }
                StartFrom::Oldest | StartFrom::At(_) => warn!(
                    topic, partitions, records, %start,
                    "a new consumer group starts with a backlog: these records are delivered to users now; `[kafka] start` = \"newest\" starts with new records, `[delivery] max_age` drops old ones"
                ),
            }
        }
    }

    /// Offsets were skipped: reports records that were removed before they were read. Gaps left by
    /// transactions and compaction are not losses.
    pub(super) fn report_gap(
        &self,
        consumer: &BaseConsumer<Self>,
        (topic, partition): &PartitionKey,
        expected: i64,
        offset: i64,
    ) {
        let low = kafka::cached_low_watermark(consumer.client(), topic, *partition).unwrap_or(expected);
        if low > expected {
            self.lost((topic, *partition), expected, low.min(offset));
        }
    }

    /// librdkafka has reset an offset: reports records that were removed before they were read,
    /// even if no record follows them.
    pub(super) fn report_lost_records(&self, consumer: &BaseConsumer<Self>) {
        let expected = self.partitions().expected();
        let keys: Vec<PartitionKey> = expected.into_iter().map(|(key, _)| key).collect();
        for (key, low) in locate::low_watermarks(consumer, &keys) {
            let lost = self.partitions().get_mut(&key).and_then(|partition| partition.lost_before(low));
            if let Some(from) = lost {
                self.lost((&key.0, key.1), from, low);
            }
        }
    }

    fn lost(&self, (topic, partition): (&str, i32), from: i64, to: i64) {
        let records = u64::try_from(to - from).unwrap_or_default();
        self.metrics.lost(topic, records);
        error!(
            topic,
            partition,
            from,
            to,
            records,
            "records were removed before they were read and are lost: the group's lag exceeds the topic's retention; raise the retention, or add gateways"
        );
    }
}

/// Commits the decisions that have to be committed at once.
fn commit(consumer: &BaseConsumer<Context>, located: &[LocatedStart]) -> anyhow::Result<()> {
    let mut list = TopicPartitionList::new();
    for at in located.iter().filter(|at| at.commit) {
        if let Some(offset) = at.offset {
            add_offset(&mut list, &at.key.0, at.key.1, offset, Some(at.metadata));
        }
    }
    if list.count() > 0 {
        consumer.commit(&list, CommitMode::Sync)?;
    }
    Ok(())
}

fn add(list: &mut TopicPartitionList, (topic, number): &PartitionKey, offset: Offset) {
    list.add_partition_offset(topic, *number, offset).expect("an offset of a record, or a logical offset");
}
