//! Fuzz target of `halley::fuzzing::redis_reply`; see there for the promises that it checks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halley::fuzzing::redis_reply(data));
