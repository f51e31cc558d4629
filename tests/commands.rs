//! The command line.

use std::process::{Command, Output, Stdio};

use crate::support::child_process::ChildProcess;
use crate::support::comet::FakeComet;
use crate::support::gateway::{Plugin, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder, repository};

fn halley(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_halley")).args(args).output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(name: &str, text: &str) -> (tempfile::TempDir, String) {
    let folder = folder("commands");
    let file = folder.path().join(name);
    std::fs::write(&file, text).expect("written");
    let path = file.display().to_string();
    (folder, path)
}

#[test]
fn every_command_explains_itself() {
    let all = stdout(&halley(&["--help"]));
    for command in [
        "run",
        "demo",
        "check",
        "explain",
        "plugin",
        "replay",
        "bench",
        "dead-letter",
        "inbox",
        "archive",
        "config",
        "completions",
        "man",
    ] {
        assert!(all.contains(command), "{all}");
        let help = halley(&[command, "--help"]);
        assert!(help.status.success() && stdout(&help).contains("Usage: halley"), "{command}");
    }
    assert!(stdout(&halley(&["--version"])).starts_with("halley 0.1.0 ("));
    assert_eq!(halley(&["nonsense"]).status.code(), Some(2));
}

#[test]
fn unwritable_output_fails_except_for_a_closed_pipe() {
    let (_folder, file) = write("halley.toml", "[redis]\nurl = \"memory://\"\n");
    let run = |out: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.args(["check", "--config", &file]).stdout(out).output().expect("the binary runs")
    };
    let full = run(std::fs::File::options().write(true).open("/dev/full").expect("Linux").into());
    assert_eq!(full.status.code(), Some(1), "{full:?}");
    assert!(stderr(&full).contains("cannot write to standard output: No space left"), "{full:?}");
    for words in [&["--help"][..], &["-h"], &["help", "run"], &["--version"], &["plugin", "new", "--help"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux");
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        let said = command.args(words).stdout(full).output().expect("the binary runs");
        assert_eq!(said.status.code(), Some(1), "{words:?}: {said:?}");
        assert!(stderr(&said).contains("cannot write to standard output: No space left"), "{said:?}");
        let heard = halley(words);
        assert!(heard.status.success() && !heard.stdout.is_empty(), "{words:?}: {heard:?}");
    }
    assert_eq!(halley(&["--no-such"]).status.code(), Some(2));
    assert_eq!(halley(&[]).status.code(), Some(2));
    let (reader, closed) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(run(closed.into()).status.code(), Some(0), "`| head` has had enough");
}

#[test]
fn config_shows_what_is_active_and_why() {
    let text = "[kafka]\ngroup = \"from-file\"\n[kafka.properties]\n\"sasl.password\" = \"hush\"\n";
    let (_folder, file) = write("halley.toml", text);
    let show = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        let command = command.args(["config", "show", "--config", &file]).args(more);
        command.env("HALLEY__DELIVERY__MAX_BATCH", "7").output().expect("the binary runs")
    };
    let all = show(&[]);
    let said = stdout(&all);
    assert!(all.status.success(), "{all:?}");
    for (start, source) in [
        ("group = \"from-file\"", format!("# {file}:2")),
        ("max_batch = 7", "# environment variable HALLEY__DELIVERY__MAX_BATCH".to_owned()),
        ("session_timeout = \"30s\"", "# default".to_owned()),
        ("\"sasl.password\" = \"***\"", format!("# {file}:4")),
    ] {
        let line =
            said.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {said}"));
        assert!(line.ends_with(&source), "{line}");
    }
    assert!(!said.contains("hush"), "{said}");
    assert_eq!(show(&["--set"]).stdout.iter().filter(|byte| **byte == b'=').count(), 3);
    let json: serde_json::Value = serde_json::from_slice(&show(&["--set", "--json"]).stdout).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(3), "{json}");

    // The defaults are a configuration file, and the schema is JSON.
    let defaults = halley(&["config", "default"]);
    let (_folder, file) = write("halley.toml", &stdout(&defaults));
    assert!(stdout(&halley(&["config", "show", "--config", &file])).contains("brokers = "));
    let schema = halley(&["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).expect("JSON");
    assert!(schema["properties"]["kafka"].is_object(), "{schema}");
}

#[test]
fn packages_get_completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&halley(&["completions", shell]));
        assert!(script.contains("dead-letter"), "{shell}: {script}");
        assert!(!script.contains("compile-plugin"), "{shell} would offer what is not for people");
    }
    let folder = folder("man");
    let pages = folder.path().join("man1").display().to_string();
    let written = halley(&["man", &pages]);
    assert!(written.status.success(), "{written:?}");
    let page = |name: &str| std::fs::read_to_string(folder.path().join("man1").join(name)).expect(name);
    assert!(page("halley.1").contains("halley\\-dead\\-letter"), "{}", page("halley.1"));
    assert!(page("halley-dead-letter-redrive.1").contains(".SH OPTIONS"));
    assert_eq!(halley(&["man", "/dev/null/no"]).status.code(), Some(2));
}

