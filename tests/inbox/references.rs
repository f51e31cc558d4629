//! Inboxes refer to the history of a room instead of having its messages, and readers get them nevertheless.

use serde_json::{Value, json};
use sqlx::Row as _;

use super::{api_of, bodies, call, miss, numbers, with_api};
use crate::archive;
use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, RunningGateway, quoted};
use crate::support::kafka::kafka;
use crate::support::mariadb::MariaDb;
use crate::support::redis::Redis;
use crate::support::{eventually_eq, print_uncaptured};

/// Members of the room, all away.
const MEMBERS: usize = 50;
/// Messages to the room: an inbox of a few entries is mostly the memory that Redis reserves for a stream.
const MESSAGES: usize = 90;

async fn absent_members(redis: &Redis) {
    let member = |n: usize| (format!("conn_{n}"), format!("user_{n}"), "127.0.0.1:1".to_owned());
    redis.join_many("im_1", &(0..MEMBERS).map(member).collect::<Vec<_>>()).await;
    for n in 0..MEMBERS {
        redis.offline(&format!("user_{n}")).await;
    }
}

fn with_history(settings: Gateway, inbox: &str) -> Gateway {
    settings.set("history", "rooms", r#"["im_*"]"#).set("history", "inbox", quoted(inbox))
}

/// What Redis uses for all inboxes, in bytes.
async fn bytes_of_inboxes(redis: &Redis) -> u64 {
    let mut bytes = 0;
    for key in redis.keys("halley:inbox:*").await {
        let usage = redis::cmd("MEMORY").arg(&["USAGE", &key, "SAMPLES", "0"]).to_owned();
        bytes += redis.run::<u64>(usage).await;
    }
    bytes
}

/// The bytes that a few messages to the room cost in the inboxes of its members.
async fn cost(story: &str, inbox: &str) -> u64 {
    let redis = Redis::start().await;
    let (topic, settings) = with_api(story, &redis).await;
    absent_members(&redis).await;
    let gateway = with_history(settings, inbox).start().await;
    for number in 0..MESSAGES {
        kafka().produce_room(&topic, "im_1", format!("{number}{}", "x".repeat(2_000))).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(redis.keys("halley:inbox:*").await.len(), MEMBERS);
    bytes_of_inboxes(&redis).await
}

#[tokio::test]
async fn a_message_to_many_absent_members_costs_small_entries() {
    let (references, copies) = (cost("references", "reference").await, cost("copies", "copy").await);
    let entries = (MESSAGES * MEMBERS) as u64;
    assert!(copies > entries * 2_000, "{copies}");
    print_uncaptured(format_args!(
        "an entry of 2,000 bytes: {} copied, {} referred to",
        copies / entries,
        references / entries
    ));
    // With the stream itself, of which every inbox has one.
    assert!(references < entries * 200, "{} bytes for an entry", references / entries);
}

async fn page(api: &str, parameters: &str) -> Value {
    call(api, "GET", &format!("/v1/inbox/user_7?{parameters}"), None).await.json()
}

fn of<'a>(page: &'a Value, field: &str) -> Vec<&'a Value> {
    page["entries"].as_array().expect("entries").iter().map(|entry| &entry[field]).collect()
}

/// Messages for the room and for the user, in turns.
async fn miss_in_turns(
    topic: &str,
    gateway: &RunningGateway,
    numbers: std::ops::Range<usize>,
) -> Vec<String> {
    let mut ids = Vec::new();
    for number in numbers {
        ids.push(match number % 2 {
            0 => kafka().produce_room(topic, "im_1", number.to_string()).await,
            _ => kafka().produce_keys(topic, None, &["user_7"], number.to_string()).await,
        });
        gateway.wait_until_settled(topic).await;
    }
    ids
}

