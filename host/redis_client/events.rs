//! Keyspace events: the server publishes which keys are written, at most once.
//!
//! Source: <https://redis.io/docs/latest/develop/use/keyspace-notifications/>. Nothing is published unless
//! `notify-keyspace-events` is set, and what is published while the connection is down is lost: callers
//! also look for changes periodically.
//!
//! The subscription has a connection of its own with RESP3, to the server or to the primary behind
//! sentinels. The nodes of a cluster publish their own events only: there is no subscription to a cluster.

use std::sync::Arc;

use redis::Value;

use super::config::Config;
use super::connection::ManagedConnection;
use super::dial::ConnectionLimits;
use super::metrics::Metrics;
use super::reply::text;
use super::reply_meter::ReplyLimits;
use super::sentinel::Sentinels;
use super::subscriber::Subscriber;
use super::topology::{self, Topology};
use super::{BadUrl, LONGEST_ID};

/// The setting without which a server publishes nothing.
const SETTING: &str = "notify-keyspace-events";

/// Follows which keys are written.
#[derive(Debug)]
pub struct KeyEvents {
    connection: ManagedConnection,
    subscriber: Arc<Subscriber>,
    endpoint: String,
}

/// There is no subscription.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot subscribe to keyspace events of Redis at {endpoint}: {why}; it needs Redis 6 or newer and, in the user's ACL, `{rule}`"
)]
pub struct SubscribeError {
    endpoint: String,
    why: String,
    rule: String,
}

/// The state of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The number of the connection: events between two connections are lost.
    pub epoch: u64,
    /// Why no events arrive although the server answers, and the remedy.
    pub problem: Option<String>,
}

