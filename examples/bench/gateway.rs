//! The gateway's process: the real binary with a configuration file.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::child::ChildProcess;
use crate::cpu;
use crate::rows::{Dialect, Scenario};
use crate::servers::{folder, free_port};

/// A running gateway. It is killed when this is dropped.
pub(crate) struct Gateway {
    process: ChildProcess,
    admin: u16,
    file: PathBuf,
    configuration: String,
}

/// Around the gateway.
pub(crate) struct Around<'a> {
    pub(crate) brokers: &'a str,
    pub(crate) redis: &'a str,
    pub(crate) topic: &'a str,
    pub(crate) group: &'a str,
    pub(crate) comets: &'a [SocketAddr],
}

impl Gateway {
    /// Starts a gateway for this scenario.
    ///
    /// # Errors
    /// When the binary cannot be started.
    pub(crate) fn start(binary: &Path, scenario: &Scenario, around: &Around<'_>) -> anyhow::Result<Self> {
        let (folder, admin) = (folder("gateway")?, free_port()?);
        let file = folder.path().join("halley.toml");
        let configuration = configuration(scenario, around, admin);
        std::fs::write(&file, &configuration)?;
        let args = ["run", "--config", &file.display().to_string()].map(str::to_owned);
        let binary = binary.display().to_string();
        let process = ChildProcess::start(&binary, &args, folder)
            .with_context(|| format!("{binary} cannot be started"))?;
        Ok(Self { process, admin, file, configuration })
    }

    /// Its CPU time so far.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu::time_of(self.process.pid())
    }

    /// Its current memory, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        cpu::resident(self.process.pid())
    }

    /// The sum of all series of a metric.
    ///
    /// # Errors
    /// When the gateway does not answer.
    pub(crate) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        metric(self.admin, name)
    }

    /// Replaces its policies; from any thread.
    pub(crate) fn swapper(&self) -> Swapper {
        Swapper { admin: self.admin, file: self.file.clone(), configuration: self.configuration.clone() }
    }

    /// Checks that it is running.
    ///
    /// # Errors
    /// With the end of its log when it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.process.ended()? else { return Ok(()) };
        anyhow::bail!("the gateway ended with {status}: {}", self.last_words())
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = self.process.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

/// Replaces a gateway's policies.
pub(crate) struct Swapper {
    admin: u16,
    file: PathBuf,
    configuration: String,
}

impl Swapper {
    /// Replaces the policies by others with the same effect, and waits until these are active. Blocks.
    ///
    /// # Errors
    /// When they are not within ten seconds.
    pub(crate) fn swap(&self, number: usize) -> anyhow::Result<()> {
        const ACTIVE: &str = "halley_policy_generation";
        let before = metric(self.admin, ACTIVE)?;
        // Another word.
        let changed = self.configuration.replacen("forbidden0000", &format!("swapped{number:06}"), 1);
        let aside = self.file.with_extension("new");
        std::fs::write(&aside, changed)?;
        std::fs::rename(&aside, &self.file)?;
        let until = Instant::now() + Duration::from_secs(10);
        while metric(self.admin, ACTIVE)? <= before {
            anyhow::ensure!(Instant::now() < until, "swap {number} is not active");
            #[allow(clippy::disallowed_methods, reason = "a thread of its own, which looks again and again")]
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// The sum of all series of a metric of the gateway with this port.
fn metric(admin: u16, name: &str) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, admin))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    };
    Ok(text.lines().filter_map(value).sum())
}

/// Keys that neither this nor the scenario sets have their defaults.
fn configuration(scenario: &Scenario, around: &Around<'_>, admin: u16) -> String {
    let Around { brokers, redis, topic, group, comets } = around;
    let (dialect, rooms) = match scenario.dialect {
        Dialect::Chatroom => ("chatroom", "directory"),
        Dialect::ChatroomEverywhere => ("chatroom", "every-comet"),
        Dialect::Goim => ("goim", "every-comet"),
    };
    let comets: Vec<String> = comets.iter().map(|comet| format!("\"{comet}\"")).collect();
    let mut sections = vec![
        ("kafka", format!("brokers = \"{brokers}\"\ntopics = [\"{topic}\"]\ngroup = \"{group}\"\n")),
        ("redis", format!("url = \"{redis}\"\n")),
        ("routing", format!("rooms = \"{rooms}\"\n")),
        ("comets", format!("dialect = \"{dialect}\"\nnodes = [{}]\n", comets.join(", "))),
        ("admin", format!("listen = \"127.0.0.1:{admin}\"\nsocket = \"off\"\n")),
    ];
    for (section, key, value) in scenario.settings {
        let setting = format!("{key} = {value}\n");
        match sections.iter_mut().find(|(name, _)| name == section) {
            Some((_, text)) => text.push_str(&setting),
            None => sections.push((section, setting)),
        }
    }
    let mut text: String = sections.iter().map(|(name, text)| format!("[{name}]\n{text}\n")).collect();
    if scenario.filter {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/dist/keyword_filter.wasm");
        let words: Vec<String> = (0..1000).map(|word| format!("\"forbidden{word:04}\"")).collect();
        text.push_str(&format!(
            "[[plugin]]\nname = \"words\"\npath = \"{}\"\nconfig = {{ words = [{}], action = \"drop\" }}\n",
            path.display(),
            words.join(", ")
        ));
    }
    text
}