#[test]
fn check_names_every_mistake_with_its_place() {
    let text = "[kafka]\nbrokerz = \"a:1\"\n\n[delivery]\ntimeout = \"soon\"\n\n[[plugin]]\nname = \"gone\"\npath = \"gone.wasm\"\n";
    let (_folder, file) = write("halley.toml", text);
    let checked = halley(&["check", "--config", &file]);
    assert_eq!(checked.status.code(), Some(2));
    let said = stderr(&checked);
    for expected in [
        &format!("{file}:2"),
        "`kafka.brokerz`: unknown key",
        &format!("{file}:5"),
        "plugin `gone`",
        "3 mistakes",
    ] {
        assert!(said.contains(expected), "`{expected}` is not in:\n{said}");
    }
    assert_eq!(halley(&["run", "--config", &file]).status.code(), Some(2), "run refuses it as well");
    assert_eq!(halley(&["check", "--config", "/nowhere.toml"]).status.code(), Some(2));
}

#[test]
fn check_finds_what_only_starting_would_show() {
    let text = "[kafka.properties]\n\"securty.protocol\" = \"SSL\"\n[admin]\nlisten = \"localhost\"\n[log]\nlevel = \"inof\"\n";
    let (_folder, file) = write("halley.toml", text);
    let checked = halley(&["check", "--config", &file]);
    assert_eq!(checked.status.code(), Some(2));
    let said = stderr(&checked);
    for expected in ["securty.protocol", "`admin.listen` is `localhost`", "`inof`", "3 mistakes"] {
        assert!(said.contains(expected), "`{expected}` is not in:\n{said}");
    }
}

#[test]
fn a_foreign_variable_that_is_not_utf_8_harms_nothing() {
    use std::os::unix::ffi::OsStrExt as _;
    let odd = std::ffi::OsStr::from_bytes(b"\xff");
    let checked = Command::new(env!("CARGO_BIN_EXE_halley")).arg("check").env("ODD", odd).output();
    let checked = checked.expect("the binary runs");
    assert!(checked.status.success(), "{}", stderr(&checked));
}

