//! Whole-system stories.

#![allow(unreachable_pub, reason = "a test binary has no outside; `pub` says what a helper offers")]

mod absent;
mod access;
mod admin;
mod authors;
mod checks;
mod claims;
mod commands;
mod consuming;
mod cookbook;
mod directory;
mod examples_work;
mod faults;
mod fleet;
mod languages;
mod layers;
mod letters;
mod peers_selftest;
mod platform;
mod policies;
mod proxy_works;
mod readme;
mod records;
mod redis_bounds;
mod redis_kinds;
mod refusals;
mod replay;
mod routing;
mod service;
mod shared_state;
mod soak;
mod steering;
mod support;
mod support_works;
mod topics;
mod trials;
mod versions;
