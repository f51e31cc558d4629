//! Records as other producers write them, and their effect on the gateway.

mod limits;
mod side_channels;

use std::process::Command;

use bytes::Bytes;
use halley::message::{Audience, encode};

use crate::support::comet::{FakeComet, To};
use crate::support::folder;
use crate::support::gateway::gateway;
use crate::support::kafka::{ConsumedRecord, kafka};
use crate::support::peers::{Outgoing, Producer};

#[tokio::test]
async fn header_names_of_any_bytes_are_kept_and_redriven() {
    let topic = kafka().topic("header-names", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let comet = FakeComet::start().await;
    let settings = gateway(&topic).node(&comet);
    let running = settings.clone().start().await;
    // The output of `kcat -H $'\xc6\xb5\xb5\xc0=1'`.
    let headers: &[(&[u8], &'static [u8])] = &[(b"\xc6\xb5\xb5\xc0", b"1"), (b"", b"\xff"), (b"trace", b"")];
    kafka().produce_raw(&topic, None, Some(b"\xff\xff"), headers, None).await;
    let everyone = encode(&Audience::Everyone { speed: 0 }, 4, b"after it");
    kafka().produce_raw(&topic, None, Some(&everyone), headers, None).await;
    running.wait_until_settled(&topic).await;
    if let Some(producer) = Producer::new(kafka().brokers(), &topic).await {
        // A producer other than librdkafka, with different strings.
        producer.write(&[Outgoing::new(b"\xff\xff").header(b"\xff\xfe", b"go")]).await;
        running.wait_until_settled(&topic).await;
        let name = kafka().read_all(&dead_letters)[1].headers[0].0.clone();
        assert_eq!(name, &b"\xff\xfe"[..]);
    }
    comet.wait_for_deliveries(&[(To::Everyone { speed: 0 }, 4, "after it")]).await;

    let first = |records: &[ConsumedRecord]| records[0].headers[..3].to_vec();
    let own = |(name, value): &(&[u8], &'static [u8])| {
        (Bytes::copy_from_slice(name), Some(Bytes::from_static(value)))
    };
    let written: Vec<_> = headers.iter().map(own).collect();
    assert_eq!(first(&kafka().read_all(&dead_letters)), written, "the dead letter is the record");
    let folder = folder("header-names");
    let file = folder.path().join("halley.toml").display().to_string();
    std::fs::write(&file, settings.toml()).expect("writable");
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        let output = command.arg("dead-letter").args(args).args(["--config", &file]).output();
        String::from_utf8(output.expect("the binary runs").stdout).expect("UTF-8")
    };
    let listed = run(&["list", "--json"]);
    assert!(listed.contains(r#""name_base64":"xrW1wA==""#), "{listed}");
    let redriven = run(&["redrive"]);
    assert!(redriven.contains(" redriven"), "{redriven}");
    let again =
        kafka().read_all(&topic).into_iter().filter(|record| record.header("halley-message-id").is_some());
    assert_eq!(first(&again.collect::<Vec<_>>()), written, "and so is what is redriven");
}
