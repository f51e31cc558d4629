//! Fetching from a registry, within bounds of size and time, on a thread of its own.

use std::error::Error as _;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};
use oci_client::{Reference, secrets::RegistryAuth};
use tokio::io::AsyncWrite;

use crate::policy::registry::{MAX_SIZE, Package, check_digest, credentials, plugin_of};

/// How long everything may take together.
const DEADLINE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);

/// Fetches the package of this digest, checked.
///
/// # Errors
/// What is wrong: the second half of a sentence that begins with the plugin.
pub(super) fn pull(reference: &Reference, digest: &str) -> Result<Package, String> {
    // The caller may stand inside of an async runtime; a thread of our own never does.
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| format!("cannot be fetched: no runtime: {e}"))?;
            runtime.block_on(async {
                let fetched = tokio::time::timeout(DEADLINE, fetch(reference, digest)).await;
                fetched.unwrap_or_else(|_| {
                    Err(format!(
                        "cannot be fetched: the registry took longer than {DEADLINE:?}; it is tried again"
                    ))
                })
            })
        });
        fetching.join().unwrap_or_else(|_| Err("cannot be fetched: the client panicked".to_owned()))
    })
}

async fn fetch(reference: &Reference, digest: &str) -> Result<Package, String> {
    let auth = credentials::of(reference.registry())?;
    let client = client(reference.registry())?;
    let said_no = |error: OciDistributionError| explain(&error, &auth);
    let accepted = [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];
    let (manifest, _) = client.pull_manifest_raw(reference, &auth, &accepted).await.map_err(said_no)?;
    let (layer, _) = plugin_of(digest, &manifest)?;
    let mut plugin = Bounded(Vec::new());
    client.pull_blob(reference, &layer, &mut plugin).await.map_err(said_no)?;
    check_digest("the plugin", &layer.digest, &plugin.0)?;
    Ok(Package { manifest: manifest.to_vec(), plugin: plugin.0 })
}

fn client(registry: &str) -> Result<Client, String> {
    let near = is_near(registry);
    let protocol =
        if near { ClientProtocol::HttpsExcept(vec![registry.to_owned()]) } else { ClientProtocol::Https };
    let config = ClientConfig {
        protocol,
        connect_timeout: Some(CONNECT),
        read_timeout: Some(DEADLINE),
        user_agent: concat!("halley/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|e| format!("cannot be fetched: no client for registries: {e}"))
}

/// Whether a registry (`host` or `host:port`) is on this machine.
fn is_near(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn explain(error: &OciDistributionError, auth: &RegistryAuth) -> String {
    let who =
        if matches!(auth, RegistryAuth::Anonymous) { "without credentials" } else { "with credentials" };
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            words = format!("{words}: {inner_words}");
        }
        cause = inner.source();
    }
    format!(
        "cannot be fetched (asked {who}): {words}; check the reference, that the registry is there, and the credentials (`docker login` writes them; helpers are not asked). It is tried again"
    )
}

/// Takes so many bytes and no more.
struct Bounded(Vec<u8>);

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.0.len() + bytes.len() > MAX_SIZE {
            return Poll::Ready(Err(io::Error::other(format!("more than {MAX_SIZE} bytes"))));
        }
        self.0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine() {
        for near in ["localhost", "localhost:5000", "127.0.0.1:5000"] {
            assert!(is_near(near), "{near}");
        }
        for far in ["registry.example", "10.0.0.1:5000", "localhost.example:5000", "127.0.0.1.example"] {
            assert!(!is_near(far), "{far}");
        }
    }

    #[tokio::test]
    async fn no_more_is_taken_than_a_plugin_may_have() {
        use tokio::io::AsyncWriteExt as _;
        let mut bounded = Bounded(vec![0; MAX_SIZE - 1]);
        assert!(bounded.write_all(&[0]).await.is_ok());
        assert!(bounded.write_all(&[0]).await.is_err());
    }
}
