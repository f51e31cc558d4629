//! Faults that happen in production, under load, each ending with a history that is checked:
//! nothing lost, nothing reordered, repeats only where something was interrupted.
//!
//! Sizes are those of `make test`; `make soak` runs the same stories longer.

/// A story that runs once with comets that are called, and once with comets that take messages by
/// stream.
macro_rules! in_each_mode {
    ($name:ident, $serves:ident => $story:expr) => {
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn with_calls() {
                let $serves = Serves::Calls;
                $story.await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn with_streams() {
                let $serves = Serves::Streams;
                $story.await;
            }
        }
    };
}

mod address_space;
mod answers;
pub mod comets;
mod compiling;
pub mod everything;
pub mod excuses;
pub mod gateways;
mod histories;
pub mod network;
pub mod policies;
pub mod returning;
pub mod scaling;
pub mod servers;
mod store;
pub mod topics;
pub mod world;

use std::time::Duration;

use crate::support::comet::Serves;
use crate::support::print_uncaptured;

/// How a world's comets take messages, and how its gateways share partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// How comets take messages.
    pub serves: Serves,
    /// How gateways share partitions.
    pub protocol: GroupProtocol,
}

/// The protocol of a consumer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupProtocol {
    /// The members assign partitions.
    Classic,
    /// The brokers assign partitions: KIP-848.
    Consumer,
}

impl Mode {
    /// Brokers assign partitions.
    pub const KIP_848: Self = Self { serves: Serves::Calls, protocol: GroupProtocol::Consumer };
}

impl From<Serves> for Mode {
    fn from(serves: Serves) -> Self {
        Self { serves, protocol: GroupProtocol::Classic }
    }
}

/// Random, and printed, so that a run can be repeated.
pub fn seeded(story: &str) -> fastrand::Rng {
    let seed = std::env::var("HALLEY_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    print_uncaptured(format_args!("{story}: HALLEY_TEST_SEED={seed}"));
    fastrand::Rng::with_seed(seed)
}

/// A random time, evenly.
pub fn some_time(random: &mut fastrand::Rng, at_most: Duration) -> Duration {
    at_most.mul_f64(random.f64())
}
