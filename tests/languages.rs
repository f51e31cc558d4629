//! Policies in other languages: each bundled example is built with its ecosystem's own tools, loaded
//! like any plugin with the default limits, and decides like the Rust version.
//!
//! `plugins/languages/build.sh` builds them once, until something changes. If the tools of a language
//! are not available, the test prints that this language is not proven.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use halley::decision::Verdict;
use halley::message::{Audience, Message, MessageId, Origin, Record};
use halley::policy::{Chain, PluginConfig, Policies};
use halley::wasm::Runtime;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::support::comet::FakeComet;
use crate::support::gateway::{Plugin, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{folder, print_uncaptured, repository};

/// The exit code of `build.sh` if the tools of a language are not available.
const LACKING: i32 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn javascript_decides_as_rust_does() {
    decides_as_rust_does("javascript").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_decides_as_rust_does() {
    decides_as_rust_does("python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c_decides_as_rust_does() {
    decides_as_rust_does("c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_decides_as_rust_does() {
    decides_as_rust_does("go").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_not_rust_decides_in_a_gateway() {
    let built = {
        let _turn = ONE_AT_A_TIME.lock().await;
        tokio::task::spawn_blocking(|| built("c")).await.expect("it does not panic")
    };
    let Some(file) = built else { return };
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("languages", 1).await;
    let plugin = Plugin::new("mask-words", file).set("deadline", quoted("5s")).config(&words());
    let gateway = gateway(&topic).redis(&redis).plugin(plugin).start().await;
    for body in ["hello", "", "buy spam", "看广告"] {
        kafka().produce_room(&topic, "lobby", body).await;
    }
    gateway.wait_until_settled(&topic).await;
    let heard: Vec<String> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(heard, ["hello", "buy 口口口口", "看口口"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exception_of_a_new_python_project_is_in_the_failure_and_the_log() {
    let _turn = ONE_AT_A_TIME.lock().await;
    tokio::task::spawn_blocking(a_python_project_raises).await.expect("it does not panic");
}

/// As an author would use it: a project is created, changed, built and run.
fn a_python_project_raises() {
    let desk = folder("python");
    let halley = |place: &Path, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.arg("plugin").args(args).current_dir(place).stdin(Stdio::null());
        let done = command.env("HALLEY_CACHE", repository(".cache")).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    let made = halley(desk.path(), &["new", "raises", "--language", "python"]);
    assert_eq!(made.0, Some(0), "{made:?}");
    let project = desk.path().join("raises");
    let source = std::fs::read_to_string(project.join("policy.py")).expect("it was made");
    let begin = "def verdict(message):\n";
    let raises = format!("{begin}    if message.body == b\"boom\":\n        raise ValueError(\"a boom\")\n");
    assert!(source.contains(begin), "{source}");
    std::fs::write(project.join("policy.py"), source.replace(begin, &raises)).expect("written");
    let questions = ["boom", "spam"].map(|body| format!("{{\"room\":\"r\",\"body\":\"{body}\"}}\n"));
    std::fs::write(project.join("messages.jsonl"), questions.concat()).expect("written");

    let (code, out, err) = halley(&project, &["run", "--deadline", "10s", "-m", "messages.jsonl"]);
    if err.contains("languages: python is not built: ") {
        print_uncaptured(format!("languages: exceptions in Python are NOT PROVEN here:\n{err}"));
        return;
    }
    assert_eq!(code, Some(1), "{out}{err}");
    let failure = "it printed: Traceback (most recent call last): | File \"/0/policy.py\"";
    assert!(out.contains(failure) && out.contains("ValueError: a boom"), "{out}");
    assert!(out.contains("2  filter    body: \"####\""), "{out}");
    assert!(err.contains("WARN halley::plugin: ValueError: a boom"), "{err}");
}

/// One language at a time: two share tools, which are fetched once, and compiling a component as large
/// as a JavaScript engine would starve the stories that run in parallel.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn decides_as_rust_does(language: &'static str) {
    let _turn = ONE_AT_A_TIME.lock().await;
    let built = tokio::task::spawn_blocking(move || built(language)).await.expect("it does not panic");
    let Some(file) = built else { return };
    let rust = load(bundled("mask_words"), "rust", words());
    let bundled_filter = load(bundled("keyword_filter"), "keyword-filter", as_keyword_filter());
    let loaded = load(file.clone(), language, words());
    let mut chains =
        [&loaded, &rust, &bundled_filter].map(|policies: &Arc<Policies>| policies.current().chain());
    for size in [1, 16, 64] {
        let messages = mixed(size);
        let [theirs, ours, filters] = chains.each_mut().map(|chain| decisions(chain, &messages));
        assert_eq!(theirs, ours, "{language} and Rust, in batches of {size}");
        let of_text = |all: &[Result<String, String>]| -> Vec<Result<String, String>> {
            all.iter().zip(&messages).filter(|(_, m)| !m.body.is_empty()).map(|(d, _)| d.clone()).collect()
        };
        assert_eq!(of_text(&theirs), of_text(&filters), "{language} and keyword-filter");
    }
    for (config, reason) in [
        (json!({}), "config"),
        (json!({ "words": [] }), "config.words: name at least one"),
        (json!({ "words": ["spam", ""] }), "config.words: name at least one"),
        (json!({ "words": ["spam"], "mask": "##" }), "config.mask: give one character"),
        (json!({ "words": ["spam"], "word": 1 }), "unknown field"),
    ] {
        refuses(&loaded, plugin(file.clone(), language, config), reason).await;
    }
}

/// A new configuration is refused with the plugin's own reason, and the one before it stays.
async fn refuses(policies: &Policies, plugin: PluginConfig, reason: &str) {
    let config = plugin.config.to_string();
    let refused = policies.replace(vec![plugin]).await.expect_err(&config);
    let problems = format!("{refused:?}");
    assert!(
        problems.contains("refused its configuration") && problems.contains(reason),
        "{config}: {problems}"
    );
    assert_eq!(policies.current().generation().0, 1, "the active set stays");
}

/// The built example of a language; `None` if its tools are not available.
fn built(language: &str) -> Option<PathBuf> {
    let script = repository("plugins/languages/build.sh");
    let run = Command::new(script).arg(language).output().expect("a shell");
    let said = String::from_utf8_lossy(&run.stderr);
    match run.status.code() {
        Some(0) => Some(repository(&format!("plugins/languages/dist/mask_words_{language}.wasm"))),
        Some(LACKING) => {
            print_uncaptured(format!("languages: policies in {language} are NOT PROVEN here:\n{said}"));
            None
        }
        _ => panic!("plugins/languages/build.sh {language} failed:\n{said}"),
    }
}

fn bundled(name: &str) -> PathBuf {
    let file = repository(&format!("plugins/dist/{name}.wasm"));
    assert!(file.is_file(), "{} is not there; run `make plugins`", file.display());
    file
}

fn words() -> Value {
    json!({ "words": ["spam", "a.b", "spammer", "广告", "🎉", "c\"d\\"], "mask": "口" })
}

/// The same words for the bundled filter, which has more options.
fn as_keyword_filter() -> Value {
    let mut config = words();
    config["action"] = "mask".into();
    config["ignore_case"] = false.into();
    config
}

fn plugin(file: PathBuf, name: &str, config: Value) -> PluginConfig {
    // The default memory limit. A machine that is busy with other tests must not look like a slow plugin.
    PluginConfig { deadline: Duration::from_secs(10), config, ..PluginConfig::new(name, file) }
}

fn load(file: PathBuf, name: &str, config: Value) -> Arc<Policies> {
    let mut registry = prometheus_client::registry::Registry::default();
    let runtime = Runtime::new(&mut registry).expect("an engine");
    Policies::start(runtime, &[plugin(file, name, config)]).unwrap_or_else(|refused| panic!("{refused:?}"))
}

/// The outcome of each message: its delivered body, or why it is dropped.
fn decisions(chain: &mut Chain, messages: &[Message]) -> Vec<Result<String, String>> {
    let filtered = chain.filter("push", 0, messages.to_vec()).expect("nothing stalls");
    let decision = |one: halley::decision::FilteredMessage| match one.verdict {
        Verdict::Pass => {
            let failed = one
                .trail
                .iter()
                .find(|entry| matches!(entry.effect, halley::decision::Effect::Failed { .. }));
            assert_eq!(failed, None, "{:?}", one.message.body);
            Ok(one.message.body.escape_ascii().to_string())
        }
        Verdict::Drop { reason, .. } | Verdict::DeadLetter { reason, .. } => Err(reason),
    };
    filtered.into_iter().map(decision).collect()
}

/// Bodies of all kinds, the same in every run: assembled from words, halves of words, regular-expression
/// characters, other alphabets, and bytes that are not UTF-8.
fn mixed(count: usize) -> Vec<Message> {
    const PIECES: [&[u8]; 14] = [
        b"spam",
        b"spammer",
        b"spa",
        b"SPAM",
        "广告".as_bytes(),
        "广".as_bytes(),
        "🎉".as_bytes(),
        b"a.b",
        b"axb",
        b"c\"d\\",
        b" ",
        "é".as_bytes(),
        b"\xff",
        b"\xed\xa0\x80",
    ];
    let mut random = fastrand::Rng::with_seed(count as u64);
    let body = |random: &mut fastrand::Rng| -> Vec<u8> {
        // Most bodies are UTF-8, whose pieces are the first ones.
        let kinds = if random.u8(..4) == 0 { PIECES.len() } else { PIECES.len() - 2 };
        (0..random.usize(..12)).flat_map(|_| PIECES[random.usize(..kinds)]).copied().collect()
    };
    let mut bodies = vec![b"a spammer's spam".to_vec()];
    bodies.extend((1..count).map(|_| body(&mut random)));
    (0..).zip(bodies).map(|(offset, body)| message(offset, body)).collect()
}

fn message(offset: i64, body: Vec<u8>) -> Message {
    let origin = Origin { topic: "push".into(), partition: 0, offset };
    let record =
        Record { origin, timestamp_ms: Some(1), key: None, value: None, headers: Vec::new(), trusted: false };
    Message {
        id: MessageId::from(format!("push/0/{offset}").as_str()),
        record: Arc::new(record),
        audience: Audience::Room("video_1".into()),
        operation: 4,
        body: body.into(),
    }
}
