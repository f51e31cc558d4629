//! Fuzz entry points: every place where bytes come from outside, each as a function that takes
//! arbitrary bytes and panics if a promise is broken.
//!
//! Compiled only for tests and with the cargo feature `fuzzing`. `tests/fuzz/` runs these under
//! libFuzzer (`make fuzz`). The tests below feed them random bytes and the files of
//! `tests/fuzz/corpus/`, so that a fixed crash stays fixed.
//!
//! The promises are checked in the `fuzzing` files of the modules. This module only lists them.

use arbitrary::Unstructured;

use crate::dead_letter::DeadLetter;
use crate::{
    admin, artifact, cli, comets, dead_letter, directory, guard, inbox, kafka, message, redis_client, wasm,
};

/// A Kafka record: decoding never panics, a decoded message survives encoding, and its calls can be
/// read by the comets' own types.
pub fn record(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(record) = message::fuzzing::record(&mut input) else { return };
    if let Some(message) = message::fuzzing::check(record) {
        comets::fuzzing::check(&message);
    }
}

/// A record in librdkafka's memory: the copy equals the original, or names what was left out.
pub fn native_record(data: &[u8]) {
    let _ = kafka::fuzzing::check(&mut Unstructured::new(data));
}

/// A plugin's answer: it is rejected without effect, or accepted within its limits.
pub fn plugin_answer(data: &[u8]) {
    // This fails if the bytes run out: nothing is left to check.
    let _ = wasm::fuzzing::check(&mut Unstructured::new(data));
}

/// Redis' replies: only names in the replies are found, and there is one result per query.
pub fn redis_reply(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(which) = input.int_in_range(0..=3u8) else { return };
    let _ = match which {
        0 => guard::fuzzing::check(&mut input),
        1 => inbox::fuzzing::check(&mut input),
        _ => directory::fuzzing::check(&mut input),
    };
}

/// Bytes from Redis before they are decoded: they are bounded, however they are split.
pub fn redis_stream(data: &[u8]) {
    let _ = redis_client::fuzzing::check_stream(&mut Unstructured::new(data));
}

/// A request to the admin listener: it is allowed only for permitted clients.
pub fn admin_request(data: &[u8]) {
    let _ = admin::fuzzing::check(&mut Unstructured::new(data));
}

/// A registry's answer: credentials go only to the registry and listed hosts, and nothing is fetched
/// that does not match its digest.
pub fn registry_answer(data: &[u8]) {
    let _ = artifact::check_registry_answer(&mut Unstructured::new(data));
}

/// A plugin file with its signature: only files that a trusted key signed are accepted, and only
/// files within the limits are compiled.
pub fn plugin_file(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(which) = input.int_in_range(0..=2u8) else { return };
    let _ = match which {
        0 => artifact::check_signature(&mut input),
        _ => wasm::fuzzing::check_file(&mut input),
    };
}

/// A record of the dead-letter topic: it goes back only to allowed topics and due recipients, and
/// cannot control a terminal.
pub fn dead_letter(data: &[u8]) {
    let Ok(record) = dead_letter::fuzzing::record(&mut Unstructured::new(data)) else { return };
    let letter = DeadLetter::of(record);
    dead_letter::fuzzing::check(&letter);
    cli::check_dead_letter(&letter);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;

    /// A fuzz target.
    type FuzzTarget = fn(&[u8]);

    /// Each with its number of random inputs: expensive ones get few.
    const FUZZ_TARGETS: [(&str, FuzzTarget, u32); 9] = [
        ("record", record, 4096),
        ("native_record", native_record, 2048),
        ("plugin_answer", plugin_answer, 4096),
        ("redis_reply", redis_reply, 4096),
        ("redis_stream", redis_stream, 2048),
        ("admin_request", admin_request, 2048),
        ("registry_answer", registry_answer, 2048),
        ("plugin_file", plugin_file, 512),
        ("dead_letter", dead_letter, 2048),
    ];

    #[test]
    fn found_inputs_stay_fixed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, target, _) in FUZZ_TARGETS {
            let files = files_in(&corpus.join(name));
            assert!(!files.is_empty(), "there are seeds for {name}");
            for file in files {
                // Shown only if the test fails: the last file is the culprit.
                println!("{}", file.display());
                target(&fs::read(&file).expect("readable"));
            }
        }
    }

    #[test]
    fn every_entry_point_has_a_fuzz_target() {
        for (name, ..) in FUZZ_TARGETS {
            let target = format!("{}/tests/fuzz/targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
            let text = fs::read_to_string(&target).expect("a target of this name");
            assert!(text.contains(&format!("halley::fuzzing::{name}(data)")), "{target}");
            let path = format!("path = \"targets/{name}.rs\"");
            assert!(include_str!("../tests/fuzz/Cargo.toml").contains(&path), "{name}");
            let script = include_str!("../tests/fuzz/run.sh");
            let all = script.lines().find(|line| line.contains("|| set --")).unwrap_or_default();
            assert!(all.split(' ').any(|target| target == name), "{all}");
        }
    }

    #[test]
    fn no_bytes_break_a_promise() {
        for (name, target, cases) in FUZZ_TARGETS {
            // Random bytes rarely form structure, and most cases take microseconds.
            let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(cases) };
            let broken = TestRunner::new(config).run(&vec(any::<u8>(), 0..600), |data| {
                target(&data);
                Ok(())
            });
            broken.unwrap_or_else(|why| panic!("{name}: {why}"));
        }
    }

    fn files_in(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder for each target");
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files
    }
}
