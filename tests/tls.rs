//! TLS to comets: what is verified, what is refused, and certificates that change while the gateway runs.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use openssl::ssl::{AlpnError, Ssl, SslAcceptor, SslMethod, SslVerifyMode, select_next_proto};
use openssl::x509::store::X509StoreBuilder;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_openssl::SslStream;

use crate::support::certificates::{Certificate, EXPIRED, LONG, VALID};
use crate::support::comet::{Dialect, FakeComet, Serves};
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::{PATIENCE, eventually, folder};

/// The name in the comets' certificates.
const COMET: &str = "comet.example";

/// Speaks TLS in front of a comet, as an operator's proxy would.
pub struct TlsProxy {
    pub address: SocketAddr,
    _serving: JoinSet<()>,
}

pub async fn in_front_of(comet: &FakeComet, own: &Certificate, clients: Option<&Certificate>) -> TlsProxy {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).expect("TLS");
    builder.set_certificate(&own.certificate).expect("a certificate");
    builder.set_private_key(&own.key).expect("a key");
    builder
        .set_alpn_select_callback(|_, offered| select_next_proto(b"\x02h2", offered).ok_or(AlpnError::NOACK));
    if let Some(clients) = clients {
        let mut store = X509StoreBuilder::new().expect("a store");
        store.add_cert(clients.certificate.clone()).expect("an authority");
        builder.set_cert_store(store.build());
        builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    }
    let (acceptor, to) = (Arc::new(builder.build()), comet.address().to_string());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, to) = (Arc::clone(&acceptor), to.clone());
            connections.spawn(async move {
                let ssl = Ssl::new(acceptor.context()).expect("TLS");
                let mut outer = SslStream::new(ssl, stream).expect("a stream");
                if Pin::new(&mut outer).accept().await.is_ok()
                    && let Ok(mut inner) = TcpStream::connect(to).await
                {
                    let _ended = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                }
            });
        }
    });
    TlsProxy { address, _serving: serving }
}

struct World {
    authority: Certificate,
    comet: FakeComet,
    files: tempfile::TempDir,
    topic: String,
}

impl World {
    async fn new(story: &str, serves: Serves) -> Self {
        let world = Self {
            authority: Certificate::authority("comets"),
            comet: FakeComet::start_serving(Dialect::Chatroom, serves).await,
            files: folder("tls"),
            topic: kafka().topic(story, 1).await,
        };
        world.authority.write(world.files.path(), "ca");
        world
    }

    fn path(&self, name: &str) -> String {
        quoted(&self.files.path().join(name).display().to_string())
    }

    /// Everything to this address is BROADCAST, and verified by the authority in `ca.pem`.
    fn settings(&self, address: &str) -> Gateway {
        gateway(&self.topic)
            .node_at(address)
            .set("comets.tls", "ca", self.path("ca.pem"))
            .set("comets.tls", "server_name", quoted(COMET))
            .set("comets", "breaker_open", quoted("100ms"))
            .set("comets", "breaker_open_max", quoted("200ms"))
            .set("delivery", "delivery_timeout", quoted("2s"))
            .set("delivery", "request_timeout", quoted("1s"))
    }

    async fn say(&self, word: &str) {
        kafka().produce_everyone(&self.topic, 0, word).await;
    }

    async fn wait_for(&self, word: &str) {
        eventually(word, PATIENCE, async || {
            self.comet.deliveries().iter().any(|(_, _, body)| body == word).then_some(())
        })
        .await;
    }
}

/// Waits until the comet's last error says this.
async fn last_error(gateway: &RunningGateway, wanted: &str) {
    eventually(wanted, PATIENCE, async || {
        gateway.get("/v1/comets").await.body.contains(wanted).then_some(())
    })
    .await;
}

/// What `check --connect` says of the comet.
async fn checked(settings: &Gateway) -> (bool, String) {
    let (_, found) = crate::checks::connect(settings.clone()).await;
    let about = found.iter().find(|(subject, ..)| subject.starts_with("comet https://"));
    about.map(|(_, ok, text)| (*ok, text.clone())).unwrap_or_else(|| panic!("{found:#?}"))
}

async fn both_ways(serves: Serves, story: &str) {
    let world = World::new(story, serves).await;
    let clients = Certificate::authority("gateways");
    clients.issue("gateway", VALID).write(world.files.path(), "own");
    let proxy = in_front_of(&world.comet, &world.authority.issue(COMET, VALID), Some(&clients)).await;

    // Not without a certificate of its own.
    let settings = world.settings(&format!("https://{}", proxy.address));
    let anonymous = settings.clone().start().await;
    world.say("anonymous").await;
    last_error(&anonymous, "certificate required").await;
    assert!(anonymous.sigterm().await.success());
    let refused = checked(&settings).await;
    assert!(!refused.0 && refused.1.contains("a client's certificate"), "{refused:?}");
    assert_eq!(world.comet.deliveries(), [], "nobody without a certificate reaches the comet");

    let settings = settings.set("comets.tls", "certificate", world.path("own.pem")).set(
        "comets.tls",
        "key",
        world.path("own.key"),
    );
    let connects = checked(&settings).await;
    assert!(connects.0 && connects.1.starts_with("connects, certificate expires at"), "{connects:?}");
    let _known = settings.start().await;
    world.say("known").await;
    world.wait_for("known").await;
}

