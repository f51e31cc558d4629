//! A room as plugins see it, and their answers, in both shapes: as records, one per connection, and
//! since version 0.1.1 of the contract as columns, which cross the boundary at once.
//!
//! Plugins are not trusted: every length, index and name of an answer is checked here. Errors name
//! what is invalid.

use crate::membership::{CurrentPlacement, Grouping, Placement, Regrouping};
use crate::message::CometAddr;
use crate::wasm::bindings::exports::halley::policy::{grouping as records, grouping_columns as columns};
use crate::wasm::failure::PluginFailure;
use crate::wasm::lift::name;
use crate::wasm::string_column::StringColumn;

/// The members of a room that have a comet, as earlier plugins left them.
pub(crate) struct RoomView<'a> {
    pub(crate) comets: Vec<&'a str>,
    /// For each connection, its index among the members of the grouping.
    pub(crate) members: Vec<u32>,
    pub(crate) connections: RoomConnections<'a>,
}

/// The connections of a room, in the shape that the plugin takes.
pub(crate) enum RoomConnections<'a> {
    Records(Vec<records::Connection<'a>>),
    Columns(Columns),
}

/// One list per field of a connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Columns {
    ids: StringColumn,
    users: StringColumn,
    comets: Vec<u32>,
    online: Vec<u8>,
}

/// An answer of a plugin, unchecked.
#[derive(Debug)]
pub(crate) enum UncheckedRegrouping {
    Records(records::Regrouping),
    Columns(columns::Regrouping),
}

impl<'a> RoomView<'a> {
    /// The room in columns, or in records.
    pub(crate) fn of(grouping: &'a Grouping, in_columns: bool) -> Self {
        let comets = grouping.comets().iter().map(CometAddr::as_str).collect();
        let mut members = Vec::with_capacity(grouping.members().len());
        let connections = match in_columns {
            true => RoomConnections::Columns(Columns::of(grouping, &mut members)),
            false => RoomConnections::Records(in_records(grouping, &mut members)),
        };
        Self { comets, members, connections }
    }

    /// Checks an answer and translates its indexes into those of the grouping.
    ///
    /// # Errors
    /// When it points outside of the room, or names an invalid comet.
    pub(crate) fn check(&self, answer: UncheckedRegrouping) -> Result<Regrouping, PluginFailure> {
        match answer {
            UncheckedRegrouping::Records(answer) => self.check_records(answer),
            UncheckedRegrouping::Columns(answer) => self.check_columns(answer),
        }
    }

    fn check_records(&self, answer: records::Regrouping) -> Result<Regrouping, PluginFailure> {
        self.check_sizes(answer.redirects.len(), answer.moves.len())?;
        let mut checked = Regrouping::default();
        for records::Redirect { comet, to } in answer.redirects {
            checked.redirects.push(self.redirect(comet, to)?);
        }
        for records::Move { connection, to } in answer.moves {
            let to = match to {
                records::Placement::Comet(to) => Placement::Comet(address(&to)?),
                records::Placement::Skip => Placement::Skip,
                records::Placement::Offline => Placement::Offline,
            };
            checked.moves.push((self.member(connection)?, to));
        }
        Ok(checked)
    }

    fn check_columns(&self, answer: columns::Regrouping) -> Result<Regrouping, PluginFailure> {
        let columns::Regrouping { redirects, places, moved, to } = answer;
        self.check_sizes(redirects.len(), moved.len())?;
        if to.len() != moved.len() || places.len() > moved.len() {
            let (moved, to, places) = (moved.len(), to.len(), places.len());
            let why = format!("moves {moved} connections to {to} of {places} places");
            return Err(PluginFailure::bad_answer(why));
        }
        let mut checked = Regrouping::default();
        for columns::Redirect { comet, to } in redirects {
            checked.redirects.push(self.redirect(comet, to)?);
        }
        let places: Result<Vec<Placement>, PluginFailure> = places.into_iter().map(place).collect();
        let places = places?;
        for (connection, to) in moved.into_iter().zip(to) {
            let place = places.get(to as usize);
            let why =
                || PluginFailure::bad_answer(format!("moves to place {to}, but names {}", places.len()));
            let place = place.ok_or_else(why)?;
            checked.moves.push((self.member(connection)?, place.clone()));
        }
        Ok(checked)
    }

    fn check_sizes(&self, redirects: usize, moves: usize) -> Result<(), PluginFailure> {
        let (comets, connections) = (self.comets.len(), self.members.len());
        if redirects > comets || moves > connections {
            return Err(PluginFailure::bad_answer(format!(
                "{redirects} redirects and {moves} moves for a room of {comets} comets and {connections} \
                 connections"
            )));
        }
        Ok(())
    }

