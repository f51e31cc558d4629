//! Which comets are known, and under which names.

use std::time::Duration;

use prometheus_client::registry::Registry;

use super::support::*;
use crate::comets::discovery::Discovery;
use crate::comets::node_list::NodeList;
use crate::comets::{CallOutcome, Config, DiscoveryConfig, MemoryCometStore, Source};
use crate::message::{CallTarget, CometAddr};

#[tokio::test]
async fn broadcasts_reach_configured_and_directory_comets_once() {
    let comet = FakeComet::start();
    let configured = comet.address.to_string();
    let nodes = vec![configured.clone(), format!("http://{configured}"), "10.255.0.1:1".into()];
    let fleet = fleet(&Config { nodes, ..config() }, TIMING);
    assert_eq!(fleet.everyone(), sorted([configured.as_str(), "10.255.0.1:1"]));

    let found = FakeComet::start();
    fleet.named_by_directory(&[found.address.clone(), comet.address.clone(), "comet-1".into()]);
    for written in [found.address.to_string(), format!("http://{}/", found.address), configured.clone()] {
        assert_eq!(to_room(&fleet, &written.as_str().into(), "a", "x").await, CallOutcome::Acknowledged);
    }
    assert_eq!(fleet.everyone(), sorted([&configured, "10.255.0.1:1", found.address.as_str()]));
    let sources: Vec<_> = fleet.status().iter().map(|s| (s.address.clone(), s.source, s.sent)).collect();
    assert!(sources.contains(&(found.address.clone(), Source::Directory, 2)), "{sources:?}");
    assert!(sources.contains(&(comet.address.clone(), Source::Configured, 1)), "{sources:?}");
}

#[tokio::test]
async fn record_named_comets_get_no_broadcast_and_evict_no_other() {
    let (good, evil) = (FakeComet::start(), FakeComet::start());
    let fleet = fleet(&Config { max_named: 2, max_comets: 4, ..config() }, TIMING);
    fleet.named_by_directory([&good.address]);
    assert_eq!(to_room(&fleet, &evil.address, "a", "x").await, CallOutcome::Acknowledged);
    for n in 0..10 {
        let address = CometAddr::from(format!("127.0.0.1:{}", 1 + n));
        let delivered = to_room(&fleet, &address, "a", "x").await;
        assert!(matches!(delivered, CallOutcome::Unreachable(_)), "{delivered:?}");
    }
    let known: Vec<_> = fleet.status().into_iter().map(|status| status.address).collect();
    assert_eq!(known.len(), 3, "{known:?}");
    assert!(known.contains(&evil.address), "those that never answered go first: {known:?}");
    assert_eq!(fleet.everyone(), std::slice::from_ref(&good.address));

    fleet.named_by_directory(&["10.255.0.1:1".into(), "10.255.0.2:1".into()]);
    assert_eq!(fleet.everyone(), sorted([good.address.as_str(), "10.255.0.1:1", "10.255.0.2:1"]));
    fleet.named_by_directory([&evil.address]);
    assert!(fleet.is_broadcast_target(&evil.address), "the directory says so now");
}

#[tokio::test]
async fn a_stale_silent_comet_gets_no_broadcast() {
    let (kept, gone) = (FakeComet::start(), FakeComet::start());
    let stale_after = Duration::from_millis(300);
    let config = Config { stale_after, retention: Duration::from_secs(60), ..config() };
    let fleet = fleet(&config, TIMING);
    fleet.named_by_directory([&kept.address, &gone.address]);
    let gone = {
        let address = gone.address.clone();
        drop(gone);
        address
    };
    let to_all = |comet: &CometAddr| request(&fleet, comet, CallTarget::Everyone { speed: 0 }, "x", "id");
    assert_eq!(fleet.everyone().len(), 2, "who was named lately counts");
    let delivered = fleet.send_now(to_all(&gone)).await;
    assert!(matches!(delivered, CallOutcome::Unreachable(_)), "{delivered:?}");
    eventually("it is left out", || fleet.everyone() == [kept.address.clone()]).await;
    assert!(!fleet.is_broadcast_target(&gone));
    let reach = fleet.reach();
    assert_eq!((reach.comets, reach.left_out), (vec![kept.address.clone()], vec![gone.clone()]));
    fleet.named_by_directory([&gone]);
    assert!(fleet.is_broadcast_target(&gone), "an entry names it again");
}

