//! Plugins that compile for minutes, or not at all: they stop neither the gateway's end nor its start.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::comet::FakeComet;
use crate::support::gateway::{Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder, repository};

const SLOW: &str = "compiling the plugin takes long; the active policies stay active meanwhile";

/// A component of a megabyte that exports a hook and takes more than a minute to compile: one function
/// with many variables that are all live at once.
fn write_slow_component(file: &Path) {
    const VARIABLES: usize = 1500;
    const STEPS: usize = 100_000;
    let mut code = Vec::new();
    for step in 0..STEPS {
        let [a, b, c] = [step % VARIABLES, (step * 7 + 3) % VARIABLES, (step * 13 + 5) % VARIABLES];
        // a = a * b + c; now and then: if b { a = c }
        code.extend(
            [&[0x20][..], &leb(a), &[0x20], &leb(b), &[0x6c, 0x20], &leb(c), &[0x6a, 0x21], &leb(a)].concat(),
        );
        if step % 10 == 0 {
            code.extend(
                [&[0x20][..], &leb(b), &[0x04, 0x40, 0x20], &leb(c), &[0x21], &leb(a), &[0x0b]].concat(),
            );
        }
    }
    // One kind of variables, i32; loop { code; if the first one { again } }
    let head = [&[0x01][..], &leb(VARIABLES), &[0x7f, 0x03, 0x40]].concat();
    let body = [head, code, vec![0x20, 0x00, 0x0d, 0x00, 0x0b, 0x0b]].concat();
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[0x01, 0x60, 0x00, 0x00]),
        section(3, &[0x01, 0x00]),
        section(10, &[leb(1), leb(body.len()), body].concat()),
    ]
    .concat();
    let name = b"halley:policy/filter@0.1.3";
    let export = [&[0x01, 0x00][..], &leb(name.len()), name, &[0x05, 0x00, 0x00]].concat();
    let component = [
        b"\0asm\x0d\0\x01\0".to_vec(),
        section(1, &module),
        section(5, &[0x01, 0x01, 0x00]),
        section(11, &export),
    ];
    std::fs::write(file, component.concat()).expect("written");
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

