//! The input of a policy, as people write it: one shape per hook.

use std::sync::Arc;
use std::time::SystemTime;

use crate::cli::draft::Draft;
use crate::decision::{Absent, Cause, Identity};
use crate::membership::{Connection, Grouping, Membership};
use crate::message::RoomId;

/// Input for `offline`: a message and an absent user.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Away {
    pub(super) message: Draft,
    pub(super) absent: AwayUser,
}

/// An absent user.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AwayUser {
    user: String,
    connection: Option<String>,
    #[serde(default)]
    cause: AwayCause,
}

#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AwayCause {
    #[default]
    NotOnline,
    NoConnection,
    CometUnreachable,
}

/// Input for `grouping`: the connections of a room.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gathering {
    pub(super) room: String,
    pub(super) connections: Vec<Member>,
    /// The time on the policy's clock.
    #[serde(default, with = "humantime_serde")]
    pub(super) at: Option<SystemTime>,
}

/// A connection in a room.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    id: String,
    comet: String,
    user: Option<String>,
    #[serde(default = "yes")]
    online: bool,
}

fn yes() -> bool {
    true
}

impl AwayUser {
    pub(super) fn absent(&self) -> Absent {
        let cause = match self.cause {
            AwayCause::NotOnline => Cause::NotOnline,
            AwayCause::NoConnection => Cause::NoConnection,
            AwayCause::CometUnreachable => Cause::CometUnreachable,
        };
        let connection = self.connection.as_deref().map(Into::into);
        Absent { user: self.user.as_str().into(), identity: Identity::User, connection, cause }
    }
}

impl Gathering {
    /// A room with this many connections on eight comets.
    pub(super) fn of(connections: usize) -> Self {
        let member = |number: usize| Member {
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
