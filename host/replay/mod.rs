//! Replays a user's inbox over the user's connection: for backends and operators whose comets do not read
//! inboxes themselves. `on_return` does so by itself when a user returns, if that is configured.
//!
//! The messages go to the comet as `PushMsg`, in order, one after another, marked as replayed and with
//! their ids. A replay stops at the first one that the comet does not take, and says where it stopped: what
//! was pushed was acknowledged by the comet. It pushes one page; the caller continues from `next`.

mod metrics;
mod on_return;
mod registrations;

pub use metrics::Metrics;
pub use on_return::{ReplayOnReturn, ReplayTiming};
pub use registrations::{RegistrationQueue, Registrations};

use std::time::{Duration, Instant};

use crate::inbox::{Cursor, InboxReader, PageQuery, Unavailable};
use crate::message::{ConnectionId, UserId};
use crate::pipeline::{PushOutcome, PushedMessage, Pusher};

/// How long one page may take; then the caller continues.
const LONGEST: Duration = Duration::from_secs(20);

/// Replays inboxes.
#[derive(Clone, Copy)]
pub struct Replayer<'a> {
    /// Reads them.
    pub reader: &'a dyn InboxReader,
    /// Finds the user's connection, and pushes.
    pub pusher: Pusher<'a>,
    /// Leaves out messages that the user got live when they were stored.
    pub only_missed: bool,
}

/// What a replay has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The connection that it was for.
    pub connection: ConnectionId,
    /// How many messages the comet acknowledged.
    pub pushed: usize,
    /// Where to continue; `None` if the inbox is empty.
    pub next: Option<Cursor>,
    /// Whether there is more now.
    pub more: bool,
    /// Whether something before the first message is no longer kept.
    pub truncated: bool,
    /// Why it stopped before the end of the page.
    pub stopped: Option<String>,
    /// What it lacks that is kept, but cannot be read now.
    pub warning: Option<&'static str>,
}

/// Why nothing was replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The user has no connection, or not this one.
    #[error("user `{0}` is not registered with a connection: there is nowhere to push to")]
    NotConnected(UserId),
    /// Inbox or directory cannot be read now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Replayer<'_> {
    /// Pushes one page to the connection with which the user is registered, or to this one of the
    /// user's.
    ///
    /// # Errors
    /// If there is no such connection, or the inbox cannot be read now.
    pub async fn replay(
        &self,
        user: &UserId,
        connection: Option<&ConnectionId>,
        query: &PageQuery,
    ) -> Result<Replayed, ReplayError> {
        let found = self.pusher.connection_of(user, connection).await?;
        let found = found.ok_or_else(|| ReplayError::NotConnected(user.clone()))?;
        let page = self.reader.page(user, query).await?;
        let mut replayed = Replayed {
            connection: found.id.clone(),
            pushed: 0,
            next: query.after,
            more: page.more,
            truncated: page.truncated,
            stopped: None,
            warning: page.warning,
        };
        let (connection, since) = ([Some(found)], Instant::now());
        for entry in &page.entries {
            if since.elapsed() > LONGEST {
                replayed.more = true;
                return Ok(replayed);
            }
            let message = &entry.message;
            // What is nowhere any more cannot be pushed; the page is truncated.
            if (self.only_missed && message.cause.is_none()) || message.is_missing() {
                replayed.next = Some(Cursor::At(entry.position));
                continue;
            }
            let pushed = PushedMessage {
                id: &message.id,
                operation: message.operation,
                body: &message.body,
                sent_ms: message.sent_ms,
            };
            match self.pusher.push(&connection, pushed).await.pop() {
                Some(PushOutcome::Delivered) => {
                    replayed.pushed += 1;
                    replayed.next = Some(Cursor::At(entry.position));
                }
                Some(PushOutcome::Failed(why)) => return Ok(replayed.stopped_because(why)),
                Some(PushOutcome::NotConnected) | None => {
                    let why = "the comet does not have the connection any more".to_owned();
                    return Ok(replayed.stopped_because(why));
                }
            }
        }
        replayed.next = page.next;
        Ok(replayed)
    }
}

impl Replayed {
    fn stopped_because(mut self, why: String) -> Self {
        self.more = true;
        self.stopped = Some(why);
        self
    }
}
