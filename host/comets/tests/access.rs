//! Who may be called: addresses that nobody may name are never dialled.

use std::net::TcpListener;
use std::time::Duration;

use prometheus_client::registry::Registry;

use super::support::*;
use crate::comets::{CallOutcome, CallRequest, Config, Fleet, MemoryCometStore, Source};
use crate::message::{CallTarget, CometAddr, NamedBy};

/// Somebody on loopback who is no comet, and whom nobody may connect to.
struct Bystander(TcpListener);

impl Bystander {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().expect("bound").port()
    }

    /// Nobody has connected. A connection is in the listener's queue once `connect` returned.
    fn saw_nobody(&self) -> bool {
        self.0.accept().is_err()
    }
}

/// Without a list, as the defaults are.
fn closed() -> Config {
    Config { allow: None, ..config() }
}

async fn send(fleet: &Fleet, comet: &str, named_by: NamedBy) -> CallOutcome {
    let request = request(fleet, &comet.into(), CallTarget::Room("a".into()), "x", "id");
    fleet.send_now(CallRequest { named_by, ..request }).await
}

fn is_refused(delivered: &CallOutcome) -> bool {
    matches!(delivered, CallOutcome::Unreachable(why) if why.contains("[comets] allow") || why.contains("is not a host:port address"))
}

#[tokio::test]
async fn records_and_plugins_never_reach_loopback_in_any_spelling() {
    let bystander = Bystander::start();
    let port = bystander.port();
    let mut registry = Registry::default();
    let fleet = fleet_with(&closed(), TIMING, &mut registry);
    let spellings = [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "0177.0.0.1",
        "2130706433",
        "localhost",
        "LocalHost.",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "[::ffff:0:0]",
        "127.255.0.1",
    ];
    for host in spellings {
        for named_by in [NamedBy::Record, NamedBy::TrustedPlugin, NamedBy::Plugin] {
            let delivered = send(&fleet, &format!("{host}:{port}"), named_by).await;
            assert!(is_refused(&delivered), "{host} {named_by:?}: {delivered:?}");
        }
    }
    assert!(bystander.saw_nobody());
    assert_eq!(fleet.status(), [], "nothing is known of what is not called");
    assert!(
        fleet.warnings().iter().any(|warning| warning.contains("[comets] allow")),
        "{:?}",
        fleet.warnings()
    );
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes all");
    let counted = r#"halley_comets_refused_total{reason="loopback",named_by="record"}"#;
    assert!(text.contains(counted) && !text.contains(&format!("{counted} 0\n")), "{text}");
}

#[tokio::test]
async fn a_name_is_checked_where_it_leads_and_not_dialled() {
    let bystander = Bystander::start();
    // Every machine has a name, or the files of one, that leads to itself.
    let Some(name) = loopback_name().await else { return };
    let comet = CometAddr::from(format!("{name}:{}", bystander.port()));
    for allow in [None, Some(vec![format!("{name}")]), Some(vec!["0.0.0.0/0".into(), "::/0".into()])] {
        let fleet = fleet(&Config { allow, ..closed() }, TIMING);
        let delivered = send(&fleet, comet.as_str(), NamedBy::Record).await;
        assert!(is_refused(&delivered), "{delivered:?}");
        assert_eq!(fleet.status()[0].source, Source::Named);
        assert!(bystander.saw_nobody());
    }
}

/// A host name, other than those that count as an address, that leads to loopback alone.
async fn loopback_name() -> Option<String> {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    for name in [own.trim(), "ip6-localhost", "ip6-loopback", "localhost.localdomain", "comet.localhost"] {
        let Ok(found) = tokio::net::lookup_host((name, 1)).await else { continue };
        let mut found = found.peekable();
        if found.peek().is_some() && found.all(|address| address.ip().is_loopback()) {
            return Some(name.to_owned());
        }
    }
    None
}

#[tokio::test]
async fn the_gateway_s_own_comets_may_be_named_by_anybody() {
    let comet = FakeComet::start();
    for named_by in [NamedBy::Record, NamedBy::TrustedPlugin, NamedBy::Plugin] {
        let of_directory = fleet(&closed(), TIMING);
        assert!(is_refused(&send(&of_directory, comet.address.as_str(), named_by).await), "{named_by:?}");
        of_directory.named_by_directory([&comet.address]);
        let delivered = send(&of_directory, comet.address.as_str(), named_by).await;
        assert_eq!(delivered, CallOutcome::Acknowledged, "{named_by:?}");
        let nodes = vec![comet.address.to_string()];
        let configured = fleet(&Config { nodes, ..closed() }, TIMING);
        let delivered = send(&configured, comet.address.as_str(), named_by).await;
        assert_eq!(delivered, CallOutcome::Acknowledged, "{named_by:?}");
    }
}

