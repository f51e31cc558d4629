//! `/metrics` as Prometheus reads it: its formats, and every query of dashboard and alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::promql::needs;
use super::{deployed, halley, read, texts_under, yaml};
use crate::support::certificates::{Certificate, LONG};
use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::prometheus::PrometheusTools;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq, folder, repository};

/// Labels that Prometheus adds, or that alerts have.
const ADDED: [&str; 5] = ["job", "instance", "alertname", "alertstate", "severity"];

/// All expressions of the dashboard and the alert rules, with the dashboard's variables filled in.
fn expressions() -> BTreeSet<String> {
    let dashboard: Value = serde_json::from_str(&read(&deployed("grafana/halley.json"))).expect("JSON");
    let alerts = yaml(&deployed("prometheus/alerts.yaml"));
    let mut found = Vec::new();
    texts_under(&dashboard, "expr", &mut found);
    texts_under(&alerts, "expr", &mut found);
    let mut all: BTreeSet<String> = found.iter().map(|expression| filled(expression)).collect();
    let mut variables = Vec::new();
    texts_under(&dashboard["templating"], "query", &mut variables);
    for (selector, label) in variables.into_iter().filter_map(label_values) {
        all.insert(format!("count by ({label}) ({})", filled(selector)));
    }
    all
}

/// The selector and the label of Grafana's own `label_values(SELECTOR, LABEL)`.
fn label_values(query: &str) -> Option<(&str, &str)> {
    query.strip_prefix("label_values(")?.strip_suffix(')')?.rsplit_once(", ")
}

fn filled(expression: &str) -> String {
    let variables = [("$__rate_interval", "5s"), ("$job", "halley"), ("$instance", ".*")];
    let filled =
        variables.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
    assert!(!filled.contains('$'), "an unknown variable in `{expression}`");
    filled
}

/// Each metric of an exposition, with its labels.
fn series(exposition: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        // A sample is a selector and a number.
        let (selector, _) = line.rsplit_once(' ').expect("a number");
        let mut selectors = needs(selector).selectors;
        let (name, labels) = selectors.pop().unwrap_or_else(|| panic!("no metric in `{line}`"));
        all.entry(name).or_default().extend(labels);
    }
    all
}

/// A gateway with everything that has metrics: Redis, comets, a certificate, a policy that fails, and an archive whose database is
/// away.
async fn everything(topic: &str, redis: &Redis, comet: &FakeComet, files: &Path) -> Gateway {
    Certificate::authority_for("api", LONG).write(files, "api");
    let file = |name: &str| quoted(&files.join(name).display().to_string());
    for suffix in ["dead-letter", "offline", "archive"] {
        kafka().create_topic(&format!("{topic}.{suffix}"), 1).await;
    }
    for room in ["lobby", "away"] {
        redis.join(room, &format!("conn_{room}"), &format!("user_{room}"), comet.address()).await;
    }
    redis.offline("user_away").await;
    let unruly =
        Plugin::new("unruly", repository("tests/guests/dist/unruly.wasm")).set("on_error", quoted("pass"));
    gateway(topic)
        .redis(redis)
        .plugin(unruly)
        .set("archive", "enabled", true)
        .set("archive", "topic", quoted(&format!("{topic}.archive")))
        .set("archive", "group", quoted(&format!("{topic}-archive")))
        .set("archive", "url", quoted("mysql://nobody@127.0.0.1:1/halley"))
        .set("api", "listen", quoted("127.0.0.1:0"))
        .set("api.tls", "certificate", file("api.pem"))
        .set("api.tls", "key", file("api.key"))
        .set("offline", "replay", quoted("keyspace-events"))
}

/// Messages with every outcome that the dashboard shows: delivered, stored and archived, and a policy that traps.
async fn use_everything(gateway: &RunningGateway, topic: &str) {
    kafka().produce_room(topic, "lobby", "hello").await;
    kafka().produce_room(topic, "away", "for later").await;
    kafka().produce_room(topic, "lobby", "trap").await;
    gateway.wait_until_settled(topic).await;
}

