//! What a user who was away gets: the hand-over, reading, replay and acknowledgement of inboxes.

mod access;
mod commands;
mod grpc;
mod hand_over;
mod history;
mod http;
mod on_return;
mod references;
mod returning;

use serde_json::Value;

use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::http::{Answer, send};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;

/// A gateway with an API.
async fn with_api(story: &str, redis: &Redis) -> (String, Gateway) {
    let topic = kafka().topic(story, 1).await;
    let settings = gateway(&topic).redis(redis).set("routing", "push_keys", quoted("users"));
    let settings = settings.set("api", "listen", quoted("127.0.0.1:0"));
    (topic, settings)
}

/// The address of its API.
async fn api_of(gateway: &RunningGateway) -> String {
    let line = gateway.wait_for_log("api is listening").await;
    line["address"].as_str().expect("an address").to_owned()
}

/// Messages for a user who is away, with the numbers as bodies.
async fn miss(topic: &str, gateway: &RunningGateway, user: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        kafka().produce_keys(topic, None, &[user], number.to_string()).await;
    }
    gateway.wait_until_settled(topic).await;
}

/// A request to the API.
async fn call(api: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    let json = [("content-type", "application/json")];
    let (headers, body) = match &body {
        Some(body) => (&json[..], body.to_string()),
        None => (&[][..], String::new()),
    };
    send(api, method, path, headers, body.as_bytes()).await.expect("an answer")
}

/// The bodies of a page.
fn bodies(page: &Value) -> Vec<String> {
    use base64::Engine as _;
    let entries = page["entries"].as_array().expect("entries").iter();
    let decode = |entry: &Value| {
        let body = entry["body"].as_str().expect("a body");
        let body = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
        String::from_utf8(body).expect("text")
    };
    entries.map(decode).collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}
