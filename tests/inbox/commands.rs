//! `halley inbox`.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::{bodies, miss, numbers, with_api};
use crate::support::comet::FakeComet;
use crate::support::redis::Redis;

#[tokio::test]
async fn operators_read_replay_acknowledge_and_delete() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let (topic, settings) = with_api("inbox-commands", &redis).await;
    let gateway = settings.start().await;
    miss(&topic, &gateway, "ann", 0..5).await;
    let file = gateway.file().display().to_string();
    // Servers and comets have runtimes of their own: this one may block.
    let inbox = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.arg("inbox").args(args).args(["--config", &file]).output().expect("it runs")
    };
    let json_of = |output: &Output| -> Value {
        let said = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let page = json_of(&inbox(&["read", "ann", "--limit", "3", "--json"]));
    assert_eq!((bodies(&page), &page["more"]), (numbers(0..3), &json!(true)));
    let shown = inbox(&["read", "ann"]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert_eq!(text.lines().count(), 6, "five messages and the end: {text}");

    let next = page["next"].as_str().expect("a cursor");
    let ack = json_of(&inbox(&["ack", "ann", "--device", "phone", "--cursor", next, "--json"]));
    assert_eq!((&ack["acknowledged"], &ack["kept"]), (&page["next"], &json!(5)));
    let position = json_of(&inbox(&["position", "ann", "--device", "phone", "--json"]));
    assert_eq!(position, ack);

    let nowhere = inbox(&["replay", "ann"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("not registered"), "{nowhere:?}");
    redis.join("lobby", "conn_1", "ann", comet.address()).await;
    let replayed = json_of(&inbox(&["replay", "ann", "--device", "phone", "--acknowledge", "--json"]));
    assert_eq!((&replayed["pushed"], &replayed["more"]), (&json!(2), &json!(false)));
    let delivered: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(delivered, numbers(3..5), "what the device had not acknowledged");

    for (args, code, said) in [
        (&["read", "ann", "--after", "nonsense"][..], 2, "--after: it is not a cursor"),
        (&["ack", "bob", "--device", "phone", "--cursor", next], 2, "another inbox"),
        (&["delete", "ann"], 2, "--yes"),
    ] {
        let output = inbox(args);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && why.contains(said), "{args:?}: {output:?}");
    }
    let deleted = json_of(&inbox(&["delete", "ann", "--yes", "--json"]));
    assert_eq!(deleted, json!({ "deleted": 5, "archived": 0 }));
    assert_eq!(redis.keys("halley:inbox*").await, [""; 0]);
}
