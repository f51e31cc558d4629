//! Cursors: a place in an inbox as clients keep it.
//!
//! A cursor is opaque text. It names its owner and carries a checksum, so that one of another user, or
//! one that was cut or mistyped, is refused instead of silently naming another place. It is no secret and
//! proves nothing: a client that may read an inbox may make one.
//!
//! 24 bytes in URL-safe base64: kind, digest of the owner (4 bytes), milliseconds and number of the
//! entry (8 each), checksum of all of it (3).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf as _, BufMut as _};
use xxhash_rust::xxh3::xxh3_64;

use crate::message::{RoomId, UserId};

/// The place of an entry: the milliseconds since 1970 when it was stored, and its number among those of
/// that millisecond. The id of the entry in a Redis stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, derive_more::Display)]
#[display("{ms}-{number}")]
pub struct Position {
    /// Milliseconds since 1970 by Redis' clock.
    pub ms: u64,
    /// The number within the millisecond.
    pub number: u64,
}

impl Position {
    /// Parses `ms-number`.
    pub fn parse(text: &str) -> Option<Self> {
        let (ms, number) = text.split_once('-')?;
        Some(Self { ms: ms.parse().ok()?, number: number.parse().ok()? })
    }
}

impl Position {
    /// The next place.
    pub(super) fn successor(self) -> Self {
        match self.number.checked_add(1) {
            Some(number) => Self { number, ..self },
            None => Self { ms: self.ms.saturating_add(1), number: 0 },
        }
    }

    /// The place before; the first place has none.
    pub(super) fn predecessor(self) -> Option<Self> {
        match self.number.checked_sub(1) {
            Some(number) => Some(Self { number, ..self }),
            None => Some(Self { ms: self.ms.checked_sub(1)?, number: u64::MAX }),
        }
    }
}

/// Whose entries a cursor speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, derive_more::From)]
pub enum Owner<'a> {
    /// A user's inbox.
    User(&'a UserId),
    /// A room's history.
    Room(&'a RoomId),
}

impl Owner<'_> {
    /// The key of the owner's stream in Redis.
    pub fn stream_key(self, prefix: &str) -> String {
        match self {
            Self::User(user) => format!("{prefix}inbox:{user}"),
            Self::Room(room) => format!("{prefix}history:{room}"),
        }
    }
}

/// A place between entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// After this entry.
    At(Position),
    /// Before this entry.
    Before(Position),
}

/// Why a text is not a cursor of this inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// It is not a cursor.
    #[error("it is not a cursor; pass one as it was returned")]
    Malformed,
    /// It is a cursor of another owner.
    #[error("it is a cursor of another inbox")]
    Foreign,
}

const AT: u8 = b'A';
const BEFORE: u8 = b'B';
const BYTES: usize = 24;
const CHECKED: usize = 21;

impl Cursor {
    /// The entry that it is next to.
    pub fn position(self) -> Position {
        match self {
            Self::At(position) | Self::Before(position) => position,
        }
    }

    /// The text for clients.
    pub fn encode<'a>(self, owner: impl Into<Owner<'a>>) -> String {
        let kind = match self {
            Self::At(_) => AT,
            Self::Before(_) => BEFORE,
        };
        let Position { ms, number } = self.position();
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.put_u8(kind);
        bytes.put_u32(owner_digest(owner.into()));
        bytes.put_u64(ms);
        bytes.put_u64(number);
        let checksum = checksum(&bytes);
        bytes.put_slice(&checksum);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads the text of a client.
    ///
    /// # Errors
    /// If it is not a cursor of this owner.
    pub fn decode<'a>(text: &str, owner: impl Into<Owner<'a>>) -> Result<Self, CursorError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Malformed)?;
        if bytes.len() != BYTES || checksum(&bytes[..CHECKED]) != bytes[CHECKED..] {
            return Err(CursorError::Malformed);
        }
        let mut rest = &bytes[..CHECKED];
        let (kind, digest) = (rest.get_u8(), rest.get_u32());
        let position = Position { ms: rest.get_u64(), number: rest.get_u64() };
        match kind {
            _ if digest != owner_digest(owner.into()) => Err(CursorError::Foreign),
            AT => Ok(Self::At(position)),
            BEFORE => Ok(Self::Before(position)),
            _ => Err(CursorError::Malformed),
        }
    }
}

fn owner_digest(owner: Owner<'_>) -> u32 {
    let name = match owner {
        Owner::User(user) => format!("user {user}"),
        Owner::Room(room) => format!("room {room}"),
    };
    xxh3_64(name.as_bytes()) as u32
}

fn checksum(bytes: &[u8]) -> [u8; 3] {
    let [a, b, c, ..] = xxh3_64(bytes).to_be_bytes();
    [a, b, c]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_is_read_back_by_its_owner_only(ms: u64, number: u64, before: bool, cut in 0usize..32) {
            let (ann, bob) = (UserId::from("ann"), UserId::from("bob"));
            let position = Position { ms, number };
            let cursor = if before { Cursor::Before(position) } else { Cursor::At(position) };
            let text = cursor.encode(&ann);
            prop_assert_eq!(text.len(), 32);
            prop_assert_eq!(Cursor::decode(&text, &ann), Ok(cursor));
            prop_assert_eq!(Cursor::decode(&text, &bob), Err(CursorError::Foreign));
            prop_assert_eq!(Cursor::decode(&text, &RoomId::from("ann")), Err(CursorError::Foreign));
            prop_assert_eq!(Cursor::decode(&text[..cut], &ann), Err(CursorError::Malformed));
            let mut mistyped = text.into_bytes();
            mistyped[cut] = if mistyped[cut] == b'x' { b'y' } else { b'x' };
            let mistyped = String::from_utf8(mistyped).expect("ASCII");
            prop_assert!(Cursor::decode(&mistyped, &ann).is_err());
        }

        #[test]
        fn no_text_panics(text in ".{0,64}") {
            prop_assert!(Cursor::decode(&text, &UserId::from("ann")).is_err());
        }
    }
}
