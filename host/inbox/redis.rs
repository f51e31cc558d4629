//! Inboxes in Redis: one stream per user.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, Value};
use tracing::warn;

use super::entry::returned;
use super::{
    BodyReference, Config, Inbox, InboxEntry, Metrics, NotStored, Owner, PartialStore, Position, Stored,
    StoredMessage, Unavailable,
};
use crate::decision::AbsenceCause;
use crate::message::{ConnectionId, UserId};
use crate::redis_client::{RedisClient, Refusal, elements, lifetime_ms, refusal, text};
use crate::telemetry::LogThrottle;
use crate::time::now_record_ms;

/// Maximum clock skew, in milliseconds, for trimming by age: entry ids carry Redis' time, and a clock
/// that is wrong by days would empty inboxes.
const MAX_CLOCK_SKEW_MS: i64 = 3_600_000;

/// How often the clock skew is logged.
const CLOCK_WARNING: Duration = Duration::from_secs(60);

/// One stream `<prefix>inbox:{user}` per user, with the fields `id` (message id), `op` (operation), `room`
/// (if any), `cause` (why the user was not reached), `body` (unchanged), `ts` (when it was sent) and
/// `expires`, both in milliseconds since 1970. Instead of `body`, an entry may have `at`, the id of the entry
/// with the message in `<prefix>history:{room}`, and `size`, that of the body. The stream is trimmed to its
/// maximum length (exactly) and age, and expires if nothing is stored for the maximum retention.
///
/// Readers have to skip expired entries and repeated `id`s: an entry whose connection breaks is
/// appended again. All commands have one key, so a cluster may spread the inboxes. Redis acknowledges
/// before replication: a primary's last writes are lost in a failover.
#[derive(Debug, Clone)]
pub struct RedisInbox {
    client: RedisClient,
    config: Config,
    metrics: Metrics,
    refused_throttle: Arc<LogThrottle>,
    /// Whether the ids of the last entries agreed with this process's clock.
    clocks_agree: Arc<AtomicBool>,
    clock_warning: Arc<LogThrottle>,
    look_throttle: Arc<LogThrottle>,
}

impl RedisInbox {
    /// Inboxes that use this client.
    pub fn new(client: RedisClient, config: &Config, metrics: Metrics) -> Self {
        Self {
            client,
            config: config.clone(),
            metrics,
            refused_throttle: Arc::new(LogThrottle::per_record()),
            clocks_agree: Arc::default(),
            clock_warning: Arc::new(LogThrottle::new(1, CLOCK_WARNING)),
            look_throttle: Arc::new(LogThrottle::new(1, CLOCK_WARNING)),
        }
    }

    fn key(&self, user: &UserId) -> String {
        Owner::from(user).stream_key(self.client.prefix())
    }

    /// The commands that store these entries, and the position of each entry's append. After a user's
    /// first append, the expiry is set and the inbox is trimmed by age: once for all entries of the
    /// user.
    fn commands(&self, entries: &[InboxEntry], now: i64) -> (Vec<Cmd>, Vec<AppendPosition>) {
        let longest = lifetime_ms(self.config.retention);
        let mut commands = Vec::with_capacity(entries.len() * 3);
        let mut appends = Vec::with_capacity(entries.len());
        let mut users = HashSet::with_capacity(entries.len());
        for entry in entries {
            let key = self.key(&entry.user);
            let kept = StoredMessage::new(entry, now, self.config.retention(entry.retention));
            let is_first = users.insert(&entry.user);
            appends.push(AppendPosition { at: commands.len(), is_first });
            commands.push(append(&key, &kept, self.config.max_per_user));
            if is_first {
                let expire = redis::cmd("PEXPIRE").arg(&key).arg(longest).take();
                commands.push(expire);
                if self.clocks_agree.load(Ordering::Relaxed) {
                    let trim = redis::cmd("XTRIM")
                        .arg(&key)
                        .arg("MINID")
                        .arg("~")
                        .arg(now.saturating_sub_unsigned(longest).max(0))
                        .take();
                    commands.push(trim);
                }
            }
        }
        (commands, appends)
    }

