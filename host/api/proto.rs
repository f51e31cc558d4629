//! The generated types of `proto/inbox.proto`, for the server, tests and examples.

/// `halley.inbox.v1`
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod inbox {
    include!(concat!(env!("OUT_DIR"), "/halley.inbox.v1.rs"));
}

/// The description that reflection serves.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inbox.bin"));
