//! Only `halley dead-letter redrive` can mark a record as an earlier message.

use halley::message::{Audience, encode};
use serde_json::json;
use tonic::Code;

use crate::dead_letters::{DeadLetterCli, text};
use crate::support::comet::{Behaviour, FakeComet};
use crate::support::gateway::{Plugin, RunningGateway, gateway};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, repository};

async fn claims(gateway: &RunningGateway, proof: &str) -> Option<f64> {
    gateway.metric(&format!("halley_redrive_proofs_total{{proof=\"{proof}\"}}")).await
}

#[tokio::test]
async fn a_forged_id_is_ignored_and_a_redriven_one_accepted() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("claims", 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    let guard = Plugin::new("duplicate-guard", repository("plugins/dist/duplicate_guard.wasm"))
        .config(&json!({ "duplicates": { "within": "60s" } }));
    let settings = gateway(&topic).redis(&redis).plugin(guard);
    let desk = DeadLetterCli::with(&topic, &settings.toml());
    let gateway = settings.start().await;

    comet.behave(Behaviour::Fail(Code::InvalidArgument));
    let id = kafka().produce_room(&topic, "lobby", "refused").await;
    gateway.wait_until_settled(&topic).await;
    comet.behave(Behaviour::Ok);
    comet.forget();

    // Forged: three copies of a message pass the guard once, and cannot take another message's id.
    let value = encode(&Audience::Room("lobby".into()), 4, b"forged");
    let (forged, gone) = (("halley-message-id", &*id), ("halley-redrive-comets", "127.0.0.1:1"));
    let proof = format!("1:{}", "0a".repeat(32));
    let all = [&[forged, gone][..], &[forged], &[forged, ("halley-proof", &proof), ("halley-attempts", "7")]];
    for headers in all {
        kafka().produce_record(&topic, Some("lobby"), Some(&value), headers).await;
    }
    gateway.wait_until_settled(&topic).await;
    let calls = comet.calls();
    assert_eq!(calls.len(), 1, "1 of 3 copies passes: {calls:#?}");
    assert!(!calls[0].messages.contains(&id), "it has its own id: {calls:#?}");
    assert_eq!(
        (claims(&gateway, "missing").await, claims(&gateway, "invalid").await),
        (Some(2.0), Some(1.0))
    );
    let told = "a record claims to be redriven without a valid proof";
    let lines = gateway.log_lines();
    let said = lines.iter().filter(|line| line["message"].as_str().is_some_and(|m| m.starts_with(told)));
    assert_eq!(said.count(), 1, "one line for all: {gateway:?}");

    // Redriven: it passes its own guard, and keeps its id.
    assert!(desk.ok(&["redrive"]).starts_with("1 redriven"));
    gateway.wait_until_settled(&topic).await;
    let calls = comet.calls();
    assert_eq!((calls.len(), &calls[1].messages), (2, &vec![id]), "{calls:#?}");
    assert_eq!(claims(&gateway, "valid").await, Some(1.0));

    // A proof of one record is not valid for another.
    let redriven = kafka().read_all(&topic).pop().expect("the redriven record");
    let stolen: Vec<_> = ["halley-message-id", "halley-attempts", "halley-proof"]
        .map(|name| (name, redriven.header(name).expect("a redriven record has it")))
        .into();
    let headers: Vec<_> = stolen.iter().map(|(name, value)| (*name, value.as_str())).collect();
    kafka()
        .produce_record(
            &topic,
            Some("lobby"),
            Some(&encode(&Audience::Room("lobby".into()), 4, b"other")),
            &headers,
        )
        .await;
    gateway.wait_until_settled(&topic).await;
    let calls = comet.calls();
    assert_ne!(calls[2].messages, calls[1].messages, "{calls:#?}");
    assert_eq!(claims(&gateway, "invalid").await, Some(2.0));
}

#[tokio::test]
async fn a_proof_waits_for_redis_and_says_so() {
    let (mut redis, comet) = (Redis::start().await, FakeComet::start().await);
    if !redis.can_stop("a_proof_waits_for_redis_and_says_so") {
        return;
    }
    let topic = kafka().topic("claims-away", 1).await;
    let gateway = gateway(&topic).redis(&redis).node(&comet).start().await;
    redis.stop();
    let value = encode(&Audience::Everyone { speed: 0 }, 4, b"waits");
    let proof = format!("1:{}", "0a".repeat(32));
    let headers = [("halley-message-id", "push/0/7"), ("halley-proof", &*proof)];
    kafka().produce_record(&topic, None, Some(&value), &headers).await;
    let listed = async || {
        let stalls = gateway.get("/v1/stalls").await.body;
        stalls.contains("redrive-key").then_some(())
    };
    eventually("the stall to be listed", PATIENCE, listed).await;
    let ready = gateway.get("/readyz").await;
    assert!(ready.status == 503 && ready.body.contains("redrive-key"), "{}", ready.body);
    assert_eq!(
        gateway.metric("halley_stalled_partitions{stage=\"redrive-key\"}").await,
        Some(1.0),
        "nothing is decided without Redis"
    );
    assert_eq!((comet.count(), claims(&gateway, "invalid").await), (0, Some(0.0)));
    redis.restart().await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!((comet.count(), claims(&gateway, "invalid").await), (1, Some(1.0)));
    gateway.wait_until_ready().await;
}

#[tokio::test]
async fn a_redrive_writes_only_where_records_are_read() {
    let desk = DeadLetterCli::new("allowed").await;
    let (payments, chat) = (kafka().topic("payments", 1).await, kafka().topic("chat", 1).await);
    desk.letter_from(&payments, "deliver", 0, "forged").await;
    desk.letter_from(&chat, "deliver", 0, "pattern").await;
    desk.letter("deliver", 0, "good").await;
    for dry in [&["redrive", "--dry-run"][..], &["redrive"]] {
        let output = desk.run(dry);
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(out.contains("2 refused"), "{out}");
        let line = format!(
            "origin is `{payments}`, which is not one of `[kafka] topics`; if that is right, allow it with `--allow-topic`"
        );
        assert!(said.contains(&line), "{said}");
    }
    assert_eq!(desk.redriven(), ["good"]);
    assert_eq!(kafka().read_all(&payments), [], "nothing was written");

    let pattern = format!("^{}", &chat[..chat.len() - 1]);
    let output = desk.run(&["redrive", "--allow-topic", &pattern]);
    assert!(text(&output.stdout).starts_with(&format!("1 redriven (1 to {chat})")), "{output:?}");
    assert!(desk.ok(&["redrive", "--allow-topic", &payments]).starts_with("1 redriven"));
    assert_eq!((kafka().read_all(&payments).len(), kafka().read_all(&chat).len()), (1, 1));
}
