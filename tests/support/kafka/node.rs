//! Apache Kafka as a single KRaft node: its jars, configuration and start.
//!
//! The node has a small heap, its own ports and a temporary directory, and ends with the test process
//! in any case (see `child_process`).

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::Metadata;

use crate::support::child_process::ChildProcess;
use crate::support::redis_nodes::free_port;
use crate::support::{folder, print_uncaptured, repository};

/// A start takes 3 s here, longer on a loaded machine.
const START: Duration = Duration::from_secs(90);

/// A node. It keeps its ports while it lives, running or stopped.
pub(super) struct Node {
    brokers: String,
    process: ChildProcess,
}

/// A second listener, whose clients are directed to another address: a proxy's.
pub(super) struct SecondListener {
    pub(super) listen: String,
    pub(super) advertise: String,
    /// Its clients log in (SASL PLAIN, see [`super::acl`]) and may only do what they are granted.
    pub(super) secured: bool,
}

impl Node {
    /// Starts a node and waits until it answers. `Err` is the reason for a failure.
    pub(super) fn start(second_listener: Option<&SecondListener>) -> Result<Self, String> {
        let jars = jars()?;
        // A free port may be taken a moment later: retry once.
        try_start(&jars, second_listener).or_else(|first| {
            try_start(&jars, second_listener).map_err(|second| format!("{first}; again: {second}"))
        })
    }

    /// For `bootstrap.servers`.
    pub(super) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Kills it as a crash would.
    pub(super) fn stop(&mut self) {
        self.process.kill();
    }

    /// Restarts it with its data, and waits until it answers.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        self.process.restart().map_err(|e| format!("java cannot be started: {e}"))?;
        wait_until_it_answers(&self.brokers, &mut self.process)
    }
}

/// The directory of Kafka's jars; fetched if the cache is empty.
fn jars() -> Result<String, String> {
    let output = Command::new("sh").arg(repository("tests/support/fetch-kafka.sh")).output();
    let output = output.map_err(|e| format!("fetch-kafka.sh cannot be run: {e}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    if !told.is_empty() {
        print_uncaptured(told.trim());
    }
    if !output.status.success() {
        return Err(format!("fetch-kafka.sh failed: {}", told.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn try_start(jars: &str, second_listener: Option<&SecondListener>) -> Result<Node, String> {
    let folder = folder("kafka");
    let brokers = format!("127.0.0.1:{}", free_port());
    let properties = folder.path().join("server.properties");
    let text = configuration(&brokers, second_listener, free_port(), folder.path());
    std::fs::write(&properties, text).map_err(|e| format!("{}: {e}", properties.display()))?;
    let logging = folder.path().join("log4j2.yaml");
    std::fs::write(&logging, LOGGING).map_err(|e| format!("{}: {e}", logging.display()))?;

    let properties = properties.display().to_string();
    format_storage(jars, &properties)?;
    let mut args = java(jars, "kafka.Kafka");
    args.insert(0, format!("-Dlog4j2.configurationFile={}", logging.display()));
    args.push(properties);
    let mut process =
        ChildProcess::start("java", &args, folder).map_err(|e| format!("java cannot be started: {e}"))?;
    wait_until_it_answers(&brokers, &mut process)?;
    Ok(Node { brokers, process })
}

/// Arguments of `java`. Start-up dominates the cost of a short-lived broker: only the first compiler
/// tier is used.
fn java(jars: &str, main: &str) -> Vec<String> {
    let flags = ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp"];
    let mut args: Vec<String> = flags.map(str::to_owned).to_vec();
    args.push(format!("{jars}/*"));
    args.push(main.to_owned());
    args
}

fn format_storage(jars: &str, properties: &str) -> Result<(), String> {
    let mut args = java(jars, "kafka.tools.StorageTool");
    args.extend(["format", "--cluster-id", &cluster_id(), "--config", properties].map(str::to_owned));
    let output = Command::new("java").args(args).output();
    match output {
        Ok(Output { status, .. }) if status.success() => Ok(()),
        Ok(output) => Err(format!("Kafka's storage cannot be formatted: {}", text_of(&output))),
        Err(error) => Err(format!("java cannot be started: {error}")),
    }
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// 16 random bytes in URL-safe base64 have 22 characters, the last of which has two bits; a leading
/// dash would look like an option.
fn cluster_id() -> String {
    let letters: String = std::iter::repeat_with(fastrand::alphanumeric).take(21).collect();
    format!("{letters}A")
}

fn wait_until_it_answers(brokers: &str, node: &mut ChildProcess) -> Result<(), String> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("reconnect.backoff.max.ms", "200");
    // While the node starts, refused connections are expected.
    config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    let client: BaseConsumer = config.create().map_err(|e| e.to_string())?;
    let until = Instant::now() + START;
    while Instant::now() < until {
        let metadata = client.fetch_metadata(None, Duration::from_millis(500));
        if metadata.is_ok_and(|metadata| is_up(&metadata)) {
            return Ok(());
        }
        if let Some(status) = node.ended() {
            return Err(format!("Kafka ended with {status}: {}", node.log()));
        }
    }
    Err(format!("Kafka does not answer within {START:?}: {}", node.log()))
}

/// It is unfenced and leads its partitions.
fn is_up(metadata: &Metadata) -> bool {
    let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    !metadata.brokers().is_empty() && partitions.all(|partition| partition.leader() >= 0)
}

fn configuration(
    brokers: &str,
    second_listener: Option<&SecondListener>,
    controller: u16,
    folder: &Path,
) -> String {
    let data = folder.join("data");
    let listener = |address: &String| format!(",DETOUR://{address}");
    let listen = second_listener.map(|second_listener| listener(&second_listener.listen)).unwrap_or_default();
    let advertise =
        second_listener.map(|second_listener| listener(&second_listener.advertise)).unwrap_or_default();
    let secured = second_listener.is_some_and(|second_listener| second_listener.secured);
    let (protocol, security) =
        if secured { ("SASL_PLAINTEXT", super::acl::SECURITY) } else { ("PLAINTEXT", "") };
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://{brokers},CONTROLLER://127.0.0.1:{controller}{listen}
advertised.listeners=PLAINTEXT://{brokers}{advertise}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,DETOUR:{protocol}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Stories with two gateways do not wait for a group to fill, nor long for a dead member.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# The same for groups of KIP-848, whose members are heard once per heartbeat.
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
log.cleaner.enable=false
num.network.threads=2
num.io.threads=4
{security}",
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
