//! What the measured grouping does with a connection. The benchmark compiles this very file
//! natively, too: that is what the WebAssembly is compared with.

/// Whether a connection gets nothing: looks at all there is of it. One in a hundred does.
pub(crate) fn is_left_out(id: &str, user: &str, comet: u32, online: bool) -> bool {
    online && comet != u32::MAX && user.starts_with("user_") && id.ends_with("77")
}
