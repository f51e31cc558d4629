//! Which comets may be called: a loopback address that a record or plugin names is never dialled, and
//! the operator sees why.

use std::net::TcpListener;
use std::process::Command;

use serde_json::json;

use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, Plugin, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{folder, repository};

/// A listener on loopback that is not a comet.
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

    fn saw_nobody(&self) -> bool {
        self.0.accept().is_err()
    }
}

fn halley(command: &str, settings: &Gateway, args: &[&str]) -> String {
    let folder = folder("access");
    let file = folder.path().join("halley.toml");
    std::fs::write(&file, settings.toml()).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_halley"))
        .arg(command)
        .arg("--config")
        .arg(&file)
        .args(args)
        .output();
    let output = output.expect("the binary runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn loopback_named_by_records_or_plugins_is_not_dialled() {
    let (redis, comet, bystander) = (Redis::start().await, FakeComet::start().await, Bystander::start());
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("access", 1).await;
    let letters = format!("{topic}.dead-letter");
    kafka().create_topic(&letters, 1).await;
    let unruly = Plugin::new("unruly", repository("tests/guests/dist/unruly.wasm"));
    let settings = gateway(&topic).redis(&redis).set("offline", "default", quoted("drop")).plugin(unruly);
    let running = settings.clone().start().await;
    let port = bystander.port();
    for host in ["127.0.0.1", "127.1", "0x7f000001", "localhost", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0"] {
        kafka().produce_keys(&topic, Some(&format!("{host}:{port}")), &["k"], "for nobody").await;
    }
    kafka().produce_room(&topic, "lobby", &format!("also 127.0.0.1:{port}")).await;
    kafka().produce_room(&topic, "lobby", "goes on").await;
    running.wait_until_settled(&topic).await;
    let heard: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(heard, [format!("also 127.0.0.1:{port}"), "goes on".to_owned()]);
    assert!(bystander.saw_nobody(), "nothing is dialled");

    // The recipients of the plugin's call are unknown, so the record itself is kept, with the reason.
    let kept = kafka().read_all(&letters);
    assert_eq!(kept.len(), 1, "{kept:#?}");
    let reason = kept[0].header("halley-reason").unwrap_or_default();
    assert!(reason.contains("named by a plugin") && reason.contains("[comets] allow"), "{reason}");
    let refused = async |reason: &str, by: &str| {
        let series = format!("halley_comets_refused_total{{reason=\"{reason}\",named_by=\"{by}\"}}");
        running.metric(&series).await
    };
    assert_eq!(refused("loopback", "record").await, Some(4.0), "two of them are not addresses");
    assert_eq!(refused("unspecified", "record").await, Some(1.0));
    assert_eq!(refused("unknown_comet", "plugin").await, Some(1.0));
    let ready = running.get("/readyz").await;
    assert!(ready.status == 200 && ready.body.contains("[comets] allow"), "{}", ready.body);
    assert!(!running.get("/v1/comets").await.body.contains(&port.to_string()), "and it is not reported");

    let message = folder("message");
    let file = message.path().join("message.json");
    let asked = json!({ "server": format!("127.0.0.1:{port}"), "keys": ["k"] });
    std::fs::write(&file, asked.to_string()).expect("written");
    let explained = halley("explain", &settings, &["--message", &file.display().to_string()]);
    assert!(explained.contains("cannot be made") && explained.contains("loopback"), "{explained}");
    let checked = halley("check", &settings, &[]);
    assert!(checked.contains("[comets] allow"), "{checked}");
    assert!(bystander.saw_nobody());
}

#[tokio::test]
async fn an_allow_list_permits_named_comets() {
    let (redis, comet, other) = (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("allowed", 1).await;
    let allow = json!([comet.address().as_str()]);
    let running = gateway(&topic).redis(&redis).set("comets", "allow", allow).start().await;
    kafka().produce_room(&topic, "lobby", "listed").await;
    kafka().produce_keys(&topic, Some(comet.address().as_str()), &["k"], "also listed").await;
    kafka().produce_keys(&topic, Some(other.address().as_str()), &["k"], "not listed").await;
    redis.join("elsewhere", "conn_2", "user_2", other.address()).await;
    kafka().produce_room(&topic, "elsewhere", "nor is what the directory names").await;
    running.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), 2);
    assert_eq!(other.calls().len(), 0);
}
