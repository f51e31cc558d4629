//! Activates and deactivates versions: rollouts of candidates, changes by an operator, and the
//! quarantine of versions that fail too often.
//!
//! - `config`: the configuration. `analysis`: whether a canary continues. Both pure.
//! - `candidate`: a candidate next to the active version. `shadow`: the thread of a shadow, and its
//!   differences from the active version.
//! - `quarantine`: when a version has failed too often.
//! - `operator`: changes by an operator, and automatic ones by the supervisor. It acts on the whole
//!   set; the rest of this module does not know sets and chains.

pub(super) mod analysis;
pub(super) mod candidate;
pub(super) mod config;
pub(super) mod operator;
pub(super) mod quarantine;
pub(super) mod shadow;

pub use candidate::RolloutStatus;
pub use config::{Fraction, QuarantineAction, QuarantineConfig, RolloutConfig, RolloutMode, Thresholds};
pub use operator::{Upload, supervise};
pub use shadow::{Difference, Differences};
