//! Checks whether the configured comets can be connected to. Makes no calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Config;
use super::tls::TlsClient;
use crate::message::CometAddr;
use crate::reloaded::ReloadError;
use crate::tls::expiry::Validity;

/// Concurrent connection attempts.
const AT_ONCE: usize = 32;
/// Timeout of resolving a name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A comet that can be connected to.
pub struct ProbedComet {
    /// How.
    pub text: String,
    /// Whether it will not be for long: its certificate expires.
    pub is_warning: bool,
}

/// Connects to every entry of `nodes` and `addresses`, and returns the result of each, in their
/// order. A name with several addresses succeeds if all of them can be connected to.
pub async fn probe(config: &Config) -> Vec<(CometAddr, anyhow::Result<ProbedComet>)> {
    let mut comets: Vec<CometAddr> = Vec::new();
    for comet in config.nodes.iter().chain(config.addresses.values()) {
        let comet = CometAddr::from(comet.as_str());
        if !comets.contains(&comet) {
            comets.push(comet);
        }
    }
    let (tls, within) = (&TlsClient::load(&config.tls), config.connect_timeout);
    let probe = |comet: CometAddr| async move {
        let found = connect(&comet, tls, within).await;
        (comet, found)
    };
    let probing: Vec<_> = comets.into_iter().map(probe).collect();
    stream::iter(probing).buffered(AT_ONCE).collect().await
}

async fn connect(
    comet: &CometAddr,
    tls: &Result<Arc<TlsClient>, ReloadError>,
    within: Duration,
) -> anyhow::Result<ProbedComet> {
    let checked = comet.address()?;
    let looked_up = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(checked.authority()));
    let looked_up =
        looked_up.await.with_context(|| format!("its name was not resolved within {LOOKUP_TIMEOUT:?}"))?;
    let found: Vec<SocketAddr> = looked_up.context("its name cannot be resolved")?.collect();
    anyhow::ensure!(!found.is_empty(), "its name has no address");
    let mut validity = None;
    for address in &found {
        let connected = tokio::time::timeout(within, TcpStream::connect(address)).await;
        let stream = connected
            .with_context(|| format!("{address}: no connection within {within:?}"))?
            .with_context(|| format!("cannot connect to {address}; is the comet running?"))?;
        let tls = tls.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        if tls.speaks_with(&checked) {
            let stream =
                tls.connect(checked.host(), stream, within).await.with_context(|| address.to_string())?;
            let certificate = stream.ssl().peer_certificate();
            validity = certificate.map(|shown| Validity::of(&shown, SystemTime::now())).transpose()?;
            speak(stream, within).await.with_context(|| address.to_string())?;
        } else {
            speak(stream, within).await.with_context(|| address.to_string())?;
        }
    }
    let certificate =
        validity.as_ref().map_or_else(String::new, |validity| format!(", certificate {validity}"));
    let text = match found.len() {
        1 => format!("connects{certificate}"),
        several => format!("connects to each of {several} addresses{certificate}"),
    };
    Ok(ProbedComet { text, is_warning: matches!(validity, Some(Validity::ExpiresSoon(_))) })
}

/// Checks that a comet answers in HTTP/2. Only then is it certain that it has accepted the connection: with
/// TLS 1.3, a comet refuses a client's certificate after the handshake.
async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, within: Duration) -> anyhow::Result<()> {
    const REFUSED: &str = "it does not speak HTTP/2 with this gateway: check the port, whether it expects \
        TLS (`https://`), and whether it asks for a client's certificate (`[comets.tls] certificate`)";
    let answer = async {
        let (_sender, mut connection) = h2::client::Builder::new().handshake::<_, &[u8]>(stream).await?;
        let mut pings = connection.ping_pong().context("a connection has one handle for pings")?;
        tokio::select! {
            answer = pings.ping(h2::Ping::opaque()) => answer.map(drop).map_err(anyhow::Error::from),
            ended = connection => Err(ended.err().map_or_else(|| anyhow::anyhow!("it hung up"), Into::into)),
        }
    };
    match tokio::time::timeout(within, answer).await {
        Ok(answered) => answered.context(REFUSED),
        Err(_) => anyhow::bail!("{REFUSED}; no answer within {within:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn comets_are_probed_in_their_order() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let there = listener.local_addr().expect("bound").to_string();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let gone = closed.local_addr().expect("bound").to_string();
        drop(closed);
        let mut comet = tokio::task::JoinSet::new();
        comet.spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut comet = h2::server::handshake(stream).await.expect("HTTP/2");
            comet.accept().await.is_some()
        });
        let config = Config {
            nodes: vec![gone.clone(), there.clone()],
            addresses: [
                ("again".to_owned(), there.clone()),
                ("name".to_owned(), "not-there.invalid:1".to_owned()),
            ]
            .into(),
            ..Config::default()
        };
        let probed = probe(&config).await;
        let seen: Vec<_> = probed.iter().map(|(comet, found)| (comet.as_str(), found.is_ok())).collect();
        assert_eq!(seen, [(gone.as_str(), false), (there.as_str(), true), ("not-there.invalid:1", false)]);

        // What accepts a connection is no comet.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let silent_address = silent.local_addr().expect("bound").to_string();
        let config = Config {
            nodes: vec![silent_address],
            connect_timeout: Duration::from_millis(50),
            ..Config::default()
        };
        let error = probe(&config).await.remove(0).1.err().expect("no comet");
        assert!(format!("{error:#}").contains("no answer within 50ms"), "{error:#}");
    }
}
