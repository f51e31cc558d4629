//! Fuzzing: a claim with arbitrary replies.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use redis::Value;

use super::{GuardClaim, RedisGuards};
use crate::redis_client::fuzzing::{client, reply};

/// Checks that a message is only stopped by the id of another one.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    let (set, owner) = (reply(input, 1)?, reply(input, 1)?);
    let message = input.arbitrary::<&str>()?;
    let claim = GuardClaim { key: "k".to_owned(), ttl: Duration::from_secs(1), message: message.into() };
    if let Ok(false) = RedisGuards::new(client()).decide(&claim, &set, &owner) {
        assert!(
            set != Value::Okay && matches!(&owner, Value::BulkString(id) if id != message.as_bytes()),
            "stopped by {set:?} and {owner:?}"
        );
    }
    Ok(())
}
