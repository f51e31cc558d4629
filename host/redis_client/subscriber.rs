//! What one connection subscribes to: the keyspace events of keys with a prefix. See `events`.

use std::sync::Arc;

use redis::{Cmd, PushInfo, PushKind, Value};

use super::reply::refusal;

/// Called with each key that is written, while replies are read.
type OnWrite = Box<dyn Fn(&[u8]) + Send + Sync>;

/// What a connection subscribes to.
#[derive(derive_more::Debug)]
#[debug("subscribes to {pattern}")]
pub(super) struct Subscriber {
    /// Channels, such as `__keyspace@0__:user:online:*`.
    pattern: String,
    /// The part of a channel before the key.
    channel: String,
    on_write: OnWrite,
}

impl Subscriber {
    pub(super) fn new(
        pattern: String,
        channel: String,
        on_write: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Self {
        Self { pattern, channel, on_write: Box::new(on_write) }
    }

    /// The channels.
    pub(super) fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The command that subscribes.
    pub(super) fn request(&self) -> Cmd {
        redis::cmd("PSUBSCRIBE").arg(&self.pattern).to_owned()
    }

    /// Why the server refused it.
    pub(super) fn refused(reply: &Value) -> Option<String> {
        refusal(reply).map(|why| why.to_string())
    }

    /// The receiver of the connection's pushes.
    pub(super) fn on_push(self: &Arc<Self>) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
        let subscriber = Arc::clone(self);
        move |push: PushInfo| {
            if push.kind == PushKind::PMessage {
                subscriber.published(push.data);
            }
            Ok(())
        }
    }

    /// The pattern, the channel, and what happened to the key.
    fn published(&self, data: Vec<Value>) {
        let mut data = data.into_iter().skip(1);
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(event))) = (data.next(), data.next())
        else {
            return;
        };
        if event == b"set"
            && let Some(key) = channel.strip_prefix(self.channel.as_bytes())
        {
            (self.on_write)(key);
        }
    }
}
