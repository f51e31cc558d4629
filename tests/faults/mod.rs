//! Faults that happen in production, under load, each ending with a history that is checked:
//! nothing lost, nothing reordered, repeats only where something was interrupted.
//!
//! Sizes are those of `make test`; `make soak` runs the same stories longer.

mod comets;
mod gateways;
mod world;
