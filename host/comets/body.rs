//! A request's body as HTTP/2 sends it: one piece, or several that follow each other, so that calls
//! share what is the same in all of them.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// A body that is read from its first piece to its last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Body {
    /// What is read next; empty only if nothing is left.
    first: Bytes,
    rest: VecDeque<Bytes>,
    /// The length of all of them.
    length: usize,
}

impl From<Bytes> for Body {
    fn from(piece: Bytes) -> Self {
        Self { length: piece.len(), first: piece, rest: VecDeque::new() }
    }
}

impl Body {
    /// A piece that is not empty, and those behind it.
    pub(super) fn new(first: Bytes, rest: VecDeque<Bytes>) -> Self {
        let length = first.len() + rest.iter().map(Bytes::len).sum::<usize>();
        Self { first, rest, length }
    }
}

impl Buf for Body {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        &self.first
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        if self.length == 0 {
            return 0;
        }
        let pieces = std::iter::once(&self.first).chain(&self.rest);
        slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        // `Buf` panics for more than there is.
        assert!(count <= self.length, "{count} of {} bytes", self.length);
        self.length -= count;
        while count >= self.first.len()
            && let Some(next) = self.rest.pop_front()
        {
            count -= self.first.len();
            self.first = next;
        }
        self.first.advance(count);
    }
}

#[cfg(test)]
impl Body {
    /// The pieces that are left.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However it is read, it is its pieces.
        #[test]
        fn it_is_its_pieces_one_after_the_other(
            first in proptest::collection::vec(any::<u8>(), 1..5),
            rest in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5), 0..6),
            steps in proptest::collection::vec((0..8usize, any::<bool>()), 0..12),
        ) {
            let all = [first.clone(), rest.concat()].concat();
            let mut body = Body::new(first.into(), rest.into_iter().map(Bytes::from).collect());
            let mut read = Vec::new();
            for (step, at_once) in steps {
                let count = step.min(body.remaining());
                if at_once {
                    let mut slices = [IoSlice::new(&[]); 8];
                    let used = body.chunks_vectored(&mut slices);
                    let seen = slices[..used].iter().map(|slice| slice.to_vec()).collect::<Vec<_>>().concat();
                    prop_assert_eq!(seen.len(), body.remaining(), "there are fewer pieces than slices");
                    read.extend_from_slice(&seen[..count]);
                    body.advance(count);
                } else {
                    read.extend_from_slice(&body.copy_to_bytes(count));
                }
                prop_assert_eq!(body.remaining(), all.len() - read.len());
                prop_assert_eq!(body.has_remaining(), !body.chunk().is_empty());
            }
            read.extend_from_slice(&body.copy_to_bytes(body.remaining()));
            prop_assert_eq!(read, all);
        }
    }
}
