//! The generated types of both dialects and of streamed delivery: their messages and the service that a
//! comet implements.
//!
//! The gateway itself calls comets with bytes that it encodes once (`wire`), and writes messages into
//! streams in the same way (`stream`). These types are for the other frames of streams, and for
//! implementations of comets: the demo, the example comet and tests.

generated! {
    /// The `chatroom` dialect, `/ChatRoom.Comet.Comet/<Method>`.
    pub mod chatroom = "/chat_room.comet.rs"
}

generated! {
    /// The `goim` dialect, `/goim.comet.Comet/<Method>`.
    pub mod goim = "/goim.comet.rs"
}

generated! {
    /// Streamed delivery, `/halley.comet.v1.Delivery/Deliver`.
    pub mod delivery = "/halley.comet.v1.rs"
}
