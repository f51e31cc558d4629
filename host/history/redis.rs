//! Histories in Redis: one stream per room.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use redis::{Cmd, Value};

use super::byte_limit::ByteLimit;
use super::lookback::Lookback;
use super::{Config, Metrics, Unavailable};
use crate::inbox::{Owner, Position};
use crate::message::{Message, RoomId};
use crate::redis_client::{RedisClient, Refusal, elements, lifetime_ms, refusal, text};
use crate::telemetry::LogThrottle;
use crate::time::now_record_ms;

/// The names of the operations in metrics.
const LOOK: &str = "look_history";
const STORE: &str = "store_history";
/// Entries of the first look, and of later ones at most.
const FIRST_LOOK: usize = 2;
const LARGEST_LOOK: usize = 128;
/// Approximate size of an entry in addition to its body.
const ENTRY_OVERHEAD: u64 = 128;
/// Rooms whose newest offset is remembered.
const MAX_ROOMS: usize = 10_000;

/// One stream `<prefix>history:{room}` per room, with the fields of inboxes (`id`, `op`, `body`, `ts`,
/// `expires`), and `redriven` for messages that are out of order. The stream is trimmed to its maximum
/// length and age, and expires if nothing is stored for the retention. All commands have one key.
#[derive(Clone, Debug)]
pub struct RedisRoomHistory {
    client: RedisClient,
    config: Config,
    metrics: Metrics,
    throttle: Arc<LogThrottle>,
    byte_limit: ByteLimit,
}

/// What one partition, as long as it is assigned, knows of the histories of its rooms. Records that are
/// delivered again come at the beginning: later ones have higher offsets than all that is stored.
#[derive(Debug, Default)]
pub struct HistoryProgress(HashMap<RoomId, Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    /// The newest offset of the partition that the room has.
    newest: i64,
    /// When an entry was stored last, by Redis' clock.
    redis_ms: Option<u64>,
    /// How much was added since the room was measured; `None` if it was not.
    grown: Option<u64>,
}

impl HistoryProgress {
    /// Whether the room may have this message.
    fn may_have(&self, room: &RoomId, message: &Message) -> bool {
        let newest = self.0.get(room).map(|known| known.newest);
        is_redriven(message) || newest.is_none_or(|newest| message.record.origin.offset <= newest)
    }

    fn note(&mut self, room: &RoomId, offset: Option<i64>, redis_ms: Option<u64>) {
        if self.0.len() >= MAX_ROOMS && !self.0.contains_key(room) {
            self.0.clear();
        }
        let known = self.0.entry(room.clone()).or_insert(Known { newest: -1, redis_ms: None, grown: None });
        known.newest = known.newest.max(offset.unwrap_or(-1));
        known.redis_ms = redis_ms.or(known.redis_ms);
    }
}

fn is_redriven(message: &Message) -> bool {
    message.record.trusted_id().is_some()
}

impl RedisRoomHistory {
    /// Histories that use this client.
    pub fn new(client: RedisClient, config: &Config, metrics: Metrics) -> Self {
        let byte_limit = ByteLimit::new(client.clone(), config.max_bytes_per_room.as_u64());
        let throttle = Arc::new(LogThrottle::per_record());
        Self { client, config: config.clone(), metrics, throttle, byte_limit }
    }

    fn key(&self, room: &RoomId) -> String {
        Owner::from(room).stream_key(self.client.prefix())
    }

