//! The files of `examples/deploy` and the Dockerfile, compared with each other and with the gateway.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Map, Value};

use super::image::dockerfile;
use super::{below, check, deployed, read, yaml};
use crate::support::{folder, repository};

/// Each file with the test that reads it. A new file needs one.
const TESTED: [(&str, &str); 20] = [
    ("README.md", "languages::"),
    ("README.zh-CN.md", "languages::"),
    ("compose.yaml", "compose_has_pinned_images_and_a_valid_gateway; make deploy-check"),
    ("compose/api-tokens.toml", "compose_has_pinned_images_and_a_valid_gateway"),
    ("compose/grafana-dashboards.yaml", "compose_has_pinned_images_and_a_valid_gateway"),
    ("compose/grafana-datasource.yaml", "compose_has_pinned_images_and_a_valid_gateway"),
    ("compose/halley.toml", "compose_has_pinned_images_and_a_valid_gateway"),
    ("compose/prometheus.yml", "compose_has_pinned_images_and_a_valid_gateway"),
    (
        "grafana/halley.json",
        "metrics::every_query_finds_its_metrics_in_a_real_prometheus; panels_do_not_overlap",
    ),
    ("helm/halley", "the_chart_uses_each_value_that_it_documents; make deploy-check"),
    ("kafka/acls.sh", "access::kafka_grants_what_a_gateway_needs"),
    ("kafka/topics.sh", "access::topics_are_created_as_brokers_accept_them"),
    ("prometheus/alerts.test.yaml", "metrics::each_alert_has_a_test_that_passes"),
    ("prometheus/alerts.yaml", "metrics::each_alert_has_a_test_that_passes"),
    ("redis/halley.acl", "access::redis_grants_what_a_gateway_needs_and_no_more"),
    ("systemd/debian/postinst", "package::only_the_service_reads_the_configuration"),
    ("systemd/halley-archive.service", "package::systemd_accepts_the_units"),
    ("systemd/halley.service", "package::systemd_accepts_the_units"),
    ("systemd/halley.toml", "package::the_package_has_what_it_names"),
    ("systemd/package.sh", "package::the_package_has_what_it_names"),
];

#[test]
fn each_file_has_a_test() {
    let files = below(&repository("examples/deploy"));
    let tested =
        |file: &str| TESTED.iter().any(|(path, _)| file == *path || file.starts_with(&format!("{path}/")));
    let untested: Vec<_> = files.iter().filter(|file| !tested(file)).collect();
    assert!(untested.is_empty(), "add a test, and name it in TESTED: {untested:?}");
    for (path, _) in TESTED {
        assert!(deployed(path).exists(), "{path} is gone");
    }
}

#[test]
fn compose_has_pinned_images_and_a_valid_gateway() {
    let compose = yaml(&deployed("compose.yaml"));
    let services = compose["services"].as_object().expect("services");
    let targets: BTreeSet<String> = dockerfile()
        .into_iter()
        .filter(|(word, _)| word == "FROM")
        .filter_map(|(_, from)| Some(from.split_once(" AS ")?.1.to_owned()))
        .collect();
    for (name, service) in services {
        let image = service["image"].as_str().expect("an image");
        assert!(image.split_once(':').is_some_and(|(_, tag)| tag != "latest"), "{name}: {image}");
        if let Some(target) = service["build"]["target"].as_str() {
            assert!(targets.contains(target), "{name}: no stage `{target}`");
            assert!(
                service["read_only"] == true && service["cap_drop"][0] == "ALL",
                "{name} is ours, and restricted"
            );
        }
        for volume in service["volumes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let (source, _) = volume.split_once(':').expect("source:target");
            let exists = compose["volumes"].get(source).is_some() || deployed(source).exists();
            assert!(exists, "{name}: {source} is missing");
        }
        for port in service["ports"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for other in service["depends_on"].as_object().into_iter().flat_map(Map::keys) {
            assert!(services.contains_key(other), "{name} depends on {other}");
        }
    }
    let config = read(&deployed("compose/halley.toml"));
    let plugins = repository("plugins/dist").display().to_string();
    let here = config.replace("/usr/share/halley/plugins", &plugins);
    // In the container it is on a read-only mount; here it has to be a secret.
    let tokens = folder("tokens");
    let secret = tokens.path().join("api-tokens.toml");
    std::fs::copy(deployed("compose/api-tokens.toml"), &secret).expect("copied");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("changed");
    let here = here.replace("/etc/halley/api-tokens.toml", &secret.display().to_string());
    let lines: Vec<&str> =
        here.lines().filter(|line| !line.starts_with("state_dir") && !line.starts_with("socket")).collect();
    assert!(check(&lines.join("\n")).contains("keyword-filter"), "its policy is checked as well");
    let token = services["comet-1"]["environment"]["HALLEY_API_TOKEN"].as_str().expect("a token");
    assert!(read(&deployed("compose/api-tokens.toml")).contains(&format!("token = \"{token}\"")));

    let prometheus = yaml(&deployed("compose/prometheus.yml"));
    let target =
        prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0].as_str().expect("a target");
    let (host, port) = target.split_once(':').expect("host:port");
    assert!(
        services.contains_key(host) && config.contains(&format!("probe_listen = \"0.0.0.0:{port}\"")),
        "{target}"
    );
    assert!(config.contains(&format!("allowed_hosts = [\"{host}\"]")), "Prometheus asks for it by name");
    let source = yaml(&deployed("compose/grafana-datasource.yaml"));
    assert!(source["datasources"][0]["url"].as_str().is_some_and(|url| url.contains("//prometheus:9090")));
    let provider = yaml(&deployed("compose/grafana-dashboards.yaml"));
    let folder = provider["providers"][0]["options"]["path"].as_str().expect("a folder");
    let mounted = services["grafana"]["volumes"].to_string();
    assert!(mounted.contains(&format!("./grafana/halley.json:{folder}/")), "{mounted}");
}

