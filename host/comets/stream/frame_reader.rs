//! The frames that a stream receives: read from what arrives. Pure.

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;

use super::frames::PREFIX;
use crate::comets::proto::delivery::FromComet;

/// The maximum size of a frame of the comet: gRPC's own default.
const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Why the comet's bytes are not frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::comets) enum FrameError {
    /// gRPC's flag says that a message is compressed.
    #[error("it sent a compressed message, although the gateway accepts none")]
    Compressed,
    /// A frame is too large.
    #[error("it sent a frame of {0} bytes; at most {MAX_FRAME} are allowed")]
    TooLarge(usize),
    /// A frame is not a `FromComet`.
    #[error("it sent bytes that are not a FromComet: {0}")]
    Malformed(String),
}

/// Reads the comet's frames from pieces of any size.
#[derive(Debug, Default)]
pub(in crate::comets) struct FrameReader {
    /// The beginning of a frame that is not complete.
    rest: BytesMut,
}

impl FrameReader {
    /// Adds the frames that are complete with this piece.
    ///
    /// # Errors
    /// If these are not frames.
    pub(in crate::comets) fn read(
        &mut self,
        piece: Bytes,
        frames: &mut Vec<FromComet>,
    ) -> Result<(), FrameError> {
        if self.rest.is_empty() {
            // Usually a piece is one frame.
            let mut piece = piece;
            while let Some(frame) = next_frame(&piece)? {
                frames.push(decode(piece.slice(PREFIX..frame))?);
                piece.advance(frame);
            }
            self.rest.extend_from_slice(&piece);
            return Ok(());
        }
        self.rest.extend_from_slice(&piece);
        while let Some(frame) = next_frame(&self.rest)? {
            let frame = self.rest.split_to(frame).freeze();
            frames.push(decode(frame.slice(PREFIX..))?);
        }
        Ok(())
    }
}

/// The length of the first frame with its prefix; `None` if it is not complete.
fn next_frame(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some((prefix, content)) = bytes.split_at_checked(PREFIX) else { return Ok(None) };
    if prefix[0] != 0 {
        return Err(FrameError::Compressed);
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    Ok((content.len() >= length).then_some(PREFIX + length))
}

fn decode(frame: Bytes) -> Result<FromComet, FrameError> {
    FromComet::decode(frame).map_err(|error| FrameError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comets::proto::delivery::{Acks, from_comet};
    use proptest::prelude::*;

    proptest! {
        /// However the comet's bytes are cut.
        #[test]
        fn frames_are_read_from_any_pieces(counts in proptest::collection::vec(0u64..500, 1..10), cut in 1usize..40) {
            let mut bytes = Vec::new();
            let frames: Vec<FromComet> = counts.iter().map(|count| {
                let also = (0..*count).collect();
                FromComet { frame: Some(from_comet::Frame::Acks(Acks { up_to: *count, also, ..Acks::default() })) }
            }).collect();
            for frame in &frames {
                bytes.push(0);
                bytes.extend((frame.encoded_len() as u32).to_be_bytes());
                frame.encode(&mut bytes).expect("grows");
            }
            let (mut reader, mut seen) = (FrameReader::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                reader.read(Bytes::copy_from_slice(piece), &mut seen).expect("frames");
            }
            prop_assert_eq!(&seen, &frames);
            seen.clear();
            FrameReader::default().read(bytes.into(), &mut seen).expect("frames");
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = FrameReader::default().read(bytes.into(), &mut Vec::new());
        }
    }

    #[test]
    fn what_is_not_a_frame_is_an_error() {
        let read = |bytes: &[u8]| FrameReader::default().read(Bytes::copy_from_slice(bytes), &mut Vec::new());
        assert_eq!(read(&[1, 0, 0, 0, 0]), Err(FrameError::Compressed));
        assert_eq!(read(&[0, 1, 0, 0, 0]), Err(FrameError::TooLarge(1 << 24)));
        assert!(matches!(read(&[0, 0, 0, 0, 1, 0xff]), Err(FrameError::Malformed(_))));
        assert_eq!(read(&[0, 0, 0]), Ok(()));
    }
}
