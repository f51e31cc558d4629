//! The environment of plugins: an empty WASI world in which nobody can wait.

use std::time::{Duration, Instant};

use wasmtime::Store;
use wasmtime::component::Component;

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::blocking::run_in_place;
use crate::decision::PluginVersion;
use crate::wasm::Runtime;
use crate::wasm::epoch::{RunningGuest, ticks};
use crate::wasm::host::HostState;
use crate::wasm::runtime::CANNOT_WAIT;

/// Runs the start functions of a component, like a plugin's.
fn start(wat: &str) -> wasmtime::Result<()> {
    let runtime = Runtime::new(&mut Registry::default()).unwrap();
    let version = PluginVersion { name: "p".into(), hash: "0".into() };
    let context = runtime.plugin_context(version, "{}".into(), "p");
    let mut store = Store::new(&runtime.engine, HostState::new(Arc::new(context), 1 << 20));
    store.limiter(|state| &mut state.memory);
    let _running = RunningGuest::begin();
    store.set_epoch_deadline(ticks(Duration::from_secs(1)));
    let component = Component::new(&runtime.engine, wat::parse_str(wat).unwrap()).unwrap();
    let result = run_in_place(|| runtime.linker.instantiate(&mut store, &component));
    result.map(drop)
}

/// Creates a pollable that is ready in an hour, and calls this function with it.
fn with_pollable(function: &str, signature: &str, core: &str) -> String {
    format!(
        r#"(component
            (import "wasi:io/poll@0.2.0" (instance $poll
                (export "pollable" (type $pollable (sub resource)))
                (export "{function}" (func (param "self" (borrow $pollable)) {signature}))))
            (alias export $poll "pollable" (type $pollable))
            (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
                (alias outer 1 $pollable (type $outer))
                (export "pollable" (type $pollable (eq $outer)))
                (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
            (core func $subscribe (canon lower (func $clock "subscribe-duration")))
            (core func $call (canon lower (func $poll "{function}")))
            (core module $guest
                (import "" "subscribe" (func $subscribe (param i64) (result i32)))
                (import "" "call" (func $call (param i32) {core}))
                (func $start (call $subscribe (i64.const 3600000000000)) (call $call) {drop})
                (start $start))
            (core instance (instantiate $guest (with "" (instance
                (export "subscribe" (func $subscribe)) (export "call" (func $call)))))))"#,
        drop = if core.is_empty() { "" } else { "(drop)" },
    )
}

#[test]
fn a_guest_cannot_wait_in_the_host() {
    let begun = Instant::now();
    let error = format!("{:#}", start(&with_pollable("[method]pollable.block", "", "")).unwrap_err());
    assert!(error.contains(CANNOT_WAIT), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn an_endless_loop_ends_at_the_deadline() {
    let error = start(
        r#"(component
            (core module $loop (func $start (loop $l (br $l))) (start $start))
            (core instance (instantiate $loop)))"#,
    );
    assert!(format!("{:#}", error.unwrap_err()).contains("interrupt"));
}

/// `wasmtime-wasi` blocks on futures for this, which panics on an async thread.
fn asks_whether_ready() -> wasmtime::Result<()> {
    start(&with_pollable("[method]pollable.ready", "(result bool)", "(result i32)"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wasi_works_inside_of_a_multi_threaded_runtime() {
    asks_whether_ready().unwrap();
}

#[tokio::test]
async fn wasi_works_inside_of_a_single_threaded_runtime() {
    asks_whether_ready().unwrap();
}

#[test]
fn the_world_is_empty() {
    let lists = [
        ("wasi:cli/environment@0.2.0", "get-arguments", "string"),
        ("wasi:cli/environment@0.2.0", "get-environment", "(tuple string string)"),
    ];
    for (interface, function, element) in lists {
        start(&traps_unless_empty(interface, function, element)).unwrap();
    }
}

fn traps_unless_empty(interface: &str, function: &str, element: &str) -> String {
    format!(
        r#"(component
            (import "{interface}" (instance $it (export "{function}" (func (result (list {element}))))))
            (core module $memory
                (memory (export "memory") 1)
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
            (core instance $memory (instantiate $memory))
            (core func $list (canon lower (func $it "{function}")
                (memory $memory "memory") (realloc (func $memory "realloc"))))
            (core module $guest
                (import "" "memory" (memory 1))
                (import "" "list" (func $list (param i32)))
                (func $start
                    (call $list (i32.const 0))
                    (if (i32.load offset=4 (i32.const 0)) (then (unreachable))))
                (start $start))
            (core instance (instantiate $guest (with "" (instance
                (export "memory" (memory $memory "memory")) (export "list" (func $list)))))))"#
    )
}
