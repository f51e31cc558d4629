//! The generated types of both dialects and of streamed delivery: their messages and the service that a
//! comet implements.
//!
//! The gateway itself calls comets with bytes that it encodes once (`wire`), and writes messages into
//! streams in the same way (`stream`). These types are for the other frames of streams, and for
//! implementations of comets: the demo, the example comet and tests.

/// The `chatroom` dialect, `/ChatRoom.Comet.Comet/<Method>`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod chatroom {
    include!(concat!(env!("OUT_DIR"), "/chat_room.comet.rs"));
}

/// The `goim` dialect, `/goim.comet.Comet/<Method>`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod goim {
    include!(concat!(env!("OUT_DIR"), "/goim.comet.rs"));
}

/// Streamed delivery, `/halley.comet.v1.Delivery/Deliver`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod delivery {
    include!(concat!(env!("OUT_DIR"), "/halley.comet.v1.rs"));
}
