//! Checks whether the user of `[redis] url` has the required permissions, by trying.
//!
//! A `PING` needs no permission on keys. Missing ones would only show with the first message that
//! needs them, and hold it up.

use redis::Cmd;

use super::{RedisClient, Refusal, Unavailable, refusal};

/// Expiry of the probe's keys, in milliseconds.
const KEPT: u64 = 1_000;

impl RedisClient {
    /// Tries to read and write below the prefix as guards, shared state, inboxes, histories and the list
    /// of comets do.
    ///
    /// # Errors
    /// If it is denied, with the missing ACL rule, or if Redis is unreachable.
    pub async fn check_write_permission(&self) -> Result<(), Unavailable> {
        let key = |name: &str| format!("{}probe:{name}", self.prefix());
        let (value, stream, sorted) = (key("value"), key("stream"), key("sorted"));
        let tried = vec![
            redis::cmd("SET").arg(&value).arg(1).arg("PX").arg(KEPT).take(),
            redis::cmd("GET").arg(&value).take(),
            redis::cmd("MGET").arg(&value).take(),
            redis::cmd("DEL").arg(&value).take(),
            redis::cmd("UNLINK").arg(&value).take(),
            redis::cmd("XADD").arg(&stream).arg("MAXLEN").arg(1).arg("*").arg("probe").arg(1).take(),
            redis::cmd("XTRIM").arg(&stream).arg("MAXLEN").arg(1).take(),
            redis::cmd("PEXPIRE").arg(&stream).arg(KEPT).take(),
            redis::cmd("XLEN").arg(&stream).take(),
            redis::cmd("XINFO").arg("STREAM").arg(&stream).take(),
            redis::cmd("XRANGE").arg(&stream).arg("-").arg("+").arg("COUNT").arg(1).take(),
            redis::cmd("XREVRANGE").arg(&stream).arg("+").arg("-").arg("COUNT").arg(1).take(),
            redis::cmd("ZADD").arg(&sorted).arg(1).arg("probe").take(),
            redis::cmd("ZSCORE").arg(&sorted).arg("probe").take(),
            redis::cmd("ZRANGE").arg(&sorted).arg(0).arg(0).take(),
            redis::cmd("ZREVRANGEBYSCORE").arg(&sorted).arg("+inf").arg("-inf").take(),
            redis::cmd("ZREMRANGEBYRANK").arg(&sorted).arg(1).arg(-1).take(),
            redis::cmd("ZREMRANGEBYSCORE").arg(&sorted).arg("-inf").arg("+inf").take(),
        ];
        self.check_permission(tried, &format!("{}*", self.prefix())).await
    }

    /// Tries commands that have to be allowed on keys of this pattern; their results are ignored.
    ///
    /// # Errors
    /// If one is denied, with the missing ACL rule, or if Redis is unreachable.
    pub async fn check_permission(&self, commands: Vec<Cmd>, keys: &str) -> Result<(), Unavailable> {
        let names: Vec<_> = commands.iter().map(name).collect();
        let replies = self.run_small("check_rights", commands).await?;
        for (name, reply) in names.iter().zip(&replies) {
            if let Some(Refusal::Denied(said)) = refusal(reply) {
                let rules: Vec<_> = names.iter().map(|name| format!("+{}", name.to_lowercase())).collect();
                let rule = format!("~{keys} {}", rules.join(" "));
                let problem = format!("{said} (`{name}` on `{keys}`; the ACL rule for it: `{rule}`)");
                return Err(self.denied("check_rights", problem));
            }
        }
        Ok(())
    }
}

fn name(command: &Cmd) -> String {
    let first = command.args_iter().next();
    first.map(|word| String::from_utf8_lossy(super::slots::word(word)).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::testing::{RedisServer, client};

    #[tokio::test]
    async fn missing_permissions_name_the_acl_rule() {
        let server = RedisServer::start().await;
        server.client().check_write_permission().await.expect("the default user may");
        let user = |keys| ["ACL", "SETUSER", "halley", "on", ">secret", "+@all", keys];
        server.run(&user("~room:*")).await;
        let url = server.config().url.replace("redis://", "redis://halley:secret@");
        let client = client(&Config { url, ..server.config() });
        let refused = client.check_write_permission().await.expect_err("no right on halley:*").to_string();
        assert!(
            refused.contains("`~halley:* +set +get +mget +del +unlink +xadd +xtrim +pexpire +xlen"),
            "{refused}"
        );
        let health = client.ping().await.expect_err("it is remembered").to_string();
        assert!(health.contains("~halley:*"), "{health}");
        server.run(&user("~halley:*")).await;
        client.check_write_permission().await.expect("it may now");
    }
}
