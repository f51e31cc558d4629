//! What several files say, and must say alike: ports, limits of memory, and figures.

use std::collections::BTreeSet;

use bytesize::ByteSize;
use serde_json::Value;

use super::image::dockerfile;
use super::{below, deployed, halley, read, yaml};
use crate::support::repository;

/// One set of ports everywhere: files and pages agree, and all of them can be used on one machine.
const PORTS: [(&str, u16); 4] =
    [("admin.listen", 9093), ("api.listen", 9094), ("admin.probe_listen", 9095), ("metrics-listen", 9096)];

/// The listeners that a text of configuration, or a page with examples of it, names with their ports. Comments count.
fn listeners(text: &str) -> Vec<(String, u16)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name)
        {
            section = name.to_owned();
        }
        let port = |rest: &str| {
            let digits: String = rest.split(':').nth(1)?.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        };
        for (start, name) in [
            ("listen = \"", format!("{section}.listen")),
            ("probe_listen = \"", "admin.probe_listen".to_owned()),
            ("--metrics-listen ", "metrics-listen".to_owned()),
            ("HALLEY__ADMIN__PROBE_LISTEN=", "admin.probe_listen".to_owned()),
        ] {
            // `listen = ` is also the end of other keys.
            let begins = |at: usize| !line[..at].ends_with(|c: char| c == '_' || c.is_ascii_alphabetic());
            let places = line.match_indices(start).filter(|(at, _)| begins(*at));
            found.extend(places.filter_map(|(at, _)| Some((name.clone(), port(&line[at + start.len()..])?))));
        }
    }
    found
}

#[test]
fn one_set_of_ports_everywhere() {
    let mut pages =
        vec![repository("README.md"), repository("README.zh-CN.md"), repository("examples/halley.toml")];
    pages.push(repository("Dockerfile"));
    for file in below(&repository("examples/deploy")) {
        if !file.ends_with(".json") {
            pages.push(deployed(&file));
        }
    }
    let mut named = BTreeSet::new();
    for page in &pages {
        for (listener, port) in listeners(&read(page)) {
            let expected = PORTS.iter().find(|(name, _)| *name == listener).map(|(_, port)| *port);
            assert_eq!(expected, Some(port), "{listener} in {}", page.display());
            named.insert(listener);
        }
    }
    assert_eq!(named, PORTS.map(|(name, _)| name.to_owned()).into(), "each is named somewhere");

    let [admin, api, probes, archiver] = PORTS.map(|(_, port)| port);
    let values = yaml(&deployed("helm/halley/values.yaml"));
    let chart = [&values["ports"]["admin"], &values["api"]["port"], &values["ports"]["probes"]];
    assert_eq!(chart, [admin, api, probes], "the chart");
    assert_eq!(values["archiver"]["port"], archiver);
    let exposed = dockerfile().into_iter().find(|(word, _)| word == "EXPOSE").expect("EXPOSE").1;
    assert_eq!(exposed, format!("{admin} {api} {probes} {archiver}"));
    let prometheus = read(&deployed("compose/prometheus.yml"));
    assert!(prometheus.contains(&format!("halley:{probes}\"")), "{prometheus}");
    let inbox = format!("--inbox=http://halley:{api}");
    assert_eq!(read(&deployed("compose.yaml")).matches(&inbox).count(), 2, "both comets use the API");
    for language in ["README.md", "README.zh-CN.md"] {
        let page = read(&repository(language));
        let all = PORTS.iter().all(|(_, port)| page.contains(&port.to_string()));
        assert!(all, "{language} names the ports");
    }
}

/// A size as Kubernetes and Compose write it.
fn size(value: &Value) -> u64 {
    let text = value.as_str().expect("a size");
    let unit = if text.ends_with('B') {
        ""
    } else if text.ends_with('i') {
        "B"
    } else {
        "iB"
    };
    format!("{text}{unit}").parse::<ByteSize>().unwrap_or_else(|error| panic!("{text}: {error}")).as_u64()
}

