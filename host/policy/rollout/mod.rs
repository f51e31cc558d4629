//! How a version comes in force and goes again: tried beside the one in force, judged, put there or
//! taken out of force by an operator, and in quarantine when it fails too often.
//!
//! - `config`: what is wanted. `judge`: whether a canary stays. Both pure.
//! - `trial`: a candidate beside the version in force. `shadow`: the thread of one that looks on, and
//!   what it would have done otherwise.
//! - `quarantine`: when a version has failed too often.
//! - `operator`: what is done by hand, and what the supervisor does by itself. It acts on the whole set;
//!   the rest here knows nothing of sets and chains.

pub(super) mod config;
pub(super) mod judge;
pub(super) mod operator;
pub(super) mod quarantine;
pub(super) mod shadow;
pub(super) mod trial;

pub use config::{Budget, Mode, QuarantineConfig, Share, Then, TrialConfig};
pub use operator::{Upload, supervise};
pub use shadow::{Difference, Differences};
pub use trial::TrialStatus;
