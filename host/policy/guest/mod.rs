//! One plugin's code, and everything on both sides of the border that a call crosses.
//!
//! - `module`: from a file's bytes to something that can be instantiated; `contract`: for which
//!   version of the contract it was built.
//! - `attempts`: compiling, and what it came to; `compile`: within which bounds, and where; `code`: what
//!   earlier starts compiled; `engine`: of which WebAssembly plugins may be made.
//! - `instance`: one instance with its store and its limits; its hooks as functions; `failure`:
//!   how they fail.
//! - `questions` and `answers`: what plugins see, and what they may say; `batch` and
//!   `room`: the shapes in which many of them cross.
//! - `host`: what they can call, with `clock`, `state`, `shared` and its `account` behind it;
//!   `output`: what they print.
//! - `runtime`: what all of them share; `address_space`: how much of it their memories take;
//!   `ticker`: the clock of their deadlines; `aside`: where guest code may run.
//!
//! Knows nothing of sets, chains, swaps or what becomes of a message.

pub(in crate::policy) mod account;
pub(in crate::policy) mod address_space;
pub(in crate::policy) mod answers;
pub(in crate::policy) mod aside;
pub(in crate::policy) mod attempts;
pub(in crate::policy) mod batch;
pub(in crate::policy) mod bindings;
pub(in crate::policy) mod clock;
pub(in crate::policy) mod code;
pub(in crate::policy) mod compile;
pub(in crate::policy) mod contract;
pub(in crate::policy) mod engine;
pub(in crate::policy) mod failure;
pub(in crate::policy) mod host;
pub(in crate::policy) mod instance;
pub(in crate::policy) mod module;
pub(in crate::policy) mod output;
pub(in crate::policy) mod questions;
pub(in crate::policy) mod room;
pub(in crate::policy) mod runtime;
pub(in crate::policy) mod shared;
pub(in crate::policy) mod state;
pub(in crate::policy) mod texts;
pub(in crate::policy) mod ticker;