#[tokio::test]
async fn an_inbox_with_references_reads_as_one_with_messages() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let (topic, settings) = with_api("references-read", &redis).await;
    redis.join("im_1", "conn_7", "user_7", comet.address()).await;
    redis.offline("user_7").await;
    let settings = with_history(settings, "reference").set("history", "max_per_room", 5);
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    let ids = miss_in_turns(&topic, &gateway, 0..10).await;
    let has = |entry: &[(String, Vec<u8>)], field: &str| entry.iter().any(|(name, _)| name == field);
    let entries = redis.stream("halley:inbox:user_7").await;
    for (number, entry) in entries.iter().enumerate() {
        assert_eq!((has(entry, "at"), has(entry, "body")), (number % 2 == 0, number % 2 == 1), "{entry:?}");
    }

    let whole = page(&api, "").await;
    assert_eq!((bodies(&whole), &whole["truncated"]), (numbers(0..10), &json!(false)));
    assert_eq!(of(&whole, "id"), ids.iter().collect::<Vec<_>>());
    assert_eq!((of(&whole, "cause")[0], of(&whole, "room")[0]), (&json!("not-online"), &json!("im_1")));
    let first = page(&api, "limit=3").await;
    assert_eq!((bodies(&first), &first["more"]), (numbers(0..3), &json!(true)));
    let next = first["next"].as_str().expect("a cursor");
    assert_eq!(bodies(&page(&api, &format!("after={next}")).await), numbers(3..10));
    let back: Vec<String> = numbers(0..10).into_iter().rev().collect();
    assert_eq!(bodies(&page(&api, "backwards=true").await), back);

    // The history has room for five: what it has dropped keeps its place and its id.
    miss_in_turns(&topic, &gateway, 10..13).await;
    let partial = page(&api, "").await;
    assert_eq!((of(&partial, "id").len(), &partial["truncated"]), (13, &json!(true)), "{partial}");
    assert_eq!(of(&partial, "id")[0], &ids[0]);
    let is_missing = |number: usize| number < 4 && number.is_multiple_of(2);
    let missing: Vec<_> = of(&partial, "missing").into_iter().map(|missing| missing == true).collect();
    assert_eq!(missing, (0..13).map(is_missing).collect::<Vec<_>>());
    let expected: Vec<String> =
        (0..13).map(|n| if is_missing(n) { String::new() } else { n.to_string() }).collect();
    assert_eq!(bodies(&partial), expected);

    // A replay pushes what there is.
    redis.join("im_1", "conn_8", "user_7", comet.address()).await;
    let replayed = call(&api, "POST", "/v1/inbox/user_7/replay", Some(json!({}))).await.json();
    assert_eq!((&replayed["pushed"], &replayed["truncated"]), (&json!(11), &json!(true)), "{replayed}");
    let pushed: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(pushed, expected.into_iter().filter(|body| !body.is_empty()).collect::<Vec<_>>());
}

#[tokio::test]
async fn references_lead_to_the_archive_once_redis_has_dropped_the_message() {
    let Some(mut database) = MariaDb::start("references_lead_to_the_archive").await else { return };
    let redis = Redis::start().await;
    let (topic, settings) = with_api("references-archive", &redis).await;
    redis.join("im_1", "conn_7", "user_7", "127.0.0.1:1").await;
    redis.offline("user_7").await;
    kafka().create_topic(&format!("{topic}.archive"), 1).await;
    let settings = with_history(settings, "reference")
        .set("archive", "enabled", true)
        .set("archive", "topic", quoted(&format!("{topic}.archive")))
        .set("archive", "group", quoted(&format!("{topic}-archive")))
        .set("archive", "url", quoted(&database.url()))
        .set("archive", "max_wait", quoted("50ms"));
    archive::init(&settings, &[]).await;
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    miss_in_turns(&topic, &gateway, 0..20).await;
    eventually_eq("archived rows", 20, async || database.archived().await).await;
    let rows =
        database.rows("SELECT room, LENGTH(body), history_ms > 0 AND body_size > 0 FROM halley_inbox").await;
    for row in rows {
        let room: Vec<u8> = row.try_get(0).expect("bytes");
        let (size, is_reference): (i32, i32) =
            (row.try_get_unchecked(1).expect("a number"), row.try_get_unchecked(2).expect("a number"));
        assert_eq!((size == 0, is_reference == 1), (!room.is_empty(), !room.is_empty()));
    }

    // The room's history goes, then the inbox as well.
    for key in ["halley:history:im_1", "halley:inbox:user_7"] {
        redis.run::<()>(redis::cmd("DEL").arg(key).to_owned()).await;
        for (backwards, limit) in [(false, 3), (true, 3), (false, 500)] {
            let (mut seen, mut next) = (Vec::new(), String::new());
            loop {
                let place = if backwards { "before" } else { "after" };
                let page = page(&api, &format!("limit={limit}&backwards={backwards}&{place}={next}")).await;
                assert_eq!((&page["truncated"], page.get("warning")), (&json!(false), None), "{page}");
                seen.extend(bodies(&page));
                next = page["next"].as_str().expect("a cursor").to_owned();
                if page["more"] == false {
                    break;
                }
            }
            if backwards {
                seen.reverse();
            }
            assert_eq!(seen, numbers(0..20), "without {key}");
        }
    }

    // A message that is there, and cannot be read now.
    miss(&topic, &gateway, "user_7", 20..21).await;
    kafka().produce_room(&topic, "im_1", "21").await;
    gateway.wait_until_settled(&topic).await;
    eventually_eq("archived rows", 22, async || database.archived().await).await;
    redis.run::<()>(redis::cmd("DEL").arg("halley:history:im_1").to_owned()).await;
    database.stop();
    let partial = page(&api, "").await;
    assert_eq!(of(&partial, "missing")[1], &json!(true), "{partial}");
    assert!(
        partial["warning"].as_str().is_some_and(|why| why.contains("archive cannot be read")),
        "{partial}"
    );
    database.restart().await;
    eventually_eq("whole pages", numbers(0..22), async || bodies(&page(&api, "").await)).await;
}
