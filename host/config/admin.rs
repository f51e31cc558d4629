//! The `[admin]` section: listeners and access.

use std::path::{Path, PathBuf};

use smart_default::SmartDefault;

use crate::config::listen::{host_of, is_loopback};
use crate::mistake::{Mistake, mistake};
use crate::tls::ListenerConfig;

/// `[admin]`: the admin listener.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on. Port 0 picks a free port and logs it. `/healthz`, `/readyz` and
    /// `/metrics` are open to everyone who can reach it. Reads below `/v1/` are open as well if it is
    /// on loopback and no token is configured; otherwise they require one.
    #[default("127.0.0.1:9093")]
    pub listen: String,
    /// A second address for `/healthz`, `/readyz` and `/metrics` only, with its own connections:
    /// probes sent there are answered whatever happens on `listen`.
    pub probe_listen: Option<String>,
    /// The Unix socket. The gateway's own user and root may do everything over it without a token. A
    /// path; `auto` for a location that `halley plugin` derives from the port of `listen`
    /// (`$XDG_RUNTIME_DIR/halley` or `/tmp/halley-UID`); or `off`.
    #[schemars(with = "String")]
    #[default(Socket::Auto)]
    pub socket: Socket,
    /// A file with the token for writes over TCP (pushing and rolling back policies), at least 16
    /// characters. It is read for each request, and grants reads as well. The environment variable
    /// `HALLEY_ADMIN_TOKEN` takes precedence.
    pub token_file: Option<PathBuf>,
    /// A file with a read-only token. The environment variable `HALLEY_ADMIN_READ_TOKEN` takes
    /// precedence. Once any token is configured, reads below `/v1/` require one.
    pub read_token_file: Option<PathBuf>,
    /// Whether `/metrics` requires a read token as well.
    pub protect_metrics: bool,
    /// Host names under which clients may reach the gateway over TCP, in addition to `localhost`, IP
    /// addresses and the name in `listen`. Requests for other names are refused: a browser could have
    /// been led here by DNS rebinding.
    pub allowed_hosts: Vec<String>,
    /// Maximum number of connections to `listen`; one client holds at most a quarter of them.
    /// `socket` and `probe_listen` have 64 each in addition. A new connection beyond the limit replaces the
    /// one that has been idle longest.
    #[default(256)]
    pub max_connections: usize,
    /// TLS for `listen`, and which clients may connect. `probe_listen` and `socket` never use it.
    pub tls: ListenerConfig,
}

/// Location of the Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(from = "String", into = "String")]
pub enum Socket {
    /// The default location, where `halley plugin` looks for it.
    #[default]
    Auto,
    /// No socket.
    Off,
    /// At this path.
    At(PathBuf),
}

impl From<String> for Socket {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "off" => Self::Off,
            _ => Self::At(text.into()),
        }
    }
}

impl From<Socket> for String {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Auto => "auto".into(),
            Socket::Off => "off".into(),
            Socket::At(path) => path.display().to_string(),
        }
    }
}

/// Environment variables with a token, and the keys that they take precedence over.
pub(crate) const TOKEN_VARIABLES: [(&str, &str); 2] =
    [("HALLEY_ADMIN_TOKEN", "token_file"), ("HALLEY_ADMIN_READ_TOKEN", "read_token_file")];
/// With fewer, a second client would get none.
const FEWEST_CONNECTIONS: usize = 8;
/// The limit of `sockaddr_un` on a path.
const LONGEST_SOCKET: usize = 107;

