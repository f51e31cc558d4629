//! Redis where users come and go: one server that is restarted with its data, or a primary that fails over.

use crate::support::redis::Redis;
use crate::support::redis_nodes::{command, joining, soon};
use crate::support::redis_sentinel::RedisSentinel;

/// Which.
pub enum Store {
    Restarted(Redis),
    FailedOver(RedisSentinel),
}

impl Store {
    /// For `[redis] url`.
    pub fn url(&self) -> String {
        match self {
            Self::Restarted(redis) => redis.url().to_owned(),
            Self::FailedOver(redis) => redis.url(),
        }
    }

    /// A comet accepts a connection of a user to a room; the user is online.
    pub async fn join(&self, room: &str, connection: &str, user: &str, comet: impl std::fmt::Display) {
        match self {
            Self::Restarted(redis) => redis.join(room, connection, user, comet).await,
            Self::FailedOver(redis) => {
                for command in joining(room, connection, user, &comet.to_string()) {
                    redis.run::<redis::Value>(command).await;
                }
            }
        }
    }

    /// The connection is closed, and the user offline.
    pub async fn leave(&self, room: &str, connection: &str, user: &str) {
        match self {
            Self::Restarted(redis) => {
                redis.offline(user).await;
                redis.leave(room, connection).await;
            }
            Self::FailedOver(redis) => {
                redis.offline(user).await;
                redis.run::<i64>(redis::Cmd::srem(format!("room:connections:{room}"), connection)).await;
                redis.run::<i64>(redis::Cmd::del(format!("connection:info:{connection}"))).await;
            }
        }
    }

    /// The ids of the messages in a stream, oldest first.
    pub async fn ids(&self, key: &str) -> Vec<String> {
        let entries = match self {
            Self::Restarted(redis) => redis.stream(key).await,
            Self::FailedOver(redis) => redis.stream(key).await,
        };
        let id = |entry: Vec<(String, Vec<u8>)>| entry.into_iter().find(|(name, _)| name == "id");
        let text = |(_, id): (_, Vec<u8>)| String::from_utf8_lossy(&id).into_owned();
        entries.into_iter().filter_map(id).map(text).collect()
    }

    /// The server is away for this long, or another one takes over. Nothing that was acknowledged is lost.
    pub async fn fail(&mut self, away: std::time::Duration) {
        match self {
            Self::Restarted(redis) => {
                redis.stop();
                tokio::time::sleep(away).await;
                redis.restart().await;
            }
            Self::FailedOver(redis) => fail_over(redis).await,
        }
    }
}

/// The primary dies, once its replica has everything that it has acknowledged: what Redis loses otherwise is
/// not the gateway's.
async fn fail_over(redis: &mut RedisSentinel) {
    let before = redis.primary().await;
    let primary = &redis.servers()[before];
    primary.tell::<()>(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    soon("the replica to have everything", async || {
        let facts = primary.facts(&["INFO", "replication"]).await;
        let written: u64 = facts.get("master_repl_offset")?.parse().ok()?;
        let replica = facts.get("slave0")?.split(',').find_map(|fact| fact.strip_prefix("offset="))?;
        (replica.parse::<u64>().ok()? >= written).then_some(())
    })
    .await;
    redis.kill_primary().await;
    soon("another primary", async || (redis.primary().await != before).then_some(())).await;
    let after = redis.primary().await;
    let port = redis.servers()[after].port().to_string();
    redis.server(before).start().await;
    redis.servers()[before]
        .run::<()>(&command(&["REPLICAOF", "127.0.0.1", &port]))
        .await
        .expect("it follows");
    soon("a replica", async || {
        let facts = redis.servers()[after].facts(&["INFO", "replication"]).await;
        facts.get("slave0").is_some_and(|replica| replica.contains("state=online")).then_some(())
    })
    .await;
}
