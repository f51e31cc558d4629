//! From an empty directory to a running policy.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{CliFixture, guest, said, sha256, shared_builds};
use crate::support::repository;

#[test]
fn a_new_project_follows_its_readme() {
    let cli = CliFixture::new();
    cli.project("my-policy", "filter,grouping,offline");
    let readme = cli.read("my-policy/README.md");
    for step in ["halley plugin build", "halley plugin test", "halley plugin run < messages.jsonl"] {
        assert!(readme.contains(step), "{readme}");
    }

    let built = cli.plugin_in("my-policy", &["build"]);
    assert_eq!(built.code, Some(0), "{built:?}");
    let file = cli.path("my-policy/dist/my_policy.wasm");
    let hash = sha256(&file);
    for line in [
        "dist/my_policy.wasm".to_owned(),
        format!("  size          {} bytes, module", file.metadata().expect("built").len()),
        format!("  sha256        {hash}"),
        format!("  version       {}", &hash[..12]),
        "  contract      halley:policy@0.1.3".to_owned(),
        "  hooks         filter, grouping, offline, lifecycle".to_owned(),
    ] {
        assert!(built.out.contains(&line), "`{line}` is not in:\n{}", built.out);
    }

    let tested = cli.plugin_in("my-policy", &["test"]);
    assert_eq!((tested.code, tested.out.contains("4 of 4 cases passed")), (Some(0), true), "{tested:?}");

    let mut run = cli.command("my-policy", &["run"]);
    let ran =
        said(run.stdin(std::fs::File::open(cli.path("my-policy/messages.jsonl")).expect("it is there")));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let answers: Vec<&str> = ran.out.lines().map(str::trim).collect();
    assert_eq!(
        answers,
        [
            "1  filter    pass",
            "2  filter    drop: contains spam",
            "3  filter    pass",
            "4  grouping  c2: offline",
            "5  offline   store",
            "6  offline   drop"
        ]
    );

    let measured = cli.plugin_in("my-policy", &["bench", "--seconds", "0.1"]);
    assert_eq!(measured.code, Some(0), "{measured:?}");
    let lines = |hook: &str| measured.out.lines().filter(|line| line.starts_with(hook)).count();
    assert_eq!((lines("filter"), lines("offline"), lines("grouping")), (4, 4, 4), "{}", measured.out);
    assert!(measured.out.contains("memory of its instance: "), "{}", measured.out);
}

#[test]
fn each_hook_alone_makes_a_project_whose_tests_pass() {
    for hook in ["filter", "grouping", "offline"] {
        let cli = CliFixture::new();
        cli.project("one_hook", hook);
        let tested = cli.plugin(&["test", "one_hook"]);
        assert_eq!((tested.code, tested.out.contains("2 of 2 cases passed")), (Some(0), true), "{tested:?}");
        let inspected = cli.plugin(&["inspect", "one_hook/dist/one_hook.wasm", "--json"]);
        let json: Value = serde_json::from_str(&inspected.out).expect("JSON");
        assert_eq!(json["hooks"], serde_json::json!([hook, "lifecycle"]), "{json}");
        let properties = json["settings"]["properties"].as_object().expect("it describes its settings");
        assert!(properties.values().all(|setting| setting["description"].is_string()), "{json}");
        // Its Rust tests, without WebAssembly.
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--quiet"]).current_dir(cli.path("one_hook")).envs(shared_builds());
        let natively = said(&mut cargo);
        assert_eq!((natively.code, natively.out.contains("1 passed")), (Some(0), true), "{natively:?}");
    }
}

#[test]
fn bad_names_and_paths_are_refused_with_a_remedy() {
    let cli = CliFixture::new();
    for name in ["My-Policy", "1st", "a b", "test", "-x"] {
        let refused = cli.plugin(&["new", "--", name]);
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""), "{name}: {refused:?}");
        assert!(refused.err.contains("name"), "{}", refused.err);
    }
    std::fs::create_dir(cli.path("there")).expect("made");
    assert_eq!(cli.plugin(&["new", "there"]).code, Some(0), "an empty directory is accepted");
    let before = cli.read("there/src/lib.rs");
    let again = cli.plugin(&["new", "there", "--hook", "offline"]);
    assert_eq!(again.code, Some(2));
    assert!(again.err.contains("there exists already") && again.err.contains("--path"), "{}", again.err);
    assert_eq!(cli.read("there/src/lib.rs"), before, "nothing was changed");
    let unknown = cli.plugin(&["new", "x", "--hook", "route"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.err.contains("filter, retention, grouping, offline"), "{}", unknown.err);
}

#[test]
fn inspect_shows_contents_and_refusal() {
    let cli = CliFixture::new();
    let released = cli.plugin(&["inspect", &guest("released/0.1.0/duplicate_guard.wasm")]);
    assert_eq!(released.code, Some(0), "{released:?}");
    for line in
        ["contract      halley:policy@0.1.0", "hooks         filter, lifecycle", "halley:policy/host@0.1.0"]
    {
        assert!(released.out.contains(line), "{}", released.out);
    }
    let other = cli.plugin(&["inspect", &guest("dist/old.wasm")]);
    assert_eq!(other.code, Some(1));
    assert!(other.err.contains("a gateway would refuse it") && other.err.contains("0.1.3"), "{}", other.err);
    let bundled = repository("plugins/dist/keyword_filter.wasm").display().to_string();
    let described = cli.plugin(&["inspect", &bundled]);
    let row = "action       \"drop\" | \"mask\"   \"drop\"    What happens to a message that contains one of the words.";
    assert!(described.out.contains(row), "{}", described.out);
    let described = cli.plugin(&["inspect", &bundled, "--json"]);
    let json: Value = serde_json::from_str(&described.out).expect("JSON");
    assert_eq!(json["settings"]["properties"]["words"]["minItems"], 1, "the schema as it is");
    cli.write("text.wasm", "not code");
    let text = cli.plugin(&["inspect", "text.wasm"]);
    assert_eq!((text.code, text.err.contains("is not WebAssembly")), (Some(2), true), "{text:?}");
    assert_eq!(text.out, "", "no table of what is none");
    let gone = cli.plugin(&["inspect", "gone.wasm"]);
    assert_eq!((gone.code, gone.err.contains("gone.wasm cannot be read")), (Some(2), true), "{gone:?}");
}

