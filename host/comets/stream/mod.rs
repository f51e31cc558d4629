//! Streamed delivery: `halley.comet.v1.Delivery` (`proto/delivery.proto`), which a comet may serve next
//! to the unary calls of its dialect.
//!
//! - `window`: numbers, credit and acknowledgements of one stream; pure.
//! - `frames`: the frames that are sent. `frame_reader`: those that arrive. Both are pure.
//! - `open`: asks a comet for a stream, and carries the frames of one.
//!
//! A stream is used by the comet's task: see `comet::streaming`.

mod frame_reader;
pub(super) mod frames;
pub(super) mod open;
pub(super) mod window;
