//! Runs the gateway like a user: the real binary with a configuration file; its log is kept, and its
//! admin interface is reachable.
//!
//! ```ignore
//! let gateway = gateway(&topic).redis(&redis).node(&comet).start().await;
//! ```
//!
//! The builder writes the configuration; everything else keeps its default. The admin interface
//! listens on a free port, which is read from the JSON log.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use parking_lot::Mutex;
use serde_json::Value;

use super::child_process::ChildProcess;
use super::comet::FakeComet;
use super::http::{self, Answer};
use super::kafka::{Kafka, View, kafka};
use super::redis::Redis;
use super::{PATIENCE, eventually, folder, unique};

/// The log line of the bound admin interface, with the field `address`.
const ADMIN_IS_LISTENING: &str = "admin is listening";

/// The settings of a gateway.
#[derive(Debug, Clone)]
pub struct Gateway {
    group: String,
    /// `None` is the Kafka that all stories share.
    kafka: Option<View>,
    /// TOML values by section and key.
    settings: BTreeMap<&'static str, BTreeMap<String, String>>,
    nodes: Vec<String>,
    plugins: Vec<Plugin>,
    environment: Vec<(String, String)>,
    /// The command that starts the binary.
    under: Vec<String>,
}

/// The settings of a `[[plugin]]`.
#[derive(Debug, Clone)]
pub struct Plugin {
    name: String,
    path: PathBuf,
    settings: BTreeMap<String, String>,
}

impl Plugin {
    /// A plugin from this file.
    pub fn new(name: &str, path: impl Into<PathBuf>) -> Self {
        Self { name: name.to_owned(), path: path.into(), settings: BTreeMap::new() }
    }

    /// One key, its value as TOML: `.set("on_error", "\"drop\"")`.
    pub fn set(mut self, key: &str, toml: impl fmt::Display) -> Self {
        self.settings.insert(key.to_owned(), toml.to_string());
        self
    }

    /// The plugin's own configuration.
    pub fn config(self, config: &Value) -> Self {
        self.set("config", toml(config))
    }
}

/// A gateway that reads this topic from the shared Kafka, with its own consumer group and the
/// in-memory directory.
pub fn gateway(topic: &str) -> Gateway {
    let empty = Gateway {
        group: unique("halley"),
        kafka: None,
        settings: BTreeMap::new(),
        nodes: Vec::new(),
        plugins: Vec::new(),
        environment: Vec::new(),
        under: Vec::new(),
    };
    let group = quoted(&empty.group);
    empty
        .set("kafka", "topics", format!("[{}]", quoted(topic)))
        .set("kafka", "group", group)
        .set("kafka", "dead_letter_topic", quoted(&format!("{topic}.dead-letter")))
        .set("offline", "notify_topic", quoted(&format!("{topic}.offline")))
        .set("redis", "url", quoted("memory://"))
        .set("admin", "listen", quoted("127.0.0.1:0"))
        .set("admin", "socket", quoted("admin.sock"))
}

impl Gateway {
    /// One key, its value as TOML: `.set("delivery", "request_timeout", "\"1s\"")`.
    pub fn set(mut self, section: &'static str, key: &str, toml: impl fmt::Display) -> Self {
        self.settings.entry(section).or_default().insert(key.to_owned(), toml.to_string());
        self
    }

    /// Reads from this Kafka, which is also used by [`RunningGateway`].
    pub fn kafka(mut self, kafka: &Kafka) -> Self {
        self.kafka = Some(kafka.view().clone());
        self
    }

    fn view(&self) -> &View {
        self.kafka.as_ref().unwrap_or_else(|| kafka().view())
    }

    /// Uses this Redis for directory, inbox and guards.
    pub fn redis(self, redis: &Redis) -> Self {
        self.set("redis", "url", quoted(redis.url()))
    }

    /// Sets the consumer group: gateways with the same one share its partitions.
    pub fn group(mut self, group: &str) -> Self {
        self.group = group.to_owned();
        self.set("kafka", "group", quoted(group))
    }

    /// Configures a comet for BROADCAST.
    pub fn node(self, comet: &FakeComet) -> Self {
        self.node_at(comet.address())
    }

    /// The same by address, for a comet that is not a [`FakeComet`].
    pub fn node_at(mut self, address: impl fmt::Display) -> Self {
        self.nodes.push(address.to_string());
        let nodes: Vec<String> = self.nodes.iter().map(|node| quoted(node)).collect();
        self.set("comets", "nodes", format!("[{}]", nodes.join(", ")))
    }

