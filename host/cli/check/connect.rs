//! `halley check --connect`: probes the services around the gateway.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::blocking::run_blocking;
use crate::cli::check::certificates;
use crate::cli::check::result::CheckResult;
use crate::cli::common::with_causes;
use crate::comets::Fleet;
use crate::config::Config;
use crate::gateway::{self, Storage};
use crate::telemetry::{Registry, traces};
use crate::{artifact, files, policy, tls};

/// Deadline of the directory.
const DIRECTORY: Duration = Duration::from_secs(10);
/// Deadline of a gateway's answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Maximum size of a certificate's file, in bytes.
const LONGEST_FILE: u64 = 1024 * 1024;

/// Probes everything that the gateway needs.
pub(super) async fn all(config: &Config) -> Vec<CheckResult> {
    let replay = gateway::check_replay(config);
    let traces = traces::probe(&config.traces);
    let (probed, directory, registries, listeners, replay, traces) = tokio::join!(
        gateway::probe(config),
        directory(config),
        registries(config),
        listeners(config),
        replay,
        traces
    );
    let mut connected: Vec<_> = probed
        .into_iter()
        .map(|probed| CheckResult { warning: probed.is_warning, ..of(probed.subject, probed.found) })
        .collect();
    match directory {
        Ok((how, warning, fleet)) => {
            connected.push(of("directory".to_owned(), Ok(how)));
            connected.extend(warning.map(|text| of("directory".to_owned(), Err(anyhow::anyhow!(text)))));
            connected.extend(broadcasts(&fleet));
        }
        Err(error) => connected.push(of("directory".to_owned(), Err(error))),
    }
    connected.extend(replay.map(|found| of("replay on return".to_owned(), found)));
    connected.extend(registries);
    connected.extend(traces.map(|found| of("collector of traces".to_owned(), found)));
    connected.extend(listeners);
    connected.extend(certificates::all(config));
    connected
}

fn of(subject: String, found: anyhow::Result<String>) -> CheckResult {
    let (ok, text) = match found {
        Ok(text) => (true, text),
        Err(error) => (false, with_causes(&error)),
    };
    CheckResult { subject, ok, warning: false, text }
}

/// Whether the registries have the configured plugins. Asks them also for what is cached here: another
/// gateway may have to fetch it.
async fn registries(config: &Config) -> Vec<CheckResult> {
    let plugins = config.plugin.iter().filter(|plugin| plugin.path.file().is_none()).cloned();
    let (plugins, limits) = (plugins.collect::<Vec<_>>(), config.policies.registry.clone());
    let ask = move || {
        let asked = |plugin: policy::PluginConfig| {
            let found = artifact::probe_registry(&plugin.path, &limits);
            of(format!("plugin {} from {}", plugin.name, plugin.path), found.map_err(anyhow::Error::new))
        };
        plugins.into_iter().map(asked).collect()
    };
    run_blocking("asking registries", ask).await.unwrap_or_default()
}

/// Whether the directory answers, how rooms are read from it, why cached rooms are not exact, and the
/// comets that it names.
async fn directory(config: &Config) -> anyhow::Result<(String, Option<String>, Arc<Fleet>)> {
    let mut registry = Registry::default();
    let storage = Storage::open(config, &mut registry)?;
    let check = storage.check(gateway::writes_to_redis(config, &config.plugins()?));
    let Ok(how) = tokio::time::timeout(DIRECTORY, check).await else {
        anyhow::bail!("no answer within {DIRECTORY:?}; check `[redis] url`");
    };
    let how = how?;
    Ok((how, storage.directory.warning(), gateway::observe_fleet(config, &storage, &mut registry).await?))
}

/// What a BROADCAST would reach, and the fleet's warnings.
fn broadcasts(fleet: &Fleet) -> Vec<CheckResult> {
    let connected = |ok, text| CheckResult { subject: "comets".to_owned(), ok, warning: false, text };
    let reach = fleet.reach();
    let caveat = reach.caveat().map_or_else(String::new, |caveat| format!("; {caveat}"));
    let warnings = fleet.warnings();
    let warnings = warnings.iter().map(|warning| connected(false, warning.to_string()));
    [connected(true, format!("{reach}{caveat}"))].into_iter().chain(warnings).collect()
}

/// Whether each listener can be bound.
async fn listeners(config: &Config) -> Vec<CheckResult> {
    let mut found = Vec::new();
    for (key, listen) in config.listeners() {
        let plain = tls::ListenerConfig::default();
        // The field of what a gateway answers there.
        let (what, tls, field) = match key {
            "api.listen" => ("API listener", &config.api.tls, "error"),
            "admin.probe_listen" => ("admin listener for probes", &plain, "ready"),
            _ => ("admin listener", &config.admin.tls, "ready"),
        };
        found.push(listener(&format!("{what} {listen}"), key, listen, tls, field).await);
    }
    found
}

/// Whether a listener can be bound. If a gateway listens there already, it may be the one with this
/// configuration.
async fn listener(
    subject: &str,
    key: &str,
    listen: &str,
    tls: &tls::ListenerConfig,
    field: &str,
) -> CheckResult {
    let connected = |ok, text| CheckResult { subject: subject.to_owned(), ok, warning: false, text };
    match TcpListener::bind(listen).await {
        Ok(_) => connected(true, "its port is free".to_owned()),
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_gateway(listen, tls, field).await => {
            connected(true, "a gateway already listens there; a second one needs another port".to_owned())
        }
        Err(error) => {
            connected(false, format!("cannot be bound: {error}; check `{key}`, or what else uses the port"))
        }
    }
}

/// Whether a gateway answers at this address. Over TLS, it is one if it shows our certificate: what it
/// answers may need a certificate of a client.
async fn is_gateway(listen: &str, tls: &tls::ListenerConfig, field: &str) -> bool {
    if let Some(certificate) = &tls.certificate {
        let shown = async {
            let ours = files::read_text(certificate, LONGEST_FILE).ok()?;
            let shown = tls::shown_certificate(TcpStream::connect(listen).await.ok()?).await.ok()??;
            Some(tls::pem::certificates("certificate", &ours).ok()?.first() == Some(&shown))
        };
        return tokio::time::timeout(ANSWER, shown).await.is_ok_and(|same| same == Some(true));
    }
    let asked = async {
        let answer = reqwest::Client::builder().no_proxy().timeout(ANSWER).build()?;
        let answer = answer.get(format!("http://{listen}/readyz")).send().await?;
        answer.json::<serde_json::Value>().await
    };
    // Other services may have fields of these names, with objects in them.
    asked
        .await
        .is_ok_and(|answer| answer.get(field).is_some_and(|found| found.is_boolean() || found.is_string()))
}