#[tokio::test]
async fn each_side_verifies_the_other_for_calls() {
    both_ways(Serves::Calls, "tls-calls").await;
}

#[tokio::test]
async fn each_side_verifies_the_other_for_streams() {
    both_ways(Serves::Streams, "tls-streams").await;
}

/// A renewal is noticed while connections live, which never look at the files again.
#[tokio::test]
async fn a_certificate_that_expires_soon_is_a_warning_until_it_is_renewed() {
    let world = World::new("tls-expiry", Serves::Calls).await;
    let clients = Certificate::authority("gateways");
    clients.issue("gateway", (-1, 20)).write(world.files.path(), "own");
    let proxy = in_front_of(&world.comet, &world.authority.issue(COMET, VALID), Some(&clients)).await;
    let settings = world.settings(&format!("https://{}", proxy.address));
    let settings = settings.set("comets.tls", "certificate", world.path("own.pem"));
    let gateway = settings.set("comets.tls", "key", world.path("own.key")).start().await;
    world.say("hello").await;
    world.wait_for("hello").await;
    let warnings = async || gateway.get("/readyz").await.json()["warnings"].to_string();
    let is_told =
        async || warnings().await.contains("the certificate of `[comets.tls]`: expires at").then_some(());
    eventually("a warning of the end", PATIENCE, is_told).await;
    clients.issue("gateway", LONG).write(world.files.path(), "own");
    let is_clear = async || (!warnings().await.contains("[comets.tls]")).then_some(());
    eventually("no warning", PATIENCE, is_clear).await;
}

#[tokio::test]
async fn a_certificate_of_nobody_s_authority_is_refused_until_it_is_known() {
    let world = World::new("tls-authority", Serves::Calls).await;
    Certificate::authority("somebody else").write(world.files.path(), "ca");
    let proxy = in_front_of(&world.comet, &world.authority.issue(COMET, VALID), None).await;
    // All comets speak TLS, with or without the scheme.
    let settings = world.settings(&proxy.address.to_string()).set("comets.tls", "enabled", true);
    let gateway = settings.start().await;
    world.say("early").await;
    last_error(&gateway, "the comet's certificate is refused").await;
    assert_eq!(world.comet.deliveries(), []);

    // A file that cannot be used changes nothing, and is a warning.
    std::fs::write(world.files.path().join("ca.pem"), "no certificate").expect("written");
    eventually("a warning", PATIENCE, async || {
        world.say("any").await;
        gateway.get("/readyz").await.body.contains("[comets.tls]").then_some(())
    })
    .await;
    world.authority.write(world.files.path(), "ca");
    eventually("the new authority to count", PATIENCE, async || {
        world.say("late").await;
        world.comet.deliveries().iter().any(|(_, _, body)| body == "late").then_some(())
    })
    .await;
}

#[tokio::test]
async fn expired_foreign_and_missing_certificates_are_refused() {
    let world = World::new("tls-refused", Serves::Calls).await;
    let expired = in_front_of(&world.comet, &world.authority.issue(COMET, EXPIRED), None).await;
    let foreign = in_front_of(&world.comet, &world.authority.issue("other.example", VALID), None).await;
    let plain = world.comet.address().to_string();
    for (address, why) in [
        (expired.address.to_string(), "certificate has expired"),
        (foreign.address.to_string(), "hostname mismatch"),
        (plain, "TLS"),
    ] {
        let gateway = world.settings(&format!("https://{address}")).start().await;
        world.say("no").await;
        last_error(&gateway, why).await;
        assert!(gateway.sigterm().await.success());
    }
    assert_eq!(world.comet.deliveries(), [], "nothing is sent in the clear");
}

#[tokio::test]
async fn a_key_of_another_certificate_stops_the_start() {
    let world = World::new("tls-key", Serves::Calls).await;
    let (one, other) = (Certificate::authority("one"), Certificate::authority("other"));
    one.write(world.files.path(), "own");
    let key = other.key.private_key_to_pem_pkcs8().expect("PEM");
    crate::support::secret(&world.files.path().join("own.key"), std::str::from_utf8(&key).expect("text"));
    let settings = world.settings("127.0.0.1:1").set("comets.tls", "certificate", world.path("own.pem")).set(
        "comets.tls",
        "key",
        world.path("own.key"),
    );
    let file = world.files.path().join("halley.toml");
    std::fs::write(&file, settings.toml()).expect("written");
    let args = ["run", "--config", &file.display().to_string()];
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_halley")).args(args).output().expect("it runs");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!run.status.success() && said.contains("the key does not belong to the certificate"), "{said}");
}
