//! The `grouping` hook: over which comets a room's connections are reached.

use crate::Policy;
pub use crate::bindings::grouping::exports::halley::policy::grouping::{
    Move, Placement, Redirect, Regrouping,
};
use crate::room::{Connection, Room};

/// Decides over which comets a room's connections are reached. Called when a room's
/// membership is resolved, not per message: the answer is kept with the route for a short
/// time.
///
/// Policies that look at one connection at a time write [`place`](Grouping::place). Whoever
/// moves whole comets writes [`regroup`](Grouping::regroup) and redirects them, which keeps
/// the comet's share one call for the whole room.
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
    /// Where one connection's messages go instead; `None` leaves it where it is.
    fn place(&mut self, room: &Room<'_>, connection: &Connection<'_>) -> Option<Placement> {
        let _ = (room, connection);
        None
    }

    /// What changes in a room. An empty answer leaves it as it is.
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

/// Saying what changes. Indexes are into [`Room::comets`] and [`Room::connections`].
impl Regrouping {
    /// A comet's whole share goes to another address, still as one call for the room.
    pub fn redirect(mut self, comet: u32, to: impl Into<String>) -> Self {
        self.redirects.push(Redirect { comet, to: to.into() });
        self
    }

    /// One connection's messages go elsewhere.
    pub fn place(mut self, connection: u32, to: Placement) -> Self {
        self.moves.push(Move { connection, to });
        self
    }

    /// One connection is reached through the comet at this address, by connection id.
    pub fn reach_through(self, connection: u32, comet: impl Into<String>) -> Self {
        self.place(connection, Placement::Comet(comet.into()))
    }

    /// One connection gets nothing.
    pub fn skip(self, connection: u32) -> Self {
        self.place(connection, Placement::Skip)
    }

    /// One connection goes to the offline policy, as if its user were away.
    pub fn treat_as_offline(self, connection: u32) -> Self {
        self.place(connection, Placement::Offline)
    }
}
