//! A Prometheus for one story, and promtool.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::child_process::ChildProcess;
use super::{PATIENCE, eventually, folder, free_port, http, print_uncaptured, repository};

/// Where Prometheus' programs are.
pub struct PrometheusTools {
    prometheus: String,
    promtool: String,
}

impl PrometheusTools {
    /// Finds or fetches them. `None` where they cannot be had; prints that.
    pub fn find(story: &str) -> Option<Self> {
        let output = Command::new("sh").arg(repository("tests/support/fetch-prometheus.sh")).output();
        let output = output.expect("sh");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(3) {
            print_uncaptured(format_args!("NOT PROVEN: `{story}` needs Prometheus: {said}"));
            return None;
        }
        assert!(output.status.success(), "fetch-prometheus.sh: {said}");
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let [prometheus, promtool] =
            lines.lines().map(str::to_owned).collect::<Vec<_>>().try_into().expect("two");
        Some(Self { prometheus, promtool })
    }

    /// Runs promtool in this folder, with this input.
    pub fn promtool(&self, folder: &Path, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(&self.promtool);
        command.current_dir(folder).args(args);
        let file = tempfile::tempfile().and_then(|mut file| {
            use std::io::{Seek as _, Write as _};
            file.write_all(input.as_bytes())?;
            file.rewind()?;
            Ok(file)
        });
        command.stdin(file.expect("a temporary file")).output().expect("promtool runs")
    }

    /// Starts a server that scrapes this address every second and has these rules; waits until it answers.
    pub async fn start(&self, target: &str, rules: &Path) -> Prometheus {
        let folder = folder("prometheus");
        let port = free_port();
        let config = serde_json::json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules],
            "scrape_configs": [{ "job_name": "halley", "static_configs": [{ "targets": [target] }] }],
        });
        // YAML is a superset of JSON.
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string()).expect("a temporary file can be written");
        let args = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--log.level=warn".to_owned(),
        ];
        let process =
            ChildProcess::start_with(&self.prometheus, &args, folder, &[]).expect("prometheus starts");
        let server = Prometheus { address: format!("127.0.0.1:{port}"), process };
        eventually("prometheus to be ready", PATIENCE, async || {
            let answer = http::get(&server.address, "/-/ready").await;
            answer.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
        server
    }
}

/// A running server.
pub struct Prometheus {
    address: String,
    process: ChildProcess,
}

impl Prometheus {
    /// The series that an expression selects now.
    ///
    /// # Panics
    /// If Prometheus refuses the expression.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.get(&format!("/api/v1/query?query={}", encode(expression))).await;
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    }

    /// The alert rules, with their health.
    pub async fn rules(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/rules").await;
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
    }

    async fn get(&self, path: &str) -> Value {
        let answer = http::get(&self.address, path).await;
        answer.unwrap_or_else(|error| panic!("{error}; {}", self.process.log())).json()
    }
}

/// Percent-encodes a value of a query string.
fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
