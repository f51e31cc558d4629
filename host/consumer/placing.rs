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

use crate::consumer::add_offset;
use crate::consumer::begin::{Because, Position};
use crate::consumer::context::{Context, keys};
use crate::consumer::locate::{self, Located, Wanted, WentBack};
use crate::consumer::mark::Mark;
use crate::consumer::partition::Place;
use crate::consumer::partitions::Key;
use crate::kafka::{self, Start, Topics};

/// Timeout of a seek.
const SEEK: Duration = Duration::from_secs(5);

impl Context {
    /// Finds the start of partitions that are being assigned. Returns them with their offsets.
    /// If Kafka does not answer in time, they read from the end, and those records are dropped
    /// until [`Context::place_again`] has found the start.
    pub(super) fn place_assigned(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> TopicPartitionList {
        let wanted: Vec<_> = keys(list).into_iter().map(|key| Wanted { key, from_start: false }).collect();
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
                    self.partitions().begin(&at.key, at.offset, at.mark);
                }
                self.tell(&located);
            }
            Err(error) => {
                self.cannot_place(&error);
                wanted.iter().for_each(|wanted| add(&mut placed, &wanted.key, Offset::End));
            }
        }
        placed
    }

    /// Retries to position the partitions that have no known position.
    pub(super) fn place_again(&self, consumer: &BaseConsumer<Self>) {
        self.unplaced.store(false, Ordering::Relaxed);
        self.settle_doubts(consumer);
        let mut wanted = Vec::new();
        let unplaced = self.partitions().unplaced();
        for (key, place) in unplaced {
            if let Place::Unknown { from_start } = place {
                wanted.push(Wanted { key, from_start });
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
            && let Err(error) = self.go_to(consumer, &wanted)
        {
            return self.cannot_place(&error);
        }
        if self.partitions().unplaced().is_empty() {
            self.attempts.store(0, Ordering::Relaxed);
        } else {
            self.unplaced.store(true, Ordering::Relaxed);
        }
    }

    fn go_to(&self, consumer: &BaseConsumer<Self>, wanted: &[Wanted]) -> anyhow::Result<()> {
        let located = self.locate(consumer, wanted)?;
        self.go_to_located(consumer, &located)?;
        self.tell(&located);
        Ok(())
    }

    fn go_to_located(&self, consumer: &BaseConsumer<Self>, located: &[Located]) -> anyhow::Result<()> {
        // A stored offset of an older log would otherwise be committed over this decision.
        let mut stored = TopicPartitionList::new();
        let mut places = TopicPartitionList::new();
        for at in located {
            let (topic, number) = &at.key;
            if let Some(offset) = at.offset {
                add_offset(&mut stored, topic, *number, offset, Some(at.mark));
            }
            add(&mut places, &at.key, at.offset.map_or(Offset::Beginning, Offset::Offset));
        }
        consumer.store_offsets(&stored)?;
        commit(consumer, located)?;
        for element in consumer.seek_partitions(places, SEEK)?.elements() {
            element.error()?;
        }
        for at in located {
            self.partitions().begin(&at.key, at.offset, at.mark);
        }
        Ok(())
    }

    fn locate(&self, consumer: &BaseConsumer<Self>, wanted: &[Wanted]) -> anyhow::Result<Vec<Located>> {
        let known = self.partitions().known();
        locate::locate(consumer, self.start, wanted, &known)
    }

    fn cannot_place(&self, error: &anyhow::Error) {
        self.unplaced.store(true, Ordering::Relaxed);
        let cause = format!("cannot find the start offset in kafka: {error:#}; holding records, retrying");
        let mut partitions = self.partitions();
        for (key, _) in partitions.unplaced() {
            partitions.hold(&self.stalls, &key, None, &cause);
        }
    }

    /// A record arrived after a later one.
    pub(super) fn went_back(&self, (topic, partition): &Key, offset: i64) {
        debug!(topic = &**topic, partition, offset, "an offset went back");
        self.unplaced.store(true, Ordering::Relaxed);
    }

    /// Finds out whether partitions whose offsets regressed have a new log.
    fn settle_doubts(&self, consumer: &BaseConsumer<Self>) {
        let unplaced = self.partitions().unplaced();
        for (key, place) in unplaced {
            let Place::Doubtful { offset } = place else { continue };
            let seen =
                self.partitions().get_mut(&key).map(|partition| (partition.mark(), partition.reached()));
            let Some((mark, Some(expected))) = seen else { continue };
            match locate::why_back(consumer, &key, mark, offset, expected) {
                Ok(WentBack::CutOff(at)) => self.cut_off(consumer, &key, mark, expected, at),
                Ok(WentBack::AnotherLog) => {
                    let in_flight = self.partitions().get_mut(&key).map_or(0, |p| p.lose_place(true));
                    self.created_again(&key, in_flight);
                }
                Ok(WentBack::Repeated) => self.keep_place(consumer, &key),
                Err(error) => self.cannot_place(&error),
            }
        }
    }

    /// The log of the same topic ends before the group's offset: continues at this offset and
    /// commits it explicitly, since the watermark never moves back.
    fn cut_off(&self, consumer: &BaseConsumer<Self>, key: &Key, mark: Option<Mark>, expected: i64, at: i64) {
        let Some(mark) = mark else { return };
        let in_flight = self.partitions().get_mut(key).map_or(0, |partition| partition.lose_place(false));
        error!(
            topic = &*key.0,
            partition = key.1,
            from = at,
            to = expected,
            in_flight,
            "the log ends before the group's offset: the brokers lost its last records, or the offset was set beyond the end; continuing at `from`; earlier records from there on were delivered or are lost"
        );
        let position = Position::Committed(at);
        let key = key.clone();
        let located = Located {
            key,
            position,
            offset: Some(at),
            backlog: 0,
            mark,
            commit: true,
            is_first: false,
            is_whole: false,
        };
        if let Err(error) = self.go_to_located(consumer, &[located]) {
            self.cannot_place(&error);
        }
    }

    /// The record was delivered twice: continues after the last one.
    fn keep_place(&self, consumer: &BaseConsumer<Self>, key: &Key) {
        let next = self.partitions().get_mut(key).and_then(|partition| partition.keep_place());
        let Some(next) = next else { return };
        let mut list = TopicPartitionList::new();
        add(&mut list, key, Offset::Offset(next));
        if let Err(error) = consumer.seek_partitions(list, SEEK) {
            // The next record is out of order as well and is handled then.
            debug!(topic = &*key.0, partition = key.1, %error, "cannot seek to the next record");
        }
    }

    /// Kafka has described the topics.
    pub(super) fn topics_are(&self, topics: &Topics) {
        for (topic, state) in topics {
            let Ok(state) = state else { continue };
            let others = self.partitions().topic_is(topic, state.id);
            for (key, in_flight) in others {
                self.created_again(&key, in_flight);
                self.unplaced.store(true, Ordering::Relaxed);
            }
        }
    }

    fn created_again(&self, (topic, partition): &Key, in_flight: usize) {
        self.metrics.created_again();
        warn!(
            topic = &**topic,
            partition,
            in_flight,
            "the topic was deleted and created again: reading it from the beginning; records in flight of the old one are still delivered"
        );
    }

    /// Logs where partitions start, as far as an operator should know.
    fn tell(&self, located: &[Located]) {
        let mut new: BTreeMap<Arc<str>, (usize, i64)> = BTreeMap::new();
        for at in located {
            let (topic, partition) = (&*at.key.0, at.key.1);
            if let Some(low) = at.offset.filter(|low| at.is_whole && *low > 0) {
                self.lost((topic, partition), 0, low);
            }
            match at.position {
                Position::Beginning(Because::CreatedAgain) => info!(
                    topic,
                    partition,
                    offset = at.offset,
                    "starting at the beginning: the group's committed offset belongs to a deleted topic"
                ),
                Position::Beginning(Because::Added) => {
                    info!(
                        topic,
                        partition,
                        offset = at.offset,
                        "starting a newly added partition at the beginning"
                    );
                }
                Position::Committed(_) => {}
                Position::Beginning(Because::New) | Position::End | Position::Time(_) if at.is_first => {
                    let of_topic = new.entry(Arc::clone(&at.key.0)).or_default();
                    *of_topic = (of_topic.0 + 1, of_topic.1 + at.backlog);
                }
                Position::Beginning(Because::New) | Position::End | Position::Time(_) => {}
            }
        }
        for (topic, (partitions, records)) in new {
            let (topic, start) = (&*topic, self.start);
            match start {
                Start::Newest => info!(topic, partitions, "a new consumer group starts with new records"),
                Start::Oldest | Start::At(_) if records == 0 => {
                    info!(topic, partitions, %start, "a new consumer group starts; the topic has no backlog");
                }
                Start::Oldest | Start::At(_) => warn!(
                    topic, partitions, records, %start,
                    "a new consumer group starts with a backlog: these records are delivered to users now; `[kafka] start` = \"newest\" starts with new records, `[delivery] max_age` drops old ones"
                ),
            }
        }
    }

    /// Offsets were skipped: reports records that were removed before they were read. Gaps left by
    /// transactions and compaction are not losses.
    pub(super) fn passed_over(
        &self,
        consumer: &BaseConsumer<Self>,
        (topic, partition): &Key,
        expected: i64,
        offset: i64,
    ) {
        let low = kafka::cached_low(consumer.client(), topic, *partition).unwrap_or(expected);
        if low > expected {
            self.lost((topic, *partition), expected, low.min(offset));
        }
    }

    /// librdkafka has reset an offset: reports records that were removed before they were read,
    /// even if no record follows them.
    pub(super) fn look_for_losses(&self, consumer: &BaseConsumer<Self>) {
        let expected = self.partitions().expected();
        let keys: Vec<Key> = expected.into_iter().map(|(key, _)| key).collect();
        for (key, low) in locate::lows(consumer, &keys) {
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
fn commit(consumer: &BaseConsumer<Context>, located: &[Located]) -> anyhow::Result<()> {
    let mut list = TopicPartitionList::new();
    for at in located.iter().filter(|at| at.commit) {
        if let Some(offset) = at.offset {
            add_offset(&mut list, &at.key.0, at.key.1, offset, Some(at.mark));
        }
    }
    if list.count() > 0 {
        consumer.commit(&list, CommitMode::Sync)?;
    }
    Ok(())
}

fn add(list: &mut TopicPartitionList, (topic, number): &Key, offset: Offset) {
    list.add_partition_offset(topic, *number, offset).expect("an offset of a record, or a logical offset");
}
