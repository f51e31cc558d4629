//! Fuzz target of `halley::fuzzing::native_record`; see there for the promises that it checks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halley::fuzzing::native_record(data));
