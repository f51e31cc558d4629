//! Finds users who are registered and have something in their inboxes, for comets that read no inboxes.
//!
//! The comets write `user:online:{user}`, and Redis may publish that ([`ReturnedUsers::follow`]); the
//! inboxes themselves are found by a scan. Of several gateways that know of the same user, the one acts that
//! holds the claim `<prefix>replay:{user}:{connection}`, which expires if the gateway dies.

use std::time::Duration;

use redis::{Cmd, Value};

use super::{Owner, Unavailable};
use crate::message::{ConnectionId, UserId};
use crate::redis_client::{
    BadUrl, Config, KeyEvents, Metrics, RedisClient, ScanCursor, denial, elements, lifetime_ms, text,
};

/// Where comets register users.
const ONLINE: &str = "user:online:";
/// Keys per step of a scan.
const SCAN_COUNT: usize = 500;
/// How long a claim lasts without being renewed: longer than a page of a replay.
const CLAIM: Duration = Duration::from_secs(30);
/// The names of the operations in metrics.
const LOOK: &str = "get_users_returned";
const CLAIM_REPLAY: &str = "claim_replay";

/// Finds them, and claims their replays.
#[derive(Clone, Debug)]
pub struct ReturnedUsers {
    client: RedisClient,
}

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The connection with which the user is registered.
    pub connection: ConnectionId,
    /// How many entries the user's inbox has.
    pub kept: u64,
}

impl ReturnedUsers {
    /// Through this client.
    pub fn new(client: RedisClient) -> Self {
        Self { client }
    }

    /// Follows registrations: `on_registered` is called while replies are read and must not block. `None`
    /// in a cluster, whose nodes publish their own events only.
    ///
    /// # Errors
    /// If the URL is invalid.
    pub fn follow(
        config: &Config,
        metrics: Metrics,
        on_registered: impl Fn(UserId) + Send + Sync + 'static,
    ) -> Result<Option<KeyEvents>, BadUrl> {
        KeyEvents::follow(config, metrics, ONLINE, move |key| {
            if let Some(user) = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(ONLINE))
                && !user.is_empty()
            {
                on_registered(user.into());
            }
        })
    }

    /// For each of these users: the connection, and the size of the inbox; `None` if the user is not
    /// registered.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn registered(&self, users: &[UserId]) -> Result<Vec<Option<Registered>>, Unavailable> {
        let mut online = redis::cmd("MGET");
        for user in users {
            online.arg(format!("{ONLINE}{user}"));
        }
        let length =
            |user| redis::cmd("XLEN").arg(Owner::from(user).stream_key(self.client.prefix())).to_owned();
        let commands = std::iter::once(online).chain(users.iter().map(length)).collect();
        let mut replies = self.run(LOOK, commands).await?.into_iter();
        let connections = elements(replies.next().unwrap_or_default()).into_iter();
        let registered = |(connection, kept)| {
            let connection = text(connection).filled()?.into();
            // A key of another type has no entries.
            let kept = if let Value::Int(kept) = kept { u64::try_from(kept).unwrap_or(0) } else { 0 };
            Some(Registered { connection, kept })
        };
        Ok(connections.zip(replies).map(registered).collect())
    }

    /// Whether this gateway replays to this connection: no other one does.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn claim(&self, user: &UserId, connection: &ConnectionId) -> Result<bool, Unavailable> {
        self.claim_key(&self.claim_of(user, connection), CLAIM).await
    }

    /// Keeps a claim for as long again.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn renew(&self, user: &UserId, connection: &ConnectionId) -> Result<(), Unavailable> {
        let renew = redis::cmd("PEXPIRE").arg(self.claim_of(user, connection)).arg(lifetime_ms(CLAIM)).take();
        self.run(CLAIM_REPLAY, vec![renew]).await.map(drop)
    }

    /// Gives a claim up.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses; then it expires.
    pub async fn release(&self, user: &UserId, connection: &ConnectionId) -> Result<(), Unavailable> {
        let release = redis::cmd("DEL").arg(self.claim_of(user, connection)).take();
        self.run(CLAIM_REPLAY, vec![release]).await.map(drop)
    }

    /// Whether this gateway goes over the inboxes next: one of all does within this time.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn claim_sweep(&self, interval: Duration) -> Result<bool, Unavailable> {
        self.claim_key(&format!("{}replay-sweep", self.client.prefix()), interval).await
    }

    /// The owners of some inboxes, and where to continue; `None` at the end.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn owners(&self, at: ScanCursor) -> Result<(Vec<UserId>, Option<ScanCursor>), Unavailable> {
        let prefix = format!("{}inbox:", self.client.prefix());
        let (keys, next) = self.client.scan_keys(at, &format!("{}*", escaped(&prefix)), SCAN_COUNT).await?;
        let user = |key: String| key.strip_prefix(&prefix).filter(|user| !user.is_empty()).map(UserId::from);
        Ok((keys.into_iter().filter_map(user).collect(), next))
    }

    fn claim_of(&self, user: &UserId, connection: &ConnectionId) -> String {
        format!("{}replay:{user}:{connection}", self.client.prefix())
    }

    async fn claim_key(&self, key: &str, lifetime: Duration) -> Result<bool, Unavailable> {
        let claim = redis::cmd("SET").arg(key).arg(1).arg("NX").arg("PX").arg(lifetime_ms(lifetime)).take();
        let reply = self.run(CLAIM_REPLAY, vec![claim]).await?.pop();
        Ok(matches!(reply, Some(Value::Okay)))
    }

    async fn run(&self, operation: &'static str, commands: Vec<Cmd>) -> Result<Vec<Value>, Unavailable> {
        let replies = self.client.run_reads(operation, commands).await?;
        match replies.iter().find_map(denial) {
            Some(said) => Err(self.client.refused(operation, said)),
            None => Ok(replies),
        }
    }
}

