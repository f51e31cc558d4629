//! `halley health`: whether the gateway on this machine is ready, for the health checks of containers and
//! service managers, which have no HTTP client.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::Url;
use serde_json::Value;

use crate::admin::default_socket_path;
use crate::cli::client_tls::ClientTlsArgs;
use crate::cli::{ConfigArgs, EXIT_FAILURE, EXIT_SUCCESS, block_on, fail, print, usage};
use crate::config::admin;

/// Arguments of `halley health`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Asks this listener. Default: `[admin] probe_listen` of the configuration, otherwise `listen`. If
    /// that speaks TLS, its Unix socket is asked, unless --ca is given.
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// Only checks that the process answers, whether it is ready or not.
    #[arg(long)]
    live: bool,
    /// How long to wait for the answer.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    tls: ClientTlsArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let mut socket = None;
    let mut url = match args.url {
        Some(url) => url,
        None => {
            let config = args.config.load()?.admin;
            let Some(url) = listener(&config) else {
                return usage("the configuration has no fixed admin port to ask; use --url");
            };
            if url.scheme() == "https" && !args.tls.is_given() {
                socket = socket_of(&config);
                if socket.is_none() {
                    return usage(
                        "`[admin] listen` speaks TLS, and there is no Unix socket to ask; set `[admin] probe_listen`, or use --url with --ca",
                    );
                }
            }
            url
        }
    };
    url.set_path(if args.live { "/healthz" } else { "/readyz" });
    let mut client = args.tls.client()?.timeout(args.timeout);
    if let Some(path) = socket {
        client = client.unix_socket(path);
        let _ = url.set_scheme("http");
    }
    let (ready, text) = block_on(ask(&url, client.build()?))?;
    if args.live {
        anyhow::ensure!(ready, "{url} answered: {text}");
        print("alive");
        return Ok(EXIT_SUCCESS);
    }
    let report: Value = serde_json::from_str(&text).with_context(|| format!("{url} is not a gateway"))?;
    let lines = |key: &str| -> Vec<String> {
        report[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    lines("warnings").iter().for_each(|warning| fail(&format!("warning: {warning}")));
    if !ready {
        lines("reasons").iter().for_each(|reason| fail(reason));
        fail("not ready");
        return Ok(EXIT_FAILURE);
    }
    print("ready");
    Ok(EXIT_SUCCESS)
}

/// Whether the answer is a success, and its body.
async fn ask(url: &Url, client: reqwest::Client) -> anyhow::Result<(bool, String)> {
    let remedy = || format!("no answer from {url}; is the gateway running?");
    let answer = client.get(url.clone()).send().await.with_context(remedy)?;
    let status = answer.status();
    if !status.is_success() && status != reqwest::StatusCode::SERVICE_UNAVAILABLE {
        bail!("{url} answered {status}");
    }
    Ok((status.is_success(), answer.text().await.with_context(remedy)?))
}

/// Where probes of this machine reach the gateway; `None` if its port is chosen at the start.
fn listener(config: &admin::Config) -> Option<Url> {
    let is_tls = config.probe_listen.is_none() && config.tls.is_enabled();
    let scheme = if is_tls { "https" } else { "http" };
    let listen = config.probe_listen.as_ref().unwrap_or(&config.listen);
    let (host, port) = listen.rsplit_once(':').filter(|(_, port)| *port != "0")?;
    let is_any =
        host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    let host = match is_any {
        true if host.starts_with('[') => "[::1]",
        true => "127.0.0.1",
        false => host,
    };
    Url::parse(&format!("{scheme}://{host}:{port}")).ok()
}

/// The Unix socket of the gateway on this machine.
fn socket_of(config: &admin::Config) -> Option<PathBuf> {
    match &config.socket {
        admin::Socket::Off => None,
        admin::Socket::At(path) => Some(path.clone()),
        admin::Socket::Auto => default_socket_path(config.listen.rsplit_once(':')?.1.parse().ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_go_to_the_listener_of_this_machine() {
        let of = |listen: &str, probe_listen: Option<&str>| {
            let probe_listen = probe_listen.map(str::to_owned);
            let config = admin::Config { listen: listen.into(), probe_listen, ..admin::Config::default() };
            listener(&config).map(|url| url.to_string())
        };
        assert_eq!(of("127.0.0.1:9093", None).as_deref(), Some("http://127.0.0.1:9093/"));
        assert_eq!(of("0.0.0.0:9093", None).as_deref(), Some("http://127.0.0.1:9093/"));
        assert_eq!(of("[::]:9093", None).as_deref(), Some("http://[::1]:9093/"));
        assert_eq!(of("halley-0:9093", Some("0.0.0.0:9094")).as_deref(), Some("http://127.0.0.1:9094/"));
        assert_eq!(of("127.0.0.1:0", None), None, "only the log has the port");
        let file = || Some("file.pem".into());
        let tls = crate::tls::ListenerConfig { certificate: file(), key: file(), client_ca: None };
        let secure = admin::Config { tls, ..admin::Config::default() };
        assert_eq!(listener(&secure).map(|url| url.to_string()).as_deref(), Some("https://127.0.0.1:9093/"));
        let probed = admin::Config { probe_listen: Some("127.0.0.1:9094".into()), ..secure };
        assert_eq!(listener(&probed).map(|url| url.to_string()).as_deref(), Some("http://127.0.0.1:9094/"));
    }
}
