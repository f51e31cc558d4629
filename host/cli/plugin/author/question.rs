//! The input of a policy, as people write it: one shape per hook.

use std::sync::Arc;
use std::time::SystemTime;

use crate::cli::message_spec::MessageSpec;
use crate::decision::{AbsenceCause, AbsentRecipient, IdKind};
use crate::membership::{Connection, Grouping, Membership};
use crate::message::RoomId;

/// Input for `offline`: a message and an absent user.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfflineSpec {
    pub(super) message: MessageSpec,
    pub(super) absent: AbsentUserSpec,
}

/// An absent user.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AbsentUserSpec {
    user: String,
    connection: Option<String>,
    #[serde(default)]
    cause: AbsenceCause,
}

/// Input for `grouping`: the connections of a room.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoomSpec {
    pub(super) room: String,
    pub(super) connections: Vec<ConnectionSpec>,
    /// The time on the policy's clock.
    #[serde(default, with = "humantime_serde")]
    pub(super) at: Option<SystemTime>,
}

/// A connection in a room.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectionSpec {
    id: String,
    comet: String,
    user: Option<String>,
    #[serde(default = "yes")]
    online: bool,
}

fn yes() -> bool {
    true
}

impl AbsentUserSpec {
    pub(super) fn absent(&self) -> AbsentRecipient {
        let connection = self.connection.as_deref().map(Into::into);
        AbsentRecipient {
            user: self.user.as_str().into(),
            identity: IdKind::User,
            connection,
            cause: self.cause,
            by_policy: false,
        }
    }
}

impl RoomSpec {
    /// A room with this many connections on eight comets.
    pub(super) fn of(connections: usize) -> Self {
        let member = |number: usize| ConnectionSpec {
            id: format!("connection_{number:08}"),
            comet: format!("10.0.0.{}:50051", number % 8),
            user: Some(format!("user_{number}")),
            online: true,
        };
        Self { room: "video_1".to_owned(), connections: (0..connections).map(member).collect(), at: None }
    }

    pub(super) fn grouping(&self) -> (RoomId, Grouping) {
        let connections = self.connections.iter().map(|member| Connection {
            id: member.id.as_str().into(),
            user: member.user.as_deref().map(Into::into),
            comet: member.comet.as_str().into(),
            online: member.online,
        });
        (self.room.as_str().into(), Grouping::new(Arc::new(Membership::new(connections, 0))))
    }
}
