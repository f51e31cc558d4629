//! How commands talk to a running gateway.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;

use crate::admin;
use crate::cli::client_tls::ClientTlsArgs;
use crate::cli::{runtime, usage};
use crate::files::{self, ReadError};

/// Selects a gateway and authenticates.
#[derive(Debug, clap::Args)]
pub(super) struct GatewayArgs {
    /// The admin listener of the gateway: its URL (`https://` with `[admin.tls]`), or `unix:PATH` for its `[admin] socket`.
    ///
    /// Over the socket, the gateway's own user and root are allowed everything without a token. For a
    /// URL on this machine and without a token, the socket of a gateway of this user is used where
    /// `[admin] socket` is `auto`.
    #[arg(long, value_name = "URL", env = "HALLEY_GATEWAY", default_value = "http://127.0.0.1:9093")]
    gateway: GatewayEndpoint,
    /// A file with the admin token. Default: the environment variable HALLEY_ADMIN_TOKEN, if set.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: ClientTlsArgs,
}

/// The address of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
enum GatewayEndpoint {
    Tcp(Url),
    #[display("unix:{}", _0.display())]
    Unix(PathBuf),
}

impl FromStr for GatewayEndpoint {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            anyhow::ensure!(!path.is_empty(), "`unix:` needs a path: unix:/run/halley/admin.sock");
            return Ok(Self::Unix(path.into()));
        }
        let url: Url = text.parse().with_context(expected_format)?;
        anyhow::ensure!(!url.cannot_be_a_base(), expected_format());
        Ok(Self::Tcp(url))
    }
}

fn expected_format() -> &'static str {
    "expected the address of a gateway, such as http://127.0.0.1:9093 or unix:/run/halley/admin.sock"
}

impl GatewayEndpoint {
    /// The socket of this user's gateway on this machine, if it has one.
    fn prefer_socket(self) -> Self {
        let Self::Tcp(url) = &self else { return self };
        let is_local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let port = url.port().filter(|_| is_local && url.scheme() == "http");
        match port.and_then(admin::default_socket_path) {
            Some(path) => Self::Unix(path),
            None => self,
        }
    }
}

/// Compiling on a busy gateway takes time.
const DEADLINE: Duration = Duration::from_secs(180);
/// The maximum size of a token file, in bytes.
const LONGEST_TOKEN: u64 = 64 * 1024;

impl GatewayArgs {
    /// GETs a path below `/v1/`.
    ///
    /// # Errors
    /// When the gateway is unreachable or refuses.
    pub(super) fn get(&self, path: &[&str]) -> anyhow::Result<Value> {
        self.send(Method::GET, path, |request| request)
    }

    /// Sends a request to a path below `/v1/` and returns the response.
    ///
    /// # Errors
    /// When the gateway is unreachable or refuses; one reason per line.
    pub(super) fn send(
        &self,
        method: Method,
        path: &[&str],
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> anyhow::Result<Value> {
        let token = self.token()?;
        let endpoint = self.gateway.clone();
        let endpoint = if token.is_none() { endpoint.prefer_socket() } else { endpoint };
        if self.tls.is_given() && matches!(&endpoint, GatewayEndpoint::Tcp(url) if url.scheme() != "https") {
            return usage(
                "`--ca`, `--cert` and `--key` need a gateway whose address begins with https://; see `--gateway`",
            );
        }
        let client = self.tls.client()?.timeout(DEADLINE).connect_timeout(Duration::from_secs(10));
        let (client, mut url) = match endpoint {
            GatewayEndpoint::Tcp(url) => (client, url),
            GatewayEndpoint::Unix(path) => (client.unix_socket(path), Url::parse("http://localhost")?),
        };
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let mut request = client.build()?.request(method, url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        runtime()?.block_on(self.exchange(with(request)))
    }

    async fn exchange(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let is_https = matches!(&self.gateway, GatewayEndpoint::Tcp(url) if url.scheme() == "https");
        let tls = if is_https { "; check also `--ca`, `--cert` and `--key`" } else { "" };
        let remedy = || {
            format!(
                "gateway unreachable at {}; is it running, and is `--gateway` its [admin] listen{tls}?",
                self.gateway
            )
        };
        let answer = request.send().await.with_context(remedy)?;
        let status = answer.status();
        let text = answer.text().await.with_context(remedy)?;
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() {
            return Ok(body);
        }
        bail!("{}", reasons(status, &body, &text))
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        let token = match &self.token_file {
            Some(file) => {
                let read = match files::read_secret(file, LONGEST_TOKEN) {
                    // A pipe from another command: nobody else has access to it.
                    Err(ReadError::NotAFile("a pipe")) => files::read_argument(file, LONGEST_TOKEN),
                    read => read,
                };
                Some(read.map_err(|why| anyhow::anyhow!("--token-file {} {why}", file.display()))?)
            }
            None => std::env::var("HALLEY_ADMIN_TOKEN").ok(),
        };
        Ok(token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
    }
}

/// The gateway's error, one reason per line.
fn reasons(status: StatusCode, body: &Value, text: &str) -> String {
    let Some(error) = body["error"].as_str() else {
        return format!("the gateway answered {status}: {}", text.trim());
    };
    let problems = body["problems"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let lines: Vec<String> = problems.map(|problem| format!("\n  {problem}")).collect();
    format!("{error}{}", lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_a_url_or_a_socket() {
        let shown = |text: &str| text.parse::<GatewayEndpoint>().map(|endpoint| endpoint.to_string()).ok();
        assert_eq!(shown("http://gw:9093").as_deref(), Some("http://gw:9093/"));
        for socket in ["unix:/run/halley/admin.sock", "unix:///run/halley/admin.sock"] {
            assert_eq!(shown(socket).as_deref(), Some("unix:/run/halley/admin.sock"));
        }
        for wrong in ["unix:", "gw:9093", "127.0.0.1:9093", "mailto:x"] {
            let error = format!("{:#}", wrong.parse::<GatewayEndpoint>().unwrap_err());
            assert!(error.contains("unix:/run/halley/admin.sock"), "{wrong}: {error}");
        }
    }
}
