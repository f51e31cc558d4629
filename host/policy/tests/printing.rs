//! What a policy prints before it fails, as language runtimes do with an exception.

use std::path::PathBuf;

use super::*;
use crate::decision::Verdict;
use crate::wasm::idle::with_contract;

/// The parts of WASI that it imports, and its world.
const WORLD: [&str; 3] = [
    "package wasi:io@0.2.0;
     interface error { resource error; }
     interface streams {
         use error.{error};
         variant stream-error { last-operation-failed(error), closed }
         resource output-stream {
             blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
         }
     }",
    "package wasi:cli@0.2.0;
     interface stderr { use wasi:io/streams@0.2.0.{output-stream}; get-stderr: func() -> output-stream; }",
    "package test:printing;
     world printing {
         import wasi:cli/stderr@0.2.0;
         import wasi:io/streams@0.2.0;
         export halley:policy/filter@0.1.3;
     }",
];

/// A guest that prints this to its standard error and traps, unless its batch is empty.
fn raises(folder: &Path, text: &str) -> PathBuf {
    let data: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let module = format!(
        r#"(module
            (import "wasi:cli/stderr@0.2.0" "get-stderr" (func $stderr (result i32)))
            (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
                (func $write (param i32 i32 i32 i32)))
            (memory (export "memory") 17)
            (data (i32.const 4096) "{data}")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1048576))
            (func (export "halley:policy/filter@0.1.3#filter") (param i32 i32 i32 i32 i32) (result i32)
                (if (local.get 4) (then
                    (call $write (call $stderr) (i32.const 4096) (i32.const {length}) (i32.const 64))
                    (unreachable)))
                (i32.const 0)))"#,
        length = text.len()
    );
    let module = with_contract(&module, &WORLD, None).unwrap();
    let file = folder.join("raises.wasm");
    std::fs::write(&file, module).unwrap();
    file
}

#[test]
fn guest_stderr_is_part_of_the_failure() {
    let folder = tempfile::tempdir().unwrap();
    let said = "Traceback (most recent call last):\n  File \"policy.py\", line 7\n\nValueError: \tboom\n";
    let plugin = PluginConfig::new("p", raises(folder.path(), said));
    let mut chain = Engine::new().set(&[with(plugin, OnError::DeadLetter)]).chain();
    let filtered = chain.filter("push", 0, vec![room("x")]).unwrap();
    let Verdict::DeadLetter { reason, .. } = &filtered[0].verdict else { panic!("{filtered:?}") };
    let words =
        "it printed: Traceback (most recent call last): | File \"policy.py\", line 7 | ValueError:  boom";
    assert!(reason.contains("unreachable") && reason.ends_with(words), "{reason}");
}

#[test]
fn long_guest_output_keeps_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let said = format!("{}ValueError: boom", "a long way in\n".repeat(250));
    let plugin = PluginConfig::new("p", raises(folder.path(), &said));
    let engine = Engine::new();
    let mut chain = engine.set(&[with(plugin, OnError::Stall)]).chain();
    let stalled = chain.filter("push", 0, vec![room("x")]).unwrap_err();
    assert!(stalled.error.contains("it printed: ...") && stalled.error.ends_with("| ValueError: boom"));
    assert!(stalled.error.len() < 1300, "{}", stalled.error);
    assert!(!engine.metrics().contains("limit=\"log\"} 0"), "the lines exceed the limit on logs");
}
