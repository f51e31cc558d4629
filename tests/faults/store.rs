//! Redis where users come and go: one server that is restarted with its data, a primary that fails over, or
//! a cluster whose primaries fail over one after the other.

use redis::{Cmd, FromRedisValue};

use crate::support::redis::Redis;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_nodes::{Entries, RedisNode, command, joining, soon};
use crate::support::redis_sentinel::RedisSentinel;

/// Which.
pub enum Store {
    Restarted(Redis),
    FailedOver(RedisSentinel),
    Cluster(RedisCluster),
}

impl Store {
    /// For `[redis] url`.
    pub fn url(&self) -> String {
        match self {
            Self::Restarted(redis) => redis.url().to_owned(),
            Self::FailedOver(redis) => redis.url(),
            Self::Cluster(redis) => redis.url(),
        }
    }

    /// Runs a command where its key is.
    async fn run<T: FromRedisValue>(&self, command: Cmd) -> T {
        match self {
            Self::Restarted(redis) => redis.run(command).await,
            Self::FailedOver(redis) => redis.run(command).await,
            Self::Cluster(redis) => redis.run(command).await,
        }
    }

    /// A comet accepts a connection of a user to a room; the user is online.
    pub async fn join(&self, room: &str, connection: &str, user: &str, comet: impl std::fmt::Display) {
        for command in joining(room, connection, user, &comet.to_string()) {
            self.run::<redis::Value>(command).await;
        }
    }

    /// The connection is closed, and the user offline.
    pub async fn leave(&self, room: &str, connection: &str, user: &str) {
        self.run::<i64>(Cmd::del(format!("user:online:{user}"))).await;
        self.run::<i64>(Cmd::srem(format!("room:connections:{room}"), connection)).await;
        self.run::<i64>(Cmd::del(format!("connection:info:{connection}"))).await;
    }

    /// The ids of the messages in a stream, oldest first.
    pub async fn ids(&self, key: &str) -> Vec<String> {
        let entries: Entries = self.run(command(&["XRANGE", key, "-", "+"])).await;
        let id = |(_, fields): (_, Vec<(String, Vec<u8>)>)| fields.into_iter().find(|(name, _)| name == "id");
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
            Self::Cluster(redis) => fail_over_one(redis).await,
        }
    }
}

/// The replica gets everything that its primary has acknowledged, and the primary acknowledges no more: what
/// Redis loses when that one dies is not the gateway's.
async fn catch_up(primary: &RedisNode) {
    primary.tell::<()>(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    soon("the replica to have everything", async || {
        let facts = primary.facts(&["INFO", "replication"]).await;
        let written: u64 = facts.get("master_repl_offset")?.parse().ok()?;
        let replica = facts.get("slave0")?.split(',').find_map(|fact| fact.strip_prefix("offset="))?;
        (replica.parse::<u64>().ok()? >= written).then_some(())
    })
    .await;
}

async fn has_replica(primary: &RedisNode) {
    soon("a replica", async || {
        let facts = primary.facts(&["INFO", "replication"]).await;
        facts.get("slave0").is_some_and(|replica| replica.contains("state=online")).then_some(())
    })
    .await;
}

/// The primary dies, and its replica takes over.
async fn fail_over(redis: &mut RedisSentinel) {
    let before = redis.primary().await;
    catch_up(&redis.servers()[before]).await;
    redis.kill_primary().await;
    soon("another primary", async || (redis.primary().await != before).then_some(())).await;
    let after = redis.primary().await;
    let port = redis.servers()[after].port().to_string();
    redis.server(before).start().await;
    redis.servers()[before]
        .run::<()>(&command(&["REPLICAOF", "127.0.0.1", &port]))
        .await
        .expect("it follows");
    has_replica(&redis.servers()[after]).await;
}

/// One primary of the cluster dies, and its replica takes over.
async fn fail_over_one(redis: &mut RedisCluster) {
    let slot = fastrand::u16(..16384);
    let owner = async |redis: &RedisCluster| {
        soon(format_args!("an owner of slot {slot}"), async || redis.owner_of(slot).await).await
    };
    let before = owner(redis).await;
    catch_up(&redis.nodes()[before]).await;
    redis.node(before).kill();
    let after = owner(redis).await;
    // It follows the one that took over.
    redis.node(before).start().await;
    has_replica(&redis.nodes()[after]).await;
}
