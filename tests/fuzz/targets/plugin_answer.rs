//! Fuzz target of `halley::fuzzing::plugin_answer`; see there for the promises that it checks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halley::fuzzing::plugin_answer(data));
