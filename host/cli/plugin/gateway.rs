//! A running gateway, asked over its admin API. Errors say what to do.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;

/// Which gateway, and with which token. Tokens are not taken from the command line, which other
/// users of the machine can read.
#[derive(Debug, clap::Args)]
pub(super) struct Gateway {
    /// The gateway's admin listener.
    #[arg(long, value_name = "URL", env = "HALLEY_GATEWAY", default_value = "http://127.0.0.1:9093")]
    gateway: Url,
    /// A file with the token that the gateway asks for; its first line is taken. Without it, the
    /// environment's HALLEY_ADMIN_TOKEN is the token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

const CONNECT: Duration = Duration::from_secs(5);
/// Longer than the gateway takes for the longest upload and its compilation.
const ANSWER: Duration = Duration::from_secs(200);
const VARIABLE: &str = "HALLEY_ADMIN_TOKEN";

impl Gateway {
    /// GETs what stands at these steps of a path.
    ///
    /// # Errors
    /// When the gateway is away, or says no.
    pub(super) async fn get(&self, steps: &[&str]) -> anyhow::Result<Value> {
        self.exchange(self.request(Method::GET, steps)?).await
    }

    /// A request with the token, where there is one.
    ///
    /// # Errors
    /// When the token cannot be read.
    pub(super) fn request(&self, method: Method, steps: &[&str]) -> anyhow::Result<RequestBuilder> {
        let mut url = self.gateway.clone();
        let not_http =
            || anyhow::anyhow!("--gateway {} is no URL such as http://127.0.0.1:9093", self.gateway);
        url.path_segments_mut().map_err(|()| not_http())?.pop_if_empty().extend(steps);
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT).timeout(ANSWER);
        if is_near(&url) {
            // A proxy on the way to this machine would be a mistake.
            builder = builder.no_proxy();
        }
        let request = builder.build()?.request(method, url);
        Ok(match self.token()? {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// When the gateway is away, or says no: with its reasons, each on a line.
    pub(super) async fn exchange(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let away = || {
            format!(
                "no answer from the gateway at {}; is it running? --gateway (or HALLEY_GATEWAY) names its `[admin] listen`",
                self.gateway
            )
        };
        let response = request.send().await.map_err(reqwest::Error::without_url).with_context(away)?;
        let status = response.status();
        let text = response.text().await.map_err(reqwest::Error::without_url).with_context(away)?;
        if status.is_success() {
            return serde_json::from_str(&text)
                .with_context(|| format!("what answers at {} is no gateway: no JSON", self.gateway));
        }
        anyhow::bail!("{}", self.says_no(status, &text))
    }

    fn says_no(&self, status: StatusCode, text: &str) -> String {
        let answer: Value = serde_json::from_str(text).unwrap_or_default();
        let Some(error) = answer["error"].as_str() else {
            return format!(
                "{} at {}; is it this version's gateway, and its admin listener?",
                status, self.gateway
            );
        };
        let mut lines = vec![match status {
            StatusCode::NOT_FOUND => format!("{error}; `halley plugin status` shows the plugins"),
            _ => error.to_owned(),
        }];
        let problems = answer["problems"].as_array().into_iter().flatten().filter_map(Value::as_str);
        lines.extend(problems.map(|problem| format!("  {problem}")));
        lines.join("\n")
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.token_file else {
            return Ok(std::env::var(VARIABLE).ok().map(|token| token.trim().to_owned()));
        };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("--token-file {} cannot be read", file.display()))?;
        let token = text.lines().map(str::trim).find(|line| !line.is_empty());
        let empty = || format!("--token-file {} is empty; its first line is the token", file.display());
        Ok(Some(token.with_context(empty)?.to_owned()))
    }
}

fn is_near(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}