#[tokio::test]
async fn directory_comets_are_shared_and_survive_a_restart() {
    let store = MemoryCometStore::default();
    let start = || fleet_sharing(&config(), TIMING, &mut Registry::default(), store.clone());
    let (one, other) = (start(), start());
    let found = CometAddr::from("10.255.0.1:1");
    drop(one.send_now(request(&one, &"10.255.0.9:1".into(), CallTarget::Room("a".into()), "x", "id")));
    one.named_by_directory([&found]);
    eventually("the other one knows", || other.everyone() == [found.clone()]).await;
    drop((one, other));
    let restarted = start();
    restarted.share().await.expect("memory");
    assert!(restarted.is_informed());
    assert_eq!(restarted.everyone(), [found]);
}

fn sorted<const N: usize>(addresses: [&str; N]) -> Vec<CometAddr> {
    let mut addresses: Vec<CometAddr> = addresses.into_iter().map(CometAddr::from).collect();
    addresses.sort();
    addresses
}

#[tokio::test]
async fn a_comet_is_reached_by_name() {
    let comet = FakeComet::start();
    let port = comet.address.as_str().rsplit_once(':').expect("a port").1;
    let address = format!("127.0.0.1:{port}");
    let addresses = [("edge-1".to_owned(), format!("http://LOCALHOST.:0{port}/"))].into();
    let fleet = fleet(&Config { nodes: vec![address.clone()], addresses, ..config() }, TIMING);
    assert_eq!(fleet.address_of("edge-1"), CometAddr::from(address.as_str()));
    assert_eq!(fleet.address_of("10.0.0.1:1"), CometAddr::from("10.0.0.1:1"));
    assert_eq!(to_room(&fleet, &fleet.address_of("edge-1"), "a", "x").await, CallOutcome::Acknowledged);
    assert_eq!(fleet.everyone(), [CometAddr::from(address.as_str())]);
}

#[tokio::test]
async fn what_is_no_address_makes_no_comet() {
    let fleet = fleet(&config(), TIMING);
    for text in ["", "edge-1", "ftp://a:1", "a:0", "\n:1"] {
        let CallOutcome::Unreachable(why) = to_room(&fleet, &text.into(), "a", "x").await else {
            panic!("{text:?} was reached");
        };
        assert!(why.contains("is not a host:port address"), "{why}");
    }
    assert_eq!(fleet.status(), []);
}

#[tokio::test]
async fn the_number_of_comets_is_bounded() {
    let (busy, other) = (FakeComet::start(), FakeComet::start());
    let fleet = fleet(&Config { max_comets: 1, ..config() }, TIMING);
    busy.answers(|_, before| (Duration::from_millis(if before == 0 { 400 } else { 0 }), Ok(())));
    let slow = fleet.send_now(request(&fleet, &busy.address, CallTarget::Room("a".into()), "x", "id"));
    let delivered = to_room(&fleet, &other.address, "a", "x").await;
    assert!(
        matches!(&delivered, CallOutcome::Unreachable(why) if why.contains("max_comets")),
        "{delivered:?}"
    );
    let other_form = CometAddr::from(format!("http://{}", busy.address));
    assert_eq!(to_room(&fleet, &other_form, "b", "x").await, CallOutcome::Acknowledged);
    assert_eq!(slow.await, CallOutcome::Acknowledged);
    assert_eq!(
        to_room(&fleet, &other.address, "a", "x").await,
        CallOutcome::Acknowledged,
        "who is idle gives way"
    );
    assert_eq!(fleet.status().len(), 1);
}

