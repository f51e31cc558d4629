//! Fuzz target of `halley::fuzzing::dead_letter`; see there for the promises that it checks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halley::fuzzing::dead_letter(data));
