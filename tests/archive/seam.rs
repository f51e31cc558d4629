//! Pages of an inbox go on in the archive where the inbox ends.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::archiving;
use super::pages::insert;
use crate::support::comet::FakeComet;
use crate::support::gateway::{RunningGateway, quoted};
use crate::support::http::send;
use crate::support::kafka::kafka;
use crate::support::mariadb::MariaDb;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq};

/// The user's page with these parameters.
async fn page(api: &str, parameters: &str) -> Value {
    let path = format!("/v1/inbox/ann?{parameters}");
    let answer = send(api, "GET", &path, &[], b"").await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn bodies(page: &Value) -> Vec<usize> {
    use base64::Engine as _;
    let decode = |entry: &Value| {
        let body = entry["body"].as_str().expect("a body");
        let body = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
        String::from_utf8(body).expect("text").parse().expect("a number")
    };
    page["entries"].as_array().expect("entries").iter().map(decode).collect()
}

/// All pages from one end to the other.
async fn all(api: &str, limit: usize, backwards: bool) -> (Vec<usize>, Vec<Value>) {
    let (mut seen, mut pages, mut next) = (Vec::new(), Vec::new(), String::new());
    loop {
        let place = if backwards { "before" } else { "after" };
        let page = page(api, &format!("limit={limit}&backwards={backwards}&{place}={next}")).await;
        seen.extend(bodies(&page));
        next = page["next"].as_str().expect("a cursor").to_owned();
        let more = page["more"] == true;
        pages.push(page);
        if !more {
            return (seen, pages);
        }
    }
}

/// Nothing is truncated, and nothing is missing for now.
fn are_whole(pages: &[Value]) -> bool {
    pages.iter().all(|page| page["truncated"] == false && page.get("warning").is_none())
}

async fn api_of(gateway: &RunningGateway) -> String {
    gateway.wait_for_log("api is listening").await["address"].as_str().expect("an address").to_owned()
}

/// Pages have what the inbox has, and it is said that there is more.
async fn while_mysql_is_away(
    api: &str,
    gateway: &RunningGateway,
    database: &mut MariaDb,
    expected: &[usize],
) {
    database.stop();
    let partial = page(api, "limit=500").await;
    assert_eq!((bodies(&partial), &partial["truncated"]), ((30..50).collect(), &json!(true)));
    assert!(partial["warning"].as_str().is_some_and(|why| why.contains("archive")), "{partial}");
    let newest = page(api, "limit=5&backwards=true").await;
    assert_eq!((bodies(&newest).len(), newest.get("warning")), (5, None), "the inbox alone has these");
    assert!(gateway.metric(r#"halley_archive_reads_total{outcome="failed"}"#).await >= Some(1.0));
    database.restart().await;
    eventually("whole pages again", PATIENCE, async || {
        let (seen, pages) = all(api, 7, false).await;
        (seen == *expected && are_whole(&pages)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pages_of_an_inbox_go_on_in_the_archive() {
    let Some(mut database) = MariaDb::start("pages_of_an_inbox_go_on_in_the_archive").await else { return };
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let (topic, settings) = archiving("archive-seam", &database, &redis).await;
    let settings = settings.set("routing", "push_keys", quoted("users"));
    let settings = settings.set("api", "listen", quoted("127.0.0.1:0")).set("offline", "max_per_user", 20);
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    for number in 0..50 {
        kafka().produce_keys(&topic, None, &["ann"], number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;
    eventually_eq("archived rows", 50, async || database.archived().await).await;
    assert_eq!(redis.stream("halley:inbox:ann").await.len(), 20);

    let expected: Vec<usize> = (0..50).collect();
    let newest_first: Vec<usize> = expected.iter().rev().copied().collect();
    for limit in [7, 500] {
        let (seen, pages) = all(&api, limit, false).await;
        assert_eq!(seen, expected, "limit {limit}");
        assert!(are_whole(&pages), "{pages:?}");
        let (seen, pages) = all(&api, limit, true).await;
        assert_eq!(seen, newest_first, "limit {limit}");
        assert!(are_whole(&pages), "{pages:?}");
    }
    // A cursor that was in the inbox when it was given, and what a device has acknowledged.
    let (_, pages) = all(&api, 10, false).await;
    let cursor = pages[1]["entries"][4]["cursor"].as_str().expect("a cursor").to_owned();
    let rest = page(&api, &format!("limit=500&after={cursor}")).await;
    assert_eq!((bodies(&rest), &rest["truncated"]), ((15..50).collect(), &json!(false)));
    let body = json!({ "device": "phone", "cursor": cursor }).to_string();
    let headers = [("content-type", "application/json")];
    send(&api, "POST", "/v1/inbox/ann/ack", &headers, body.as_bytes()).await.expect("an answer");
    redis.join("lobby", "conn_1", "ann", comet.address()).await;
    let replay = json!({ "device": "phone", "limit": 500 }).to_string();
    let replayed = send(&api, "POST", "/v1/inbox/ann/replay", &headers, replay.as_bytes()).await;
    assert_eq!(replayed.expect("an answer").json()["pushed"], 35);
    let pushed: Vec<usize> =
        comet.deliveries().iter().map(|(_, _, body)| body.parse().expect("a number")).collect();
    assert_eq!(pushed, (15..50).collect::<Vec<_>>());

    // Operators see the same.
    let file = gateway.file().display().to_string();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_halley"))
        .args(["inbox", "read", "ann", "--limit", "500", "--json", "--config", &file])
        .output()
        .expect("it runs");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(bodies(&shown), expected);

    while_mysql_is_away(&api, &gateway, &mut database, &expected).await;

    // The inbox has expired altogether.
    redis.run::<()>(redis::cmd("DEL").arg("halley:inbox:ann").to_owned()).await;
    for (backwards, expected) in [(false, &expected), (true, &newest_first)] {
        let (seen, pages) = all(&api, 9, backwards).await;
        assert_eq!(&seen, expected);
        assert!(are_whole(&pages), "{pages:?}");
    }
    let deleted = send(&api, "DELETE", "/v1/inbox/ann", &[], b"").await.expect("an answer").json();
    assert_eq!(deleted, json!({ "deleted": 0, "archived": 50 }));
    assert_eq!(all(&api, 9, false).await.0, [0; 0]);
}

/// Many rows, through the API, in both directions.
pub(crate) async fn many_rows_are_paged(rows: usize) {
    let Some(database) = MariaDb::start("many_rows_are_paged").await else { return };
    let redis = Redis::start().await;
    let (_, settings) = archiving("archive-many", &database, &redis).await;
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let places: Vec<_> = (0..rows as u64).map(|at| (now - rows as u64 + at / 3, at % 3)).collect();
    insert(&database, "ann", &places).await;
    let gateway = settings.set("api", "listen", quoted("127.0.0.1:0")).start().await;
    let api = api_of(&gateway).await;
    for backwards in [false, true] {
        let (mut seen, pages) = all(&api, 500, backwards).await;
        if backwards {
            seen.reverse();
        }
        assert!(seen.iter().copied().eq(0..rows), "each once, in order");
        assert_eq!(pages.len(), rows.div_ceil(500));
        assert!(are_whole(&pages));
    }
}

#[tokio::test]
async fn twenty_thousand_rows_are_paged() {
    many_rows_are_paged(20_000).await;
}
