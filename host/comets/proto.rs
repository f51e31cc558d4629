//! The generated types of both dialects: their messages and the service that a comet implements.
//!
//! The gateway itself calls comets with bytes that it encodes once (`wire`). These types are for
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