impl KeyEvents {
    /// Calls `on_write` with each key with this prefix that is set, while replies are read: it must not
    /// block. `None` in a cluster. Connects with the first [`KeyEvents::check`].
    ///
    /// # Errors
    /// If the URL is invalid. An unreachable Redis is not an error.
    pub fn follow(
        config: &Config,
        metrics: Metrics,
        prefix: &str,
        on_write: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<Option<Self>, BadUrl> {
        let (topology, endpoint) = topology::read(&config.url)?;
        let database = match &topology {
            Topology::Server(server) => server.redis_settings().db(),
            Topology::Primary(monitored) => monitored.primary.redis_settings().db(),
            Topology::Cluster(_) => return Ok(None),
        };
        let channel = format!("__keyspace@{database}__:");
        let pattern = format!("{channel}{prefix}*");
        let subscriber = Arc::new(Subscriber::new(pattern, channel, on_write));
        let replies = usize::try_from(config.max_reply.as_u64()).unwrap_or(usize::MAX);
        let limits = ConnectionLimits {
            connect: config.connect_timeout,
            response: config.response_timeout,
            reply_limits: ReplyLimits { value: LONGEST_ID, replies, metrics },
            tracker: None,
            subscriber: Some(Arc::clone(&subscriber)),
        };
        let connection = match topology {
            Topology::Server(server) => ManagedConnection::to_server(server, limits)?,
            Topology::Primary(monitored) => {
                let sentinels = Sentinels::new(monitored, limits.connect);
                ManagedConnection::to_primary(sentinels, limits)
            }
            Topology::Cluster(_) => return Ok(None),
        };
        Ok(Some(Self { connection, subscriber, endpoint }))
    }

    /// The ACL rule that the subscription needs.
    pub fn acl_rule(&self) -> String {
        format!("+psubscribe &{}", self.subscriber.pattern())
    }

    /// Checks that the server answers over the subscription's connection, which is opened if necessary,
    /// and that it publishes events.
    ///
    /// # Errors
    /// Why there is no subscription, and the remedy.
    pub async fn check(&self) -> Result<Subscribed, SubscribeError> {
        let setting = redis::cmd("CONFIG").arg("GET").arg(SETTING).take();
        let checked = self.connection.check_alive(setting).await;
        let (epoch, reply) = checked.map_err(|problem| {
            let (endpoint, why) = (self.endpoint.clone(), problem.message);
            SubscribeError { endpoint, why: why.to_string(), rule: self.acl_rule() }
        })?;
        let problem = match flags(reply) {
            Some(flags) if publishes_writes(&flags) => None,
            Some(flags) => Some(self.remedy(&flags)),
            // A service that does not let its users read the configuration.
            None => None,
        };
        Ok(Subscribed { epoch, problem })
    }

    fn remedy(&self, flags: &str) -> String {
        let missing: String = ["K", "$"].into_iter().filter(|flag| !flags.contains(flag)).collect();
        format!(
            "Redis at {} publishes no events of written keys (`{SETTING}` is \"{flags}\"): run `CONFIG SET {SETTING} {flags}{missing}`, and put it into redis.conf",
            self.endpoint
        )
    }
}

/// The value of the setting; `None` if it may not be read.
fn flags(reply: Value) -> Option<String> {
    let values = match reply {
        Value::Map(pairs) => pairs.into_iter().flat_map(|(name, value)| [name, value]).collect(),
        Value::Array(values) => values,
        _ => return None,
    };
    match text(values.into_iter().nth(1)?) {
        super::TextReply::Text(flags) => Some(flags),
        _ => None,
    }
}

/// Whether a server with these flags publishes `SET` in the keyspace's channels.
fn publishes_writes(flags: &str) -> bool {
    flags.contains('K') && flags.contains(['$', 'A'])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::super::testing::RedisServer;
    use super::*;

    fn follow(server: &Config) -> (KeyEvents, mpsc::UnboundedReceiver<String>) {
        let (send, events) = mpsc::unbounded_channel();
        let on_write = move |key: &[u8]| {
            // Nobody may be listening at the end of a test.
            let _ = send.send(String::from_utf8_lossy(key).into_owned());
        };
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let followed = KeyEvents::follow(server, metrics, "user:online:", on_write);
        (followed.expect("a valid URL").expect("not a cluster"), events)
    }

    #[test]
    fn flags_of_written_keys() {
        for (flags, published) in [("", false), ("K", false), ("Ex", false), ("K$", true), ("AKE", true)] {
            assert_eq!(publishes_writes(flags), published, "{flags}");
        }
    }

    #[tokio::test]
    async fn written_keys_are_reported_and_a_lost_connection_is_noticed() {
        let server = RedisServer::start().await;
        let (events, mut keys) = follow(&server.config());
        let first = events.check().await.expect("it answers");
        let problem = first.problem.expect("the default publishes nothing");
        assert!(problem.contains("CONFIG SET notify-keyspace-events K$"), "{problem}");
        server.run(&["CONFIG", "SET", "notify-keyspace-events", "K$"]).await;
        assert_eq!(events.check().await, Ok(Subscribed { epoch: first.epoch, problem: None }));
        server.run(&["SET", "other:ann", "c1"]).await;
        server.run(&["SET", "user:online:ann", "c1", "EX", "300"]).await;
        server.run(&["DEL", "user:online:ann"]).await;
        server.run(&["SET", "user:online:bob", "c2"]).await;
        for user in ["user:online:ann", "user:online:bob"] {
            let key = tokio::time::timeout(Duration::from_secs(30), keys.recv()).await.expect("in time");
            assert_eq!(key.as_deref(), Some(user));
        }
        server.run(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        let again = events.check().await;
        let again = if again.is_err() { events.check().await } else { again };
        assert!(again.expect("it reconnects").epoch > first.epoch);
    }

    #[tokio::test]
    async fn a_missing_permission_names_the_rule() {
        let server = RedisServer::start().await;
        server.run(&["ACL", "SETUSER", "halley", "on", ">secret", "+@all", "~*", "resetchannels"]).await;
        let url = server.config().url.replace("redis://", "redis://halley:secret@");
        let (events, _keys) = follow(&Config { url, ..server.config() });
        let why = events.check().await.expect_err("no channel is allowed").to_string();
        assert!(why.contains("`+psubscribe &__keyspace@0__:user:online:*`"), "{why}");
    }
}
