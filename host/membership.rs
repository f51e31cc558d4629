//! A room's connections as the directory has them, and the working copy that policies regroup.
//!
//! Pure. The directory creates a [`Membership`]; policies change a [`Grouping`] of it; the router
//! turns the result into a route.

use std::collections::HashMap;
use std::sync::Arc;

use crate::message::{CometAddr, ConnectionId, NamedBy, UserId};

/// One connection and where it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The connection's id.
    pub id: ConnectionId,
    /// Its user; `None` when the directory names none.
    pub user: Option<UserId>,
    /// The comet that holds it.
    pub comet: CometAddr,
    /// Whether the user counts as online. True if that is not checked, or no user is known.
    pub online: bool,
}

/// One connection in a room. Its comet is an index, since a room has many connections on
/// few comets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The connection's id.
    pub id: ConnectionId,
    /// Its user; `None` when the directory names none.
    pub user: Option<UserId>,
    /// Index into [`Membership::comets`].
    pub comet: u32,
    /// Whether the user counts as online.
    pub online: bool,
}

/// A room's connections as the directory has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The comets that hold members, each once.
    pub comets: Vec<CometAddr>,
    /// The members whose connection is known.
    pub members: Vec<Member>,
    /// How many members had no connection information and were skipped.
    pub stale: usize,
}

impl Membership {
    /// Groups connections by comet, in order of first appearance.
    pub fn new(connections: impl IntoIterator<Item = Connection>, stale: usize) -> Self {
        let mut membership = Self { stale, ..Self::default() };
        let mut indexes = HashMap::<CometAddr, u32>::new();
        for connection in connections {
            let comet = *indexes.entry(connection.comet).or_insert_with_key(|comet| {
                membership.comets.push(comet.clone());
                (membership.comets.len() - 1) as u32
            });
            let Connection { id, user, online, .. } = connection;
            membership.members.push(Member { id, user, comet, online });
        }
        membership
    }

    /// Maps comets to other addresses, such as those of server names. Comets that then have the same
    /// address are merged.
    pub fn map_addresses(&mut self, address_of: impl Fn(&CometAddr) -> Option<CometAddr>) {
        if !self.comets.iter().any(|comet| address_of(comet).is_some()) {
            return;
        }
        let before = std::mem::take(&mut self.comets);
        let mut moved_to = Vec::with_capacity(before.len());
        for comet in before {
            let comet = address_of(&comet).unwrap_or(comet);
            let at = self.comets.iter().position(|known| *known == comet).unwrap_or_else(|| {
                self.comets.push(comet);
                self.comets.len() - 1
            });
            moved_to.push(at as u32);
        }
        for member in &mut self.members {
            member.comet = moved_to[member.comet as usize];
        }
    }
}

/// The changes of one policy to a room. Indexes refer to the [`Grouping`] it saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regrouping {
    /// Comets whose whole share goes to another address.
    pub redirects: Vec<(u32, CometAddr)>,
    /// Single members that move.
    pub moves: Vec<(u32, Placement)>,
}

/// Where one member's messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Through the comet at this address, by connection id.
    Comet(CometAddr),
    /// Nowhere.
    Skip,
    /// To the offline policy.
    Offline,
}

/// A regrouping has an index outside of the room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexOutOfRange {
    /// No such comet.
    #[error("redirects comet {0}, but the room has {1} comets")]
    Comet(u32, usize),
    /// No such member.
    #[error("moves connection {0}, but the room has {1} connections")]
    Member(u32, usize),
}

/// Where a member currently is while a room is regrouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentPlacement {
    /// At the comet with this index.
    At(u32),
    /// A policy skips it.
    Skipped,
    /// A policy treats it as offline.
    Offline,
}

