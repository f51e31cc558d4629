//! Long runs that print figures for the README: `make soak`. `cargo test` leaves them out.
//!
//! `HALLEY_SOAK_MINUTES` (10) says how long each fault lasts.

mod idle;
mod long;
mod memory;
mod sizes;
mod throughput;

use std::time::Duration;

/// How long a fault lasts in a long run.
fn fault_time() -> Duration {
    let minutes = std::env::var("HALLEY_SOAK_MINUTES").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(60.0 * minutes.unwrap_or(10.0_f64))
}
