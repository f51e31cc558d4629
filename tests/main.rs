//! Whole-system stories.

#![allow(unreachable_pub, reason = "a test binary has no outside; `pub` says what a helper offers")]

mod absent;
mod access;
mod admin;
mod archive;
mod checks;
mod claims;
mod commands;
mod consuming;
mod cookbook;
mod dead_letters;
mod deploy;
mod directory;
mod exact_routes;
mod examples_selftest;
mod faults;
mod fleet;
mod inbox;
mod languages;
mod layers;
mod peers_selftest;
mod plugin_cli;
mod plugin_sources;
mod policies;
mod proxy_selftest;
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
mod support_selftest;
mod tls;
mod topics;
mod traces;
mod trials;
mod versions;