    fn redirect(&self, comet: u32, to: String) -> Result<(u32, CometAddr), PluginFailure> {
        let (comets, to) = (self.comets.len(), address(&to)?);
        if comet as usize >= comets {
            let why = format!("redirects comet {comet}, but the room has {comets} comets");
            return Err(PluginFailure::bad_answer(why));
        }
        Ok((comet, to))
    }

    fn member(&self, connection: u32) -> Result<u32, PluginFailure> {
        self.members.get(connection as usize).copied().ok_or_else(|| {
            let connections = self.members.len();
            let why = format!("moves connection {connection}, but the room has {connections} connections");
            PluginFailure::bad_answer(why)
        })
    }
}

fn place(place: columns::Placement) -> Result<Placement, PluginFailure> {
    Ok(match place {
        columns::Placement::Comet(to) => Placement::Comet(address(&to)?),
        columns::Placement::Skip => Placement::Skip,
        columns::Placement::Offline => Placement::Offline,
    })
}

fn address(text: &str) -> Result<CometAddr, PluginFailure> {
    name(text, "comet address")?;
    Ok(text.into())
}

/// The members that have a comet; their indexes are pushed to `members`.
fn in_records<'a>(grouping: &'a Grouping, members: &mut Vec<u32>) -> Vec<records::Connection<'a>> {
    let mut connections = Vec::with_capacity(grouping.members().len());
    for (at, (member, place)) in grouping.members().enumerate() {
        let CurrentPlacement::At(comet) = place else { continue };
        connections.push(records::Connection {
            id: member.id.as_str(),
            user: member.user.as_ref().map_or("", |user| user.as_str()),
            comet,
            online: member.online,
        });
        // A room has fewer than four billion members.
        members.push(at as u32);
    }
    connections
}

impl Columns {
    /// The members that have a comet; their indexes are pushed to `members`.
    fn of(grouping: &Grouping, members: &mut Vec<u32>) -> Self {
        let most = grouping.members().len();
        let mut columns = Self {
            ids: StringColumn::with_capacity(most),
            users: StringColumn::with_capacity(most),
            comets: Vec::with_capacity(most),
            online: Vec::with_capacity(most),
        };
        for (at, (member, place)) in grouping.members().enumerate() {
            let CurrentPlacement::At(comet) = place else { continue };
            columns.ids.push(member.id.as_str());
            columns.users.push(member.user.as_ref().map_or("", |user| user.as_str()));
            columns.comets.push(comet);
            columns.online.push(member.online.into());
            members.push(at as u32);
        }
        columns
    }

    /// The columns in the contract's type.
    pub(crate) fn lend(&self) -> columns::Connections<'_> {
        let Self { ids, users, comets, online } = self;
        let ids = columns::Texts { joined: &ids.joined, ends: &ids.ends };
        let users = columns::Texts { joined: &users.joined, ends: &users.ends };
        columns::Connections { ids, users, comets, online }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::membership::{Connection, Membership};
    use crate::message::NamedBy;

    const NAMES: [&str; 3] = ["a:1", "b:1", ""];

    fn rooms() -> impl Strategy<Value = Grouping> {
        let text = || "[a-z0-9_安静]{0,9}";
        let connection = (text(), proptest::option::of(text()), 0..4_u8, any::<bool>());
        let place = prop_oneof![
            3 => Just(None),
            1 => Just(Some(Placement::Skip)),
            1 => Just(Some(Placement::Offline)),
            1 => (0..3_u8).prop_map(|to| Some(Placement::Comet(format!("moved:{to}").into()))),
        ];
        vec((connection, place), 0..40).prop_map(|members| {
            let connections = members.iter().map(|((id, user, comet, online), _)| Connection {
                id: id.as_str().into(),
                user: user.as_deref().map(Into::into),
                comet: format!("comet:{comet}").into(),
                online: *online,
            });
            let mut room = Grouping::new(Arc::new(Membership::new(connections, 0)));
            let moves = (0..).zip(&members).filter_map(|(at, (_, place))| Some((at, place.clone()?)));
            room.apply(Regrouping { redirects: Vec::new(), moves: moves.collect() }, NamedBy::Plugin)
                .expect("in range");
            room
        })
    }

