//! The fleet against real gRPC servers.

mod access;
mod answers;
mod delivery;
mod faults;
mod known;
mod support;