    /// Adds a policy after the existing ones.
    pub fn plugin(mut self, plugin: Plugin) -> Self {
        self.plugins.push(plugin);
        self
    }

    /// No policies.
    pub fn without_plugins(mut self) -> Self {
        self.plugins.clear();
        self
    }

    /// Sets an environment variable of the process.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A program that runs the gateway, such as `prlimit --as=BYTES`.
    pub fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The configuration file's content.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        let mut settings = self.settings.clone();
        let kafka = settings.entry("kafka").or_default();
        kafka.entry("brokers".to_owned()).or_insert_with(|| quoted(self.view().brokers()));
        for (section, keys) in &settings {
            text.push_str(&table(&format!("[{section}]"), keys));
        }
        for plugin in &self.plugins {
            let mut keys = plugin.settings.clone();
            keys.insert("name".to_owned(), quoted(&plugin.name));
            keys.insert("path".to_owned(), quoted(&plugin.path.display().to_string()));
            text.push_str(&table("[[plugin]]", &keys));
        }
        text
    }

    /// Starts the gateway and waits until it is ready.
    pub async fn start(self) -> RunningGateway {
        let running = self.start_unready().await;
        running.wait_until_ready().await;
        running
    }

    /// Starts the gateway and waits until its admin interface answers, ready or not.
    pub async fn start_unready(self) -> RunningGateway {
        let folder = folder("gateway");
        let file = folder.path().join("halley.toml");
        std::fs::write(&file, self.toml()).expect("a temporary file can be written");
        let args = ["run", "--config", &file.display().to_string(), "--log-format", "json"];
        let binary = [env!("CARGO_BIN_EXE_halley")];
        let words = self.under.iter().map(String::as_str).chain(binary).chain(args);
        let words: Vec<String> = words.map(str::to_owned).collect();
        let process = ChildProcess::start_with(&words[0], &words[1..], folder, &self.environment);
        let process = Mutex::new(process.expect("the binary starts"));
        let kafka = self.view().clone();
        let mut running = RunningGateway { group: self.group, kafka, file, admin: String::new(), process };
        running.admin = running.wait_for_log(ADMIN_IS_LISTENING).await["address"]
            .as_str()
            .unwrap_or_else(|| panic!("no address in the line `{ADMIN_IS_LISTENING}`: {running:?}"))
            .to_owned();
        running
    }
}

/// A gateway process.
pub struct RunningGateway {
    group: String,
    kafka: View,
    file: PathBuf,
    admin: String,
    process: Mutex<ChildProcess>,
}