#[test]
fn run_names_invalid_lines_and_shows_failures() {
    let cli = CliFixture::new();
    let unruly = guest("dist/unruly.wasm");
    let ask = |lines: &str, args: &[&str]| {
        let mut command = cli.command(".", &[&["run", unruly.as_str()], args].concat());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        // It may exit before it has read everything.
        drop(child.stdin.take().expect("piped").write_all(lines.as_bytes()));
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = ask("{\"room\":\"r\",\"body\":\"x\"}\n\n{\"rooom\":\"r\"}\n", &[]);
    assert_eq!(code, Some(2));
    assert!(out.contains("1  filter    pass"), "{out}");
    assert!(err.contains("line 3") && err.contains("unknown field `rooom`"), "{err}");

    let (code, out, _) =
        ask("{\"room\":\"r\",\"body\":\"trap\"}\n{\"room\":\"r\",\"body\":\"drop x\"}\n", &["--json"]);
    assert_eq!(code, Some(1), "one input failed");
    let answers: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(answers[0]["answer"][0].as_str().expect("text").starts_with("fail: trapped"), "{out}");
    assert_eq!(answers[1]["answer"][0], "drop: x");

    let (code, _, err) =
        ask("{\"room\":\"r\",\"body\":\"own-metrics\"}\n{\"room\":\"r\",\"body\":\"flood\"}\n", &[]);
    assert_eq!(code, Some(0));
    for left_out in ["limit=\"log\"", "limit=\"metrics\"", "a metric of the plugin is dropped"] {
        assert!(err.contains(left_out), "{left_out}: {err}");
    }
    assert!(!err.contains("limit=\"time\""), "only limits that were reached: {err}");
    assert!(err.contains("halley_plugin_counter_total{") && err.contains("halley::plugin"), "{err}");
    assert!(!err.contains('\u{1b}'), "no colours without a terminal");
}

#[test]
fn calls_have_the_gateways_deadline() {
    let cli = CliFixture::new();
    cli.write("loop.jsonl", "{\"room\":\"r\",\"body\":\"loop\"}\n");
    let unruly = guest("dist/unruly.wasm");
    let ask = |args: &[&str]| {
        let mut command = cli.command(".", &[&["run", &unruly, "-m", "loop.jsonl"], args].concat());
        said(command.env_remove("HALLEY_PLUGIN_DEADLINE"))
    };
    let gateways = ask(&[]);
    assert!(gateways.out.contains("exceeded its deadline of 50ms"), "{gateways:?}");
    assert!(gateways.err.contains("each call had 50ms, as a [[plugin]]"), "{gateways:?}");
    let own = ask(&["--deadline", "150ms"]);
    assert!(own.out.contains("exceeded its deadline of 150ms"), "{own:?}");
}

#[test]
fn the_binary_prints_its_contract() {
    let cli = CliFixture::new();
    let contract = std::fs::read_to_string(repository("wit/policy.wit")).expect("it is there");
    assert_eq!(cli.plugin(&["wit"]).out.trim_end(), contract.trim_end());
    assert_eq!(cli.plugin(&["wit", "--out", "contract"]).code, Some(0));
    assert_eq!(cli.read("contract/policy.wit"), contract);
    let again = cli.plugin(&["wit", "--out", "contract"]);
    assert_eq!((again.code, again.err.contains("cannot write")), (Some(2), true), "{again:?}");
}

#[test]
fn a_project_may_refer_to_an_sdk_and_be_in_another_language() {
    let cli = CliFixture::new();
    let sdk = repository("plugins/sdk").display().to_string();
    assert_eq!(cli.plugin(&["new", "refers", "--sdk", &sdk]).code, Some(0));
    let dependency = format!("halley-plugin = {{ path = \"{sdk}\", features = [\"schema\"] }}");
    assert!(cli.read("refers/Cargo.toml").contains(&dependency));
    assert!(!cli.path("refers/halley-plugin").exists());
    let wrong = cli.plugin(&["new", "wrong", "--sdk", "refers"]);
    assert_eq!((wrong.code, wrong.err.contains("is not the SDK")), (Some(2), true), "{wrong:?}");
    for (language, file) in
        [("javascript", "policy.js"), ("python", "policy.py"), ("go", "mask/mask.go"), ("c", "policy.c")]
    {
        assert_eq!(cli.plugin(&["new", language, "--language", language]).code, Some(0));
        assert!(
            cli.path(language).join(file).is_file() && cli.path(language).join("wit/policy.wit").is_file()
        );
    }
    let hook = cli.plugin(&["new", "x", "--language", "go", "--hook", "offline"]);
    assert_eq!((hook.code, hook.err.contains("--hook filter")), (Some(2), true), "{hook:?}");
    cli.write("go/halley-plugin.toml", "language = \"go\"\nworld = \"filters\"\n");
    let wrong = cli.plugin_in("go", &["build"]);
    assert_eq!((wrong.code, wrong.err.contains("filter-policy")), (Some(2), true), "{wrong:?}");
}