/// A room while policies regroup it: each policy sees what the ones before it left.
#[derive(Clone, Debug)]
pub struct Grouping {
    membership: Arc<Membership>,
    /// Addresses by index: the membership's first, then the ones that members moved to.
    comets: Vec<CometAddr>,
    /// Who named each of them.
    named_by: Vec<NamedBy>,
    places: Vec<CurrentPlacement>,
}

impl Grouping {
    /// A copy of the room as in the directory.
    pub fn new(membership: Arc<Membership>) -> Self {
        let comets = membership.comets.clone();
        let named_by = vec![NamedBy::Directory; comets.len()];
        let places = membership.members.iter().map(|member| CurrentPlacement::At(member.comet)).collect();
        Self { membership, comets, named_by, places }
    }

    /// The room as in the directory, before regrouping.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The current addresses of the comets.
    pub fn comets(&self) -> &[CometAddr] {
        &self.comets
    }

    /// Who named the comet with this index.
    pub fn named_by(&self, comet: u32) -> NamedBy {
        self.named_by[comet as usize]
    }

    /// Maps the comets that policies named to other addresses, such as those of server names.
    pub fn map_addresses(&mut self, address_of: impl Fn(&CometAddr) -> Option<CometAddr>) {
        for comet in &mut self.comets {
            if let Some(address) = address_of(comet) {
                *comet = address;
            }
        }
    }

    /// Every member with its current placement, in the membership's order.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&Member, CurrentPlacement)> {
        self.membership.members.iter().zip(self.places.iter().copied())
    }

    /// Applies one policy's regrouping, or nothing of it. `named_by` is the source of the comets
    /// that it names.
    ///
    /// # Errors
    /// When an index is out of range; the grouping is then unchanged.
    pub fn apply(&mut self, regrouping: Regrouping, named_by: NamedBy) -> Result<(), IndexOutOfRange> {
        let (comets, members) = (self.comets.len(), self.places.len());
        if let Some((bad, _)) = regrouping.redirects.iter().find(|(at, _)| *at as usize >= comets) {
            return Err(IndexOutOfRange::Comet(*bad, comets));
        }
        if let Some((bad, _)) = regrouping.moves.iter().find(|(at, _)| *at as usize >= members) {
            return Err(IndexOutOfRange::Member(*bad, members));
        }
        for (comet, to) in regrouping.redirects {
            self.comets[comet as usize] = to;
            self.named_by[comet as usize] = named_by;
        }
        self.move_members(regrouping.moves, named_by);
        Ok(())
    }

    fn move_members(&mut self, moves: Vec<(u32, Placement)>, named_by: NamedBy) {
        // Created for the first member that moves to a comet: most regroupings move none.
        let mut indexes = None;
        for (member, placement) in moves {
            self.places[member as usize] = match placement {
                Placement::Skip => CurrentPlacement::Skipped,
                Placement::Offline => CurrentPlacement::Offline,
                Placement::Comet(to) => {
                    let indexes = indexes.get_or_insert_with(|| first_indexes(&self.comets));
                    let index = indexes.entry(to).or_insert_with_key(|comet| {
                        self.comets.push(comet.clone());
                        self.named_by.push(named_by);
                        (self.comets.len() - 1) as u32
                    });
                    // Named twice: the more trusted source counts.
                    let before = &mut self.named_by[*index as usize];
                    *before = named_by.min(*before);
                    CurrentPlacement::At(*index)
                }
            };
        }
    }
}

