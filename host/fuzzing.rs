//! What fuzzers feed: the doors through which bytes come from outside, each as a function
//! that takes any bytes and panics when something that was promised does not hold.
//!
//! Only there in tests and with the cargo feature `fuzzing`. `tests/fuzz/` calls these under
//! libFuzzer (`make fuzz`); the tests below feed them some random bytes and everything in
//! `tests/fuzz/corpus/`, so that a crash that was found once stays found on every machine.
//!
//! The promises themselves stand in the `fuzzing` files of the modules, next to what they are
//! about. This module knows nothing but their names.

use arbitrary::Unstructured;

use crate::dead_letter::DeadLetter;
use crate::{
    admin, artifact, cli, comets, dead_letter, directory, guard, kafka, message, offline, redis_client, wasm,
};

/// A Kafka record: decoding it never panics, what was decoded is encoded and decoded to the
/// same, and the calls that it would be are what the comets' own types read.
pub fn record(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(record) = message::fuzzing::record(&mut input) else { return };
    if let Some(message) = message::fuzzing::check(record) {
        comets::fuzzing::check(&message);
    }
}

/// A record in librdkafka's memory: what is read is what was put in, or it says what is left out.
pub fn native_record(data: &[u8]) {
    let _ = kafka::fuzzing::check(&mut Unstructured::new(data));
}

/// What a plugin answers: whatever it is, it is refused and changes nothing, or taken with
/// everything inside of its bounds.
pub fn plugin_answer(data: &[u8]) {
    // The bytes are used up when this fails: nothing is left to check.
    let _ = wasm::fuzzing::check(&mut Unstructured::new(data));
}

/// What Redis replies: nobody is found whom no reply named, and there is one answer for each
/// question.
pub fn redis_reply(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(which) = input.int_in_range(0..=3u8) else { return };
    let _ = match which {
        0 => guard::fuzzing::check(&mut input),
        1 => offline::fuzzing::check(&mut input),
        _ => directory::fuzzing::check(&mut input),
    };
}

/// The bytes that Redis sends, before they are decoded: they are bounded however they come.
pub fn redis_stream(data: &[u8]) {
    let _ = redis_client::fuzzing::check_stream(&mut Unstructured::new(data));
}

/// A request to the admin listener: it is admitted only from those who may ask for this.
pub fn admin_request(data: &[u8]) {
    let _ = admin::fuzzing::check(&mut Unstructured::new(data));
}

/// What a registry answers: credentials go to its own site and to those that are listed, and
/// nothing is fetched but what fits its digest.
pub fn registry_answer(data: &[u8]) {
    let _ = artifact::check_registry_answer(&mut Unstructured::new(data));
}

/// A plugin's file and its signature: nothing is taken that a trusted key did not sign as what it
/// is, and nothing is compiled that is beyond the bounds.
pub fn plugin_file(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(which) = input.int_in_range(0..=2u8) else { return };
    let _ = match which {
        0 => artifact::check_signature(&mut input),
        _ => wasm::fuzzing::check_file(&mut input),
    };
}

/// A record of the dead-letter topic: it goes back to topics that are allowed and to nobody who is
/// not to have it again, and shows nothing that does something to a terminal.
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

    /// What a fuzz target calls.
    type Door = fn(&[u8]);

    /// Each with how many random inputs it gets: dear ones get few.
    const DOORS: [(&str, Door, u32); 9] = [
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
    fn what_was_found_once_stays_found() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, door, _) in DOORS {
            let files = files_in(&corpus.join(name));
            assert!(!files.is_empty(), "there are seeds for {name}");
            for file in files {
                // Shown only when the test fails: the last one is the culprit.
                println!("{}", file.display());
                door(&fs::read(&file).expect("readable"));
            }
        }
    }

    #[test]
    fn every_door_has_its_target() {
        for (name, ..) in DOORS {
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
        for (name, door, cases) in DOORS {
            // Structure is found late in random bytes, and most cases take microseconds.
            let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(cases) };
            let broken = TestRunner::new(config).run(&vec(any::<u8>(), 0..600), |data| {
                door(&data);
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
