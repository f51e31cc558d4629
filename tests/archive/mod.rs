//! The archive: stored messages in MariaDB, through its topic.

mod faults;
mod pages;
pub(crate) mod seam;

use std::process::{Command, Output};

use sqlx::Row as _;

use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::mariadb::MariaDb;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq, folder};

/// A gateway that archives to this database, which has the tables; and its topic.
async fn archiving(name: &str, database: &MariaDb, redis: &Redis) -> (String, Gateway) {
    let topic = kafka().topic(name, 2).await;
    for (suffix, partitions) in [("dead-letter", 1), ("offline", 1), ("archive", 2)] {
        kafka().create_topic(&format!("{topic}.{suffix}"), partitions).await;
    }
    let settings = gateway(&topic)
        .redis(redis)
        .set("archive", "enabled", true)
        .set("archive", "topic", quoted(&format!("{topic}.archive")))
        .set("archive", "group", quoted(&format!("{topic}-archive")))
        .set("archive", "url", quoted(&database.url()))
        .set("archive", "max_wait", quoted("50ms"));
    init(&settings, &[]).await;
    (topic, settings)
}

/// `halley archive init`.
pub async fn init(settings: &Gateway, args: &[&str]) -> Output {
    let folder = folder("archive");
    let file = folder.path().join("halley.toml");
    std::fs::write(&file, settings.toml()).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
    command.args(["archive", "init", "--config"]).arg(&file).args(args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joins").expect("runs");
    assert!(output.status.success(), "{output:?}");
    output
}

/// A room of absent users: `user_0`, `user_1` and so on.
async fn absent_room(redis: &Redis, room: &str, users: usize) {
    let member = |n: usize| (format!("{room}_{n}"), format!("user_{n}"), "127.0.0.1:1".to_owned());
    redis.join_many(room, &(0..users).map(member).collect::<Vec<_>>()).await;
    for n in 0..users {
        redis.offline(&format!("user_{n}")).await;
    }
}

async fn warnings(gateway: &RunningGateway) -> String {
    gateway.get("/readyz").await.json()["warnings"].to_string()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn tables_are_created_once_and_printed() {
    let Some(database) = MariaDb::start("tables_are_created_once_and_printed").await else { return };
    let settings = gateway("unused").set("archive", "url", quoted(&database.url()));
    let config = halley::archive::Config { url: database.url(), ..Default::default() };
    let missing = halley::archive::probe(&config).await.expect_err("no tables").to_string();
    assert!(missing.contains("run `halley archive init`"), "{missing}");
    assert!(text(&init(&settings, &[]).await).contains("version 4 now (before: 0)"));
    assert!(text(&init(&settings, &[]).await).contains("version 4 already"));
    assert_eq!(halley::archive::probe(&config).await.expect("usable"), "its tables have version 4");
    let days = "SELECT COUNT(*) FROM information_schema.PARTITIONS WHERE TABLE_NAME IN ('halley_inbox', 'halley_history')";
    assert_eq!(database.number(days).await, 2 * 16, "today, two weeks, and `later`");

    // What is printed leads to the same tables.
    let schema = "SELECT CONCAT(TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, COLUMN_KEY) FROM information_schema.COLUMNS \
                  WHERE TABLE_SCHEMA = 'halley' ORDER BY 1";
    let columns = async || {
        let rows = database.rows(schema).await;
        rows.iter().map(|row| row.try_get::<String, _>(0).expect("text")).collect::<Vec<_>>()
    };
    let created = columns().await;
    for table in
        ["halley_inbox", "halley_history", "halley_dropped", "halley_erased", "halley_archive_version"]
    {
        database.run(&format!("DROP TABLE {table}")).await;
    }
    let printed = text(&init(&settings, &["--print"]).await);
    for statement in printed.split(";\n").filter(|statement| !statement.trim().is_empty()) {
        database.run(statement).await;
    }
    assert_eq!(columns().await, created);
    assert!(text(&init(&settings, &[]).await).contains("version 4 already"));
}

#[tokio::test]
async fn stored_messages_are_archived_once_for_each_user() {
    let Some(database) = MariaDb::start("stored_messages_are_archived").await else { return };
    let redis = Redis::start().await;
    absent_room(&redis, "lobby", 3).await;
    let (topic, settings) = archiving("archive", &database, &redis).await;
    let gateway = settings.clone().start().await;
    kafka().produce_room(&topic, "lobby", "hello, \u{1f44b}").await;
    kafka().produce_keys(&topic, None, &["user_1"], "you").await;
    gateway.wait_until_settled(&topic).await;
    eventually_eq("archived rows", 4, async || database.archived().await).await;

    let rows = database.rows("SELECT user, topic, room, body, cause, sent_ms, stored_ms, expires_ms FROM halley_inbox ORDER BY user, room").await;
    let bytes = |row: usize, column: usize| rows[row].try_get::<Vec<u8>, _>(column).expect("bytes");
    let number = |row: usize, column: usize| rows[row].try_get::<i64, _>(column).expect("a number");
    assert_eq!(bytes(0, 0), b"user_0");
    assert_eq!(bytes(0, 1), topic.as_bytes());
    assert_eq!((bytes(0, 2), bytes(0, 3)), (b"lobby".to_vec(), "hello, \u{1f44b}".as_bytes().to_vec()));
    assert_eq!(bytes(0, 4), b"not-online");
    assert_eq!((bytes(1, 2), bytes(1, 3)), (b"".to_vec(), b"you".to_vec()));
    assert!(number(0, 5) > 0 && number(0, 6) >= number(0, 5), "sent before it was stored");
    assert_eq!(number(0, 7), 0, "no policy has shortened how long it is kept");
    assert_eq!(gateway.metric("halley_archive_messages_total").await, Some(4.0));
    assert_eq!(gateway.metric("halley_archive_rows_total{outcome=\"written\"}").await, Some(4.0));

    // Delivered again: the group forgets what it has done.
    assert!(gateway.sigterm().await.success());
    kafka().commit(gateway.group(), &topic, 0, 0, "").await;
    kafka().commit(gateway.group(), &topic, 1, 0, "").await;
    let again = settings.start().await;
    again.wait_until_settled(&topic).await;
    let topic = format!("{topic}.archive");
    let all = async || {
        let group = topic.replace(".archive", "-archive");
        (kafka().committed(&group, &topic).await == kafka().ends(&topic)).then_some(())
    };
    eventually("the archivers to commit", PATIENCE, all).await;
    assert_eq!(database.archived().await, 4, "once for each user");
}

#[tokio::test]
async fn an_archive_record_too_many_for_one_id_is_a_dead_letter() {
    let Some(database) = MariaDb::start("an_archive_record_too_many_for_one_id").await else { return };
    let redis = Redis::start().await;
    let (topic, settings) = archiving("archive-ids", &database, &redis).await;
    let long = "u".repeat(256);
    let fits = "u".repeat(255);
    let gateway = settings.start().await;
    kafka().produce_keys(&topic, None, &[&long, &fits], "hello").await;
    gateway.wait_until_settled(&topic).await;
    eventually_eq("archived rows", 1, async || database.archived().await).await;
    let letters = kafka().read_all(&format!("{topic}.dead-letter"));
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].header("halley-stage").unwrap_or_default(), "offline");
    assert!(
        letters[0]
            .header("halley-reason")
            .unwrap_or_default()
            .contains("256 bytes; the archive keeps ids of up to 255"),
        "{}",
        letters[0].header("halley-reason").unwrap_or_default()
    );
}