    /// The outcome of an entry, from the replies.
    fn outcome(
        &self,
        entry: &InboxEntry,
        append: &AppendPosition,
        replies: &[Option<Value>],
    ) -> EntryOutcome {
        // A stream without expiry would stay for ever.
        let expires = !append.is_first || replies.get(append.at + 1).is_some_and(Option::is_some);
        let Some(Some(reply)) = replies.get(append.at).filter(|_| expires) else {
            return EntryOutcome::Retry;
        };
        match refusal(reply) {
            None => EntryOutcome::Stored,
            Some(Refusal::Denied(said)) => EntryOutcome::Denied(said),
            Some(Refusal::WrongType) => EntryOutcome::Rejected(format!(
                "`{}` in Redis is not a stream; delete it",
                self.key(&entry.user)
            )),
            Some(Refusal::Other(said)) => {
                EntryOutcome::Rejected(format!("`{}` in Redis: {said}", self.key(&entry.user)))
            }
        }
    }

    /// Compares the ids of new entries, which begin with Redis' time in milliseconds, with the clock.
    fn compare_clocks(&self, now: i64, positions: &[Option<Position>]) {
        let now = u64::try_from(now).unwrap_or_default();
        let Some(apart) = positions.iter().flatten().map(|at| now.abs_diff(at.ms)).max() else { return };
        let agree = apart <= MAX_CLOCK_SKEW_MS as u64;
        self.clocks_agree.store(agree, Ordering::Relaxed);
        if !agree && self.clock_warning.admit().is_some() {
            let apart = Duration::from_secs(apart / 1000);
            warn!(
                "the clocks of this process and of Redis (or the last entry of an inbox) differ by {}: not trimming inboxes by age; synchronise the clocks",
                humantime::format_duration(apart)
            );
        }
    }

    /// Appends the look at who is online, where it runs after the entries are stored: a cluster runs
    /// commands of different keys concurrently.
    fn add_look(&self, commands: &mut Vec<Cmd>, entries: &[InboxEntry]) -> Option<usize> {
        (!self.client.is_cluster() && !entries.is_empty()).then(|| {
            commands.push(online_users(entries));
            commands.len() - 1
        })
    }

    /// The users' connections, in the order of the entries; `reply` is the look's, if it has one.
    ///
    /// # Errors
    /// If Redis did not answer.
    async fn online(
        &self,
        entries: &[InboxEntry],
        reply: Option<Value>,
    ) -> Result<Vec<Option<ConnectionId>>, Unavailable> {
        let reply = match reply {
            Some(reply) => reply,
            None => {
                let look = self.client.run_small("get_users_online", vec![online_users(entries)]).await?;
                look.into_iter().next().unwrap_or_default()
            }
        };
        if let Some(refusal) = refusal(&reply) {
            if let Some(held_back) = self.look_throttle.admit() {
                warn!(
                    held_back,
                    ?refusal,
                    "cannot read `user:online:*` after storing: users who return at that moment get the message with the next replay only; allow MGET on these keys"
                );
            }
            return Ok(Vec::new());
        }
        let connection = |value| text(value).filled().map(ConnectionId::from);
        Ok(elements(reply).into_iter().map(connection).collect())
    }

    fn report(&self, stored: usize, not_stored: &[NotStored]) {
        self.metrics.stored.inc_by(stored as u64);
        self.metrics.not_stored.inc_by(not_stored.len() as u64);
        if let Some(first) = not_stored.first() {
            let count = not_stored.len();
            let Some(held_back) = self.refused_throttle.admit() else { return };
            tracing::error!(count, held_back, "messages for absent users cannot be stored: {}", first.reason);
        }
    }
}

