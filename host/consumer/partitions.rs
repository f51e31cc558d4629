//! All assigned partitions.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::{Offset, Statistics, TopicPartitionList};

use crate::consumer::add_offset;
use crate::consumer::feed::Feed;
use crate::consumer::limit::Limit;
use crate::consumer::mark::Mark;
use crate::consumer::metrics::{Metrics, Seen};
use crate::consumer::partition::{Arrival, Flow, Partition, Place};
use crate::consumer::unreadable::Fetched;
use crate::kafka::TopicId;
use crate::memory_guard::MemoryGuard;
use crate::message::Record;
use crate::stalls::{Held, StallStage, Stalls};

/// A topic and the number of its partition.
pub(super) type Key = (Arc<str>, i32);

/// All assigned partitions.
pub(super) struct Partitions {
    assigned: HashMap<Key, Partition>,
    /// Topics of which this process has had partitions.
    known: BTreeSet<Arc<str>>,
    total: Limit,
    /// Nothing new is begun any more, on newly assigned partitions either.
    closing: bool,
    /// Records that partitions which went elsewhere left without an outcome while closing.
    abandoned: usize,
    memory: MemoryGuard,
    /// Whose turn it is while memory is short.
    turn: usize,
    metrics: Metrics,
}

impl Partitions {
    pub(super) fn new(total: Limit, memory: MemoryGuard, metrics: Metrics) -> Self {
        Self {
            assigned: HashMap::new(),
            known: BTreeSet::new(),
            total,
            closing: false,
            abandoned: 0,
            memory,
            turn: 0,
            metrics,
        }
    }

    /// A newly assigned partition; the feed is for its worker.
    pub(super) fn assign(&mut self, topic: Arc<str>, number: i32) -> Feed {
        let (mut partition, feed) = Partition::assign(Arc::clone(&topic), number, self.total.records);
        if self.closing {
            partition.close();
        }
        self.metrics.topic(&topic);
        self.assigned.insert((topic, number), partition);
        feed
    }

    /// It is known where this partition begins: see [`Partition::begin`].
    pub(super) fn begin(&mut self, key: &Key, next: Option<i64>, mark: Mark) {
        self.known.insert(Arc::clone(&key.0));
        if let Some(partition) = self.assigned.get_mut(key) {
            partition.begin(next, mark);
        }
    }

    /// Topics of which this process has had partitions.
    pub(super) fn known(&self) -> BTreeSet<Arc<str>> {
        self.known.clone()
    }

    /// The partitions of which it is not known where they are.
    pub(super) fn unplaced(&self) -> Vec<(Key, Place)> {
        let all = self.assigned.iter().map(|(key, partition)| (key.clone(), partition.place()));
        all.filter(|(_, place)| *place != Place::Known).collect()
    }

    /// The partitions with the offset that comes next, where both are known.
    pub(super) fn expected(&self) -> Vec<(Key, i64)> {
        let expected = |(key, partition): (&Key, &Partition)| Some((key.clone(), partition.expected()?));
        self.assigned.iter().filter_map(expected).collect()
    }

    /// This topic has this id now: where none was known, it is committed from now on. Ends the trackers of partitions that read another one of the
    /// name. Returns these, with the number of records that were in flight.
    pub(super) fn topic_is(&mut self, topic: &str, id: Option<TopicId>) -> Vec<(Key, usize)> {
        let mut others = Vec::new();
        for (key, partition) in self.assigned.iter_mut().filter(|(key, _)| &*key.0 == topic) {
            let placed = partition.place() == Place::Known;
            partition.learn(id);
            if placed && partition.mark().is_some_and(|mark| mark.is_of_another(id)) {
                others.push((key.clone(), partition.lose_place(false)));
            }
        }
        others
    }

    /// No records come of this partition, for this reason, until one does.
    pub(super) fn hold(&mut self, stalls: &Stalls, key: &Key, offset: Option<i64>, cause: &dyn Display) {
        let Some(partition) = self.assigned.get_mut(key) else { return };
        let (topic, number) = (Arc::clone(&key.0), key.1);
        let held = Held { stage: StallStage::Consume, topic, partition: number, offset };
        partition.hold(|| stalls.begin(held), cause);
    }

    /// What held this partition has ended.
    pub(super) fn release(&mut self, key: &Key) {
        if let Some(partition) = self.assigned.get_mut(key) {
            partition.release();
        }
    }

    /// One assigned partition.
    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Partition> {
        self.assigned.get_mut(key)
    }

    /// The topics of the assigned partitions.
    pub(super) fn topics(&self) -> BTreeSet<Arc<str>> {
        self.assigned.keys().map(|(topic, _)| Arc::clone(topic)).collect()
    }

