//! Writes connections as comets do: for commands that act as comets. Everything that is written expires, so
//! that nothing stays if the command is killed.

use std::time::Duration;

use redis::{Cmd, Value};

use super::ROOM_KEYS;
use crate::message::{CometAddr, ConnectionId, RoomId, UserId};
use crate::redis_client::{RedisClient, ScanCursor, Unavailable, refusal};

/// The operation's name in metrics.
const REGISTER: &str = "register_connections";
/// How many registrations are written together.
const CHUNK: usize = 256;
/// How many keys are looked at to find a room, and how many at a time.
const LOOKED_AT: usize = 20_000;
const STEP: usize = 1_000;

/// A connection in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The room.
    pub room: RoomId,
    /// The connection.
    pub connection: ConnectionId,
    /// Its user, who is online.
    pub user: UserId,
    /// The comet that holds it.
    pub comet: CometAddr,
}

/// Writes connections.
#[derive(Clone, Debug)]
pub struct Registrations {
    client: RedisClient,
    expire: Duration,
}

impl Registrations {
    /// What is written expires after this time.
    pub fn new(client: RedisClient, expire: Duration) -> Self {
        Self { client, expire }
    }

    /// Registers connections: the room last, as comets do.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn join(&self, registrations: &[Registration]) -> Result<(), Unavailable> {
        let seconds = self.expire.as_secs().max(1);
        let expire = |key: String| redis::cmd("EXPIRE").arg(key).arg(seconds).take();
        for some in registrations.chunks(CHUNK) {
            let mut first = Vec::with_capacity(3 * some.len());
            let mut last = Vec::with_capacity(2 * some.len());
            for Registration { room, connection, user, comet } in some {
                let mut info = redis::cmd("HSET");
                info.arg(info_key(connection));
                info.arg("comet_id").arg(comet.as_str());
                info.arg("user_id").arg(user.as_str());
                info.arg("room_id").arg(room.as_str());
                let online = redis::cmd("SET")
                    .arg(online_key(user))
                    .arg(connection.as_str())
                    .arg("EX")
                    .arg(seconds)
                    .take();
                first.extend([info, expire(info_key(connection)), online]);
                let member = redis::cmd("SADD").arg(room_key(room)).arg(connection.as_str()).take();
                last.extend([member, expire(room_key(room))]);
            }
            self.write(first).await?;
            self.write(last).await?;
        }
        Ok(())
    }

    /// Removes connections: the room first.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn leave(&self, registrations: &[Registration]) -> Result<(), Unavailable> {
        for some in registrations.chunks(CHUNK) {
            let leave = |registration: &Registration| {
                redis::cmd("SREM")
                    .arg(room_key(&registration.room))
                    .arg(registration.connection.as_str())
                    .take()
            };
            self.write(some.iter().map(leave).collect()).await?;
            let keys = some.iter().flat_map(|registration| {
                [info_key(&registration.connection), online_key(&registration.user)]
            });
            let delete = |key: String| redis::cmd("DEL").arg(key).take();
            self.write(keys.map(delete).collect()).await?;
        }
        Ok(())
    }

    /// A room whose name does not begin with `ours`, if one is found among the first keys.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn room_of_others(&self, ours: &str) -> Result<Option<RoomId>, Unavailable> {
        let pattern = format!("{ROOM_KEYS}*");
        let mut at = Some(ScanCursor::default());
        for _ in 0..LOOKED_AT / STEP {
            let Some(from) = at else { break };
            let (keys, next) = self.client.scan_keys(from, &pattern, STEP).await?;
            let rooms = keys.iter().filter_map(|key| key.strip_prefix(ROOM_KEYS));
            if let Some(room) = rooms.into_iter().find(|room| !room.starts_with(ours)) {
                return Ok(Some(room.into()));
            }
            at = next;
        }
        Ok(None)
    }

    async fn write(&self, commands: Vec<Cmd>) -> Result<(), Unavailable> {
        let replies = self.client.run_small(REGISTER, commands).await?;
        let refused = |value: &Value| refusal(value).map(|refused| format!("{refused:?}"));
        match replies.iter().find_map(refused) {
            Some(why) => Err(self.client.refused(REGISTER, why)),
            None => Ok(()),
        }
    }
}

fn room_key(room: &RoomId) -> String {
    format!("{ROOM_KEYS}{room}")
}

fn info_key(connection: &ConnectionId) -> String {
    format!("connection:info:{connection}")
}

fn online_key(user: &UserId) -> String {
    format!("user:online:{user}")
}
