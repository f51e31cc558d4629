//! Operators change policies on a live system, over the command line, if they are authorized.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::faults::world::World;
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::history::{VERSION_PLACE, version_mark};
use crate::support::kafka::kafka;
use crate::support::{folder, repository, secret};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_pushed_gone_back_from_and_released_under_load_lose_repeat_and_reorder_nothing() {
    let files = folder("steering");
    let world = World::new("steering", 8, 3).await;
    let gateway = with_plugins(world.gateway().await).start().await;
    let run = |args: &[&str]| plugin(&gateway, args);
    let first = hashes(&gateway).await;
    world
        .load_during(async {
            for number in 1..=5 {
                let (one, other) =
                    (variant(files.path(), "one", number), variant(files.path(), "other", number));
                let said = succeeded(&run(&["push", &one, &other]));
                assert!(said.contains("one@") && said.contains("other@"), "{said}");
                world.wait_for_work(50).await;
            }
            let pushed = hashes(&gateway).await;
            assert!(pushed.iter().zip(&first).all(|(new, old)| new != old));

            let (one, bad) = (variant(files.path(), "one", 9), files.path().join("other.wasm"));
            std::fs::write(&bad, b"hello").expect("writable folder");
            let why = failed(&run(&["push", &one, &text(&bad)]));
            assert!(why.contains("plugin `other`") && why.contains("is not WebAssembly"), "{why}");
            assert_eq!(hashes(&gateway).await, pushed, "all of it or nothing");

            let said = succeeded(&run(&["rollback", "one"]));
            assert!(said.contains("overriding its file: rolled back"), "{said}");
            let back = hashes(&gateway).await;
            assert!(back[0] != pushed[0] && back[1] == pushed[1], "{back:?}");
            let listed = succeeded(&run(&["versions", "one"]));
            assert!(listed.contains(&back[0]) && listed.contains("rolled-back"), "{listed}");
            succeeded(&run(&["rollback", "one", "--to", &pushed[0][..12]]));
            assert_eq!(hashes(&gateway).await, pushed);
            world.wait_for_work(50).await;
            for name in ["one", "other"] {
                succeeded(&run(&["release", name]));
            }
            world.wait_for_work(50).await;
        })
        .await;
    assert_eq!(hashes(&gateway).await, first, "the files decide again");
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

#[tokio::test]
async fn what_cannot_be_done_is_explained() {
    let topic = kafka().topic("explained", 1).await;
    let gateway = with_plugins(gateway(&topic)).start().await;
    let run = |args: &[&str]| plugin(&gateway, args);
    let bundled = text(&repository("plugins/dist/comet_drain.wasm"));
    assert!(failed(&run(&["push", &bundled])).contains("plugin `comet_drain` is not configured"));
    assert!(failed(&run(&["rollback", "one"])).contains("has no known-good version to roll back to"));
    assert!(failed(&run(&["rollback", "one", "--to", "ffff"])).contains("version ffff not found"));
    assert!(failed(&run(&["status", "nobody"])).contains("plugin `nobody` not found"));
    assert!(failed(&run(&["push", "nowhere.wasm"])).contains("nowhere.wasm cannot be read"));
    let two = run(&["push", &bundled, &bundled, "--name", "one"]);
    assert_eq!(two.status.code(), Some(2), "{two:?}");
    let shown = succeeded(&run(&["status"]));
    assert!(shown.contains("generation 1") && shown.contains("one@") && shown.contains("filter"), "{shown}");
    let json: serde_json::Value =
        serde_json::from_str(&succeeded(&run(&["status", "--json"]))).expect("JSON");
    assert_eq!(json["plugins"][0]["name"], "one");

    // A console can show what can be set; so does the command.
    let described = gateway.get("/v1/plugins/one/settings").await.json();
    assert_eq!(described["schema"]["properties"]["words"]["description"], "What to look for.");
    let keys: Vec<_> =
        described["fields"].as_array().into_iter().flatten().map(|field| &field["key"]).collect();
    assert_eq!((keys.len(), keys[0]), (7, &json!("action")), "{described}");
    let shown = succeeded(&run(&["settings", "one"]));
    assert!(shown.contains("required") && shown.contains("What to look for."), "{shown}");
    let nobody = failed(&run(&["settings", "nobody"]));
    assert!(nobody.contains("plugin `nobody` not found; active: `one`, `other`"), "{nobody}");
    let file = run(&["settings", &bundled]);
    let said = String::from_utf8_lossy(&file.stderr).into_owned();
    assert!(file.status.code() == Some(2) && said.contains("halley plugin inspect"), "{said}");
    let unknown = gateway.get("/v1/nothing").await;
    assert!(unknown.status == 404 && unknown.body.contains("unknown path; there are"), "{}", unknown.body);

    let nobody = halley(&["plugin", "status", "--gateway", "http://127.0.0.1:1"]);
    assert!(failed(&nobody).contains("gateway unreachable at http://127.0.0.1:1/"), "{nobody:?}");
}

#[tokio::test]
async fn the_api_bounds_and_refuses() {
    let topic = kafka().topic("bounded", 1).await;
    let gateway = with_plugins(gateway(&topic)).start().await;
    let send = async |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
        gateway.operate(method, path, headers, body).await
    };
    let refused = send("PUT", "/v1/plugins/one", &[], b"hello").await;
    assert_eq!(refused.status, 422);
    assert!(refused.json()["problems"][0].as_str().is_some_and(|why| why.contains("is not WebAssembly")));
    assert_eq!(send("PUT", "/v1/plugins/nobody", &[], b"hello").await.status, 404);
    assert_eq!(send("PUT", "/v1/plugins/one", &[("content-length", "99999999999")], b"").await.status, 413);
    assert_eq!(send("PUT", "/v1/plugins", &[], b"no form").await.status, 400);
    assert_eq!(send("DELETE", "/v1/plugins/one", &[], b"").await.status, 405);
    assert_eq!(
        send("POST", "/v1/plugins/one/rollback", &[("origin", "http://evil.example")], b"").await.status,
        403
    );
    assert_eq!(send("POST", "/v1/plugins/one/release", &[], b"").await.status, 200);
    assert_eq!(send("GET", "/v1/plugins/one/versions", &[], b"").await.json()["plugin"], "one");
    assert_eq!(gateway.get("/v1/plugins").await.json()["generation"], 1, "nothing has changed");
}

