//! The rooms and connections whose order calls keep.

use super::order::Keys;
use crate::message::{CallTarget, ConnectionId, RoomId};

/// Whose order a message keeps at its comet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum OrderKey {
    Room(RoomId),
    Connection(ConnectionId),
    Everyone,
}

impl OrderKey {
    /// The key of a call for one room, one connection, or everyone; `None` for several connections.
    pub(super) fn of(target: &CallTarget) -> Option<Self> {
        match target {
            CallTarget::Room(room) => Some(Self::Room(room.clone())),
            CallTarget::Everyone { .. } => Some(Self::Everyone),
            CallTarget::Connections(keys) => match keys.as_slice() {
                [key] => Some(Self::Connection(key.clone())),
                _ => None,
            },
        }
    }

    /// Whether a call for this target, as a part of this room's messages, has to stay behind others of
    /// this key.
    pub(super) fn covers(&self, target: &CallTarget, room: Option<&RoomId>) -> bool {
        match self {
            Self::Room(own) => {
                room == Some(own) || matches!(target, CallTarget::Room(called) if called == own)
            }
            Self::Connection(_) | Self::Everyone => Self::of(target).as_ref() == Some(self),
        }
    }

    /// The order queues that its retry enters.
    pub(super) fn keys(&self) -> Keys<Self> {
        match self {
            Self::Everyone => Keys::Barrier,
            Self::Room(_) | Self::Connection(_) => Keys::One(self.clone()),
        }
    }
}

impl Keys<OrderKey> {
    /// The keys to hold when a call with these is given up.
    pub(super) fn into_held(self) -> Vec<OrderKey> {
        match self {
            Self::One(key) => vec![key],
            Self::Many(keys) => keys,
            Self::Barrier => vec![OrderKey::Everyone],
        }
    }
}

/// A call to several connections keeps the order of all of them: it is one call. One that is part
/// of a room's messages keeps the room's as well.
pub(super) fn keys_of(target: &CallTarget, room: Option<&RoomId>) -> Keys<OrderKey> {
    let connections = match target {
        CallTarget::Everyone { .. } => return Keys::Barrier,
        CallTarget::Room(room) => return Keys::One(OrderKey::Room(room.clone())),
        CallTarget::Connections(connections) => connections,
    };
    let rooms = room.cloned().map(OrderKey::Room).into_iter();
    // Callers never make a call without keys.
    Keys::of(rooms.chain(connections.iter().cloned().map(OrderKey::Connection))).unwrap_or(Keys::Barrier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_keeps_its_order_whether_it_is_called_as_a_whole_or_by_connection() {
        let (room, key) = (RoomId::from("lobby"), OrderKey::Room("lobby".into()));
        assert_eq!(keys_of(&CallTarget::Room(room.clone()), Some(&room)), Keys::One(key.clone()));
        let connections = CallTarget::Connections(vec!["c1".into(), "c1".into()]);
        let connection = OrderKey::Connection("c1".into());
        assert_eq!(keys_of(&connections, Some(&room)), Keys::Many(vec![key, connection.clone()]));
        assert_eq!(keys_of(&connections, None), Keys::One(connection));
        assert_eq!(keys_of(&CallTarget::Everyone { speed: 0 }, None), Keys::Barrier);
    }
}
