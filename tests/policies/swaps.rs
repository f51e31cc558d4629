//! Files of policies that change while messages flow: swaps under load, broken files, and a watched
//! directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{PolicyFixture, generation, generation_after, wasm};
use crate::support::gateway::{Gateway, Plugin, quoted};
use crate::support::{PATIENCE, eventually, folder, print_uncaptured, resident_kib};

#[tokio::test]
async fn an_unreadable_plugin_file_stops_nothing() {
    let fixture = PolicyFixture::new("stray").await;
    let home = folder("plugins");
    std::fs::copy(wasm("tests/guests/dist/unruly.wasm"), home.path().join("unruly.wasm")).expect("copied");
    let pipe = home.path().join("stray.wasm");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()));
    let directory = quoted(&home.path().display().to_string());
    let gateway = fixture.settings.clone().set("policies", "directory", directory).start().await;
    fixture.say("drop this").await;
    fixture.say("hello").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), ["hello"], "the other plugins decide");
    let ready = gateway.get("/readyz").await;
    assert!(ready.status == 200 && ready.body.contains("plugin `stray`"), "{ready:?}");
    let status = gateway.get("/v1/plugins").await.json();
    assert_eq!(status["left_out"][0]["path"].as_str(), pipe.to_str(), "{status}");
    let why = status["left_out"][0]["message"].as_str().unwrap_or_default();
    assert!(why.contains("is not a file, but a pipe"), "{status}");
    gateway.wait_for_log("skipping an unreadable file of the plugin directory").await;
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_halley"));
    let checked = check.arg("check").arg("--config").arg(gateway.file()).output().expect("it runs");
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.code() == Some(2) && said.contains("plugin `stray`"), "{said}");
}

#[tokio::test]
async fn a_broken_file_leaves_the_running_version_in_place() {
    let fixture = PolicyFixture::new("broken").await;
    let home = folder("plugin");
    let file = home.path().join("filter.wasm");
    std::fs::copy(wasm("plugins/dist/keyword_filter.wasm"), &file).expect("copied");
    let plugin = || {
        Plugin::new("filter", &file)
            .set("deadline", quoted("5s"))
            .config(&json!({ "words": ["spam"], "action": "mask" }))
    };
    let gateway = fixture.start([plugin()]).await;
    let before = generation(&gateway).await;

    let refusals: [(&[u8], &str); 3] = [
        (b"no wasm at all", "filter"),
        (&std::fs::read(wasm("tests/guests/dist/old.wasm")).expect("built"), "0.0.9"),
        (&std::fs::read(&file).expect("copied")[..2000], "filter"),
    ];
    for (content, expected) in refusals {
        replace(&file, content);
        let said = async || {
            let refusal = gateway.get("/v1/plugins").await.json()["last_refusal"].to_string();
            refusal.contains(expected).then_some(refusal)
        };
        eventually(format!("a refusal that names {expected}"), PATIENCE, said).await;
        fixture.comet.forget();
        fixture.say("spam").await;
        gateway.wait_until_settled(&fixture.topic).await;
        assert_eq!(fixture.heard(), ["****"]);
    }
    assert_eq!(generation(&gateway).await, before);
    std::fs::copy(wasm("plugins/dist/keyword_filter.wasm"), &file).expect("copied");
    gateway.configure(&fixture.settings.clone().plugin(plugin().config(&json!({ "words": "not a list" }))));
    let said = async || {
        let refusal = gateway.get("/v1/plugins").await.json()["last_refusal"].to_string();
        refusal.contains("words").then_some(())
    };
    eventually("a refusal that names the key", PATIENCE, said).await;
}

#[tokio::test]
async fn a_policy_in_the_directory_is_activated_at_once() {
    let fixture = PolicyFixture::new("drop-in").await;
    let home = folder("policies");
    let directory = quoted(&home.path().display().to_string());
    let gateway = fixture.settings.clone().set("policies", "directory", directory).start().await;
    let before = generation(&gateway).await;
    std::fs::copy(wasm("tests/guests/dist/unruly.wasm"), home.path().join("mine.wasm")).expect("copied");
    generation_after(&gateway, before).await;
    fixture.say("body changed").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), ["changed"]);
    assert_eq!(gateway.get("/v1/plugins").await.json()["plugins"][0]["name"], "mine");
}

