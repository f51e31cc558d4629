//! The bindings that wasmtime generates from `wit/policy.wit`: the hooks' functions and their types.
//!
//! Nothing outside of `wasm` sees these types; `lower` and `lift` convert them. Types that are only
//! passed to plugins borrow, so that a call copies nothing on our side.

#![allow(missing_docs, unreachable_pub, dead_code, reason = "generated code")]
#![allow(unsafe_code, reason = "wasmtime's macro implements its own unsafe traits")]
#![allow(unused_variables, reason = "generated code")]
#![allow(clippy::all, reason = "generated code")]

wasmtime::component::bindgen!({
    path: "wit",
    world: "gateway",
    ownership: Borrowing { duplicate_if_necessary: false },
});