/// The first index of each address: after redirects, several indexes may have the same address.
fn first_indexes(comets: &[CometAddr]) -> HashMap<CometAddr, u32> {
    let mut indexes = HashMap::with_capacity(comets.len());
    for (index, comet) in comets.iter().enumerate() {
        indexes.entry(comet.clone()).or_insert(index as u32);
    }
    indexes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Grouping {
        let connection = |id: &str, comet: &str| Connection {
            id: id.into(),
            user: Some(format!("user-{id}").into()),
            comet: comet.into(),
            online: true,
        };
        let connections = [connection("c1", "a:1"), connection("c2", "b:1"), connection("c3", "a:1")];
        Grouping::new(Arc::new(Membership::new(connections, 0)))
    }

    fn places(grouping: &Grouping) -> Vec<CurrentPlacement> {
        grouping.members().map(|(_, place)| place).collect()
    }

    #[test]
    fn members_are_grouped_in_order_of_appearance() {
        let grouping = room();
        assert_eq!(grouping.comets(), ["a:1".into(), "b:1".into()]);
        assert_eq!(
            places(&grouping),
            [CurrentPlacement::At(0), CurrentPlacement::At(1), CurrentPlacement::At(0)]
        );
    }

    #[test]
    fn comets_with_the_same_address_are_merged() {
        let grouping = room();
        let mut membership = grouping.membership().clone();
        let same = |_: &CometAddr| None;
        membership.map_addresses(same);
        assert_eq!(&membership, grouping.membership());
        membership.map_addresses(|comet| (comet.as_str() == "a:1").then(|| "b:1".into()));
        assert_eq!(membership.comets, ["b:1".into()]);
        assert!(membership.members.iter().all(|member| member.comet == 0), "{membership:?}");
    }

    #[test]
    fn a_later_policy_sees_what_an_earlier_one_left() {
        let mut grouping = room();
        let moves = vec![(0, Placement::Comet("c:1".into())), (2, Placement::Skip)];
        grouping.apply(Regrouping { moves, ..Default::default() }, NamedBy::Plugin).expect("in range");
        let redirects = vec![(2, CometAddr::from("d:1"))];
        grouping
            .apply(Regrouping { redirects, ..Default::default() }, NamedBy::Plugin)
            .expect("c:1 has index 2 now");
        assert_eq!(grouping.comets(), ["a:1".into(), "b:1".into(), "d:1".into()]);
        assert_eq!(
            places(&grouping),
            [CurrentPlacement::At(2), CurrentPlacement::At(1), CurrentPlacement::Skipped]
        );
    }

    #[test]
    fn members_that_move_to_one_address_share_its_first_index() {
        let mut grouping = room();
        let to = |comet: &str| Placement::Comet(comet.into());
        let regrouping = Regrouping {
            redirects: vec![(0, "b:1".into())],
            moves: vec![(0, to("c:1")), (1, to("b:1")), (2, to("c:1"))],
        };
        grouping.apply(regrouping, NamedBy::Plugin).expect("in range");
        assert_eq!(grouping.comets(), ["b:1".into(), "b:1".into(), "c:1".into()]);
        assert_eq!(
            places(&grouping),
            [CurrentPlacement::At(2), CurrentPlacement::At(0), CurrentPlacement::At(2)]
        );
        let moves = vec![(0, to("b:1")), (1, to("d:1")), (2, to("c:1"))];
        grouping.apply(Regrouping { moves, ..Default::default() }, NamedBy::Plugin).expect("in range");
        assert_eq!(
            places(&grouping),
            [CurrentPlacement::At(0), CurrentPlacement::At(3), CurrentPlacement::At(2)],
            "across answers, too"
        );
    }

    #[test]
    fn a_regrouping_with_a_bad_index_changes_nothing() {
        let mut grouping = room();
        let moves = vec![(0, Placement::Skip), (3, Placement::Skip)];
        let bad = grouping.apply(Regrouping { moves, ..Default::default() }, NamedBy::Plugin);
        assert_eq!(bad, Err(IndexOutOfRange::Member(3, 3)));
        let redirects = vec![(9, CometAddr::from("d:1"))];
        let bad = grouping.apply(Regrouping { redirects, ..Default::default() }, NamedBy::Plugin);
        assert_eq!(bad, Err(IndexOutOfRange::Comet(9, 2)));
        assert_eq!(
            places(&grouping),
            [CurrentPlacement::At(0), CurrentPlacement::At(1), CurrentPlacement::At(0)]
        );
    }
}