    /// What a plugin reads from columns.
    fn read(columns: &columns::Connections<'_>) -> Vec<(String, String, u32, bool)> {
        let text = |texts: &columns::Texts<'_>, at: usize| {
            let begin = if at == 0 { 0 } else { texts.ends[at - 1] };
            texts.joined[begin as usize..texts.ends[at] as usize].to_owned()
        };
        let connection = |at| {
            let (id, user) = (text(&columns.ids, at), text(&columns.users, at));
            (id, user, columns.comets[at], columns.online[at] == 1)
        };
        (0..columns.comets.len()).map(connection).collect()
    }

    fn record_of(place: u8) -> records::Placement {
        match place {
            3 => records::Placement::Skip,
            4 => records::Placement::Offline,
            comet => records::Placement::Comet(NAMES[usize::from(comet)].to_owned()),
        }
    }

    fn column_of(place: u8) -> columns::Placement {
        match place {
            3 => columns::Placement::Skip,
            4 => columns::Placement::Offline,
            comet => columns::Placement::Comet(NAMES[usize::from(comet)].to_owned()),
        }
    }

    proptest! {
        #[test]
        fn columns_equal_records(grouping in rooms()) {
            let (records, columns) = (RoomView::of(&grouping, false), RoomView::of(&grouping, true));
            prop_assert_eq!(&records.comets, &columns.comets);
            prop_assert_eq!(&records.members, &columns.members);
            let shapes = (records.connections, columns.connections);
            let (RoomConnections::Records(records), RoomConnections::Columns(columns)) = shapes else {
                panic!("other shapes")
            };
            let connection =
                |c: &records::Connection<'_>| (c.id.to_owned(), c.user.to_owned(), c.comet, c.online);
            prop_assert_eq!(read(&columns.lend()), records.iter().map(connection).collect::<Vec<_>>());
        }

        #[test]
        fn answers_mean_the_same_in_both_shapes(
            grouping in rooms(),
            redirects in vec((0..6_u32, "[a-z:]{0,3}"), 0..3),
            moves in vec((0..45_u32, 0..5_u8), 0..8),
        ) {
            let (mut records, mut columns) = (
                records::Regrouping { redirects: Vec::new(), moves: Vec::new() },
                columns::Regrouping { redirects: vec![], places: vec![], moved: vec![], to: vec![] },
            );
            for (comet, to) in redirects {
                records.redirects.push(records::Redirect { comet, to: to.clone() });
                columns.redirects.push(columns::Redirect { comet, to });
            }
            for (at, (connection, place)) in (0..).zip(moves) {
                records.moves.push(records::Move { connection, to: record_of(place) });
                columns.places.push(column_of(place));
                columns.moved.push(connection);
                columns.to.push(at);
            }
            let by_records = RoomView::of(&grouping, false).check(UncheckedRegrouping::Records(records));
            let by_columns = RoomView::of(&grouping, true).check(UncheckedRegrouping::Columns(columns));
            // Which of several problems is reported first depends on the shape.
            prop_assert_eq!(by_records.ok(), by_columns.ok());
        }
    }

    #[test]
    fn inconsistent_columns_are_refused() {
        let connection =
            |id: &str| Connection { id: id.into(), user: None, comet: "a:1".into(), online: true };
        let grouping = Grouping::new(Arc::new(Membership::new([connection("c1"), connection("c2")], 0)));
        let room = RoomView::of(&grouping, true);
        let check = |places: usize, moved: &[u32], to: &[u32]| {
            let places = (0..places).map(|_| columns::Placement::Skip).collect();
            let (moved, to) = (moved.to_vec(), to.to_vec());
            room.check(UncheckedRegrouping::Columns(columns::Regrouping {
                redirects: Vec::new(),
                places,
                moved,
                to,
            }))
        };
        let skipped = Regrouping { redirects: Vec::new(), moves: vec![(1, Placement::Skip)] };
        assert_eq!(check(1, &[1], &[0]), Ok(skipped));
        let refused = |places, moved: &[u32], to: &[u32]| {
            check(places, moved, to).expect_err("does not fit").to_string()
        };
        assert_eq!(refused(1, &[1], &[]), "moves 1 connections to 0 of 1 places");
        assert_eq!(refused(2, &[1], &[0]), "moves 1 connections to 1 of 2 places");
        assert_eq!(refused(1, &[1], &[1]), "moves to place 1, but names 1");
        assert_eq!(refused(1, &[2], &[0]), "moves connection 2, but the room has 2 connections");
        let many = refused(1, &[0, 1, 0], &[0, 0, 0]);
        assert!(many.contains("3 moves for a room of 1 comets and 2 connections"), "{many}");
    }
}
