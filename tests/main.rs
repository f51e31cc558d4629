//! Whole-system stories.

#![allow(unreachable_pub, reason = "a test binary has no outside; `pub` says what a helper offers")]

mod examples_work;
mod support;
mod support_works;
