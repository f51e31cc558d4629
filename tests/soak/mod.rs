//! Long runs that print figures for the README: `make soak`. `cargo test` skips them.
//!
//! `HALLEY_SOAK_MINUTES` (10) sets how long each fault lasts.

mod archive;
mod idle;
mod long;
mod memory;
mod routes;
mod sizes;
mod throughput;

use std::time::Duration;

/// The duration of a fault in a long run.
fn fault_time() -> Duration {
    let minutes = std::env::var("HALLEY_SOAK_MINUTES").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(60.0 * minutes.unwrap_or(10.0_f64))
}
