//! The rule of the benchmarked grouping. The benchmark compiles this file natively as well, for
//! comparison with WebAssembly.

/// Whether a connection is skipped: reads all its fields. True for one in a hundred.
pub(crate) fn is_left_out(id: &str, user: &str, comet: u32, online: bool) -> bool {
    online && comet != u32::MAX && user.starts_with("user_") && id.ends_with("77")
}
