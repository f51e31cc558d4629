//! Fuzzes `halley::fuzzing::admin_request`, which says what it does and what has to hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halley::fuzzing::admin_request(data));
