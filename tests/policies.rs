//! What policies decide, in the gateway: each bundled policy, hot swaps under load, broken files, and
//! misbehaving guests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::comet::{FakeComet, To};
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder, print_uncaptured, repository, resident_kib};

/// A bundled policy, as `make plugins` built it.
fn bundled(name: &str) -> Plugin {
    // A generous deadline: a machine that is busy with other tests must not look like a slow plugin.
    Plugin::new(name, wasm(&format!("plugins/dist/{}.wasm", name.replace('-', "_"))))
        .set("deadline", quoted("5s"))
}

/// The guest that does what message bodies tell it.
fn unruly(name: &str) -> Plugin {
    Plugin::new(name, wasm("tests/guests/dist/unruly.wasm")).set("deadline", quoted("300ms"))
}

fn wasm(path: &str) -> PathBuf {
    let file = repository(path);
    assert!(file.is_file(), "{path} is missing; run `make plugins`");
    file
}

/// A room `lobby` with one user on one comet, and a gateway that knows them.
struct PolicyFixture {
    redis: Redis,
    comet: FakeComet,
    topic: String,
    settings: Gateway,
}

impl PolicyFixture {
    async fn new(name: &str) -> Self {
        let (redis, comet) = (Redis::start().await, FakeComet::start().await);
        redis.join("lobby", "conn_1", "user_1", comet.address()).await;
        let topic = kafka().topic(name, 1).await;
        kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
        kafka().create_topic(&format!("{topic}.offline"), 1).await;
        let settings = gateway(&topic).redis(&redis);
        Self { redis, comet, topic, settings }
    }

    async fn start(&self, plugins: impl IntoIterator<Item = Plugin>) -> RunningGateway {
        plugins.into_iter().fold(self.settings.clone(), Gateway::plugin).start().await
    }

    async fn say(&self, body: &str) {
        kafka().produce_room(&self.topic, "lobby", body).await;
    }

    fn heard(&self) -> Vec<String> {
        self.comet.deliveries().into_iter().map(|(_, _, body)| body).collect()
    }
}

/// Waits until a later generation than this one is active.
async fn generation_after(gateway: &RunningGateway, before: u64) -> u64 {
    let now = async || Some(generation(gateway).await).filter(|now| *now > before);
    eventually("a new generation of policies", PATIENCE, now).await
}

async fn generation(gateway: &RunningGateway) -> u64 {
    gateway.get("/v1/plugins").await.json()["generation"].as_u64().expect("a number")
}

#[tokio::test]
async fn the_keyword_filter_drops_or_masks() {
    let fixture = PolicyFixture::new("keywords").await;
    let drop = bundled("keyword-filter").config(&json!({ "words": ["spam", "广告"] }));
    let gateway = fixture.start([drop]).await;
    for body in ["hello", "buy spam", "看广告", "bye"] {
        fixture.say(body).await;
    }
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), ["hello", "bye"]);
    assert_eq!(gateway.metric(r#"halley_messages_total{outcome="dropped"}"#).await, Some(2.0));

    let before = generation(&gateway).await;
    let mask = bundled("keyword-filter").config(&json!({ "words": ["spam", "广告"], "action": "mask" }));
    gateway.configure(&fixture.settings.clone().plugin(mask));
    generation_after(&gateway, before).await;
    fixture.say("看广告 spam").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard().last().map(String::as_str), Some("看** ****"));
}

#[tokio::test]
async fn a_comet_s_refusal_names_the_policies_that_amended_the_message() {
    let fixture = PolicyFixture::new("amended").await;
    fixture.comet.refuse("lobby", tonic::Code::InvalidArgument);
    let mask = bundled("keyword-filter").config(&json!({ "words": ["spam"], "action": "mask" }));
    let gateway = fixture.start([mask]).await;
    fixture.say("some spam").await;
    gateway.wait_until_settled(&fixture.topic).await;
    let letters = kafka().read_all(&format!("{}.dead-letter", fixture.topic));
    let reason = letters[0].header("halley-reason").expect("a reason");
    assert!(reason.contains("InvalidArgument") && reason.contains("keyword-filter@"), "{reason}");
    assert!(reason.contains("amended body"), "{reason}");
}

