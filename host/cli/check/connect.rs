//! `halley check --connect`: probes the services around the gateway.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::comets::Fleet;
use crate::config::Config;
use crate::gateway::{self, Storage};

/// The result of one probe.
#[derive(serde::Serialize)]
pub(super) struct CheckResult {
    /// What was probed.
    pub(super) subject: String,
    /// Whether it is usable.
    pub(super) ok: bool,
    /// What was found, or what is wrong and how to fix it.
    pub(super) text: String,
}

/// Deadline of the directory.
const DIRECTORY: Duration = Duration::from_secs(10);
/// Deadline of a gateway's answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Probes everything that the gateway needs.
pub(super) async fn all(config: &Config) -> Vec<CheckResult> {
    let listen = listener("admin listener", "listen", &config.admin.listen);
    let probes = async {
        let address = config.admin.probe_listen.as_deref()?;
        Some(listener("admin listener for probes", "probe_listen", address).await)
    };
    let replay = gateway::check_replay(config);
    let (probed, directory, listen, probes, replay) =
        tokio::join!(gateway::probe(config), directory(config), listen, probes, replay);
    let of = |subject: String, found: anyhow::Result<String>| match found {
        Ok(text) => CheckResult { subject, ok: true, text },
        Err(error) => CheckResult { subject, ok: false, text: format!("{error:#}") },
    };
    let mut connected: Vec<_> = probed.into_iter().map(|probed| of(probed.subject, probed.found)).collect();
    match directory {
        Ok((how, warning, fleet)) => {
            connected.push(of("directory".to_owned(), Ok(how)));
            connected.extend(warning.map(|text| CheckResult {
                subject: "directory".to_owned(),
                ok: false,
                text,
            }));
            connected.extend(broadcasts(&fleet));
        }
        Err(error) => connected.push(of("directory".to_owned(), Err(error))),
    }
    connected.extend(replay.map(|found| of("replay on return".to_owned(), found)));
    connected.push(listen);
    connected.extend(probes);
    connected
}

/// Whether the directory answers, how rooms are read from it, why cached rooms are not exact, and the
/// comets that it names.
async fn directory(config: &Config) -> anyhow::Result<(String, Option<String>, Arc<Fleet>)> {
    let mut registry = Registry::default();
    let storage = Storage::open(config, &mut registry)?;
    let check = storage.check(gateway::writes_to_redis(config, &[]));
    let Ok(how) = tokio::time::timeout(DIRECTORY, check).await else {
        anyhow::bail!("no answer within {DIRECTORY:?}; check `[redis] url`");
    };
    let how = how?;
    Ok((how, storage.directory.warning(), gateway::observe_fleet(config, &storage, &mut registry).await?))
}

/// What a BROADCAST would reach, and the fleet's warnings.
fn broadcasts(fleet: &Fleet) -> Vec<CheckResult> {
    let connected = |ok, text| CheckResult { subject: "comets".to_owned(), ok, text };
    let reach = fleet.reach();
    let caveat = reach.caveat().map_or_else(String::new, |caveat| format!("; {caveat}"));
    let warnings = fleet.warnings();
    let warnings = warnings.iter().map(|warning| connected(false, warning.to_string()));
    [connected(true, format!("{reach}{caveat}"))].into_iter().chain(warnings).collect()
}

/// Whether a listener of `[admin]` can be bound. If a gateway listens there already, it may be the one
/// with this configuration.
async fn listener(what: &str, key: &str, listen: &str) -> CheckResult {
    let connected = |ok, text| CheckResult { subject: format!("{what} {listen}"), ok, text };
    match TcpListener::bind(listen).await {
        Ok(_) => connected(true, "its port is free".to_owned()),
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_gateway(listen).await => {
            connected(true, "a gateway already listens there; a second one needs another port".to_owned())
        }
        Err(error) => connected(
            false,
            format!("cannot be bound: {error}; check `[admin] {key}`, or what else uses the port"),
        ),
    }
}

/// Whether a gateway answers at this address.
async fn is_gateway(listen: &str) -> bool {
    let asked = async {
        let answer = reqwest::Client::builder().no_proxy().timeout(ANSWER).build()?;
        let answer = answer.get(format!("http://{listen}/readyz")).send().await?;
        answer.json::<serde_json::Value>().await
    };
    asked.await.is_ok_and(|answer| answer.get("ready").is_some())
}
