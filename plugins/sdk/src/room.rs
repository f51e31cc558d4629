//! A room as grouping policies see it. The gateway passes columns: joined texts, and lists of
//! numbers; here they are presented as connections.

use crate::bindings::grouping::exports::halley::policy::grouping as records;
use crate::bindings::grouping_columns::exports::halley::policy::grouping_columns as columns;

/// A room at the time of the call: earlier policies may have moved connections already.
#[derive(Clone, Copy, Debug)]
pub struct Room<'a> {
    /// The room's id.
    pub id: &'a str,
    /// The addresses of the comets that hold its connections.
    pub comets: &'a [String],
    /// The connections; `connection.comet` is an index into `comets`.
    pub connections: Connections<'a>,
}

impl<'a> Room<'a> {
    /// The address of the comet that holds this connection.
    pub fn comet_of(&self, connection: &Connection<'_>) -> &'a str {
        self.comets.get(connection.comet as usize).map_or("", String::as_str)
    }
}

/// One connection in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection<'a> {
    /// The connection's id.
    pub id: &'a str,
    /// The user's id; empty if the directory names none.
    pub user: &'a str,
    /// Index into [`Room::comets`].
    pub comet: u32,
    /// Whether the user counts as online.
    pub online: bool,
}

/// The connections of a room, by iteration or by index.
///
/// ```
/// # use halley_plugin::prelude::*;
/// fn guests(room: &Room) -> usize {
///     room.connections.into_iter().filter(|connection| connection.user.is_empty()).count()
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Connections<'a>(&'a columns::Connections);

impl<'a> Connections<'a> {
    pub(crate) fn of(columns: &'a columns::Connections) -> Self {
        Self(columns)
    }

    /// The number of connections.
    pub fn len(&self) -> usize {
        self.0.comets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The connection with this index.
    pub fn get(&self, index: u32) -> Option<Connection<'a>> {
        let columns = self.0;
        let at = index as usize;
        let text = |texts: &'a columns::Texts| {
            let begin = at.checked_sub(1).map_or(Some(0), |before| texts.ends.get(before).copied())?;
            slice(texts, begin, *texts.ends.get(at)?)
        };
        Some(Connection {
            id: text(&columns.ids)?,
            user: text(&columns.users)?,
            comet: *columns.comets.get(at)?,
            online: *columns.online.get(at)? != 0,
        })
    }

    /// Iterates over the connections in the order of their indexes.
    pub fn iter(&self) -> ConnectionsIter<'a> {
        let Self(columns) = *self;
        ConnectionsIter { columns, next: 0, id: 0, user: 0 }
    }
}

impl<'a> IntoIterator for Connections<'a> {
    type Item = Connection<'a>;
    type IntoIter = ConnectionsIter<'a>;

    fn into_iter(self) -> ConnectionsIter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &Connections<'a> {
    type Item = Connection<'a>;
    type IntoIter = ConnectionsIter<'a>;

    fn into_iter(self) -> ConnectionsIter<'a> {
        self.iter()
    }
}

/// Iterates over the connections of a room.
#[derive(Clone, Debug)]
pub struct ConnectionsIter<'a> {
    columns: &'a columns::Connections,
    next: usize,
    /// Where the next texts begin.
    id: u32,
    user: u32,
}

impl<'a> Iterator for ConnectionsIter<'a> {
    type Item = Connection<'a>;

    fn next(&mut self) -> Option<Connection<'a>> {
        let (columns, at) = (self.columns, self.next);
        let (id, user) = (*columns.ids.ends.get(at)?, *columns.users.ends.get(at)?);
        let connection = Connection {
            id: slice(&columns.ids, self.id, id)?,
            user: slice(&columns.users, self.user, user)?,
            comet: *columns.comets.get(at)?,
            online: *columns.online.get(at)? != 0,
        };
        (self.next, self.id, self.user) = (at + 1, id, user);
        Some(connection)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.columns.comets.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for ConnectionsIter<'_> {}

fn slice(texts: &columns::Texts, begin: u32, end: u32) -> Option<&str> {
    texts.joined.get(begin as usize..end as usize)
}

/// Appends a connection to the columns.
pub(crate) fn push(columns: &mut columns::Connections, connection: Connection<'_>) {
    for (texts, text) in [(&mut columns.ids, connection.id), (&mut columns.users, connection.user)] {
        texts.joined.push_str(text);
        texts.ends.push(texts.joined.len() as u32);
    }
    columns.comets.push(connection.comet);
    columns.online.push(connection.online.into());
}

/// Converts the arguments of a gateway of version 0.1.0 to columns.
pub(crate) fn from_records(records: &[records::Connection]) -> columns::Connections {
    let mut columns = columns::Connections::default();
    for records::Connection { id, user, comet, online } in records {
        push(&mut columns, Connection { id, user, comet: *comet, online: *online });
    }
    columns
}

/// Converts a result to columns. Consecutive connections with the same destination share its entry.
pub(crate) fn to_columns(regrouping: records::Regrouping) -> columns::Regrouping {
    let records::Regrouping { redirects, moves } = regrouping;
    let redirect = |records::Redirect { comet, to }| columns::Redirect { comet, to };
    let mut answer = columns::Regrouping {
        redirects: redirects.into_iter().map(redirect).collect(),
        moved: Vec::with_capacity(moves.len()),
        to: Vec::with_capacity(moves.len()),
        places: Vec::new(),
    };
    for records::Move { connection, to } in moves {
        let place = match to {
            records::Placement::Comet(to) => columns::Placement::Comet(to),
            records::Placement::Skip => columns::Placement::Skip,
            records::Placement::Offline => columns::Placement::Offline,
        };
        if answer.places.last() != Some(&place) {
            answer.places.push(place);
        }
        answer.moved.push(connection);
        answer.to.push(answer.places.len() as u32 - 1);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, Regrouping};

    fn record(id: &str, user: &str, comet: u32, online: bool) -> records::Connection {
        records::Connection { id: id.to_owned(), user: user.to_owned(), comet, online }
    }

    #[test]
    fn connections_are_the_same_in_columns() {
        let records = [record("c1", "ann", 0, true), record("", "", 7, false), record("c3", "安", 1, true)];
        let columns = from_records(&records);
        let connections = Connections::of(&columns);
        let expected: Vec<Connection<'_>> = records
            .iter()
            .map(|r| Connection { id: &r.id, user: &r.user, comet: r.comet, online: r.online })
            .collect();
        assert_eq!(connections.iter().collect::<Vec<_>>(), expected);
        let looked_up: Vec<_> = (0..3).filter_map(|index| connections.get(index)).collect();
        assert_eq!(looked_up, expected);
        assert_eq!((connections.len(), connections.get(3)), (3, None));
        assert_eq!(connections.iter().len(), 3);
    }

    #[test]
    fn neighbours_that_go_to_one_place_share_it() {
        let regrouping = Regrouping::default()
            .redirect(1, "b:1")
            .reach_through(0, "a:1")
            .reach_through(2, "a:1")
            .place(3, Placement::Skip)
            .reach_through(4, "a:1");
        let answer = to_columns(regrouping);
        let comet = || columns::Placement::Comet("a:1".to_owned());
        assert_eq!(answer.places, [comet(), columns::Placement::Skip, comet()]);
        assert_eq!((answer.moved, answer.to), (vec![0, 2, 3, 4], vec![0, 0, 1, 2]));
        assert_eq!(answer.redirects, [columns::Redirect { comet: 1, to: "b:1".to_owned() }]);
    }
}