#[async_trait]
impl Inbox for RedisInbox {
    async fn store(&self, entries: &[InboxEntry]) -> Result<Stored, PartialStore> {
        let (mut not_stored, mut left) = (Vec::new(), Vec::new());
        let now = now_record_ms();
        let (mut commands, appends) = self.commands(entries, now);
        let look = self.add_look(&mut commands, entries);
        let (replies, mut problem) = self.client.run_bulk("store_offline", commands).await;
        let position = |append: &AppendPosition| position_of(replies.get(append.at)?.as_ref()?);
        let positions: Vec<Option<Position>> = appends.iter().map(position).collect();
        self.compare_clocks(now, &positions);
        let mut stored = vec![false; entries.len()];
        for (index, (entry, append)) in entries.iter().zip(&appends).enumerate() {
            match self.outcome(entry, append, &replies) {
                EntryOutcome::Stored => stored[index] = true,
                EntryOutcome::Rejected(reason) => not_stored.push(NotStored { entry: index, reason }),
                EntryOutcome::Retry => left.push(index),
                EntryOutcome::Denied(said) => {
                    left.push(index);
                    problem.get_or_insert_with(|| self.client.denied("store_offline", said));
                }
            }
        }
        let mut online = Vec::new();
        if stored.contains(&true) {
            let look = look.and_then(|at| replies.get(at).cloned().flatten());
            match self.online(entries, look).await {
                Ok(users) => online = users,
                // Without the look, a user who has just returned could miss an entry: all again.
                Err(error) => {
                    problem.get_or_insert(error);
                    left =
                        (0..entries.len()).filter(|index| stored[*index] || left.contains(index)).collect();
                    stored.fill(false);
                }
            }
        }
        let count = stored.iter().filter(|stored| **stored).count();
        self.report(count, &not_stored);
        let connection = |index: usize| online.get(index).cloned().flatten().filter(|_| stored[index]);
        let returned = returned(entries, |index, _| connection(index));
        self.metrics.returned.inc_by(returned.len() as u64);
        let positions = positions.into_iter().enumerate().filter(|(index, _)| stored[*index]);
        let positions = positions.filter_map(|(index, position)| Some((index, position?))).collect();
        let stored = Stored { not_stored, returned, positions };
        match problem {
            Some(error) if !left.is_empty() => Err(PartialStore { stored: Box::new(stored), left, error }),
            _ => Ok(stored),
        }
    }
}

/// The position of an entry's append among the commands, and whether it is the user's first.
struct AppendPosition {
    at: usize,
    is_first: bool,
}

/// The outcome of one entry.
enum EntryOutcome {
    Stored,
    /// It can never be stored, for this reason.
    Rejected(String),
    /// No answer, or Redis does not accept writes now.
    Retry,
    /// The user may not write there.
    Denied(String),
}

fn append(key: &str, kept: &StoredMessage, max_per_user: usize) -> Cmd {
    let mut command = redis::cmd("XADD");
    command.arg(key).arg("MAXLEN").arg("=").arg(max_per_user).arg("*");
    command.arg("id").arg(kept.id.as_str()).arg("op").arg(kept.operation);
    if let Some(room) = &kept.room {
        command.arg("room").arg(room.as_str());
    }
    if let Some(cause) = kept.cause {
        command.arg("cause").arg(cause.as_str());
    }
    match kept.reference {
        None => command.arg("body").arg(&kept.body[..]),
        Some(BodyReference { place, size }) => command.arg("at").arg(place.to_string()).arg("size").arg(size),
    };
    command.arg("ts").arg(kept.sent_ms).arg("expires").arg(kept.expires_ms);
    command
}

/// The place of a new entry, from the reply to its append.
fn position_of(reply: &Value) -> Option<Position> {
    match reply {
        Value::BulkString(id) => Position::parse(std::str::from_utf8(id).ok()?),
        _ => None,
    }
}

/// Reads with which connections these users are registered: as comets write it.
fn online_users(entries: &[InboxEntry]) -> Cmd {
    let mut command = redis::cmd("MGET");
    for entry in entries {
        command.arg(format!("user:online:{}", entry.user));
    }
    command
}

/// Parses the fields of an entry; `None` if Halley did not write it.
pub(super) fn fields(fields: Value) -> Option<StoredMessage> {
    let (mut id, mut operation, mut room, mut body) = (None, None, None, None);
    let (mut sent_ms, mut expires_ms, mut cause) = (None, None, None);
    let (mut place, mut size) = (None, 0);
    let mut values = elements(fields).into_iter();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        match text(name).filled()?.as_str() {
            "body" => body = bytes(value),
            "id" => id = text(value).filled(),
            "room" => room = text(value).filled(),
            "op" => operation = text(value).filled()?.parse().ok(),
            "ts" => sent_ms = text(value).filled()?.parse().ok(),
            "cause" => cause = text(value).filled().and_then(|cause| AbsenceCause::named(&cause)),
            "expires" => expires_ms = text(value).filled()?.parse().ok(),
            "at" => place = Position::parse(&text(value).filled()?),
            "size" => size = text(value).filled()?.parse().ok()?,
            _ => {}
        }
    }
    let reference = place.filter(|_| body.is_none()).map(|place| BodyReference { place, size });
    Some(StoredMessage {
        id: id?.into(),
        operation: operation?,
        room: room.map(Into::into),
        body: body.or_else(|| reference.map(|_| Bytes::new()))?,
        sent_ms: sent_ms?,
        expires_ms: expires_ms?,
        cause,
        reference,
    })
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}
