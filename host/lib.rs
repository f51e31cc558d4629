//! Halley: a routing gateway for push systems.
#![doc = ""]

pub mod decision;
pub mod membership;
pub mod message;
pub mod offsets;

pub mod kafka;
pub mod redis_client;

pub mod comets;
pub mod consumer;
pub mod dead_letter;
pub mod directory;
pub mod guard;
pub mod offline;
pub mod pipeline;
pub mod policy;
pub mod router;

pub mod admin;
pub mod cli;
pub mod gateway;

pub mod config;
pub mod telemetry;