#[tokio::test]
async fn idle_comets_are_forgotten_with_their_metrics() {
    let (kept, idle) = (FakeComet::start(), FakeComet::start());
    let nodes = vec![kept.address.to_string()];
    let config = Config { nodes, idle_timeout: Duration::from_secs(1), ..config() };
    let mut registry = Registry::default();
    let fleet = fleet_with(&config, TIMING, &mut registry);
    let metrics = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes all");
        text
    };
    for comet in [&kept, &idle] {
        assert_eq!(to_room(&fleet, &comet.address, "a", "x").await, CallOutcome::Acknowledged);
    }
    let is_known = |comet: &FakeComet| fleet.status().iter().any(|status| status.address == comet.address);
    let success = |comet: &FakeComet| format!("job_dispatch_success_total{{comet=\"{}\"}} 1", comet.address);
    assert!(metrics().contains(&success(&idle)), "{}", metrics());
    assert!(metrics().contains("active_comet_nodes 2"), "{}", metrics());

    eventually("it is forgotten", || !is_known(&idle)).await;
    assert!(is_known(&kept));
    eventually("its task ended", || metrics().contains("active_comet_nodes 1")).await;
    assert!(!metrics().contains(idle.address.as_str()), "{}", metrics());
    assert!(metrics().contains(&success(&kept)), "{}", metrics());

    let again = fleet.send_now(request(&fleet, &idle.address, CallTarget::Room("a".into()), "y", "id")).await;
    assert_eq!(again, CallOutcome::Acknowledged);
}

#[tokio::test]
async fn a_retired_comet_gets_broadcasts_only_from_the_directory() {
    let (comet, fleet) = (FakeComet::start(), fleet(&config(), TIMING));
    let source = || fleet.status()[0].source;
    let nodes = |nodes: &[&CometAddr]| {
        let config = Config { nodes: nodes.iter().map(ToString::to_string).collect(), ..config() };
        let mut all = NodeList::default();
        all.update(&config, &Discovery::new(&config.discovery));
        all
    };
    fleet.named_by_directory([&comet.address]);
    fleet.set_nodes(&nodes(&[&comet.address]));
    assert_eq!((fleet.everyone(), source()), (vec![comet.address.clone()], Source::Configured));
    fleet.set_nodes(&nodes(&[]));
    assert_eq!((fleet.everyone(), source()), (Vec::new(), Source::Retired));
    fleet.share().await.expect("memory");
    assert_eq!(source(), Source::Retired, "what was seen before says nothing");
    assert_eq!(to_room(&fleet, &comet.address, "a", "x").await, CallOutcome::Acknowledged);
    assert_eq!((fleet.everyone(), source()), (Vec::new(), Source::Retired));
    tokio::time::sleep(Duration::from_millis(2)).await;
    fleet.named_by_directory([&comet.address]);
    assert_eq!((fleet.everyone(), source()), (vec![comet.address.clone()], Source::Directory));
    fleet.set_nodes(&nodes(&[&comet.address]));
    assert_eq!(source(), Source::Configured);
}

#[tokio::test]
async fn a_file_that_is_followed_adds_comets_and_names_at_once() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("comets.toml");
    std::fs::write(&file, "nodes = [\"10.255.0.1:1\"]").expect("written");
    let discovery = DiscoveryConfig {
        file: Some(file.clone()),
        refresh_interval: Duration::from_millis(20),
        ..DiscoveryConfig::default()
    };
    let fleet = fleet(&Config { discovery, ..config() }, TIMING);
    fleet.resolved().await;
    assert_eq!(fleet.everyone(), ["10.255.0.1:1".into()]);
    std::fs::write(&file, r#"{"nodes": ["10.255.0.2:1"], "addresses": {"c3": "10.255.0.3:1"}}"#)
        .expect("written");
    let expected = ["10.255.0.2:1".into(), "10.255.0.3:1".into()];
    eventually("the new list is used", || fleet.everyone() == expected).await;
    assert_eq!(fleet.address_of("c3"), expected[1]);
    std::fs::write(&file, "nodes = [").expect("written");
    eventually("the mistake is reported", || fleet.warnings().iter().any(|w| w.contains("comets.toml")))
        .await;
    assert_eq!(fleet.everyone(), expected, "the last good list stays");
}