#[test]
fn check_approves_the_example() {
    let example = repository("examples/halley.toml").display().to_string();
    let checked = halley(&["check", "--config", &example]);
    assert!(checked.status.success(), "{}", stderr(&checked));
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_the_path_of_a_message() {
    let (redis, a, b) = (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", a.address()).await;
    redis.join("lobby", "conn_2", "user_2", b.address()).await;
    redis.join("lobby", "conn_3", "user_3", b.address()).await;
    redis.offline("user_3").await;
    let filter = Plugin::new("keyword-filter", repository("plugins/dist/keyword_filter.wasm"))
        .config(&serde_json::json!({ "words": ["spam"] }));
    let settings = gateway("unused").redis(&redis).set("kafka", "topics", format!("[{}]", quoted("push")));
    let (_folder, file) = write("halley.toml", &settings.plugin(filter).toml());

    let room = stdout(&halley(&["explain", "--config", &file, "--room", "lobby"]));
    for expected in [
        "connections: 3",
        &format!("{} BroadcastRoom for 1", a.address()),
        &format!("{} BroadcastRoom for 1", b.address()),
        "user_3 (not-online): store by [offline] default",
        "keyword-filter@",
    ] {
        assert!(room.contains(expected), "`{expected}` is not in:\n{room}");
    }
    let user = stdout(&halley(&["explain", "--config", &file, "--user", "user_2", "--json"]));
    let user: serde_json::Value = serde_json::from_str(&user).expect("JSON");
    assert_eq!(
        (&user["calls"][0]["comet"], &user["calls"][0]["method"]),
        (&b.address().as_str().into(), &"PushMsg".into())
    );
    let (_folder, message) = write("message.json", r#"{ "room": "lobby", "body": "buy spam" }"#);
    let dropped = stdout(&halley(&["explain", "--config", &file, "--message", &message]));
    assert!(dropped.contains("verdict   drop"), "{dropped}");
    assert_eq!(a.calls().len() + b.calls().len(), 0, "nothing was sent");
    let connected = halley(&["check", "--config", &file, "--connect"]);
    assert!(stdout(&connected).contains("SORT_RO"), "{}", stdout(&connected));
    let _ = kafka();
}

#[test]
fn the_demo_tour_passes() {
    let plugins = repository("plugins/dist").display().to_string();
    let demo = halley(&["demo", "--once", "--plugins", &plugins]);
    let told = stdout(&demo);
    assert!(demo.status.success(), "{told}\n{}", stderr(&demo));
    assert!(told.contains("Every step passed.") && !told.contains('✗'), "{told}");
    let missing = halley(&["demo", "--once", "--plugins", "/nowhere"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("make plugins"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_benchmark_counts_what_arrives_and_removes_its_users() {
    let redis = Redis::start().await;
    let topic = kafka().topic("benchmark", 2).await;
    let gateway = gateway(&topic).redis(&redis).start().await;
    let config = gateway.file().display().to_string();
    let bench = async |args: &[&str]| {
        let fixed = ["bench", "--config", &config, "--rooms", "4", "--users", "3", "--churn", "50"];
        let args: Vec<String> = fixed.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let run = move || Command::new(env!("CARGO_BIN_EXE_halley")).args(args).output();
        tokio::task::spawn_blocking(run).await.expect("joins").expect("the binary runs")
    };
    let kept = async || redis.run::<Vec<String>>(redis::cmd("KEYS").arg("*halley-bench*").to_owned()).await;

    let done = bench(&["--duration", "2s", "--rate", "100", "--json"]).await;
    let report: serde_json::Value =
        serde_json::from_str(&stdout(&done)).unwrap_or_else(|_| panic!("{done:?}"));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"));
    assert_eq!([count("lost"), count("repeated"), count("reordered")], [0; 3], "{report}");
    // One more for each room at the beginning, and both comets get everything.
    assert!(count("sent") > 4 && count("received") == 2 * count("sent"), "{report}");
    assert!(report["p50_ms"].as_f64() <= report["p99_ms"].as_f64() && report["p99_ms"].is_f64(), "{report}");
    assert_eq!(kept().await, [""; 0], "its users are gone");

    assert_eq!(count("streamed"), 0, "its comets serve calls only, unless they are told to: {report}");

    // By streams, which the gateway takes where comets serve them.
    let streamed = bench(&["--duration", "2s", "--rate", "100", "--delivery", "stream", "--json"]).await;
    let report: serde_json::Value =
        serde_json::from_str(&stdout(&streamed)).unwrap_or_else(|_| panic!("{streamed:?}"));
    assert_eq!(streamed.status.code(), Some(0), "{streamed:?}");
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"));
    assert_eq!([count("lost"), count("repeated"), count("reordered")], [0; 3], "{report}");
    assert!(count("streamed") > 200 && count("streamed") == count("received"), "{report}");
    assert_eq!(kept().await, [""; 0], "its users are gone");

    // So they are when it is stopped.
    let args = ["bench", "--config", &config, "--duration", "1m"].map(str::to_owned);
    let mut stopped =
        ChildProcess::start(env!("CARGO_BIN_EXE_halley"), &args, folder("bench")).expect("the binary starts");
    let has_users = async || (!kept().await.is_empty()).then_some(());
    eventually("users of the benchmark", PATIENCE, has_users).await;
    stopped.signal("TERM");
    assert!(stopped.wait(PATIENCE).await.is_some(), "{}", stopped.log());
    assert!(stopped.log().contains("interrupted"), "{}", stopped.log());
    assert_eq!(kept().await, [""; 0], "{}", stopped.log());

    // A benchmark in which nothing could arrive does not begin.
    for (delivery, of_gateway) in [("unary", "stream"), ("stream", "unary")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.args(["bench", "--config", &config, "--delivery", delivery]);
        let refused = command.env("HALLEY__COMETS__DELIVERY", of_gateway).output().expect("the binary runs");
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let why = format!("`[comets] delivery` is `{of_gateway}`");
        assert!(stderr(&refused).contains(&why), "{refused:?}");
    }

    // Not where real users are, unless that is what is wanted.
    kafka().produce_room(&topic, "lobby", "hello").await;
    redis.join("lobby", "conn_1", "user_1", "127.0.0.1:1").await;
    let refused = bench(&["--duration", "100ms"]).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    for doubt in ["such as `lobby`", "holds messages of others", "pass --yes"] {
        assert!(stderr(&refused).contains(doubt), "{refused:?}");
    }
    let forced = bench(&["--duration", "100ms", "--yes"]).await;
    assert!(forced.status.success() && stdout(&forced).contains("lost       0"), "{forced:?}");
    assert_eq!(kept().await, [""; 0]);
    assert_eq!(redis.run::<u32>(redis::cmd("EXISTS").arg("room:connections:lobby").to_owned()).await, 1);
}
