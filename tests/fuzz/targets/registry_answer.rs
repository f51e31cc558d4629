//! Fuzz target of `halley::fuzzing::registry_answer`; see there for the promises that it checks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halley::fuzzing::registry_answer(data));
