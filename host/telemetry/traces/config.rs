//! The `[traces]` section.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use smart_default::SmartDefault;

use super::sampler::Sampler;
use crate::mistake::{Mistake, mistake};
use crate::schema;

/// `[traces]`: which messages are traced, and where their spans go.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The URL of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; `/v1/traces` is
    /// added if it has no path. Empty: nothing is traced. A message's `traceparent` is passed on either way.
    pub endpoint: String,
    /// Which messages are traced: `parentbased_traceidratio` follows the producer's decision where a message
    /// has a `traceparent`, `traceidratio` does not.
    pub sampler: Sampler,
    /// The share of messages that are traced where the producer did not decide, from 0 to 1.
    #[default(0.01)]
    pub sample_ratio: f64,
    /// A file with headers for the collector, `Name: value` on each line, which only this process's user may
    /// read. It is read again when it changes.
    pub headers_file: Option<PathBuf>,
    /// How long a batch is retried before its spans are dropped.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(10))]
    pub timeout: Duration,
}

/// Why `endpoint` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidEndpoint {
    #[error("`traces.endpoint` is `{0}`; expected an http or https URL, such as http://127.0.0.1:4318")]
    NotHttp(String),
    #[error(
        "`traces.endpoint` contains a user or a password; put an Authorization header into `traces.headers_file`"
    )]
    Credentials,
}

impl Config {
    /// Where spans go; `None` if nothing is traced.
    pub(super) fn endpoint(&self) -> Result<Option<Url>, InvalidEndpoint> {
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        let url = self.endpoint.parse::<Url>().ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty())
        });
        let Some(mut url) = url else { return Err(InvalidEndpoint::NotHttp(self.endpoint.clone())) };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidEndpoint::Credentials);
        }
        if url.path() == "/" {
            url.set_path("/v1/traces");
        }
        Ok(Some(url))
    }

    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems =
            Vec::from_iter(self.endpoint().err().map(|error| Mistake::about("traces.endpoint", error)));
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            problems.push(mistake!(
                "traces.sample_ratio",
                "is {}; it must be from 0 to 1",
                self.sample_ratio
            ));
        }
        if self.timeout.is_zero() {
            problems.push(mistake!("traces.timeout", "is 0; it must be greater"));
        }
        problems
    }

    /// Valid values that are probably not intended.
    pub fn warnings(&self) -> Vec<Mistake> {
        let Ok(Some(url)) = self.endpoint() else {
            let is_alone = self.endpoint.is_empty() && self.headers_file.is_some();
            let text = "is set, but `traces.endpoint` is not: nothing is traced";
            let warning = || mistake!("traces.headers_file", "{text}").and("traces.endpoint");
            return is_alone.then(warning).into_iter().collect();
        };
        let is_open = url.scheme() == "http" && !url.host_str().is_some_and(is_loopback);
        let text = "is not https: what `traces.headers_file` has is readable on the way";
        let warning = || mistake!("traces.endpoint", "{text}");
        (is_open && self.headers_file.is_some()).then(warning).into_iter().collect()
    }

    /// Resolves relative paths against this directory.
    pub fn resolve_paths(&mut self, base: &Path) {
        if let Some(file) = &mut self.headers_file {
            *file = base.join(&*file);
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(endpoint: &str) -> Config {
        Config { endpoint: endpoint.into(), ..Config::default() }
    }

    #[test]
    fn an_endpoint_without_a_path_is_that_of_otlp() {
        assert_eq!(Config::default().endpoint(), Ok(None));
        for (text, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://collector.example/", "https://collector.example/v1/traces"),
            ("https://collector.example/otlp/v1/traces", "https://collector.example/otlp/v1/traces"),
        ] {
            assert_eq!(of(text).endpoint(), Ok(Some(url.parse().unwrap())), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_key() {
        assert_eq!((Config::default().validate(), Config::default().warnings()), (vec![], vec![]));
        for wrong in ["127.0.0.1:4318", "grpc://collector:4317", "http://", "https://u:p@collector/"] {
            let problems = of(wrong).validate();
            assert!(problems.len() == 1 && problems[0].text.starts_with("`traces.endpoint`"), "{problems:?}");
            assert!(!problems[0].text.contains("u:p@"), "{problems:?}");
        }
        let wrong = Config { sample_ratio: f64::NAN, timeout: Duration::ZERO, ..Config::default() };
        let problems = wrong.validate();
        assert!(
            problems[0].text.contains("sample_ratio") && problems[1].text.contains("timeout"),
            "{problems:?}"
        );
        let headers = |endpoint| Config { headers_file: Some("h".into()), ..of(endpoint) }.warnings().len();
        let endpoints = ["", "http://collector:4318", "http://[::1]:4318", "https://collector"];
        assert_eq!(endpoints.map(headers), [1, 1, 0, 0]);
    }
}