#[tokio::test]
async fn a_plugin_reaches_no_comet_that_only_a_record_named() {
    let comet = FakeComet::start();
    let fleet = fleet(&config(), TIMING);
    assert_eq!(send(&fleet, comet.address.as_str(), NamedBy::Record).await, CallOutcome::Acknowledged);
    assert!(is_refused(&send(&fleet, comet.address.as_str(), NamedBy::Plugin).await));
    assert_eq!(send(&fleet, comet.address.as_str(), NamedBy::TrustedPlugin).await, CallOutcome::Acknowledged);
    assert_eq!(comet.calls().len(), 2);
}

#[tokio::test]
async fn the_directory_is_limited_to_the_allow_list() {
    let bystander = Bystander::start();
    let elsewhere = CometAddr::from(format!("127.0.0.1:{}", bystander.port()));
    let fleet = fleet(&Config { allow: Some(vec!["10.255.0.0/16:1".into()]), ..closed() }, TIMING);
    let named = ["10.255.0.1:1", "169.254.169.254:80", "224.0.0.1:1", "0.0.0.0:1"].map(CometAddr::from);
    fleet.named_by_directory(named.iter().chain([&elsewhere]));
    assert_eq!(fleet.everyone(), [named[0].clone()]);
    for comet in named[1..].iter().chain([&elsewhere]) {
        assert!(is_refused(&send(&fleet, comet.as_str(), NamedBy::Directory).await), "{comet}");
    }
    assert!(bystander.saw_nobody());
}

#[tokio::test]
async fn what_gateways_share_is_checked_as_well() {
    let store = MemoryCometStore::default();
    let share = |config: &Config| fleet_sharing(config, TIMING, &mut Registry::default(), store.clone());
    let one = share(&closed());
    one.named_by_directory(&["127.0.0.1:1".into(), "10.255.0.1:1".into()]);
    one.share().await.expect("memory");
    let other = share(&Config { allow: Some(vec!["10.255.0.0/16".into()]), ..closed() });
    other.share().await.expect("memory");
    assert_eq!(other.everyone(), ["10.255.0.1:1".into()]);
}

#[tokio::test]
async fn who_never_answers_holds_no_place_and_tells_nothing() {
    let real = FakeComet::start();
    let limit = Config { max_named: 2, connect_timeout: Duration::from_millis(50), ..patient(config()) };
    let fleet = fleet(&limit, TIMING);
    // They are accepted and never answered: each holds its message for as long as is tried.
    let silent = [Bystander::start(), Bystander::start()];
    let addresses = silent.each_ref().map(|silent| CometAddr::from(format!("127.0.0.1:{}", silent.port())));
    let waiting = addresses
        .each_ref()
        .map(|address| fleet.send_now(request(&fleet, address, CallTarget::Room("a".into()), "x", "id")));
    let full = to_room(&fleet, &real.address, "a", "x").await;
    assert!(matches!(&full, CallOutcome::Unreachable(why) if why.contains("max_named")), "{full:?}");
    assert!(fleet.warnings().iter().any(|warning| warning.contains("max_named")), "{:?}", fleet.warnings());
    let begun = std::time::Instant::now();
    while to_room(&fleet, &real.address, "a", "x").await != CallOutcome::Acknowledged {
        assert!(begun.elapsed() < TIMING.delivery_timeout, "a real comet has to find a place");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let one_of_them = futures_util::future::select_all(waiting).await;
    assert!(matches!(one_of_them.0, CallOutcome::Unreachable(_)), "{:?}", one_of_them.0);
}

#[tokio::test]
async fn the_status_tells_no_port_scan() {
    let fleet = fleet(&config(), TIMING);
    let nobody = {
        let closed = Bystander::start();
        format!("127.0.0.1:{}", closed.port())
    };
    let delivered = send(&fleet, &nobody, NamedBy::Record).await;
    assert!(matches!(&delivered, CallOutcome::Unreachable(why) if why.contains("refused")), "{delivered:?}");
    let told = fleet.status()[0].last_error.clone().expect("an error");
    assert!(told.contains("never answered") && !told.contains("refused"), "{told}");
    fleet.named_by_directory(&[nobody.as_str().into()]);
    let told = fleet.status()[0].last_error.clone().expect("an error");
    assert!(told.contains("refused"), "errors of the gateway's own comets are reported in full: {told}");
}
