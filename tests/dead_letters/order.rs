//! Dead letters keep the order of their records and are redriven in it, to the recipients still due.

use std::time::Duration;

use halley::message::{Audience, encode};
use tonic::Code;

use super::{DeadLetterCli, text};
use crate::support::comet::{Behaviour, FakeComet, To};
use crate::support::gateway::gateway;
use crate::support::kafka::kafka;
use crate::support::redis::Redis;

/// The bodies that a comet received.
fn heard(comet: &FakeComet) -> Vec<String> {
    comet.deliveries().into_iter().map(|(_, _, body)| body).collect()
}

#[tokio::test]
async fn letters_keep_the_order_of_their_records_and_so_does_a_redrive() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("ordered", 2).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 3).await;
    let settings = gateway(&topic).node(&comet);
    let desk = DeadLetterCli::with(&topic, &settings.toml());
    let gateway = settings.start().await;
    // Late refusals are between immediate ones.
    comet.behave(Behaviour::FailLater(Duration::from_millis(100), Code::InvalidArgument));
    for key in [None, Some("one"), Some("two")] {
        for number in 0..20 {
            let body = format!("{}-{number:02}", key.unwrap_or("none"));
            let value = encode(&Audience::Everyone { speed: 0 }, 4, body.as_bytes());
            kafka().produce_record(&topic, key, Some(&value), &[]).await;
            kafka().produce_record(&topic, key, Some(b"junk"), &[]).await;
        }
    }
    gateway.wait_until_settled(&topic).await;
    let dead_letters = kafka().read_all(&desk.dead_letters);
    assert_eq!(dead_letters.len(), 120);
    for key in [None, Some("one"), Some("two")] {
        for partition in ["0", "1"] {
            let of_key = dead_letters.iter().filter(|letter| {
                letter.key.as_deref() == key.map(str::as_bytes)
                    && letter.header("halley-origin-partition").as_deref() == Some(partition)
            });
            let offset = |name: &str| name.parse::<i64>().expect("an offset");
            let places: Vec<_> = of_key
                .map(|letter| {
                    (letter.partition, offset(&letter.header("halley-origin-offset").expect("one")))
                })
                .collect();
            assert!(places.is_sorted(), "{key:?} of partition {partition}: {places:?}");
            let first = places.first().map(|(partition, _)| partition);
            assert!(
                places.iter().all(|(partition, _)| Some(partition) == first),
                "one partition: {places:?}"
            );
        }
    }

    comet.behave(Behaviour::Ok);
    comet.forget();
    assert!(desk.ok(&["redrive", "--stage", "deliver"]).starts_with("60 redriven"));
    comet.wait_for(60).await;
    let heard = heard(&comet);
    for key in ["one", "two"] {
        let of_key: Vec<_> = heard.iter().filter(|body| body.starts_with(key)).collect();
        assert!(of_key.len() == 20 && of_key.is_sorted(), "{of_key:?}");
    }
    assert_eq!(heard.len(), 60, "{heard:?}");
}

#[tokio::test]
async fn a_redriven_broadcast_reaches_only_the_comets_that_did_not_take_it() {
    let (good, bad) = (FakeComet::start().await, FakeComet::start().await);
    let redis = Redis::start().await;
    let topic = kafka().topic("due", 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    let settings =
        gateway(&topic).redis(&redis).node(&good).node(&bad).set("routing", "rooms", "\"every-comet\"");
    let desk = DeadLetterCli::with(&topic, &settings.toml());
    let gateway = settings.start().await;
    bad.behave(Behaviour::Fail(Code::InvalidArgument));
    for number in 0..5 {
        kafka().produce_everyone(&topic, 0, format!("b{number}")).await;
        kafka().produce_room(&topic, "lobby", format!("r{number}")).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(heard(&good).len(), 10);
    // Refused again: it is due to the same comet, and counts the attempts.
    assert!(desk.ok(&["redrive"]).starts_with("10 redriven"));
    gateway.wait_until_settled(&topic).await;
    let listed = desk.ok(&["list", "--json", "--pending"]);
    let attempts =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["attempts"].clone();
    assert_eq!(listed.lines().map(attempts).collect::<Vec<_>>(), vec![serde_json::json!(2); 10], "{listed}");
    assert_eq!(desk.ok(&["list", "--json"]).lines().count(), 20);

    bad.behave(Behaviour::Ok);
    bad.forget();
    good.forget();
    assert!(desk.ok(&["redrive"]).starts_with("10 redriven"));
    bad.wait_for(10).await;
    let expected: Vec<_> = (0..5).flat_map(|n| [format!("b{n}"), format!("r{n}")]).collect();
    let of = |first: char| heard(&bad).into_iter().filter(|body| body.starts_with(first)).collect::<Vec<_>>();
    let wanted =
        |first: char| expected.iter().filter(|body| body.starts_with(first)).cloned().collect::<Vec<_>>();
    assert_eq!((of('b'), of('r')), (wanted('b'), wanted('r')));
    assert_eq!(heard(&good), Vec::<String>::new(), "it has had them");

    // The comets are gone: nobody is reached, and no new letter is written.
    let value = encode(&Audience::Everyone { speed: 0 }, 4, b"late");
    let gone = [("halley-failed-comets", "127.0.0.1:1")];
    desk.letter_with(&topic, "deliver", 0, Some(&text(&value)), &gone).await;
    assert!(desk.ok(&["redrive"]).starts_with("1 redriven"));
    gateway.wait_until_settled(&topic).await;
    assert_eq!(desk.ok(&["list", "--json", "--pending"]), "");
    assert_eq!((heard(&good).len(), bad.count()), (0, 10));
    assert!(
        desk.ok(&["redrive", "--from-start", "--all-comets", "--since", "1h", "--limit", "1"])
            .starts_with("1 re")
    );
    good.wait_for_deliveries(&[(To::Everyone { speed: 0 }, 4, "b0")]).await;
}

#[tokio::test]
async fn a_recreated_topic_is_redriven_from_its_start() {
    let desk = DeadLetterCli::new("again").await;
    for body in ["a", "b"] {
        desk.letter("deliver", 1, body).await;
    }
    assert!(desk.ok(&["redrive", "--limit", "1"]).starts_with("1 redriven"));
    assert_eq!(desk.ok(&["list", "--json", "--pending"]).lines().count(), 1);
    // The commit of a redrive of an earlier topic of this name.
    let group = format!("{}-redrive", desk.group());
    kafka().commit(&group, &desk.dead_letters, 0, 2, "@1:00000000000000ab;").await;
    let done = desk.run(&["redrive"]);
    assert!(text(&done.stdout).starts_with("2 redriven"), "{done:?}");
    assert!(text(&done.stderr).contains("was recreated since the last redrive"), "{done:?}");
    assert!(desk.ok(&["redrive"]).starts_with("0 redriven"));
}
