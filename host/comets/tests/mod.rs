//! The fleet against real gRPC servers.

mod answers;
mod delivery;
mod faults;
mod known;
mod support;
