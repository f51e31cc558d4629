//! Which comets are known, and under which names.

use std::time::Duration;

use prometheus_client::registry::Registry;

use super::support::*;
use crate::comets::nodes::Node;
use crate::comets::{Config, Delivered, Source};
use crate::message::{CometAddr, Target};

#[tokio::test]
async fn everyone_is_the_configured_and_the_learned_each_once() {
    let comet = FakeComet::start();
    let configured = comet.address.to_string();
    let nodes = vec![configured.clone(), format!("http://{configured}"), "10.255.0.1:1".into()];
    let fleet = fleet(&Config { nodes, ..config() }, TIMING);
    assert_eq!(fleet.everyone(), sorted([configured.as_str(), "10.255.0.1:1"]));

    let learned = FakeComet::start();
    for written in [learned.address.to_string(), format!("http://{}/", learned.address), configured.clone()] {
        assert_eq!(to_room(&fleet, &written.as_str().into(), "a", "x").await, Delivered::Acknowledged);
    }
    assert_eq!(fleet.everyone(), sorted([&configured, "10.255.0.1:1", learned.address.as_str()]));
    let sources: Vec<_> = fleet.status().iter().map(|s| (s.address.clone(), s.source, s.sent)).collect();
    assert!(sources.contains(&(learned.address.clone(), Source::Learned, 2)), "{sources:?}");
    assert!(sources.contains(&(comet.address.clone(), Source::Configured, 1)), "{sources:?}");
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
    let address = format!("localhost:{port}");
    let addresses = [("edge-1".to_owned(), format!("http://{address}"))].into();
    let fleet = fleet(&Config { nodes: vec![address.clone()], addresses, ..config() }, TIMING);
    assert_eq!(fleet.address_of("edge-1"), CometAddr::from(address.as_str()));
    assert_eq!(fleet.address_of("10.0.0.1:1"), CometAddr::from("10.0.0.1:1"));
    assert_eq!(to_room(&fleet, &fleet.address_of("edge-1"), "a", "x").await, Delivered::Acknowledged);
    assert_eq!(fleet.everyone(), [CometAddr::from(address.as_str())]);
}

#[tokio::test]
async fn what_is_no_address_makes_no_comet() {
    let fleet = fleet(&config(), TIMING);
    for text in ["", "edge-1", "https://a:1", "a:0", "\n:1"] {
        let Delivered::Unreachable(why) = to_room(&fleet, &text.into(), "a", "x").await else {
            panic!("{text:?} was reached");
        };
        assert!(why.contains("is not a host:port address"), "{why}");
    }
    assert_eq!(fleet.status(), []);
}

#[tokio::test]
async fn the_number_of_comets_is_bounded() {
    let comet = FakeComet::start();
    let fleet = fleet(&Config { max_comets: 1, ..config() }, TIMING);
    assert_eq!(to_room(&fleet, &comet.address, "a", "x").await, Delivered::Acknowledged);
    let delivered = to_room(&fleet, &"10.255.0.1:1".into(), "a", "x").await;
    assert!(matches!(&delivered, Delivered::Unreachable(why) if why.contains("max_comets")), "{delivered:?}");
    let other_form = CometAddr::from(format!("http://{}", comet.address));
    assert_eq!(to_room(&fleet, &other_form, "a", "x").await, Delivered::Acknowledged);
    assert_eq!(fleet.status().len(), 1);
}

#[tokio::test]
async fn idle_comets_are_forgotten_with_their_metrics() {
    let (kept, idle) = (FakeComet::start(), FakeComet::start());
    let nodes = vec![kept.address.to_string()];
    let config = Config { nodes, idle_after: Duration::from_secs(1), ..config() };
    let mut registry = Registry::default();
    let fleet = fleet_with(&config, TIMING, &mut registry);
    let metrics = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes all");
        text
    };
    for comet in [&kept, &idle] {
        assert_eq!(to_room(&fleet, &comet.address, "a", "x").await, Delivered::Acknowledged);
    }
    let success = |comet: &FakeComet| format!("job_dispatch_success_total{{comet=\"{}\"}} 1", comet.address);
    assert!(metrics().contains(&success(&idle)), "{}", metrics());
    assert!(metrics().contains("active_comet_nodes 2"), "{}", metrics());

    eventually("it is forgotten", || fleet.everyone() == [kept.address.clone()]).await;
    eventually("its task ended", || metrics().contains("active_comet_nodes 1")).await;
    assert!(!metrics().contains(idle.address.as_str()), "{}", metrics());
    assert!(metrics().contains(&success(&kept)), "{}", metrics());

    let again = fleet.send(parcel(&fleet, &idle.address, Target::Room("a".into()), "y", "id")).await;
    assert_eq!(again, Delivered::Acknowledged);
}

#[tokio::test]
async fn a_comet_that_left_the_nodes_gets_no_broadcast_unless_it_is_still_in_use() {
    let (comet, fleet) = (FakeComet::start(), fleet(&config(), TIMING));
    let source = || fleet.status()[0].source;
    fleet.set_nodes(&Node::read(&[comet.address.to_string()]));
    fleet.set_nodes(&[]);
    assert_eq!((fleet.everyone(), source()), (Vec::new(), Source::Retired));
    let broadcast = parcel(&fleet, &comet.address, Target::Everyone { speed: 0 }, "x", "id");
    assert_eq!(fleet.send(broadcast).await, Delivered::Acknowledged);
    assert_eq!(source(), Source::Retired);
    assert_eq!(to_room(&fleet, &comet.address, "a", "x").await, Delivered::Acknowledged);
    assert_eq!((fleet.everyone(), source()), (vec![comet.address.clone()], Source::Learned));
    fleet.set_nodes(&Node::read(&[comet.address.to_string()]));
    assert_eq!(source(), Source::Configured);
}
