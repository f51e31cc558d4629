//! The servers: a node of Apache Kafka, fetched as for the end-to-end tests, and Redis.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::child::ChildProcess;

const START: Duration = Duration::from_secs(300);

/// A broker. It ends with this value.
pub(crate) struct Kafka {
    brokers: String,
    _process: ChildProcess,
}

impl Kafka {
    /// Starts a node, and waits until it answers.
    ///
    /// # Errors
    /// When Kafka is not available, or does not start.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let jars = jars()?;
        let folder = folder("kafka")?;
        let brokers = format!("127.0.0.1:{}", free_port()?);
        let properties = folder.path().join("server.properties");
        std::fs::write(&properties, configuration(&brokers, free_port()?, folder.path()))?;
        let logging = folder.path().join("log4j2.yaml");
        std::fs::write(&logging, LOGGING)?;

        let properties = properties.display().to_string();
        let mut format = java(&jars, "kafka.tools.StorageTool");
        let id: String = std::iter::repeat_with(fastrand::alphanumeric).take(21).collect();
        format.extend(
            ["format", "--config", &properties, "--cluster-id", &format!("{id}A")].map(str::to_owned),
        );
        let output = Command::new("java").args(format).output().context("java cannot be started")?;
        let text = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "Kafka's storage cannot be formatted: {text}");

        let mut args = java(&jars, "kafka.Kafka");
        args.insert(0, format!("-Dlog4j2.configurationFile={}", logging.display()));
        args.push(properties);
        let mut process = ChildProcess::start("java", &args, folder).context("java cannot be started")?;
        wait_until_it_answers(&brokers, &mut process)?;
        Ok(Self { brokers, _process: process })
    }

    /// For `bootstrap.servers`.
    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }
}

/// The folder with Kafka's jars; fetched when the cache is empty.
fn jars() -> anyhow::Result<String> {
    let script = repository("tests/support/fetch-kafka.sh");
    let output = Command::new("sh").arg(script).output().context("fetch-kafka.sh cannot be run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "fetch-kafka.sh failed: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn java(jars: &str, main: &str) -> Vec<String> {
    // A heap that holds no topic: they stay in the system's page cache.
    let flags = ["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto", "-cp"];
    let mut args: Vec<String> = flags.map(str::to_owned).to_vec();
    args.push(format!("{jars}/*"));
    args.push(main.to_owned());
    args
}

fn wait_until_it_answers(brokers: &str, process: &mut ChildProcess) -> anyhow::Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("reconnect.backoff.max.ms", "200");
    // While the node starts, refused connections are expected.
    config.set_log_level(RDKafkaLogLevel::Emerg);
    let client: BaseConsumer = config.create()?;
    let until = Instant::now() + START;
    while Instant::now() < until {
        let metadata = client.fetch_metadata(None, Duration::from_millis(500));
        if metadata.is_ok_and(|metadata| !metadata.brokers().is_empty()) {
            return Ok(());
        }
        if let Some(status) = process.ended()? {
            anyhow::bail!("Kafka ended with {status}: {}", process.log());
        }
    }
    anyhow::bail!("Kafka does not answer within {START:?}: {}", process.log())
}

fn configuration(brokers: &str, controller: u16, folder: &Path) -> String {
    let data = folder.join("data");
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://{brokers},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://{brokers}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.enable=false
num.network.threads=2
num.io.threads=4
",
        data = data.display()
    )
}

/// Logs only what explains a failed start.
const LOGGING: &str = "Configuration:
  Appenders:
    Console:
      name: OUT
      PatternLayout:
        pattern: '%d %p %m%n'
  Loggers:
    Root:
      level: WARN
      AppenderRef:
        - ref: OUT
";

/// A Redis server. It ends with this value.
pub(crate) struct Redis {
    port: u16,
    _process: ChildProcess,
}

impl Redis {
    /// Starts `redis-server`, and waits until it listens.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let script = repository("tests/support/need.sh");
        let has = Command::new("sh").arg(script).args(["redis-server", "redis-server"]).status()?;
        anyhow::ensure!(has.success(), "redis-server is missing");
        let (port, folder) = (free_port()?, folder("redis")?);
        let data = folder.path().display().to_string();
        let args =
            format!("--port {port} --bind 127.0.0.1 --save  --appendonly no --daemonize no --dir {data}");
        // `--save ""` takes an empty argument: no snapshots.
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        let mut process = ChildProcess::start("redis-server", &args, folder)?;
        let until = Instant::now() + START;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = process.ended()?;
            anyhow::ensure!(ended.is_none() && Instant::now() < until, "no Redis: {}", process.log());
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(Self { port, _process: process })
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A new folder for one process.
pub(crate) fn folder(prefix: &str) -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix(&format!("halley-bench-{prefix}-")).tempdir()?)
}

/// A TCP port that is currently free.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