#[tokio::test]
async fn every_query_finds_its_metrics_in_a_real_prometheus() {
    let Some(tools) = PrometheusTools::find("every_query_finds_its_metrics") else { return };
    let (mut redis, comet) = (Redis::start().await, FakeComet::start().await);
    if !redis.can_stop("every_query_finds_its_metrics") {
        return;
    }
    let topic = kafka().topic("queries", 1).await;
    let files = folder("metrics");
    let gateway = everything(&topic, &redis, &comet, files.path()).await.start().await;
    let server = tools.start(gateway.admin(), &deployed("prometheus/alerts.yaml")).await;
    use_everything(&gateway, &topic).await;
    stand_still(&gateway, &mut redis, &topic).await;

    // The archive's database is away, so that its partition stands still as well.
    let archive = format!("halley_archive_consumer_lag_seconds{{topic=\"{topic}.archive\",partition=\"0\"}}");
    let waits = async || gateway.metric(&archive).await.filter(|seconds| *seconds > 0.0);
    eventually("the archive's lag", PATIENCE, waits).await;

    let text = gateway.get("/metrics").await.body;
    let exported = series(&text);
    for expression in expressions() {
        let needs = needs(&expression);
        assert!(!needs.selectors.is_empty(), "`{expression}` selects nothing");
        let mut labels: BTreeSet<&str> = ADDED.into();
        // Prometheus' own.
        let of_gateway = |name: &str| !["ALERTS", "up"].contains(&name);
        for (name, matched) in needs.selectors.iter().filter(|(name, _)| of_gateway(name)) {
            let known =
                exported.get(name).unwrap_or_else(|| panic!("`{expression}`: no `{name}` in\n{text}"));
            let missing: Vec<_> = matched
                .iter()
                .filter(|label| !known.contains(*label) && !ADDED.contains(&label.as_str()))
                .collect();
            assert!(missing.is_empty(), "`{expression}`: `{name}` has no {missing:?}, but {known:?}");
            labels.extend(known.iter().map(String::as_str));
            let scraped =
                async || (!server.query(&format!("{name}{{job=\"halley\"}}")).await.is_empty()).then_some(());
            eventually(format!("prometheus to have `{name}`"), PATIENCE, scraped).await;
        }
        let unknown: Vec<_> =
            needs.grouping.iter().filter(|label| !labels.contains(label.as_str())).collect();
        assert!(unknown.is_empty(), "`{expression}` groups by {unknown:?}");
        server.query(&expression).await;
    }
    let healthy = async || {
        let rules = server.rules().await;
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:#?}");
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules.len())
    };
    let rules = eventually("prometheus to evaluate the rules", PATIENCE, healthy).await;
    assert!(rules >= 14, "{rules}");
}

/// Redis goes, and comes back. Meanwhile readiness, its metrics and `halley health` say so, and the record that is
/// held ages.
async fn stand_still(gateway: &RunningGateway, redis: &mut Redis, topic: &str) {
    let health = |args: &[&str]| {
        let file = gateway.file().display().to_string();
        halley(&[&["health", "--config", &file, "--url", &gateway.url()], args].concat())
    };
    assert!(health(&[]).status.success(), "{:?}", health(&[]));
    redis.stop();
    kafka().produce_room(topic, "lobby", "held").await;
    let lag = format!("halley_consumer_lag_seconds{{topic=\"{topic}\",partition=\"0\"}}");
    let (up, ready) = ("halley_redis_up", "halley_ready");
    eventually_eq(up, Some(0.0), async || gateway.metric(up).await).await;
    eventually_eq(ready, Some(0.0), async || gateway.metric(ready).await).await;
    let older = async |than: f64| {
        eventually(&lag, PATIENCE, async || gateway.metric(&lag).await.filter(|age| *age > than)).await
    };
    let first = older(0.5).await;
    older(first).await;
    let sick = health(&[]);
    let said = String::from_utf8_lossy(&sick.stderr).into_owned();
    assert!(
        sick.status.code() == Some(1) && said.contains("redis") && said.contains("not ready"),
        "{sick:?}"
    );
    assert!(health(&["--live"]).status.success(), "the process is alive all the same");
    redis.restart().await;
    eventually_eq(up, Some(1.0), async || gateway.metric(up).await).await;
    eventually_eq(&lag, Some(0.0), async || gateway.metric(&lag).await).await;
    let other = halley(&["health", "--url", "http://127.0.0.1:1"]);
    assert_eq!(other.status.code(), Some(1), "{other:?}");
}

