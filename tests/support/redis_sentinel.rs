//! A real primary with a replica, and three sentinels that monitor them.
//!
//! Also included by the unit tests of `host/redis_client`.

use redis::{Cmd, FromRedisValue};

use super::redis_nodes::{Entries, RedisNode, command, joining, soon};

/// The sentinels' name of the primary.
pub const SERVICE: &str = "main";

/// A running set; it ends with this value.
pub struct RedisSentinel {
    servers: Vec<RedisNode>,
    sentinels: Vec<RedisNode>,
}

impl RedisSentinel {
    /// Starts it. A primary that does not answer for a second is replaced.
    pub async fn start() -> Self {
        Self::start_with(&[], "").await
    }

    /// Starts it with additional arguments of the two servers, and lines for the sentinels.
    pub async fn start_with(args: &[&str], lines: &str) -> Self {
        let mut primary = RedisNode::new(&[&["--repl-diskless-sync-delay", "0"], args].concat());
        primary.start().await;
        let port = primary.port().to_string();
        let mut replica = RedisNode::new(&[&["--replicaof", "127.0.0.1", &port], args].concat());
        replica.start().await;
        // Sentinels look for replicas immediately, and then only every ten seconds.
        soon("the replica to be known to its primary", async || {
            let facts = primary.facts(&["INFO", "replication"]).await;
            facts.get("slave0").is_some_and(|slave| slave.contains("state=online")).then_some(())
        })
        .await;
        let mut set = Self { servers: vec![primary, replica], sentinels: Vec::new() };
        for _ in 0..3 {
            let watch = format!(
                "sentinel monitor {SERVICE} 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds {SERVICE} 1000\n\
                 sentinel failover-timeout {SERVICE} 5000\n{lines}"
            );
            let mut sentinel = RedisNode::sentinel(&watch);
            sentinel.start().await;
            set.sentinels.push(sentinel);
        }
        set.wait_until_watched().await;
        set
    }

    async fn wait_until_watched(&self) {
        for sentinel in &self.sentinels {
            soon(format_args!("sentinel {}", sentinel.address()), async || {
                let quorum = sentinel.ask::<String>(&["SENTINEL", "CKQUORUM", SERVICE]).await;
                let facts = sentinel.facts(&["INFO", "sentinel"]).await;
                let all = facts.get("master0").is_some_and(|line| line.contains("slaves=1,sentinels=3"));
                (quorum.is_ok_and(|said| said.starts_with("OK")) && all).then_some(())
            })
            .await;
        }
    }

    /// For `[redis] url`.
    pub fn url(&self) -> String {
        self.url_of(SERVICE)
    }

    /// The same with another service name.
    pub fn url_of(&self, service: &str) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(RedisNode::address).collect();
        format!("redis+sentinel://{}/{service}", sentinels.join(","))
    }

    /// The two servers: the initial primary first.
    pub fn servers(&self) -> &[RedisNode] {
        &self.servers
    }

    /// One of them.
    pub fn server(&mut self, index: usize) -> &mut RedisNode {
        &mut self.servers[index]
    }

    /// One of the three sentinels.
    pub fn sentinel(&mut self, index: usize) -> &mut RedisNode {
        &mut self.sentinels[index]
    }

    /// The index of the server that is the primary and known as such.
    pub async fn primary(&self) -> usize {
        soon("a primary", async || {
            let sentinel = self.sentinels.iter().find(|sentinel| sentinel.is_running())?;
            let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
            let (_, port): (String, u16) = sentinel.ask(&question).await.ok()?;
            let index = self.servers.iter().position(|server| server.port() == port)?;
            let server = self.servers.get(index).filter(|server| server.is_running())?;
            let facts = server.facts(&["INFO", "replication"]).await;
            (facts.get("role").map(String::as_str) == Some("master")).then_some(index)
        })
        .await
    }

    /// Kills the primary and returns its index; the sentinels will promote the other one.
    pub async fn kill_primary(&mut self) -> usize {
        let primary = self.primary().await;
        self.servers[primary].kill();
        primary
    }

    /// Has the sentinels exchange the roles, and waits for it.
    pub async fn failover(&self) {
        let before = self.primary().await;
        let sentinel = self.sentinels.iter().find(|sentinel| sentinel.is_running()).expect("a sentinel runs");
        soon("the sentinel to begin a failover", async || {
            sentinel.ask::<()>(&["SENTINEL", "FAILOVER", SERVICE]).await.ok()
        })
        .await;
        soon("another primary", async || (self.primary().await != before).then_some(())).await;
    }

    /// Runs a command on the primary, once there is one.
    pub async fn run<T: FromRedisValue>(&self, command: Cmd) -> T {
        let primary = &self.servers[self.primary().await];
        primary.run(&command).await.unwrap_or_else(|e| panic!("{}: {e}", primary.address()))
    }

    /// A comet accepts a connection of a user to a room; the user is online.
    pub async fn join(&self, room: &str, connection: &str, user: &str, comet: impl std::fmt::Display) {
        self.join_many(room, &[(connection.to_owned(), user.to_owned(), comet.to_string())]).await;
    }

    /// The same for many connections (id, user, comet); afterwards the replica has them, too.
    pub async fn join_many(&self, room: &str, connections: &[(String, String, String)]) {
        let primary = &self.servers[self.primary().await];
        for (connection, user, comet) in connections {
            for command in joining(room, connection, user, comet) {
                primary.run::<redis::Value>(&command).await.expect("the primary answers");
            }
        }
        primary.tell::<usize>(&["WAIT", "1", "3000"]).await;
    }

    /// A user is offline.
    pub async fn offline(&self, user: &str) {
        self.run::<()>(Cmd::del(format!("user:online:{user}"))).await;
    }

    /// The entries of a stream as (field, value) pairs, oldest first; the inbox is one.
    pub async fn stream(&self, key: &str) -> Vec<Vec<(String, Vec<u8>)>> {
        let entries: Entries = self.run(command(&["XRANGE", key, "-", "+"])).await;
        entries.into_iter().map(|(_, fields)| fields).collect()
    }
}
