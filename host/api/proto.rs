//! The generated types of `proto/inbox.proto`, for the server, tests and examples.

generated! {
    /// `halley.inbox.v1`
    pub mod inbox = "/halley.inbox.v1.rs"
}

/// The description that reflection serves.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inbox.bin"));