/// A number as WebAssembly writes it.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Waits until the log shows that the slow component is being compiled; on a busy machine every plugin
/// is slow to compile.
async fn compiles(gateway: &RunningGateway) {
    let is_at_it = |line: &Value| line["message"] == SLOW && line["bytes"].as_u64() > Some(1_000_000);
    eventually(SLOW, PATIENCE, async || gateway.log_lines().iter().any(is_at_it).then_some(())).await;
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_compiler() {
    let topic = kafka().topic("compiling", 1).await;
    let folder = folder("compiling");
    let file = folder.path().join("filter.wasm");
    std::fs::copy(repository("plugins/dist/keyword_filter.wasm"), &file).expect("copied");
    let plugin =
        Plugin::new("filter", &file).set("deadline", quoted("5s")).config(&json!({ "words": ["spam"] }));
    // On a fast machine the slow component needs the default within two seconds.
    let settings = gateway(&topic).plugin(plugin).set("policies", "compile_memory", quoted("8GiB"));

    let running = settings.clone().start().await;
    write_slow_component(&file.with_extension("new"));
    std::fs::rename(file.with_extension("new"), &file).expect("renamed");
    compiles(&running).await;
    let status = running.get("/v1/plugins").await.json();
    assert!(status["preparing_since"].is_string(), "{status}");
    let compiler = compiler_of(&running);
    assert!(compiler.is_some(), "it is at work in a process of its own");
    assert!(running.sigterm().await.success(), "drained and ended, with the compiler at work");
    let gone = || compiler.is_none_or(has_ended);
    eventually("the end of the compiler", PATIENCE, async || gone().then_some(())).await;

    // Also while the first set is being compiled.
    let starting = settings.clone().start_unready().await;
    compiles(&starting).await;
    assert!(starting.sigterm().await.success());

    // And if the gateway is killed.
    let killed = settings.start_unready().await;
    compiles(&killed).await;
    let compiler = compiler_of(&killed).expect("it is at work");
    killed.kill();
    eventually("the end of the compiler", PATIENCE, async || has_ended(compiler).then_some(())).await;
}

/// The process that compiles for this gateway.
fn compiler_of(gateway: &RunningGateway) -> Option<u32> {
    let parent = format!("\nPPid:\t{}\n", gateway.pid());
    let entries = std::fs::read_dir("/proc").expect("Linux");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let text = |pid: &u32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let is_child = |pid: &u32| text(pid, "status").is_ok_and(|status| status.contains(&parent));
    let compiles = |pid: &u32| text(pid, "cmdline").is_ok_and(|line| line.contains("compile-plugin"));
    pids.into_iter().find(|pid| is_child(pid) && compiles(pid))
}

/// Whether a process has ended, even if its new parent has not reaped it yet.
fn has_ended(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| status.contains("\nState:\tZ")) || !Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_plugin_that_cannot_compile_is_tried_once() {
    let topic = kafka().topic("uncompilable", 1).await;
    let (folder, comet) = (folder("uncompilable"), FakeComet::start().await);
    let redis = Redis::start().await;
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let (file, state) = (folder.path().join("filter.wasm"), folder.path().join("state"));
    std::fs::copy(repository("plugins/dist/keyword_filter.wasm"), &file).expect("copied");
    let plugin =
        Plugin::new("filter", &file).set("deadline", quoted("5s")).config(&json!({ "words": ["spam"] }));
    let settings = gateway(&topic)
        .redis(&redis)
        .plugin(plugin)
        .set("policies", "state_dir", quoted(&state.display().to_string()))
        .set("policies", "rescan_interval", quoted("300ms"))
        // Enough for the filter, but not for the slow component.
        .set("policies", "compile_memory", quoted("128MiB"));

    // The good version is active; then a file arrives that needs too much memory.
    let first = settings.clone().start().await;
    write_slow_component(&file.with_extension("new"));
    std::fs::rename(file.with_extension("new"), &file).expect("renamed");
    let why = warning_with(&first, "takes more memory to compile than [policies] compile_memory").await;
    assert!(why.contains("128.0 MiB"), "{why}");
    let mark = only_file(&state.join("uncompilable"));
    // Rescanned repeatedly, and not compiled again.
    let why = warning_with(&first, "not retried: raise the limit, or remove").await;
    assert!(why.contains(&mark.display().to_string()), "{why}");
    kafka().produce_room(&topic, "lobby", "spam").await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    first.wait_until_settled(&topic).await;
    first.kill();
    first.wait().await;

    // The next start does not compile it at all, and restores the version that was active.
    let before = std::fs::read(&mark).expect("the mark");
    let second = settings.clone().start().await;
    warning_with(&second, "not retried").await;
    assert_eq!(std::fs::read(&mark).expect("the mark"), before, "an attempt would have been noted");
    kafka().produce_room(&topic, "lobby", "spam again").await;
    kafka().produce_room(&topic, "lobby", "hello again").await;
    second.wait_until_settled(&topic).await;
    let heard: Vec<String> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(heard, ["hello", "hello again"], "the filter decided all the time");

    // After an operator removed the mark, it is compiled again, and marked again.
    std::fs::remove_file(&mark).expect("removed");
    eventually("another attempt", PATIENCE, async || mark.exists().then_some(())).await;
    assert!(second.sigterm().await.success());

    // With another limit it is compiled again as well; this time it exceeds the time limit.
    let third = settings.set("policies", "compile_memory", quoted("1GiB"));
    let third = third.set("policies", "compile_timeout", quoted("1s")).start().await;
    warning_with(&third, "takes longer to compile than [policies] compile_timeout (1s)").await;
}

/// Waits until `/readyz` warns of this, with 200.
async fn warning_with(gateway: &RunningGateway, text: &str) -> String {
    eventually(text, PATIENCE, async || {
        let answer = gateway.get("/readyz").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let warnings = answer.json()["warnings"].as_array().cloned().unwrap_or_default();
        warnings.iter().filter_map(Value::as_str).find(|warning| warning.contains(text)).map(str::to_owned)
    })
    .await
}

fn only_file(folder: &Path) -> std::path::PathBuf {
    let mut files =
        std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let file = files.next().expect("a file");
    assert!(files.next().is_none());
    file
}

#[tokio::test]
async fn bombs_are_refused_before_they_are_compiled() {
    let topic = kafka().topic("bombs", 1).await;
    let folder = folder("bombs");
    let nested = (0..26).fold("(component)".to_owned(), |inside, _| {
        format!("(component {inside} (instance (instantiate 0)) (instance (instantiate 0)))")
    });
    let file = folder.path().join("bomb.wasm");
    std::fs::write(&file, wat::parse_str(nested).expect("wat")).expect("written");
    let gateway = gateway(&topic).plugin(Plugin::new("bomb", &file)).start_unready().await;
    assert_eq!(gateway.wait().await.code(), Some(1));
    let log = format!("{gateway:?}");
    assert!(log.contains("levels of nested components"), "{log}");
}
