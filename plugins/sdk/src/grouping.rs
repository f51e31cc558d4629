//! The `grouping` hook: through which comets a room's connections are reached.

use crate::Policy;
pub use crate::bindings::grouping::exports::halley::policy::grouping::{
    Move, Placement, Redirect, Regrouping,
};
use crate::room::{Connection, Room};

/// Decides through which comets a room's connections are reached. Called when a room's membership is
/// resolved, not per message: the result is cached with the route for a short time.
///
/// Policies that decide for one connection at a time implement [`place`](Grouping::place). Policies
/// that move whole comets implement [`regroup`](Grouping::regroup) and redirect them, which keeps one
/// call per comet for the whole room.
///
/// ```
/// use halley_plugin::prelude::*;
///
/// /// Guests get nothing while the room is restricted to members.
/// #[derive(Deserialize)]
/// struct MembersOnly {
///     rooms: Vec<String>,
/// }
///
/// impl Grouping for MembersOnly {
///     fn place(&mut self, room: &Room, connection: &Connection) -> Option<Placement> {
///         let restricted = self.rooms.iter().any(|id| id == room.id);
///         (restricted && connection.user.is_empty()).then_some(Placement::Skip)
///     }
/// }
///
/// halley_plugin::export!(MembersOnly: Grouping);
///
/// // In a test:
/// use halley_plugin::testing::{Harness, connection};
///
/// let mut policy = Harness::<MembersOnly>::new(serde_json::json!({ "rooms": ["vip"] }));
/// let connections = [connection("c1", "10.0.0.1:50051").user("ann"), connection("c2", "10.0.0.1:50051")];
/// let regrouping = policy.regroup("vip", &connections);
/// assert_eq!(regrouping, Regrouping::default().skip(1));
/// ```
pub trait Grouping: Policy {
    /// The new destination of one connection's messages; `None` leaves it unchanged.
    fn place(&mut self, room: &Room<'_>, connection: &Connection<'_>) -> Option<Placement> {
        let _ = (room, connection);
        None
    }

    /// The changes to a room. An empty result leaves it unchanged.
    ///
    /// ```
    /// use halley_plugin::prelude::*;
    ///
    /// /// A process at another address took a comet's connections over.
    /// #[derive(Deserialize)]
    /// struct TakenOver {
    ///     from: String,
    ///     to: String,
    /// }
    ///
    /// impl Grouping for TakenOver {
    ///     fn regroup(&mut self, room: &Room) -> Regrouping {
    ///         match (0..).zip(room.comets).find(|(_, comet)| **comet == self.from) {
    ///             Some((index, _)) => Regrouping::default().redirect(index, &self.to),
    ///             None => Regrouping::default(),
    ///         }
    ///     }
    /// }
    ///
    /// halley_plugin::export!(TakenOver: Grouping);
    ///
    /// // In a test:
    /// use halley_plugin::testing::{Harness, connection};
    ///
    /// let config = serde_json::json!({ "from": "10.0.0.7:50051", "to": "10.0.0.9:50051" });
    /// let mut policy = Harness::<TakenOver>::new(config);
    /// let connections = [connection("c1", "10.0.0.8:50051"), connection("c2", "10.0.0.7:50051")];
    /// let regrouping = policy.regroup("video_1", &connections);
    /// assert_eq!(regrouping, Regrouping::default().redirect(1, "10.0.0.9:50051"));
    /// ```
    fn regroup(&mut self, room: &Room<'_>) -> Regrouping {
        let mut regrouping = Regrouping::default();
        for (index, connection) in (0..).zip(room.connections) {
            if let Some(placement) = self.place(room, &connection) {
                regrouping = regrouping.place(index, placement);
            }
        }
        regrouping
    }
}

/// Constructors of changes. Indexes refer to [`Room::comets`] and [`Room::connections`].
impl Regrouping {
    /// Redirects a comet's whole share to another address, still with one call for the room.
    pub fn redirect(mut self, comet: u32, to: impl Into<String>) -> Self {
        self.redirects.push(Redirect { comet, to: to.into() });
        self
    }

    /// Moves one connection's messages.
    pub fn place(mut self, connection: u32, to: Placement) -> Self {
        self.moves.push(Move { connection, to });
        self
    }

    /// Reaches one connection through the comet at this address, by connection id.
    pub fn reach_through(self, connection: u32, comet: impl Into<String>) -> Self {
        self.place(connection, Placement::Comet(comet.into()))
    }

    /// Delivers nothing to one connection.
    pub fn skip(self, connection: u32) -> Self {
        self.place(connection, Placement::Skip)
    }

    /// Passes one connection to the offline policy, as if its user were away.
    pub fn treat_as_offline(self, connection: u32) -> Self {
        self.place(connection, Placement::Offline)
    }
}