impl Config {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        let listeners = [("listen", Some(&self.listen)), ("probe_listen", self.probe_listen.as_ref())];
        for (key, listen) in listeners.into_iter().filter_map(|(key, listen)| Some((key, listen?))) {
            if host_of(listen).is_none() {
                problems.push(mistake!(
                    "admin.{key}",
                    "is `{listen}`; expected host:port, such as 127.0.0.1:9093"
                ));
            }
        }
        if let Socket::At(path) = &self.socket {
            let length = path.as_os_str().len();
            if length == 0 || length > LONGEST_SOCKET {
                problems.push(mistake!(
                    "admin.socket",
                    "has {length} bytes; expected `auto`, `off`, or a path of 1 to {LONGEST_SOCKET} bytes"
                ));
            }
        }
        problems.extend(listener_problems("admin", &self.allowed_hosts, self.max_connections));
        problems.extend(self.tls.validate("admin.tls"));
        problems
    }

    /// Valid values that are probably not intended.
    pub fn warnings(&self) -> Vec<Mistake> {
        let has_tokens = self.token_file.is_some()
            || self.read_token_file.is_some()
            || TOKEN_VARIABLES.iter().any(|(variable, _)| std::env::var_os(variable).is_some());
        let is_reached = host_of(&self.listen).is_some_and(|host| !is_loopback(host));
        let mut warnings = Vec::new();
        if self.protect_metrics && !has_tokens {
            warnings.push(mistake!(
                "admin.protect_metrics",
                "protects nothing on loopback and refuses everybody elsewhere: there is no token; set `admin.read_token_file`, or HALLEY_ADMIN_READ_TOKEN"
            ));
        }
        if is_reached && has_tokens && !self.tls.is_enabled() {
            warnings.push(mistake!(
                "admin.listen",
                "is reached by other machines without TLS: tokens travel in the clear, and anyone who reads one can use it; set `admin.tls.certificate` and `admin.tls.key`, or let a mesh encrypt"
            ));
        }
        warnings
    }

    /// Resolves relative paths against this directory.
    pub fn resolve_paths(&mut self, base: &Path) {
        for file in [&mut self.token_file, &mut self.read_token_file].into_iter().flatten() {
            *file = base.join(&*file);
        }
        self.tls.resolve_paths(base);
        if let Socket::At(path) = &mut self.socket
            && !path.as_os_str().is_empty()
        {
            *path = base.join(&*path);
        }
    }
}

/// Mistakes in what all listeners of HTTP have.
pub(super) fn listener_problems(
    section: &str,
    allowed_hosts: &[String],
    max_connections: usize,
) -> Vec<Mistake> {
    let is_name = |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let wrong = allowed_hosts.iter().filter(|host| host.is_empty() || !is_name(host));
    let problem = |host| {
        mistake!(
            "{section}.allowed_hosts",
            "has `{host}`; expected a name without scheme, port or wildcard, such as halley.example.com"
        )
    };
    let mut problems: Vec<_> = wrong.map(problem).collect();
    if max_connections < FEWEST_CONNECTIONS {
        problems.push(mistake!(
            "{section}.max_connections",
            "is {max_connections}; it must be at least {FEWEST_CONNECTIONS}"
        ));
    }
    problems
}

/// The folder of a socket.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_with_their_key() {
        assert_eq!(Config::default().validate(), []);
        let wrong = Config {
            listen: "9093".into(),
            probe_listen: Some("[::1]".into()),
            socket: Socket::At("x".repeat(200).into()),
            allowed_hosts: vec!["http://halley".into(), "halley.svc".into(), "*".into()],
            max_connections: 2,
            tls: ListenerConfig { client_ca: Some("ca.pem".into()), ..ListenerConfig::default() },
            ..Config::default()
        };
        let problems = wrong.validate();
        let keys = [
            "listen",
            "probe_listen",
            "socket",
            "allowed_hosts",
            "allowed_hosts",
            "max_connections",
            "tls.client_ca",
        ];
        assert_eq!(problems.len(), keys.len(), "{problems:#?}");
        for (problem, key) in problems.iter().zip(keys) {
            assert!(problem.text.starts_with(&format!("`admin.{key}`")), "{problem}");
        }
    }

    #[test]
    fn tokens_in_the_clear_are_a_warning() {
        let open = || Config {
            listen: "0.0.0.0:9093".into(),
            token_file: Some("token".into()),
            ..Config::default()
        };
        assert!(open().warnings()[0].text.contains("tokens travel in the clear"), "{:?}", open().warnings());
        let local = Config { listen: "127.0.0.1:9093".into(), ..open() };
        let (certificate, key) = (Some("tls.crt".into()), Some("tls.key".into()));
        let tls = Config { tls: ListenerConfig { certificate, key, client_ca: None }, ..open() };
        assert_eq!((local.warnings(), tls.warnings()), (vec![], vec![]));
    }

    #[test]
    fn the_socket_is_auto_off_or_a_path() {
        let at = |text: &str| Socket::from(text.to_owned());
        assert_eq!((at("auto"), at("off")), (Socket::Auto, Socket::Off));
        let mut config = Config { socket: at("run/admin.sock"), ..Config::default() };
        config.resolve_paths(Path::new("/etc/halley"));
        assert_eq!(String::from(config.socket), "/etc/halley/run/admin.sock");
    }
}