#[tokio::test]
async fn the_duplicate_guard_stops_duplicates_and_calms_rooms() {
    let fixture = PolicyFixture::new("duplicates").await;
    let duplicates = bundled("duplicate-guard").config(&json!({ "duplicates": { "within": "60s" } }));
    let gateway = fixture.start([duplicates]).await;
    for body in ["once", "twice", "twice", "thrice", "twice"] {
        fixture.say(body).await;
    }
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), ["once", "twice", "thrice"]);

    let before = generation(&gateway).await;
    let cooldown = json!({ "cooldown": { "within": "60s", "spare_operations": [7] } });
    gateway.configure(&fixture.settings.clone().plugin(bundled("duplicate-guard").config(&cooldown)));
    generation_after(&gateway, before).await;
    fixture.comet.forget();
    let room = || halley::message::Audience::Room("lobby".into());
    for (operation, body) in [(4, "first"), (4, "too soon"), (7, "a gift"), (7, "another")] {
        kafka().produce(&fixture.topic, room(), operation, body).await;
    }
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), ["first", "a gift", "another"]);
}

#[tokio::test]
async fn the_comet_drain_moves_a_comet_s_share() {
    let mut fixture = PolicyFixture::new("drain").await;
    let (draining, fresh) = (FakeComet::start().await, FakeComet::start().await);
    fixture.redis.join("lobby", "conn_2", "user_2", draining.address()).await;
    let leaving = draining.address().to_string();
    let redirect = json!({ "draining": [leaving], "action": "redirect", "to": fresh.address().to_string() });
    fixture.settings = fixture.settings.node(&fresh);
    let gateway = fixture.start([bundled("comet-drain").config(&redirect)]).await;
    fixture.say("moved").await;
    gateway.wait_until_settled(&fixture.topic).await;
    let moved = (To::Room("lobby".into()), 4, "moved".to_owned());
    assert_eq!((fresh.deliveries(), fixture.comet.deliveries()), (vec![moved.clone()], vec![moved]));
    assert_eq!(draining.calls().len(), 0);

    let before = generation(&gateway).await;
    let offline = json!({ "draining": [leaving], "action": "offline" });
    gateway.configure(&fixture.settings.clone().plugin(bundled("comet-drain").config(&offline)));
    generation_after(&gateway, before).await;
    fixture.say("kept").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(draining.calls().len(), 0);
    assert_eq!(fixture.redis.stream("halley:inbox:user_2").await.len(), 1);
}

#[tokio::test]
async fn a_partly_moved_room_is_called_by_connection() {
    let fixture = PolicyFixture::new("partial").await;
    for n in 2..=3 {
        fixture.redis.join("drain", &format!("conn_{n}"), "anyone", fixture.comet.address()).await;
    }
    // The guest redirects the first comet's share and skips the last connection.
    let elsewhere = fixture.start([unruly("unruly")]).await;
    let route = elsewhere.get("/v1/routes/drain").await.json();
    assert_eq!(route["shares"][0]["comet"], "elsewhere:1");
    assert_eq!((&route["shares"][0]["call"], &route["skipped"]), (&"PushMsg".into(), &1.into()), "{route}");
}

#[tokio::test]
async fn the_offline_rules_store_notify_and_drop() {
    let fixture = PolicyFixture::new("offline-rules").await;
    fixture.redis.offline("user_1").await;
    let rules = json!({ "rules": [
        { "audience": "keys", "action": "notify", "channel": "apns" },
        { "operations": [7], "action": "store", "retention": "1h" },
        { "rooms": ["*"], "action": "drop" },
    ] });
    let gateway = fixture.start([bundled("offline-rules").config(&rules)]).await;
    let room = || halley::message::Audience::Room("lobby".into());
    kafka().produce(&fixture.topic, room(), 7, "a gift").await;
    kafka().produce(&fixture.topic, room(), 4, "chatter").await;
    let id = kafka().produce_keys(&fixture.topic, None, &["user_1"], "call me").await;
    gateway.wait_until_settled(&fixture.topic).await;

    assert_eq!(fixture.heard(), [""; 0]);
    assert_eq!(fixture.redis.stream("halley:inbox:user_1").await.len(), 1);
    let notified = kafka().read_all(&format!("{}.offline", fixture.topic));
    assert_eq!(notified.len(), 1, "{notified:#?}");
    let header = |name: &str| notified[0].header(name).unwrap_or_default();
    assert_eq!(
        (notified[0].key.as_deref(), notified[0].value.as_deref(), header("halley-channel")),
        (Some(&b"user_1"[..]), Some(&b"call me"[..]), "apns".to_owned())
    );
    assert_eq!(header("halley-message-id"), id);
    let recipients = async |outcome: &str| {
        gateway.metric(&format!("halley_recipients_total{{outcome=\"{outcome}\"}}")).await
    };
    let counts = (recipients("stored").await, recipients("notified").await, recipients("dropped").await);
    assert_eq!(counts, (Some(1.0), Some(1.0), Some(1.0)));
}

