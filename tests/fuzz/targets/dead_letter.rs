//! Fuzzes `halley::fuzzing::dead_letter`, which says what it does and what has to hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halley::fuzzing::dead_letter(data));
