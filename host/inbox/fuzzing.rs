//! Fuzzing: an inbox with arbitrary replies.

use std::collections::HashSet;

use arbitrary::{Result, Unstructured};

use super::redis::fields;
use crate::redis_client::fuzzing::{reply, texts};

/// Checks that an entry contains only data of the reply.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    let reply = reply(input, 2)?;
    let mut known = HashSet::new();
    texts(&reply, &mut known);
    if let Some(kept) = fields(reply) {
        assert!(known.contains(kept.id.as_str()) && !kept.id.is_empty(), "{kept:?}");
        assert!(kept.room.as_ref().is_none_or(|room| known.contains(room.as_str())), "{kept:?}");
    }
    Ok(())
}
