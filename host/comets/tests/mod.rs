//! The fleet against real gRPC servers.

mod access;
mod answers;
mod comet_table;
mod delivery;
mod faults;
mod hold;
mod streams;
mod support;
