//! Fuzz target of `halley::fuzzing::admin_request`; see there for the promises that it checks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halley::fuzzing::admin_request(data));