#[tokio::test]
async fn writes_over_tcp_need_a_token() {
    let topic = kafka().topic("token", 1).await;
    let open = with_plugins(gateway(&topic)).set("admin", "listen", quoted("0.0.0.0:0"));
    let plugin = |gateway: &RunningGateway, args: &[&str]| {
        halley(&[&["plugin"], args, &["--gateway", &gateway.url()]].concat())
    };
    let without = open.clone().start().await;
    assert!(failed(&plugin(&without, &["release", "one"])).contains("set `[admin] token_file`"));
    assert!(failed(&plugin(&without, &["status"])).contains("set `[admin] read_token_file`"));

    let files = folder("token");
    let (token, other) = (files.path().join("token"), files.path().join("other"));
    secret(&token, "the-first-token-of-this-story\n");
    secret(&other, "another-token-than-the-gateways\n");
    let gateway = open.set("admin", "token_file", quoted(&text(&token))).start().await;
    let release = |more: &[&str]| plugin(&gateway, &[&["release", "one"], more].concat());
    assert!(failed(&release(&[])).contains("writes require a token"));
    assert!(failed(&release(&["--token-file", &text(&other)])).contains("token does not match"));
    succeeded(&release(&["--token-file", &text(&token)]));
    std::fs::rename(&other, &token).expect("writable folder");
    succeeded(&release(&["--token-file", &text(&token)]));
    let log = format!("{:?}", gateway.log_lines());
    assert!(
        !log.contains("the-first-token") && !log.contains("another-token"),
        "tokens do not stand in the log"
    );
}

/// Two policies that change nothing that is sent here.
fn with_plugins(settings: Gateway) -> Gateway {
    let mask = json!({
        "words": [VERSION_PLACE.to_string()], "action": "mask", "mask": version_mark(1).to_string(),
    });
    let plugin = |name: &str| {
        Plugin::new(name, repository("plugins/dist/keyword_filter.wasm"))
            .set("deadline", quoted("5s"))
            .config(&mask)
    };
    settings.plugin(plugin("one")).plugin(plugin("other"))
}

async fn hashes(gateway: &RunningGateway) -> Vec<String> {
    let status = gateway.get("/v1/plugins").await.json();
    let hash = |name: &str| {
        let plugins = status["plugins"].as_array().expect("a list");
        let plugin = plugins.iter().find(|plugin| plugin["name"] == name).expect("it is active");
        plugin["hash"].as_str().expect("a text").to_owned()
    };
    ["one", "other"].map(hash).to_vec()
}

/// The keyword filter with other bytes, in a file of this name.
fn variant(folder: &Path, name: &str, number: u8) -> String {
    let mut bytes =
        std::fs::read(repository("plugins/dist/keyword_filter.wasm")).expect("`make plugins` built it");
    // A custom section more.
    bytes.extend([0, 3, 1, b'v', number]);
    let path = folder.join(format!("{name}.wasm"));
    std::fs::write(&path, bytes).expect("writable folder");
    text(&path)
}

pub fn plugin(gateway: &RunningGateway, args: &[&str]) -> Output {
    halley(&[&["plugin"], args, &["--gateway", &gateway.operator()]].concat())
}

pub fn halley(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_halley")).args(args).output().expect("the binary runs")
}

pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn text(path: &Path) -> String {
    path.display().to_string()
}