    /// Stores messages of one partition, in order, unless their room's history has them. Returns their
    /// places; `None` for those that it can never take.
    ///
    /// # Errors
    /// If Redis cannot be used now. Storing the messages again repeats nothing.
    pub async fn store(
        &self,
        messages: &[(&RoomId, &Message)],
        progress: &mut HistoryProgress,
    ) -> Result<Vec<Option<Position>>, Unavailable> {
        let mut places = self.look(messages, progress).await?;
        let repeated = places.iter().flatten().count();
        let rest: Vec<usize> = (0..messages.len()).filter(|index| places[*index].is_none()).collect();
        let (mut commands, mut rooms) = (Vec::new(), HashSet::new());
        let mut appends = Vec::with_capacity(messages.len());
        for (room, message) in rest.iter().map(|index| messages[*index]) {
            let key = self.key(room);
            appends.push(commands.len());
            commands.push(self.append(&key, message));
            if rooms.insert(room) {
                commands.extend(self.bounds(&key, progress.0.get(room)));
            }
        }
        let (replies, problem) = self.client.run_bulk(STORE, commands).await;
        let (mut stored, mut refused, mut denied) = (0, None, None);
        for (index, at) in rest.into_iter().zip(appends) {
            let (room, message) = messages[index];
            match replies.get(at).and_then(Option::as_ref) {
                // It may be stored nevertheless: to be looked for.
                None => drop(progress.0.remove(room)),
                Some(reply) => match refusal(reply) {
                    None => {
                        stored += 1;
                        let place = text(reply.clone()).filled().and_then(|id| Position::parse(&id));
                        let offset = (!is_redriven(message)).then_some(message.record.origin.offset);
                        progress.note(room, offset, place.map(|place| place.ms));
                        places[index] = place;
                    }
                    Some(Refusal::WrongType) => refused = Some(room),
                    Some(Refusal::Denied(said) | Refusal::Other(said)) => denied = Some(said),
                },
            }
        }
        self.metrics.stored.inc_by(stored);
        if let Some(room) = refused {
            self.metrics.not_stored.inc();
            if let Some(held_back) = self.throttle.admit() {
                let key = self.key(room);
                tracing::error!(
                    held_back,
                    "`{key}` in Redis is not a stream: messages are not kept; delete it"
                );
            }
        }
        match (problem, denied) {
            (Some(problem), _) => Err(problem),
            (None, Some(said)) => Err(self.client.denied(STORE, said)),
            (None, None) => {
                self.hold_to_size(messages, &places, progress).await?;
                self.metrics.repeated.inc_by(repeated as u64);
                Ok(places)
            }
        }
    }

    /// Drops the oldest messages of rooms that have become too large.
    async fn hold_to_size(
        &self,
        messages: &[(&RoomId, &Message)],
        places: &[Option<Position>],
        progress: &mut HistoryProgress,
    ) -> Result<(), Unavailable> {
        let mut due = Vec::new();
        for ((room, message), _) in messages.iter().zip(places).filter(|(_, place)| place.is_some()) {
            let Some(known) = progress.0.get_mut(*room) else { continue };
            let size = message.body.len() as u64 + ENTRY_OVERHEAD;
            let grown = known.grown.map(|grown| grown.saturating_add(size));
            known.grown = Some(grown.unwrap_or_default());
            if grown.is_none_or(|grown| self.byte_limit.is_due(grown)) {
                known.grown = Some(0);
                due.push(*room);
            }
        }
        due.sort_unstable();
        due.dedup();
        if due.is_empty() {
            return Ok(());
        }
        let measured = self.byte_limit.apply(due.iter().map(|room| self.key(room)).collect()).await;
        if measured.is_err() {
            // Before anything else is added.
            for room in due {
                if let Some(known) = progress.0.get_mut(room) {
                    known.grown = None;
                }
            }
        }
        measured
    }

    fn append(&self, key: &str, message: &Message) -> Cmd {
        let now = now_record_ms();
        let mut command = redis::cmd("XADD");
        command.arg(key).arg("MAXLEN").arg("=").arg(self.config.max_per_room).arg("*");
        command.arg("id").arg(message.id.as_str()).arg("op").arg(message.operation);
        command.arg("body").arg(&message.body[..]);
        command.arg("ts").arg(message.record.timestamp_ms.unwrap_or(now));
        command.arg("expires").arg(now.saturating_add_unsigned(lifetime_ms(self.config.retention)));
        if is_redriven(message) {
            command.arg("redriven").arg(1);
        }
        command
    }