#[tokio::test]
async fn both_formats_say_the_same_and_promtool_is_content() {
    let topic = kafka().topic("formats", 1).await;
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let files = folder("metrics");
    let gateway = everything(&topic, &redis, &comet, files.path()).await.start().await;
    use_everything(&gateway, &topic).await;
    let ask = async |accept: &str| gateway.send("GET", "/metrics", &[("Accept", accept)], &[]).await;
    let (open, text) = (ask("application/openmetrics-text; version=1.0.0").await, ask("text/plain").await);
    let kind = |head: &str| head.to_lowercase();
    assert!(
        kind(&open.head).contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{}",
        open.head
    );
    assert!(kind(&text.head).contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    let names = |body: &str| series(body).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(names(&open.body), names(&text.body));

    let exported = series(&text.body);
    for (name, labels) in &exported {
        let unbounded: Vec<_> = labels
            .iter()
            .filter(|label| ["room", "user", "connection", "key", "offset"].contains(&label.as_str()))
            .collect();
        assert!(unbounded.is_empty(), "{name} has a series for each {unbounded:?}");
    }
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(exported.contains_key(name), "{name}");
    }
    let build = exported.get("halley_build_info").expect("the release");
    assert!(build.contains("version") && build.contains("revision"), "{build:?}");

    let Some(tools) = PrometheusTools::find("both_formats_say_the_same") else { return };
    let checked = tools.promtool(&std::env::temp_dir(), &["check", "metrics"], &text.body);
    let said =
        String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && said.trim().is_empty(), "promtool check metrics: {said}");
}

#[test]
fn each_alert_has_a_test_that_passes() {
    let (alerts, tests) =
        (yaml(&deployed("prometheus/alerts.yaml")), yaml(&deployed("prometheus/alerts.test.yaml")));
    let mut names = Vec::new();
    texts_under(&alerts, "alert", &mut names);
    let empty = json!([]);
    for name in &names {
        let tests = tests["tests"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|test| test["alert_rule_test"].as_array());
        let of: Vec<_> = tests.flatten().filter(|test| test["alertname"] == **name).collect();
        assert!(of.iter().any(|test| test["exp_alerts"] != empty), "{name}: no test in which it fires");
        assert!(of.iter().any(|test| test["exp_alerts"] == empty), "{name}: no test in which it is quiet");
    }
    let Some(tools) = PrometheusTools::find("each_alert_has_a_test_that_passes") else { return };
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        let done = tools.promtool(&deployed("prometheus"), &args, "");
        assert!(
            done.status.success(),
            "{args:?}: {}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

/// The metrics of a page's table, each with whether it is marked (`*`) as one that appears with its first event.
fn documented(page: &str) -> Vec<(String, bool)> {
    let table =
        page.lines().skip_while(|line| !line.starts_with("| metric |") && !line.starts_with("| 指标 |"));
    let rows = table.skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let parts = cells.flat_map(|cell| {
        let parts: Vec<&str> = cell.split('`').collect();
        let named: Vec<_> = (1..parts.len()).step_by(2).map(|at| (parts[at], parts[at + 1])).collect();
        named
    });
    let name = |(name, after): (&str, &str)| {
        (name.split('{').next().unwrap_or_default().to_owned(), after.starts_with("\\*"))
    };
    parts.map(name).collect()
}

#[tokio::test]
async fn documented_metrics_exist_from_the_start_or_say_so() {
    let topic = kafka().topic("documented", 1).await;
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let files = folder("metrics");
    let gateway = everything(&topic, &redis, &comet, files.path()).await.start().await;
    // Partitions are assigned, and nothing else has happened.
    let assigned = async || {
        let exported = series(&gateway.get("/metrics").await.body);
        let lags = ["halley_consumer_lag", "halley_archive_consumer_lag"];
        lags.iter().all(|lag| exported.contains_key(*lag)).then_some(exported)
    };
    let exported = eventually("partitions to be assigned", PATIENCE, assigned).await;
    let (english, chinese) = (read(&repository("README.md")), read(&repository("README.zh-CN.md")));
    assert_eq!(documented(&english), documented(&chinese));
    let mut wrong = Vec::new();
    let all = documented(&english);
    assert!(all.len() > 60, "{all:?}");
    for (name, appears_later) in all.iter().filter(|(name, _)| name != "process_*") {
        let has = exported.contains_key(name) || exported.contains_key(&format!("{name}_count"));
        if has == *appears_later {
            wrong.push((name, has));
        }
    }
    assert!(
        wrong.is_empty(),
        "mark (`*`) those that have no series at the start, and only those: {wrong:#?}"
    );
}