#[test]
fn panels_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read(&deployed("grafana/halley.json"))).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let rows: Vec<_> = panels
        .iter()
        .filter(|panel| panel["type"] == "row")
        .filter_map(|row| row["title"].as_str())
        .collect();
    assert_eq!(
        rows,
        ["Is it delivering?", "Where does it wait?", "Comets", "Policies", "Inboxes, API and archive"]
    );
    let place = |panel: &Value| {
        let of = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        (of("x")..of("x") + of("w"), of("y")..of("y") + of("h"))
    };
    for (at, panel) in panels.iter().enumerate() {
        let (columns, lines) = place(panel);
        assert!(columns.end <= 24, "{}", panel["title"]);
        assert!(
            panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| !text.is_empty()),
            "{panel}"
        );
        for other in &panels[at + 1..] {
            let (c, l) = place(other);
            let apart = c.start >= columns.end
                || columns.start >= c.end
                || l.start >= lines.end
                || lines.start >= l.end;
            assert!(apart && panel["id"] != other["id"], "{} and {}", panel["title"], other["title"]);
        }
    }
}

/// The paths of all values, such as `image.tag`; a list or an empty table is a value.
fn paths(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value.as_object().filter(|table| !table.is_empty()) {
        Some(table) => table.iter().for_each(|(key, value)| {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            paths(value, &path, found);
        }),
        None => {
            found.insert(prefix.to_owned());
        }
    }
}

#[test]
fn the_chart_uses_each_value_that_it_documents() {
    let chart = deployed("helm/halley");
    let values = yaml(&chart.join("values.yaml"));
    let schema: Value = serde_json::from_str(&read(&chart.join("values.schema.json"))).expect("JSON");
    let templates: String = below(&chart.join("templates"))
        .iter()
        .map(|file| read(&chart.join("templates").join(file)))
        .collect();
    let used: BTreeSet<&str> = templates
        .split(".Values.")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').next().unwrap_or_default())
        .collect();
    let mut documented = BTreeSet::new();
    paths(&values, "", &mut documented);
    for path in &documented {
        assert!(
            used.iter().any(|name| path == name || path.starts_with(&format!("{name}."))),
            "no template uses {path}"
        );
        let mut at = &schema;
        for part in path.split('.') {
            at = &at["properties"][part];
            assert!(!at.is_null(), "values.schema.json has no {path}");
            if at["additionalProperties"] != false {
                break;
            }
        }
    }
    for name in used {
        let known = documented.iter().any(|path| path == name || path.starts_with(&format!("{name}.")));
        assert!(known, "values.yaml does not document {name}");
    }
    check(values["config"].as_str().expect("TOML"));
    let about = yaml(&chart.join("Chart.yaml"));
    assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"), "the chart installs this release");
}

#[test]
fn workflows_call_what_exists() {
    for file in below(&repository(".github/workflows")) {
        let workflow = yaml(&repository(".github/workflows").join(&file));
        assert!(workflow["permissions"]["contents"] == "read", "{file}: no more rights than it needs");
        let mut commands = Vec::new();
        super::texts_under(&workflow["jobs"], "run", &mut commands);
        assert!(!commands.is_empty(), "{file}");
        for word in commands.iter().flat_map(|command| command.split_whitespace()) {
            let is_ours =
                [".ci/", "tests/", "plugins/", "examples/"].iter().any(|folder| word.starts_with(folder));
            assert!(!is_ours || word.contains('*') || repository(word).exists(), "{file}: {word} is missing");
        }
        let mut actions = Vec::new();
        super::texts_under(&workflow["jobs"], "uses", &mut actions);
        for action in actions {
            assert!(action.contains('@') && !action.ends_with("@main"), "{file}: {action} has no version");
        }
    }
}