    /// The commands that bound a history in time, the age by Redis' clock.
    fn bounds(&self, key: &str, known: Option<&Known>) -> Vec<Cmd> {
        let retention_ms = lifetime_ms(self.config.retention);
        let mut commands = vec![redis::cmd("PEXPIRE").arg(key).arg(retention_ms).to_owned()];
        if let Some(redis_ms) = known.and_then(|known| known.redis_ms) {
            let oldest = redis_ms.saturating_sub(retention_ms);
            commands.push(redis::cmd("XTRIM").arg(key).arg("MINID").arg("~").arg(oldest).to_owned());
        }
        commands
    }

    /// The places of the messages that their rooms have.
    async fn look(
        &self,
        messages: &[(&RoomId, &Message)],
        progress: &mut HistoryProgress,
    ) -> Result<Vec<Option<Position>>, Unavailable> {
        let mut found = vec![None; messages.len()];
        let mut by_room: BTreeMap<&RoomId, Vec<usize>> = BTreeMap::new();
        for (index, (room, message)) in messages.iter().enumerate() {
            if progress.may_have(room, message) {
                by_room.entry(*room).or_default().push(index);
            }
        }
        let Some((_, first)) = messages.first() else { return Ok(found) };
        let origin = &first.record.origin;
        let wanted = |index: usize| {
            let (_, message) = messages[index];
            (index, &message.id, (!is_redriven(message)).then_some(message.record.origin.offset))
        };
        let look = |(room, indexes): (_, Vec<usize>)| {
            let lookback = Lookback::new(&origin.topic, origin.partition, indexes.into_iter().map(wanted));
            (room, "+".to_owned(), lookback)
        };
        let mut open: Vec<(&RoomId, String, Lookback<'_>)> = by_room.into_iter().map(look).collect();
        let mut count = FIRST_LOOK;
        while !open.is_empty() {
            let command = |(room, high, _): &(&RoomId, String, _)| {
                redis::cmd("XREVRANGE")
                    .arg(self.key(room))
                    .arg(high)
                    .arg("-")
                    .arg("COUNT")
                    .arg(count)
                    .to_owned()
            };
            let replies = self.client.run_reads(LOOK, open.iter().map(command).collect()).await?;
            let mut next = Vec::new();
            for ((room, mut high, mut lookback), reply) in open.into_iter().zip(replies) {
                if let Some(Refusal::Denied(said)) = refusal(&reply) {
                    return Err(self.client.denied(LOOK, said));
                }
                if walk(&mut lookback, reply, count, &mut high) {
                    next.push((room, high, lookback));
                } else {
                    let (places, newest) = lookback.finish();
                    places.into_iter().for_each(|(index, place)| found[index] = Some(place));
                    progress.note(room, newest, None);
                }
            }
            open = next;
            count = (count * 8).min(LARGEST_LOOK);
        }
        Ok(found)
    }
}

/// Takes the entries of a reply; returns whether the walk goes on, from `high`.
fn walk(lookback: &mut Lookback<'_>, reply: Value, count: usize, high: &mut String) -> bool {
    let entries = elements(reply);
    let is_last = entries.len() < count;
    for entry in entries {
        let mut parts = elements(entry).into_iter();
        let (Some(place), Some(fields)) = (parts.next().and_then(|id| text(id).filled()), parts.next())
        else {
            continue;
        };
        *high = format!("({place}");
        let (mut id, mut redriven) = (String::new(), false);
        let mut fields = elements(fields).into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            match text(name).filled().as_deref() {
                Some("id") => id = text(value).filled().unwrap_or_default(),
                Some("redriven") => redriven = true,
                _ => {}
            }
        }
        let Some(place) = Position::parse(&place) else { continue };
        if !lookback.take(place, &id, redriven) {
            return false;
        }
    }
    !is_last
}
