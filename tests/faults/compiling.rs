//! Plugins that compile for minutes: whoever asks the gateway to end does not wait for them.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::gateway::{Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::{PATIENCE, eventually, folder, repository};

const SLOW: &str = "compiling a plugin takes its time; what is active stays so meanwhile";

/// A component of a megabyte that exports a hook, and for which a compiler needs more than a minute:
/// one function with many variables that are all alive at once.
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
    let name = b"halley:policy/filter@0.1.1";
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

/// Waits until the log says that it is at the slow one; on a busy machine every plugin takes its time.
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
    let settings = gateway(&topic).plugin(plugin);

    let running = settings.clone().start().await;
    write_slow_component(&file.with_extension("new"));
    std::fs::rename(file.with_extension("new"), &file).expect("renamed");
    compiles(&running).await;
    let status = running.get("/v1/plugins").await.json();
    assert!(status["preparing_since"].is_string(), "{status}");
    assert!(running.sigterm().await.success(), "drained and ended, with the compiler at work");

    // Also while the first set is being compiled.
    let starting = settings.start_unready().await;
    compiles(&starting).await;
    assert!(starting.sigterm().await.success());
}
