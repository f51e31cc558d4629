//! Changes of policies are logged with their author, and only a limited number of uploads is held.

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::plugin_sources::{hash, variant, with_plugin};
use crate::support::gateway::gateway;
use crate::support::kafka::kafka;
use crate::support::{PATIENCE, eventually, repository};

#[tokio::test]
async fn a_slow_upload_blocks_nobody_and_writes_are_logged() {
    let topic = kafka().topic("writes", 1).await;
    let file = repository("plugins/dist/keyword_filter.wasm");
    let gateway = with_plugin(gateway(&topic), file).start().await;
    let before = hash(&gateway).await;
    let socket = gateway.operator().trim_start_matches("unix:").to_owned();
    let head = "PUT /v1/plugins/p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nbegun";
    let mut slow = None;
    let push = async || gateway.operate("PUT", "/v1/plugins/p", &[], &variant(1)).await;
    eventually("the slow upload to have its slot", PATIENCE, async || {
        if push().await.status == 503 {
            return Some(());
        }
        // The connection may have been refused while another upload had the slot.
        let mut begun = UnixStream::connect(&socket).await.expect("the listener is there");
        begun.write_all(head.as_bytes()).await.expect("it is read");
        slow = Some(begun);
        None
    })
    .await;
    assert_eq!(gateway.get("/readyz").await.status, 200, "reads go on");
    drop(slow);
    eventually("room again", PATIENCE, async || (push().await.status == 200).then_some(())).await;
    assert_ne!(hash(&gateway).await, before, "the aborted upload changed nothing, the next one did");
    let lines: Vec<String> = gateway.log_lines().iter().map(ToString::to_string).collect();
    let tells = |line: &&String| {
        ["uid ", "PUT", "/v1/plugins/p", "generation 2: p"].iter().all(|word| line.contains(word))
    };
    assert!(lines.iter().any(|line| tells(&line)), "{lines:#?}");
}