impl RunningGateway {
    /// Its consumer group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Its configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.lock().pid()
    }

    /// Replaces its configuration file atomically, like an editor; a hot swap follows.
    pub fn configure(&self, wanted: &Gateway) {
        let aside = self.file.with_extension("new");
        std::fs::write(&aside, wanted.toml()).expect("a temporary file can be written");
        std::fs::rename(&aside, &self.file).expect("a file can be renamed within its folder");
    }

    /// GETs a path of its admin interface.
    ///
    /// # Panics
    /// Without a response, with the log.
    pub async fn get(&self, path: &str) -> Answer {
        http::get(&self.admin, path).await.unwrap_or_else(|e| panic!("{e}; {self:?}"))
    }

    /// Sends a request to its admin interface, over TCP.
    ///
    /// # Panics
    /// Without a response, with the log.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let sent = http::send(&self.admin, method, path, headers, body).await;
        sent.unwrap_or_else(|e| panic!("{e}; {self:?}"))
    }

    /// The same over its Unix socket, as the operator: without a token.
    ///
    /// # Panics
    /// Without a response, with the log.
    pub async fn operate(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let sent = http::send(&self.operator(), method, path, headers, body).await;
        sent.unwrap_or_else(|e| panic!("{e}; {self:?}"))
    }

    /// Its admin interface over TCP, `host:port`.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Its admin interface over TCP, for `--gateway`.
    pub fn url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// Its Unix socket, for `--gateway`.
    pub fn operator(&self) -> String {
        format!("unix:{}", self.file.with_file_name("admin.sock").display())
    }

    /// The value of a metric by its name and labels as in `/metrics`, such as
    /// `job_dispatch_success_total{comet="127.0.0.1:50051"}`; `None` if missing.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let text = self.get("/metrics").await.body;
        let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == series))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Waits until `/readyz` answers 200.
    pub async fn wait_until_ready(&self) {
        let mut last = None;
        let ready = eventually_or("/readyz to answer 200", async || {
            self.check_alive();
            let answer = http::get(&self.admin, "/readyz").await;
            let ready = answer.as_ref().is_ok_and(|answer| answer.status == 200);
            last = Some(answer);
            ready.then_some(())
        });
        if ready.await.is_none() {
            panic!("not ready after {PATIENCE:?}: {last:?}; {self:?}");
        }
    }

    /// Waits until the group has committed the whole topic.
    pub async fn wait_until_settled(&self, topic: &str) {
        let settled = eventually_or("settled", async || {
            self.check_alive();
            (self.kafka.committed(&self.group, topic).await == self.kafka.ends(topic)).then_some(())
        });
        if settled.await.is_none() {
            let (committed, ends) = (self.kafka.committed(&self.group, topic).await, self.kafka.ends(topic));
            panic!("{topic}: committed {committed:?} of {ends:?} after {PATIENCE:?}; {self:?}");
        }
    }

    /// Its log lines as JSON objects; other lines (a panic) are strings.
    pub fn log_lines(&self) -> Vec<Value> {
        let text = self.process.lock().log();
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| Value::from(line));
        text.lines().map(parse).collect()
    }

    /// Waits for a log line with this message, and returns its first occurrence.
    pub async fn wait_for_log(&self, message: &str) -> Value {
        let line = eventually_or(message, async || {
            let found = self.log_lines().into_iter().find(|line| message_of(line) == Some(message));
            if found.is_none() {
                self.check_alive();
            }
            found
        });
        line.await.unwrap_or_else(|| panic!("no log line `{message}` after {PATIENCE:?}; {self:?}"))
    }

    /// Waits for a log line whose message starts like this, and returns the message.
    pub async fn wait_for_log_that(&self, begins: &str) -> String {
        let begins_so = |line: &Value| message_of(line).filter(|m| m.starts_with(begins)).map(str::to_owned);
        let line = eventually_or(begins, async || self.log_lines().iter().find_map(begins_so));
        line.await.unwrap_or_else(|| panic!("no log line `{begins}...` after {PATIENCE:?}; {self:?}"))
    }

    /// Drains it (SIGTERM), and returns its exit status.
    pub async fn sigterm(&self) -> ExitStatus {
        self.signal("TERM");
        self.wait().await
    }

    /// Sends a signal: `STOP`, `CONT`, `INT`.
    pub fn signal(&self, signal: &str) {
        self.process.lock().signal(signal);
    }

    /// Waits until it exits.
    pub async fn wait(&self) -> ExitStatus {
        let ended = eventually_or("the gateway's end", async || self.process.lock().ended());
        ended.await.unwrap_or_else(|| panic!("still running after {PATIENCE:?}; {self:?}"))
    }

    /// Its exit status, if it has exited.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.lock().ended()
    }

    /// Kills it (SIGKILL) without draining.
    pub fn kill(&self) {
        self.process.lock().kill();
    }

    fn check_alive(&self) {
        let ended = self.process.lock().ended();
        assert!(ended.is_none(), "the gateway has ended by itself: {ended:?}; {self:?}");
    }
}

impl Drop for RunningGateway {
    /// Prints the gateway's log if the test fails.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{self:?}");
        }
    }
}

impl fmt::Debug for RunningGateway {
    /// The end of the log, for failures.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.process.lock().log();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(100)..];
        writeln!(f, "gateway {} (admin {}), its last {} log lines:", self.pid(), self.admin, last.len())?;
        f.write_str(&last.join("\n"))
    }
}

/// Like [`eventually`], but returns `None` on timeout.
async fn eventually_or<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let wait = eventually(what, PATIENCE * 2, async || condition().await);
    tokio::time::timeout(PATIENCE, wait).await.ok()
}

/// tracing's JSON has the message among the fields, or at the top level if flattened.
fn message_of(line: &Value) -> Option<&str> {
    line["message"].as_str().or_else(|| line["fields"]["message"].as_str())
}

fn table(head: &str, keys: &BTreeMap<String, String>) -> String {
    let mut text = format!("{head}\n");
    for (key, value) in keys {
        text.push_str(&format!("{key} = {value}\n"));
    }
    text + "\n"
}

/// A TOML string; it has the same escapes as JSON.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// JSON as an inline TOML value. TOML has no null: such keys are omitted.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(toml).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(keys) => {
            let keys = keys.iter().filter(|(_, value)| !value.is_null());
            let keys: Vec<String> =
                keys.map(|(key, value)| format!("{} = {}", quoted(key), toml(value))).collect();
            format!("{{ {} }}", keys.join(", "))
        }
        plain => plain.to_string(),
    }
}