/// Also what is still on its way is erased, and what comes later is kept.
#[tokio::test]
async fn an_erased_user_is_erased_from_inbox_and_archive() {
    let Some(database) = MariaDb::start("an_erased_user_is_erased").await else { return };
    let redis = Redis::start().await;
    let (topic, settings) = archiving("archive-erase", &database, &redis).await;
    let gateway = settings.clone().set("archive", "url", quoted("")).start().await;
    let send = async |body: &str| {
        kafka().produce_keys(&topic, None, &["ann", "bob"], body).await;
        gateway.wait_until_settled(&topic).await;
    };
    send("before").await;
    let delete = |settings: &Gateway| {
        let folder = folder("erase");
        let file = folder.path().join("halley.toml");
        std::fs::write(&file, settings.toml()).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.args(["inbox", "delete", "ann", "--yes", "--config"]).arg(&file);
        let output = command.output().expect("runs");
        (output.status.success(), format!("{}{}", text(&output), String::from_utf8_lossy(&output.stderr)))
    };
    let (erased, said) = delete(&settings.clone().set("archive", "url", quoted("")));
    assert!(!erased && said.contains("`[archive] url` is empty here"), "{said}");
    assert_eq!(redis.stream("halley:inbox:ann").await.len(), 1, "nothing was deleted");
    let (erased, said) = delete(&settings);
    assert!(
        erased && said.contains("deleted 1 messages of `ann` from the inbox and 0 from the archive"),
        "{said}"
    );
    send("after").await;
    // Nobody has archived yet.
    assert_eq!(database.archived().await, 0);
    assert!(gateway.sigterm().await.success());
    let _archiver = settings.start().await;
    eventually_eq("archived rows", 3, async || database.archived().await).await;
    let rows = database.rows("SELECT body FROM halley_inbox WHERE user = 'ann'").await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].try_get::<Vec<u8>, _>(0).expect("bytes"), b"after");
}
