//! Pages of an inbox, or of a room's history, go on in the archive where Redis ends.

use std::time::SystemTime;

use serde_json::{Value, json};
use sqlx::Row as _;

use super::archiving;
use super::pages::insert;
use crate::support::comet::FakeComet;
use crate::support::gateway::{RunningGateway, quoted};
use crate::support::http::send;
use crate::support::kafka::kafka;
use crate::support::mariadb::MariaDb;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq};

/// The inbox of these stories.
const ANN: &str = "/v1/inbox/ann";
/// The history of these stories.
const ROOM: &str = "/v1/history/im_1";

/// The owner's page with these parameters.
async fn page(api: &str, owner: &str, parameters: &str) -> Value {
    let answer = send(api, "GET", &format!("{owner}?{parameters}"), &[], b"").await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

pub(super) fn bodies(page: &Value) -> Vec<usize> {
    use base64::Engine as _;
    let decode = |entry: &Value| {
        let body = entry["body"].as_str().expect("a body");
        let body = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
        String::from_utf8(body).expect("text").parse().expect("a number")
    };
    page["entries"].as_array().expect("entries").iter().map(decode).collect()
}

/// All pages from one end to the other.
pub(super) async fn all(api: &str, owner: &str, limit: usize, backwards: bool) -> (Vec<usize>, Vec<Value>) {
    let (mut seen, mut pages, mut next) = (Vec::new(), Vec::new(), String::new());
    loop {
        let place = if backwards { "before" } else { "after" };
        let page = page(api, owner, &format!("limit={limit}&backwards={backwards}&{place}={next}")).await;
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
pub(super) fn are_whole(pages: &[Value]) -> bool {
    pages.iter().all(|page| page["truncated"] == false && page.get("warning").is_none())
}

pub(super) async fn api_of(gateway: &RunningGateway) -> String {
    gateway.wait_for_log("api is listening").await["address"].as_str().expect("an address").to_owned()
}

/// Pages have what the inbox has, and it is said that there is more.
async fn while_mysql_is_away(
    (api, owner): (&str, &str),
    gateway: &RunningGateway,
    database: &mut MariaDb,
    expected: &[usize],
) {
    database.stop();
    let partial = page(api, owner, "limit=500").await;
    assert_eq!((bodies(&partial), &partial["truncated"]), ((30..50).collect(), &json!(true)));
    assert!(partial["warning"].as_str().is_some_and(|why| why.contains("archive")), "{partial}");
    let newest = page(api, owner, "limit=5&backwards=true").await;
    assert_eq!((bodies(&newest).len(), newest.get("warning")), (5, None), "Redis alone has these");
    assert!(gateway.metric(r#"halley_archive_reads_total{outcome="failed"}"#).await >= Some(1.0));
    database.restart().await;
    eventually("whole pages again", PATIENCE, async || {
        let (seen, pages) = all(api, owner, 7, false).await;
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
        let (seen, pages) = all(&api, ANN, limit, false).await;
        assert_eq!(seen, expected, "limit {limit}");
        assert!(are_whole(&pages), "{pages:?}");
        let (seen, pages) = all(&api, ANN, limit, true).await;
        assert_eq!(seen, newest_first, "limit {limit}");
        assert!(are_whole(&pages), "{pages:?}");
    }
    // A cursor that was in the inbox when it was given, and what a device has acknowledged.
    let (_, pages) = all(&api, ANN, 10, false).await;
    let cursor = pages[1]["entries"][4]["cursor"].as_str().expect("a cursor").to_owned();
    let rest = page(&api, ANN, &format!("limit=500&after={cursor}")).await;
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

    while_mysql_is_away((&api, ANN), &gateway, &mut database, &expected).await;

    // The inbox has expired altogether.
    redis.run::<()>(redis::cmd("DEL").arg("halley:inbox:ann").to_owned()).await;
    for (backwards, expected) in [(false, &expected), (true, &newest_first)] {
        let (seen, pages) = all(&api, ANN, 9, backwards).await;
        assert_eq!(&seen, expected);
        assert!(are_whole(&pages), "{pages:?}");
    }
    let deleted = send(&api, "DELETE", "/v1/inbox/ann", &[], b"").await.expect("an answer").json();
    assert_eq!(deleted, json!({ "deleted": 0, "archived": 50 }));
    assert_eq!(all(&api, ANN, 9, false).await.0, [0; 0]);
}

#[tokio::test]
async fn pages_of_a_history_go_on_in_the_archive() {
    let Some(mut database) = MariaDb::start("pages_of_a_history_go_on_in_the_archive").await else { return };
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let (topic, settings) = archiving("archive-history", &database, &redis).await;
    redis.join("im_1", "conn_1", "ann", comet.address()).await;
    let settings = settings.set("history", "rooms", r#"["im_*"]"#).set("history", "max_per_room", 20);
    let gateway = settings.clone().set("api", "listen", quoted("127.0.0.1:0")).start().await;
    let api = api_of(&gateway).await;
    for number in 0..50 {
        kafka().produce_room(&topic, "im_1", number.to_string()).await;
        kafka().produce_room(&topic, "other", number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.count(), 50, "delivered as well");
    let archived = "SELECT COUNT(*) FROM halley_history";
    eventually_eq("archived rows", 50, async || database.number(archived).await).await;
    assert_eq!(redis.stream("halley:history:im_1").await.len(), 20);
    assert_eq!(gateway.metric("halley_archive_room_messages_total").await, Some(50.0));

    let expected: Vec<usize> = (0..50).collect();
    let newest_first: Vec<usize> = expected.iter().rev().copied().collect();
    for limit in [7, 500] {
        for (backwards, expected) in [(false, &expected), (true, &newest_first)] {
            let (seen, pages) = all(&api, ROOM, limit, backwards).await;
            assert_eq!(&seen, expected, "limit {limit}");
            assert!(are_whole(&pages), "{pages:?}");
        }
    }
    let (_, pages) = all(&api, ROOM, 10, false).await;
    let cursor = pages[1]["entries"][4]["cursor"].as_str().expect("a cursor");
    let rest = page(&api, ROOM, &format!("limit=500&after={cursor}")).await;
    assert_eq!((bodies(&rest), &rest["truncated"]), ((15..50).collect(), &json!(false)));
    assert_eq!(rest["entries"][0]["room"], "im_1");
    while_mysql_is_away((&api, ROOM), &gateway, &mut database, &expected).await;

    // The history has expired altogether; its member's erasure leaves the room alone.
    redis.run::<()>(redis::cmd("DEL").arg("halley:history:im_1").to_owned()).await;
    send(&api, "DELETE", ANN, &[], b"").await.expect("an answer");
    let (seen, pages) = all(&api, ROOM, 9, true).await;
    assert!(seen == newest_first && are_whole(&pages), "{pages:?}");
    let mut read = std::process::Command::new(env!("CARGO_BIN_EXE_halley"));
    read.args(["history", "read", "im_1", "--limit", "500", "--json", "--config"]).arg(gateway.file());
    let output = tokio::task::spawn_blocking(move || read.output()).await.expect("joins").expect("it runs");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(bodies(&shown), expected);

    // Everything is delivered again, as after a crash between Redis and Kafka.
    assert!(gateway.sigterm().await.success());
    kafka().commit(gateway.group(), &topic, 0, 0, "").await;
    kafka().commit(gateway.group(), &topic, 1, 0, "").await;
    let gateway = settings.start().await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(gateway.metric("halley_archive_room_messages_total").await, Some(50.0));
    let (group, archive) = (format!("{topic}-archive"), format!("{topic}.archive"));
    eventually("the archivers to commit", PATIENCE, async || {
        (kafka().committed(&group, &archive).await == kafka().ends(&archive)).then_some(())
    })
    .await;
    assert_eq!(database.number(archived).await, 50, "once each");
}

/// Days of an archive are dropped when it starts; pages from the oldest say so, and no others.
#[tokio::test]
async fn what_the_archives_retention_has_dropped_is_told() {
    let Some(database) = MariaDb::start("what_the_archives_retention_has_dropped_is_told").await else {
        return;
    };
    let redis = Redis::start().await;
    let (_, settings) = archiving("archive-dropped", &database, &redis).await;
    let now = now_ms();
    let year = 365 * 24 * 3600 * 1000;
    for table in ["halley_inbox", "halley_history"] {
        let first = format!(
            "SELECT CAST(PARTITION_NAME AS CHAR) name, CAST(PARTITION_DESCRIPTION AS CHAR) before_ms FROM \
             information_schema.PARTITIONS WHERE TABLE_NAME = '{table}' AND PARTITION_ORDINAL_POSITION = 1"
        );
        let first = &database.rows(&first).await[0];
        let (name, before): (String, String) =
            (first.try_get(0).expect("a name"), first.try_get(1).expect("a number"));
        database
            .run(&format!(
                "ALTER TABLE {table} REORGANIZE PARTITION {name} INTO (PARTITION old VALUES LESS THAN ({}), \
                 PARTITION {name} VALUES LESS THAN ({before}))",
                now - year / 2
            ))
            .await;
    }
    for (at, sent) in [now - year, now - 1_000].into_iter().enumerate() {
        let message = format!("{sent}, 'push', 0, {at}, 5, 4");
        for room in ["im_1", "im_2"].iter().skip(at) {
            database
                .run(&format!(
                    "INSERT INTO halley_history VALUES ('{room}', {message}, '{at}', {sent}, 0, {sent}, 0)"
                ))
                .await;
        }
        for user in ["ann", "bob"].iter().skip(at) {
            let values = format!("'{user}', {message}, 'lobby', '{at}', {sent}, 0, '', {sent}, 0, 0, 0, 0");
            database.run(&format!("INSERT INTO halley_inbox VALUES ({values})")).await;
        }
    }
    let gateway = settings.set("api", "listen", quoted("127.0.0.1:0")).start().await;
    let api = api_of(&gateway).await;
    let dropped = "SELECT COUNT(*) FROM information_schema.PARTITIONS WHERE PARTITION_NAME = 'old'";
    eventually_eq("old days", 0, async || database.number(dropped).await).await;
    let told = [(ANN, true), ("/v1/inbox/bob", true), (ROOM, true), ("/v1/history/im_2", true)];
    for (owner, truncated) in told.into_iter().chain([("/v1/inbox/eve", false)]) {
        for backwards in [false, true] {
            let page = page(&api, owner, &format!("backwards={backwards}")).await;
            assert_eq!(
                (&page["truncated"], page.get("warning")),
                (&json!(truncated), None),
                "{owner}: {page}"
            );
        }
    }
    // After a place that is kept, nothing is missing.
    let newest = page(&api, "/v1/history/im_2", "").await;
    assert_eq!(bodies(&newest), [1]);
    let next = newest["next"].as_str().expect("a cursor");
    assert_eq!(page(&api, "/v1/history/im_2", &format!("after={next}")).await["truncated"], false);
    send(&api, "DELETE", "/v1/inbox/bob", &[], b"").await.expect("an answer");
    assert_eq!(page(&api, "/v1/inbox/bob", "").await["truncated"], false, "an erased user starts over");
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_millis() as i64
}

/// Many rows, through the API, in both directions.
pub(crate) async fn many_rows_are_paged(rows: usize) {
    let Some(database) = MariaDb::start("many_rows_are_paged").await else { return };
    let redis = Redis::start().await;
    let (_, settings) = archiving("archive-many", &database, &redis).await;
    let now = now_ms() as u64;
    let places: Vec<_> = (0..rows as u64).map(|at| (now - rows as u64 + at / 3, at % 3)).collect();
    insert(&database, "ann", &places).await;
    let columns = "sent_ms, topic, part, off, fingerprint, operation, body, stored_ms, expires_ms, inbox_ms, inbox_number";
    database.run(&format!("INSERT INTO halley_history SELECT 'im_1', {columns} FROM halley_inbox")).await;
    let gateway = settings.set("api", "listen", quoted("127.0.0.1:0")).start().await;
    let api = api_of(&gateway).await;
    for (owner, backwards) in [(ANN, false), (ANN, true), (ROOM, false), (ROOM, true)] {
        let (mut seen, pages) = all(&api, owner, 500, backwards).await;
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
