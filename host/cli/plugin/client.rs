//! How commands speak to a running gateway.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;

use crate::cli::runtime;
use crate::files::{self, Unreadable};

/// Which gateway, and what it wants to hear first.
#[derive(Debug, clap::Args)]
pub(super) struct GatewayArgs {
    /// The admin listener of the gateway.
    #[arg(long, value_name = "URL", env = "HALLEY_GATEWAY", default_value = "http://127.0.0.1:9093")]
    gateway: Url,
    /// A file with the token that the gateway wants for writes. Without it, HALLEY_ADMIN_TOKEN
    /// is taken from the environment, where it is set.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Compiling on a busy gateway takes its time.
const DEADLINE: Duration = Duration::from_secs(180);
/// The largest file with a token, in bytes.
const LONGEST_TOKEN: u64 = 64 * 1024;

impl GatewayArgs {
    /// GETs a path below `/v1/`.
    ///
    /// # Errors
    /// When there is no gateway, or it refuses.
    pub(super) fn get(&self, path: &[&str]) -> anyhow::Result<Value> {
        self.send(Method::GET, path, |request| request)
    }

    /// Sends a request to a path below `/v1/` and gives the answer.
    ///
    /// # Errors
    /// When there is no gateway, or it refuses: with each of its reasons on a line.
    pub(super) fn send(
        &self,
        method: Method,
        path: &[&str],
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> anyhow::Result<Value> {
        let mut url = self.gateway.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => drop(segments.pop_if_empty().push("v1").extend(path)),
            Err(()) => bail!("`{}` is no address of a gateway; try http://127.0.0.1:9093", self.gateway),
        }
        let client = reqwest::Client::builder().timeout(DEADLINE).connect_timeout(Duration::from_secs(10));
        let mut request = client.no_proxy().build()?.request(method, url);
        if let Some(token) = self.token()? {
            request = request.bearer_auth(token);
        }
        runtime()?.block_on(self.exchange(with(request)))
    }

    async fn exchange(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let remedy = || {
            format!(
                "no answer from a gateway at {}; does it run, and is `--gateway` its [admin] listen?",
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
                    // What another command writes: nobody else has that.
                    Err(Unreadable::Other("a pipe")) => files::read_argument(file, LONGEST_TOKEN),
                    read => read,
                };
                Some(read.map_err(|why| anyhow::anyhow!("--token-file {} {why}", file.display()))?)
            }
            None => std::env::var("HALLEY_ADMIN_TOKEN").ok(),
        };
        Ok(token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
    }
}

/// What the gateway said, each reason on a line.
fn reasons(status: StatusCode, body: &Value, text: &str) -> String {
    let Some(error) = body["error"].as_str() else {
        return format!("the gateway answered {status}: {}", text.trim());
    };
    let problems = body["problems"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let lines: Vec<String> = problems.map(|problem| format!("\n  {problem}")).collect();
    format!("{error}{}", lines.concat())
}