#[tokio::test]
async fn amendments_of_several_policies_compose() {
    let mut fixture = PolicyFixture::new("compose").await;
    let other = FakeComet::start().await;
    let mask = bundled("keyword-filter").config(&json!({ "words": ["spam"], "action": "mask" }));
    fixture.settings = fixture.settings.set("comets", "allow", "[\"127.0.0.0/8\"]");
    let gateway = fixture.start([mask, unruly("unruly").set("comets", quoted("any"))]).await;
    fixture.say(&format!("also {}", other.address())).await;
    fixture.say("body rewritten, spam and all").await;
    fixture.say("dead-letter for a person to look at").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), [format!("also {}", other.address()), "rewritten, **** and all".to_owned()]);
    assert_eq!(other.deliveries().len(), 1);
    let letters = kafka().read_all(&format!("{}.dead-letter", fixture.topic));
    assert_eq!(letters[0].header("halley-stage").as_deref(), Some("filter"));
    assert!(letters[0].header("halley-plugin").unwrap_or_default().starts_with("unruly@"), "{letters:?}");
}

#[tokio::test]
async fn guests_that_misbehave_harm_no_other_message() {
    for command in ["trap", "loop", "eat", "few", "many", "gigabyte", "flood"] {
        let fixture = PolicyFixture::new(&format!("unruly-{command}")).await;
        let dead_letter = unruly("unruly").set("on_error", quoted("dead-letter"));
        let mask = bundled("keyword-filter").config(&json!({ "words": ["spam"], "action": "mask" }));
        let gateway = fixture.start([dead_letter, mask]).await;
        let mut expected = Vec::new();
        for number in 0..20 {
            if number == 10 {
                fixture.say(command).await;
            }
            fixture.say(&format!("spam {number}")).await;
            expected.push(format!("**** {number}"));
        }
        gateway.wait_until_settled(&fixture.topic).await;

        let heard: Vec<_> = fixture.heard().into_iter().filter(|body| body != command).collect();
        assert_eq!(heard, expected, "{command}: the others passed through both policies");
        let letters = kafka().read_all(&format!("{}.dead-letter", fixture.topic));
        if command == "flood" {
            assert_eq!(letters.len(), 0, "excessive logging is limited, not an error");
        } else {
            assert_eq!(letters.len(), 1, "{command}");
            assert!(letters[0].header("halley-reason").is_some_and(|reason| !reason.is_empty()));
            let errors = gateway.get("/metrics").await.body;
            assert!(errors.contains("halley_plugin_errors_total{"), "{command}: it is counted");
        }
    }
}

#[tokio::test]
async fn partitions_behind_another_s_stalled_look_up_are_named() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("trap", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("stall-behind", 2).await;
    let settings = gateway(&topic).redis(&redis);
    let gateway = settings.clone().plugin(unruly("unruly").set("on_error", quoted("stall"))).start().await;
    let mut sent = 0;
    while kafka().ends(&topic).len() < 2 {
        kafka().produce_room_anywhere(&topic, "trap", "hello").await;
        sent += 1;
    }
    let stalls = async || {
        let stalls = gateway.get("/v1/stalls").await.json()["stalls"].as_array().cloned()?;
        (stalls.len() == 2).then_some(stalls)
    };
    let stalls = eventually("both partitions to be named", PATIENCE, stalls).await;
    let of = |fixture: &str| stalls.iter().find(|stall| stall["stage"] == fixture).expect("a stall");
    let (leader, follower) = (of("policy"), of("resolve"));
    assert_ne!(leader["partition"], follower["partition"]);
    let cause =
        format!("room `trap` is being looked up for {topic}/{}: waiting for that", leader["partition"]);
    assert_eq!(follower["cause"], cause);
    assert_eq!(gateway.metric("halley_stalled_partitions{stage=\"resolve\"}").await, Some(1.0));
    let ready = gateway.get("/readyz").await;
    assert!(ready.status == 503 && ready.body.contains("resolve: holding"), "{}", ready.body);
    gateway.configure(&settings);
    gateway.wait_until_settled(&topic).await;
    gateway.wait_until_ready().await;
    assert_eq!(comet.deliveries().len(), sent, "nothing was lost meanwhile");
}

