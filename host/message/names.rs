//! Names of rooms, users, connections and messages, and of the headers that speak of messages.

use std::sync::Arc;

/// The header that carries a message's id, on gRPC calls as metadata and on records that
/// were written by the gateway. A redriven record that has it keeps that id, so that it is
/// recognised as the message it was; see [`crate::message::PROOF`].
pub const MESSAGE_ID: &str = "halley-message-id";

/// The metadata of a gRPC call whose message comes from an inbox: `true`. Its recipient may have it
/// already, under the same id.
pub const REPLAYED: &str = "halley-replayed";

/// The header of a record with the producer's trace context, as in W3C's Trace Context.
pub const TRACEPARENT: &str = "traceparent";

/// The header of a record with what tracing systems add to that context.
pub const TRACESTATE: &str = "tracestate";

/// The header of a redriven record with the comets that did not accept the message, separated by
/// commas. The others have received it.
pub const REDRIVE_COMETS: &str = "halley-redrive-comets";

/// The header of a redriven record that names the users whom the message was not kept for
/// ([`crate::message::RedriveUsers`]): the others have had it.
pub const REDRIVE_USERS: &str = "halley-redrive-users";

/// The topic that a dead letter's record was read from.
pub const ORIGIN_TOPIC: &str = "halley-origin-topic";

/// The stage at which a record became a dead letter.
pub const STAGE: &str = "halley-stage";

/// Defines an id: a cheaply cloned string with a type of its own.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone,
            PartialEq,
            Eq,
            Hash,
            PartialOrd,
            Ord,
            derive_more::Debug,
            derive_more::Display,
            serde::Serialize,
        )]
        #[debug("{_0:?}")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether the name is the empty string.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// A room's id, such as `video_123`.
    RoomId
}
name! {
    /// The id of one connection that a comet holds.
    ConnectionId
}
name! {
    /// A user's id.
    UserId
}
name! {
    /// Identifies a message across redelivery and redrive:
    /// `<topic>/<partition>/<offset>/<fingerprint>`. See [`crate::message::Record::message_id`].
    MessageId
}