#[tokio::test]
async fn a_thousand_swaps_lose_repeat_and_leak_nothing() {
    const SWAPS: u64 = 1000;
    let fixture = PolicyFixture::new("swaps").await;
    let home = folder("plugins");
    let files = ["first.wasm", "second.wasm"].map(|name| home.path().join(name));
    let module = std::fs::read(wasm("plugins/dist/keyword_filter.wasm")).expect("built");
    files.iter().for_each(|file| std::fs::write(file, &module).expect("written"));
    let settings = fixture.settings.clone().set("policies", "debounce", quoted("20ms"));
    let gateway = agreeing(&settings, &files, 0).start().await;

    let swapping = std::sync::atomic::AtomicBool::new(true);
    let load = async {
        let mut sent = 0;
        while swapping.load(std::sync::atomic::Ordering::Relaxed) {
            fixture.say(&format!("{sent} spam eggs")).await;
            sent += 1;
        }
        sent
    };
    let swaps = async {
        let (mut first, mut early, mut seen) = (0, 0, generation(&gateway).await);
        for swap in 1..=SWAPS {
            if swap % 10 == 0 {
                // Different bytes, so that every swap compiles new code and frees old code.
                replace(&files[0], &variant(&module, swap));
            }
            gateway.configure(&agreeing(&settings, &files, swap));
            seen = generation_after(&gateway, seen).await;
            if swap == 10 {
                first = resident_kib(gateway.pid());
            }
            if swap == SWAPS / 10 {
                early = resident_kib(gateway.pid());
            }
        }
        swapping.store(false, std::sync::atomic::Ordering::Relaxed);
        (first, early, resident_kib(gateway.pid()))
    };
    let (sent, (first, early, late)) = tokio::join!(load, swaps);
    gateway.wait_until_settled(&fixture.topic).await;

    let heard = fixture.heard();
    let number = |body: &String| body.split(' ').next().and_then(|n| n.parse::<u32>().ok());
    let numbers: Vec<_> = heard.iter().map(number).collect();
    assert_eq!(numbers, (0..sent).map(Some).collect::<Vec<_>>(), "nothing lost, repeated or reordered");
    let forms: BTreeSet<_> =
        heard.iter().filter_map(|body| body.split_once(' ')).map(|(_, form)| form).collect();
    assert_eq!(
        forms,
        BTreeSet::from(["**** ****", "#### ####"]),
        "both policies of a message belong to one set"
    );
    print_uncaptured(format_args!(
        "resident after 10 swaps {first} KiB, after {} {early} KiB, after {SWAPS} and {sent} messages {late} KiB: {:.3}x of after 10",
        SWAPS / 10,
        late as f64 / first as f64
    ));
    assert!(late * 10 <= first * 11, "{first} KiB after 10 swaps, {late} KiB after {SWAPS}");
}

/// Two policies that have to agree: a message that was decided by two sets would show it. All swaps
/// differ, so that each one creates a generation.
fn agreeing(settings: &Gateway, files: &[PathBuf; 2], swap: u64) -> Gateway {
    let mask = if swap.is_multiple_of(2) { "*" } else { "#" };
    let plugin = |name, file, word| {
        let masking = json!({ "words": [word], "action": "mask", "mask": mask });
        let deadline = quoted(&format!("{}ms", 5000 + swap));
        Plugin::new(name, file).set("deadline", deadline).config(&masking)
    };
    settings.clone().plugin(plugin("first", &files[0], "spam")).plugin(plugin("second", &files[1], "eggs"))
}

/// Replaces a file atomically.
fn replace(file: &Path, content: &[u8]) {
    let aside = file.with_extension("aside");
    std::fs::write(&aside, content).and_then(|()| std::fs::rename(&aside, file)).expect("renamed");
}

/// The same module with different bytes: one more custom section.
fn variant(module: &[u8], number: u64) -> Vec<u8> {
    [module, &[0, 10, 1, b'v'], &number.to_le_bytes()].concat()
}
