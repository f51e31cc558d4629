//! Whole-system stories.

#![allow(unreachable_pub, reason = "a test binary has no outside; `pub` says what a helper offers")]

mod commands;
mod cookbook;
mod examples_work;
mod faults;
mod languages;
mod layers;
mod letters;
mod policies;
mod proxy_works;
mod redis_kinds;
mod routing;
mod service;
mod soak;
mod steering;
mod support;
mod support_works;
mod trials;
mod versions;
