//! The `[api]` section: the listener for comets and backends.

use std::path::{Path, PathBuf};

use smart_default::SmartDefault;

use super::admin::listener_problems;
use super::listen::{host_of, is_loopback};
use crate::mistake::{Mistake, mistake};
use crate::tls::ListenerConfig;

/// `[api]`: the API for comets and backends, over gRPC and HTTP.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on; without one, there is no API. gRPC and HTTP share it.
    pub listen: Option<String>,
    /// A TOML file with the tokens, each with a name and perhaps limits. It is read again when it
    /// changes. Required, unless `listen` is on loopback: then everything is allowed without one,
    /// except from browsers.
    pub token_file: Option<PathBuf>,
    /// Host names under which clients may reach the API, in addition to `localhost`, IP addresses and the
    /// name in `listen`.
    pub allowed_hosts: Vec<String>,
    /// Maximum number of connections; one client holds at most a quarter of them.
    #[default(256)]
    pub max_connections: usize,
    /// TLS, and which clients may connect.
    pub tls: ListenerConfig,
}

impl Config {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        if let Some(listen) = &self.listen {
            match host_of(listen) {
                None => problems
                    .push(mistake!(
                        "api.listen",
                        "is `{listen}`; expected host:port, such as 127.0.0.1:9094"
                    )),
                Some(host) if !is_loopback(host) && self.token_file.is_none() => problems.push(mistake!(
                    "api.listen",
                    "is `{listen}`, which other machines reach, and `api.token_file` is missing: any client could read all inboxes"
                )),
                Some(_) => {}
            }
        }
        problems.extend(self.tls.validate("api.tls"));
        problems.extend(listener_problems("api", &self.allowed_hosts, self.max_connections));
        problems
    }

    /// Valid values that are probably not intended.
    pub fn warnings(&self) -> Vec<Mistake> {
        let Some(host) = self.listen.as_deref().and_then(host_of) else { return Vec::new() };
        if is_loopback(host) || self.tls.is_enabled() {
            return Vec::new();
        }
        vec![mistake!(
            "api.listen",
            "is reached by other machines without TLS: tokens and messages are readable on the way; set `api.tls.certificate` and `api.tls.key`, or let a mesh encrypt"
        )]
    }

    /// Resolves relative paths against this directory.
    pub fn resolve_paths(&mut self, base: &Path) {
        if let Some(file) = &mut self.token_file {
            *file = base.join(&*file);
        }
        self.tls.resolve_paths(base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_with_their_key() {
        let config = Config { listen: Some("127.0.0.1:9094".into()), ..Config::default() };
        assert_eq!((config.validate(), config.warnings()), (vec![], vec![]));
        let open = Config { listen: Some("0.0.0.0:9094".into()), ..Config::default() };
        assert!(open.validate()[0].text.contains("`api.token_file` is missing"), "{:?}", open.validate());
        assert!(open.warnings()[0].text.contains("without TLS"));
        let wrong = Config {
            listen: Some("9094".into()),
            tls: ListenerConfig { key: Some("key.pem".into()), ..ListenerConfig::default() },
            allowed_hosts: vec!["*".into()],
            max_connections: 1,
            ..Config::default()
        };
        let keys = ["listen", "tls.certificate", "allowed_hosts", "max_connections"];
        let problems = wrong.validate();
        assert_eq!(problems.len(), keys.len(), "{problems:#?}");
        for (problem, key) in problems.iter().zip(keys) {
            assert!(problem.text.starts_with(&format!("`api.{key}`")), "{problem}");
        }
    }
}