/// A prefix as a pattern that matches itself.
fn escaped(prefix: &str) -> String {
    prefix.chars().flat_map(|c| "*?[]\\".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_client::testing::RedisServer;

    #[test]
    fn a_prefix_matches_only_itself() {
        assert_eq!(escaped("halley:inbox:"), "halley:inbox:");
        assert_eq!(escaped("a*[b]\\"), "a\\*\\[b\\]\\\\");
    }

    #[tokio::test]
    async fn registered_users_with_inboxes_are_found_and_claimed_once() {
        let server = RedisServer::start().await;
        let users = ReturnedUsers::new(server.client());
        for user in 0..1200 {
            server.run(&["XADD", &format!("halley:inbox:u{user}"), "*", "a", "b"]).await;
            if user % 100 == 99 {
                server.run(&["SET", &format!("halley:inbox-positions:u{user}"), "no stream"]).await;
            }
        }
        server.run(&["SET", "user:online:u7", "c7"]).await;
        server.run(&["SET", "user:online:nobody", "c8"]).await;
        let asked = ["u7", "u8", "nobody"].map(UserId::from);
        let found = users.registered(&asked).await.expect("it answers");
        let registered = |connection: &str, kept| Some(Registered { connection: connection.into(), kept });
        assert_eq!(found, [registered("c7", 1), None, registered("c8", 0)]);

        let (mut at, mut owners) = (Some(ScanCursor::default()), std::collections::BTreeSet::new());
        while let Some(cursor) = at {
            let (some, next) = users.owners(cursor).await.expect("it answers");
            owners.extend(some.iter().map(ToString::to_string));
            at = next;
        }
        assert_eq!(owners.len(), 1200);

        let (ann, connection) = ("ann".into(), "c1".into());
        assert!(users.claim(&ann, &connection).await.expect("it answers"));
        assert!(!users.claim(&ann, &connection).await.expect("it answers"));
        assert!(users.claim(&ann, &"c2".into()).await.expect("it answers"), "another connection");
        users.renew(&ann, &connection).await.expect("it answers");
        users.release(&ann, &connection).await.expect("it answers");
        assert!(users.claim(&ann, &connection).await.expect("it answers"));
        assert!(users.claim_sweep(Duration::from_secs(60)).await.expect("it answers"));
        assert!(!users.claim_sweep(Duration::from_secs(60)).await.expect("it answers"));
    }
}
