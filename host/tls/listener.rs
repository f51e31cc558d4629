//! The keys of a listener's TLS: `[admin.tls]` and `[api.tls]`.

use std::path::{Path, PathBuf};

use crate::mistake::{Mistake, mistake};

/// TLS of a listener. Without a certificate, it serves plain HTTP. The files are read again when they
/// change.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerConfig {
    /// A PEM file with the certificate and its chain. With it, only TLS is spoken.
    pub certificate: Option<PathBuf>,
    /// A PEM file with the private key of `certificate`, which no other user may read.
    pub key: Option<PathBuf>,
    /// A PEM file with the certificates of the authorities that may certify clients. With it, a client
    /// without a valid certificate is refused in the handshake. Tokens are required as without it.
    pub client_ca: Option<PathBuf>,
}

impl ListenerConfig {
    /// Whether the listener speaks TLS.
    pub fn is_enabled(&self) -> bool {
        self.certificate.is_some()
    }

    /// Mistakes in the values of this section (`admin.tls`), one sentence each.
    pub(crate) fn validate(&self, section: &str) -> Vec<Mistake> {
        let mut problems = Vec::new();
        if self.certificate.is_some() != self.key.is_some() {
            problems.push(
                mistake!("{section}.certificate", "and `{section}.key` need each other")
                    .and(&format!("{section}.key")),
            );
        }
        if self.client_ca.is_some() && self.certificate.is_none() {
            problems.push(mistake!(
                "{section}.client_ca",
                "needs `{section}.certificate` and `{section}.key`: without TLS, clients show no certificates"
            ));
        }
        problems
    }

    /// Resolves relative paths.
    pub(crate) fn resolve_paths(&mut self, base: &Path) {
        for path in [&mut self.certificate, &mut self.key, &mut self.client_ca].into_iter().flatten() {
            *path = base.join(&*path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_configuration_is_a_mistake() {
        let file = || Some(PathBuf::from("file.pem"));
        let none = ListenerConfig::default();
        assert!(none.validate("admin.tls").is_empty() && !none.is_enabled());
        let all = ListenerConfig { certificate: file(), key: file(), client_ca: file() };
        assert!(all.validate("admin.tls").is_empty() && all.is_enabled());
        let keyless = ListenerConfig { certificate: file(), ..none.clone() };
        assert!(keyless.validate("api.tls")[0].text.starts_with("`api.tls.certificate`"));
        let only_clients = ListenerConfig { client_ca: file(), ..none };
        assert!(only_clients.validate("admin.tls")[0].text.starts_with("`admin.tls.client_ca` needs"));
    }
}