    /// Takes partitions out that go elsewhere; their workers begin nothing new. Those of
    /// `lost` ones drop everything at once: somebody else has them already.
    pub(super) fn take(&mut self, keys: Vec<Key>, lost: bool) -> Vec<(Key, Partition)> {
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(mut partition) = self.assigned.remove(&key) else { continue };
            if lost {
                partition.abandon();
            } else {
                partition.close();
            }
            taken.push((key, partition));
        }
        taken
    }

    pub(super) fn abandon_all(&mut self) {
        self.assigned.values_mut().for_each(Partition::abandon);
        self.clear();
    }

    /// What one partition may have in flight now. While memory is short, one partition at a time
    /// may have a little, and only once nothing else is in flight.
    fn limit(&self) -> Limit {
        if !self.memory.is_stopped() {
            return self.total.share(self.assigned.len());
        }
        let idle = self.assigned.values().all(|partition| partition.unsettled().records == 0);
        if idle { Limit::LITTLE } else { Limit::NOTHING }
    }

    pub(super) fn accept(&mut self, record: Record) -> Arrival {
        let limit = self.limit();
        let origin = &record.origin;
        self.metrics.read(&origin.topic);
        let key = (Arc::clone(&origin.topic), origin.partition);
        match self.assigned.get_mut(&key) {
            Some(partition) => partition.accept(record, limit),
            // Fetched before the partition was taken away: its next owner reads it.
            None => Arrival::Dropped,
        }
    }

    /// Admits what waits; returns the partitions that may flow again.
    pub(super) fn refill(&mut self) -> Vec<Key> {
        self.memory.look(Instant::now());
        if self.memory.is_stopped() {
            return self.refill_one();
        }
        let limit = self.limit();
        let mut resumed = Vec::new();
        for (key, partition) in &mut self.assigned {
            if partition.refill(limit) == Flow::Resume {
                resumed.push(key.clone());
            }
        }
        resumed
    }

    /// The next partition that has something waiting, in turns.
    fn refill_one(&mut self) -> Vec<Key> {
        let limit = self.limit();
        let mut paused: Vec<_> = self.assigned.iter_mut().filter(|(_, p)| p.is_paused()).collect();
        if limit == Limit::NOTHING || paused.is_empty() {
            return Vec::new();
        }
        self.turn = self.turn.wrapping_add(1);
        let turn = self.turn % paused.len();
        let (key, partition) = &mut paused[turn];
        let resumes = partition.refill(limit) == Flow::Resume;
        resumes.then(|| key.clone()).into_iter().collect()
    }

    /// Whether the worker of a partition has ended by itself.
    pub(super) fn worker_is_gone(&self) -> bool {
        self.assigned.values().any(Partition::is_gone)
    }

    pub(super) fn any_paused(&self) -> bool {
        self.assigned.values().any(Partition::is_paused)
    }

    pub(super) fn any_idle(&self) -> bool {
        self.assigned.values().any(Partition::is_idle)
    }

    /// librdkafka has come this far in each partition: what it gave, and what holds no records.
    pub(super) fn skip_to(&mut self, positions: &TopicPartitionList) {
        for element in positions.elements() {
            let key = (Arc::from(element.topic()), element.partition());
            if let (Some(partition), Offset::Offset(offset)) = (self.assigned.get_mut(&key), element.offset())
            {
                partition.skip_to(offset);
            }
        }
    }

    /// How far partitions are settled, where that has moved since the last time.
    pub(super) fn take_settled(&mut self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for ((topic, number), partition) in &mut self.assigned {
            if let Some(offset) = partition.to_store() {
                add_offset(&mut list, topic, *number, offset, partition.mark());
                partition.stored(Some(offset));
            }
        }
        list
    }

    /// These could not be stored: they are given out again.
    pub(super) fn not_stored(&mut self, list: &TopicPartitionList) {
        for element in list.elements() {
            let key = (Arc::from(element.topic()), element.partition());
            if let Some(partition) = self.assigned.get_mut(&key) {
                partition.stored(None);
            }
        }
    }

    pub(super) fn close_all(&mut self) {
        self.closing = true;
        self.assigned.values_mut().for_each(Partition::close);
    }

    pub(super) fn all_done(&self) -> bool {
        self.assigned.values().all(Partition::is_done)
    }

    /// Tells the workers that are not done to drop everything. Returns how many records were
    /// left without an outcome since [`Partitions::close_all`].
    pub(super) fn give_up_all(&mut self) -> usize {
        self.abandoned + self.assigned.values_mut().map(Partition::give_up).sum::<usize>()
    }

    /// A revocation left this many records without an outcome.
    pub(super) fn note_abandoned(&mut self, records: usize) {
        if self.closing {
            self.abandoned += records;
        }
    }

    pub(super) fn clear(&mut self) {
        self.assigned.clear();
    }

    /// What librdkafka says of the partitions, once a second. Returns how far it has read those
    /// that are not paused.
    pub(super) fn observe(&mut self, statistics: &Statistics) -> Vec<Fetched> {
        let mut fetched = Vec::new();
        for (key, partition) in &mut self.assigned {
            let topic = statistics.topics.get(&*key.0);
            let Some(found) = topic.and_then(|topic| topic.partitions.get(&key.1)) else { continue };
            let end = if found.ls_offset >= 0 { found.ls_offset } else { found.hi_offset };
            if end < 0 {
                continue;
            }
            // What open transactions hold back is behind, too: a producer that hangs must show.
            let last = found.hi_offset.max(end);
            partition.note_end(found.lo_offset, last);
            if partition.place() == Place::Known && !partition.is_paused() {
                fetched.push(Fetched { key: key.clone(), next: found.next_offset, end, last });
            }
        }
        fetched
    }

    /// The partitions as they are now.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let mut seen: Vec<_> = self
            .assigned
            .iter()
            .map(|((topic, number), partition)| Seen {
                topic: Arc::clone(topic),
                partition: *number,
                unsettled: partition.unsettled().records,
                paused: partition.is_paused(),
                lag: partition.lag(),
            })
            .collect();
        seen.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        seen
    }
}
