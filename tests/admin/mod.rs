//! Attacks on the admin port: access control and resource limits.

mod access;
mod load;
mod tls;
mod tokens;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::{PATIENCE, repository};

/// A gateway with one policy, `p`.
async fn with_a_policy(story: &str) -> Gateway {
    let plugin = Plugin::new("p", repository("plugins/dist/keyword_filter.wasm"));
    let topic = kafka().topic(story, 1).await;
    gateway(&topic)
        .plugin(plugin.set("deadline", quoted("5s")).config(&serde_json::json!({ "words": ["x"] })))
}

/// How many were refused for this reason.
async fn refused(gateway: &RunningGateway, reason: &str) -> f64 {
    let series = format!("halley_admin_refused_total{{reason=\"{reason}\"}}");
    gateway.metric(&series).await.unwrap_or_else(|| panic!("no {series}; {gateway:?}"))
}

/// Sends these bytes and returns the status of the response; 0 without one.
async fn status_of(address: &str, request: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.expect("the listener is there");
    stream.write_all(request.as_bytes()).await.expect("it is read");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    drop(read.expect("the connection is closed in time"));
    let answer = String::from_utf8_lossy(&answer);
    answer.split_ascii_whitespace().nth(1).map_or(0, |status| status.parse().expect("a status"))
}
