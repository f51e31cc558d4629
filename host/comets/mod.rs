//! To be written.

/// The generated wire types and server traits of both dialects, for fake and example comets.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod proto {
    pub mod chatroom {
        tonic::include_proto!("chat_room.comet");
    }
    pub mod goim {
        tonic::include_proto!("goim.comet");
    }
}
