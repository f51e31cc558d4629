//! `[admin]`: where it listens, and who may ask for what.

use std::path::{Path, PathBuf};

/// `[admin]`: the admin listener.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on; port 0 takes a free one and logs it. `/healthz`, `/readyz` and
    /// `/metrics` are open to whoever reaches it. On loopback, so are the reads below `/v1/` as long
    /// as no token is configured; elsewhere they need one.
    pub listen: String,
    /// Another address for `/healthz`, `/readyz` and `/metrics` alone, with connections of its own:
    /// probes that go there are answered whatever happens on `listen`.
    pub probes: Option<String>,
    /// The Unix socket over which the gateway's own user and root may do everything without a token:
    /// a path, `auto` for a place that `halley plugin` finds by the port of `listen`
    /// (`$XDG_RUNTIME_DIR/halley` or `/tmp/halley-UID`), or `off`.
    pub socket: Socket,
    /// A file with the token that writes need over TCP (pushing and rolling back policies), at least
    /// 16 characters; it is read again for each request. It is good for reads, too.
    /// `HALLEY_ADMIN_TOKEN` in the environment does the same and wins.
    pub token_file: Option<PathBuf>,
    /// A file with a token that is good for reads only; `HALLEY_ADMIN_READ_TOKEN` in the environment
    /// does the same and wins. Once any token is configured, reads below `/v1/` need one.
    pub read_token_file: Option<PathBuf>,
    /// Whether `/metrics` needs a token for reads, too.
    pub protect_metrics: bool,
    /// Names under which clients may address the gateway over TCP, apart from `localhost`, IP
    /// addresses and the name in `listen`: requests for other hosts are refused, since a browser
    /// could have been led here by a name of somebody else's (DNS rebinding).
    pub hosts: Vec<String>,
    /// How many connections `listen` holds at most, each client at most a quarter of them; `socket` and
    /// `probes` have 64 each of their own. One more takes the place of the one that has been idle longest.
    pub max_connections: usize,
}

/// Where the Unix socket is.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(from = "String", into = "String")]
pub enum Socket {
    /// Where `halley plugin` looks for it.
    #[default]
    Auto,
    /// Nowhere.
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

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9093".into(),
            probes: None,
            socket: Socket::Auto,
            token_file: None,
            read_token_file: None,
            protect_metrics: false,
            hosts: Vec::new(),
            max_connections: 256,
        }
    }
}

/// Fewer would leave nothing for a second client.
const FEWEST_CONNECTIONS: usize = 8;
/// `sockaddr_un` has room for no more bytes of a path.
const LONGEST_SOCKET: usize = 107;

impl Config {
    /// What is wrong with the values, one sentence for each mistake.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let listeners = [("listen", Some(&self.listen)), ("probes", self.probes.as_ref())];
        for (key, listen) in listeners.into_iter().filter_map(|(key, listen)| Some((key, listen?))) {
            if host_of(listen).is_none() {
                problems
                    .push(format!("`admin.{key}` is `{listen}`; expected host:port, such as 127.0.0.1:9093"));
            }
        }
        if let Socket::At(path) = &self.socket {
            let length = path.as_os_str().len();
            if length == 0 || length > LONGEST_SOCKET {
                problems.push(format!(
                    "`admin.socket` has {length} bytes; expected `auto`, `off`, or a path of 1 to {LONGEST_SOCKET} bytes"
                ));
            }
        }
        for host in &self.hosts {
            if host.is_empty() || !host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
                problems.push(format!(
                    "`admin.hosts` has `{host}`; expected a name without scheme, port or wildcard, such as halley.example.com"
                ));
            }
        }
        if self.max_connections < FEWEST_CONNECTIONS {
            problems.push(format!(
                "`admin.max_connections` is {}; the least is {FEWEST_CONNECTIONS}",
                self.max_connections
            ));
        }
        problems
    }

    /// The TCP ports that are listened on.
    pub fn ports(&self) -> Vec<u16> {
        let listeners = [Some(&self.listen), self.probes.as_ref()].into_iter().flatten();
        listeners.filter_map(|listen| listen.rsplit_once(':')?.1.parse().ok()).collect()
    }

    /// Makes relative paths relative to this folder.
    pub fn take_paths_from(&mut self, base: &Path) {
        for file in [&mut self.token_file, &mut self.read_token_file].into_iter().flatten() {
            *file = base.join(&*file);
        }
        if let Socket::At(path) = &mut self.socket
            && !path.as_os_str().is_empty()
        {
            *path = base.join(&*path);
        }
    }
}

/// The host in `host:port`; `None` when it is not of this form.
pub(crate) fn host_of(listen: &str) -> Option<&str> {
    let (host, port) = listen.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|_| !host.is_empty())?;
    Some(host)
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
        assert_eq!(Config::default().validate(), Vec::<String>::new());
        let wrong = Config {
            listen: "9093".into(),
            probes: Some("[::1]".into()),
            socket: Socket::At("x".repeat(200).into()),
            hosts: vec!["http://halley".into(), "halley.svc".into(), "*".into()],
            max_connections: 2,
            ..Config::default()
        };
        let problems = wrong.validate();
        let keys = ["listen", "probes", "socket", "hosts", "hosts", "max_connections"];
        assert_eq!(problems.len(), keys.len(), "{problems:#?}");
        for (problem, key) in problems.iter().zip(keys) {
            assert!(problem.starts_with(&format!("`admin.{key}`")), "{problem}");
        }
    }

    #[test]
    fn the_socket_is_a_word_or_a_path() {
        let at = |text: &str| Socket::from(text.to_owned());
        assert_eq!((at("auto"), at("off")), (Socket::Auto, Socket::Off));
        let mut config = Config { socket: at("run/admin.sock"), ..Config::default() };
        config.take_paths_from(Path::new("/etc/halley"));
        assert_eq!(String::from(config.socket), "/etc/halley/run/admin.sock");
    }
}
