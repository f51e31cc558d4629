//! Traces: the producer's trace context, and the gateway's own spans.

mod context;
mod spans;