#[tokio::test]
async fn a_stalled_policy_holds_its_partition_until_replaced() {
    let fixture = PolicyFixture::new("stall").await;
    // A policy that fetches shared state runs before it: its success in between is not a recovery.
    let counting =
        Plugin::new("counting", wasm("tests/guests/dist/unruly.wasm")).set("state", quoted("shared"));
    let gateway = fixture
        .start([counting.set("deadline", quoted("5s")), unruly("unruly").set("on_error", quoted("stall"))])
        .await;
    gateway.signal("STOP");
    // The first record answers the pending fetch; the others arrive together.
    let all = ["first", "count k", "trap", "hello"];
    for body in all {
        fixture.say(body).await;
    }
    gateway.signal("CONT");
    gateway.wait_for_log("holding records, retrying until it succeeds").await;
    let held = async || {
        let ready = gateway.get("/readyz").await;
        (ready.status == 503 && ready.body.contains("policy: holding")).then_some(())
    };
    eventually("/readyz to name the policy that stalls", PATIENCE, held).await;
    assert_eq!(gateway.metric("halley_stalled_partitions{stage=\"policy\"}").await, Some(1.0));
    assert_eq!(gateway.get("/v1/stalls").await.json()["stalls"][0]["stage"], "policy");
    assert!(fixture.heard().len() <= 1, "{:?}", fixture.heard());
    let told = |begins: &str| {
        let lines = gateway.log_lines();
        lines.iter().filter(|line| line["message"].as_str().is_some_and(|m| m.starts_with(begins))).count()
    };
    assert_eq!((told("holding records"), told("recovered")), (1, 0), "one stall, one line");
    gateway.configure(&fixture.settings);
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), all, "nothing was lost meanwhile");
    gateway.wait_until_ready().await;
    assert_eq!(told("recovered"), 1);
}

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
async fn a_looping_first_version_blocks_nobody() {
    const MESSAGES: usize = 600;
    let fixture = PolicyFixture::new("loops").await;
    // Default settings.
    let plugin = Plugin::new("loops", wasm("tests/guests/dist/unruly.wasm"));
    let gateway = fixture.start([plugin]).await;
    for number in 0..MESSAGES {
        fixture.say(&if number % 4 == 1 { "loop".to_owned() } else { format!("hello {number}") }).await;
    }
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard().len(), MESSAGES, "`on_error` passes all of them, in order");
    let numbers: Vec<String> = fixture.heard().into_iter().filter(|body| body != "loop").collect();
    let expected = (0..MESSAGES).filter(|number| number % 4 != 1).map(|number| format!("hello {number}"));
    assert!(numbers.iter().cloned().eq(expected), "{numbers:?}");

    // 150 messages, each of which would cost several calls until it is isolated in its batch: most of
    // these calls were never made.
    let metrics = gateway.get("/metrics").await.body;
    let sum = |name: &str, label: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let late = sum("halley_plugin_errors_total{", "kind=\"deadline\"");
    assert!(late < 100.0, "{late} calls exceeded their deadline");
    assert!(sum("halley_plugin_limits_total{", "limit=\"time-budget\"") > 0.0, "{metrics}");

    // What an operator sees. Once nothing loops any more, the plugin decides again.
    gateway.wait_for_log_that("a plugin exceeded its deadline too often").await;
    let decides_again = async || {
        fixture.say("drop me").await;
        gateway.wait_until_settled(&fixture.topic).await;
        let status = gateway.get("/v1/plugins").await.json();
        let ready = gateway.get("/readyz").await;
        assert_eq!(ready.status, 200, "{ready:?}");
        if status["plugins"][0]["state"] == "over-time-budget" {
            assert!(ready.body.contains("exceeded its deadline too often"), "{ready:?}");
            return None;
        }
        Some(())
    };
    eventually("its decisions again", PATIENCE, decides_again).await;
    fixture.say("drop me, too").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert!(!fixture.heard().contains(&"drop me, too".to_owned()));
}
