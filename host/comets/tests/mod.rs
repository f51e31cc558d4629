//! The fleet against real gRPC servers.

mod delivery;
mod faults;
mod known;
mod support;
