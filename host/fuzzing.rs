//! What fuzzers feed: three doors through which bytes come from outside, each as a function
//! that takes any bytes and panics when something that was promised does not hold.
//!
//! Only there in tests and with the cargo feature `fuzzing`. `tests/fuzz/` calls these under
//! libFuzzer (`make fuzz`); the tests below feed them some random bytes and everything in
//! `tests/fuzz/corpus/`, so that a crash that was found once stays found on every machine.
//!
//! The promises themselves stand in the `fuzzing` files of the modules, next to what they are
//! about. This module knows nothing but their names.

use arbitrary::Unstructured;

use crate::{comets, directory, guard, message, offline, policy};

/// A Kafka record: decoding it never panics, what was decoded is encoded and decoded to the
/// same, and the calls that it would be are what the comets' own types read.
pub fn record(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(record) = message::fuzzing::record(&mut input) else { return };
    if let Some(message) = message::fuzzing::check(record) {
        comets::fuzzing::check(&message);
    }
}

/// What a plugin answers: whatever it is, it is refused and changes nothing, or taken with
/// everything inside of its bounds.
pub fn plugin_answer(data: &[u8]) {
    // The bytes are used up when this fails: nothing is left to check.
    let _ = policy::fuzzing::check(&mut Unstructured::new(data));
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What a fuzz target calls.
    type Door = fn(&[u8]);

    const DOORS: [(&str, Door); 3] =
        [("record", record), ("plugin_answer", plugin_answer), ("redis_reply", redis_reply)];

    #[test]
    fn what_was_found_once_stays_found() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, door) in DOORS {
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
        for (name, _) in DOORS {
            let target = format!("{}/tests/fuzz/targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
            let text = fs::read_to_string(&target).expect("a target of this name");
            assert!(text.contains(&format!("halley::fuzzing::{name}(data)")), "{target}");
        }
    }

    proptest! {
        // Structure is found late in random bytes, and a case takes microseconds.
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn no_bytes_break_a_promise(data in vec(any::<u8>(), 0..600)) {
            for (_, door) in DOORS {
                door(&data);
            }
        }
    }

    fn files_in(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder for each target");
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files
    }
}