#[test]
fn a_gateway_that_compiles_fits_into_its_container() {
    let values = yaml(&deployed("helm/halley/values.yaml"));
    let chart = (
        size(&values["memoryLimit"]),
        size(&values["compileMemory"]),
        size(&values["resources"]["limits"]["memory"]),
    );
    let config: toml::Table = toml::from_str(&read(&deployed("compose/halley.toml"))).expect("TOML");
    let of = |section: &str, key: &str| size(&Value::from(config[section][key].as_str()));
    let compose = yaml(&deployed("compose.yaml"));
    let compose = (
        of("delivery", "memory_limit"),
        of("policies", "compile_memory"),
        size(&compose["services"]["halley"]["mem_limit"]),
    );
    for (gateway, compiler, container) in [chart, compose] {
        assert!(gateway + compiler <= container, "{gateway} + {compiler} > {container}");
    }
    assert!(chart.1 >= ByteSize::mb(350).as_u64(), "what a Python component takes");
}

#[test]
fn the_images_environment_is_configuration_that_it_can_use() {
    let instructions = dockerfile();
    let last = instructions.iter().rposition(|(word, _)| word == "FROM").expect("a stage");
    let of = |name: &str| {
        instructions[last..]
            .iter()
            .filter(|(word, _)| word == name)
            .map(|(_, rest)| rest.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let (environment, made) = (of("ENV"), of("RUN"));
    let variables: Vec<(&str, &str)> =
        environment.split_whitespace().filter_map(|variable| variable.split_once('=')).collect();
    assert_eq!(variables.len(), 2, "{environment}");
    let folder = crate::support::folder("image");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_halley"));
    for (name, path) in variables {
        let within = ["/var/lib/halley", "/run/halley"].into_iter().find(|made| path.starts_with(made));
        let within = within.unwrap_or_else(|| panic!("{name}={path}"));
        assert!(made.contains(&format!(" {within}")), "nothing makes {within}");
        command.env(name, path.replace(within, &folder.path().display().to_string()));
    }
    let checked = command.args(["config", "show", "--set"]).output().expect("runs");
    let shown = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && shown.matches("HALLEY__").count() >= 2, "{checked:?}");

    // The page's own examples.
    let page = read(&deployed("README.md"));
    for run in page.split("docker run ").skip(1).map(|rest| rest.split("docker").next().unwrap_or_default()) {
        let archives = run.contains(" archive ");
        assert!(
            archives || run.contains("--tmpfs /run/halley:uid=65532"),
            "a read-only root needs it: {run}"
        );
        assert_eq!(archives, run.contains("--health-cmd"), "{run}");
    }
    assert!(halley(&["health", "--help"]).status.success());
}

#[test]
fn figures_of_sizing_are_those_of_the_benchmark() {
    for (deploy, readme) in [("README.md", "README.md"), ("README.zh-CN.md", "README.zh-CN.md")] {
        let (sizing, figures) = (read(&deployed(deploy)), read(&repository(readme)));
        let row = sizing
            .lines()
            .find(|line| line.starts_with("| CPU per message") || line.starts_with("| 每条消息的 CPU"))
            .expect("a row");
        let costs: Vec<&str> = row
            .split(" µs")
            .map(|before| before.rsplit(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default())
            .filter(|word| word.parse::<f64>().is_ok())
            .collect();
        assert_eq!(costs.len(), 4, "{row}");
        for cost in costs {
            let has =
                figures.lines().any(|line| line.starts_with('|') && line.contains(&format!("| {cost} µs")));
            assert!(has, "{readme} has no {cost} µs");
        }
        for size in ["4.4 KB", "1.3 KB"] {
            assert!(sizing.contains(size) && figures.contains(size), "{size} in {deploy} and {readme}");
        }
    }
}

#[test]
fn what_to_watch_is_on_the_dashboard_and_has_alerts() {
    let (dashboard, alerts) =
        (read(&deployed("grafana/halley.json")), read(&deployed("prometheus/alerts.yaml")));
    let page = read(&deployed("README.md"));
    let table =
        page.split("## What to watch").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a section");
    let mut named = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| question")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for metric in cells[2].split('`').skip(1).step_by(2) {
            let name = metric.split('{').next().expect("a name");
            assert!(dashboard.contains(name), "no panel shows {name}");
        }
        for alert in cells[3].split([',', ' ']).filter(|word| word.starts_with("Halley")) {
            assert!(alerts.contains(&format!("alert: {alert}\n")), "no alert {alert}");
            named.insert(alert.to_owned());
        }
    }
    let all: BTreeSet<String> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect();
    assert_eq!(named, all, "the page lists each alert");
}
