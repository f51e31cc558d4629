//! Faults of the archive's database and of archivers: nothing is lost, nothing is there twice, and one
//! bad row holds up nothing.

use std::time::Duration;

use super::{absent_room, archiving, warnings};
use crate::support::certificates::{Certificate, VALID};
use crate::support::child_process::ChildProcess;
use crate::support::comet::FakeComet;
use crate::support::gateway::quoted;
use crate::support::kafka::kafka;
use crate::support::mariadb::MariaDb;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq, folder, http};

/// The database is killed, silent, and read-only, one after the other. Meanwhile users who are online
/// receive their messages, and everything is archived once it is back.
#[tokio::test]
async fn an_unusable_database_holds_up_only_the_archive() {
    let Some(mut database) = MariaDb::start("an_unusable_database").await else { return };
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    absent_room(&redis, "lobby", 2).await;
    redis.join("lobby", "conn_live", "live", comet.address()).await;
    let (topic, settings) = archiving("archive-down", &database, &redis).await;
    let settings = settings.set("archive", "write_timeout", quoted("1s")).set(
        "archive",
        "connect_timeout",
        quoted("1s"),
    );
    let gateway = settings.start().await;
    let mut sent = 0;
    for fault in ["killed", "silent", "read-only"] {
        match fault {
            "killed" => database.stop(),
            "silent" => database.signal("STOP"),
            _ => database.run("SET GLOBAL read_only = 1").await,
        }
        for _ in 0..20 {
            sent += 1;
            kafka().produce_room(&topic, "lobby", &format!("message {sent}")).await;
        }
        // Delivered and stored in Redis, whatever the database does.
        gateway.wait_until_settled(&topic).await;
        eventually_eq("live deliveries", sent, async || comet.deliveries().len()).await;
        let warned = async || {
            let ready = gateway.get("/readyz").await;
            assert_eq!(ready.status, 200, "{}", ready.body);
            warnings(&gateway).await.contains("the archive's database").then_some(())
        };
        eventually(format_args!("a warning while it is {fault}"), PATIENCE, warned).await;
        match fault {
            "killed" => database.restart().await,
            "silent" => database.signal("CONT"),
            _ => database.run("SET GLOBAL read_only = 0").await,
        }
        eventually_eq("archived rows", 2 * sent as i64, async || database.archived().await).await;
        let recovered = async || (!warnings(&gateway).await.contains("archive")).then_some(());
        eventually("no warning", PATIENCE, recovered).await;
    }
}

/// Neither a full database nor a slow one loses or repeats anything; room histories are archived as well.
#[tokio::test]
async fn a_full_database_and_a_slow_one_hold_up_only_the_archive() {
    // All tables in one file of a bounded size; the partitions take most of it.
    let options = folder("mariadb-options");
    let file = options.path().join("my.cnf");
    let bounded = |most: &str| {
        let size = format!("innodb-data-file-path=ibdata1:12M:autoextend:max:{most}");
        let options = format!("[mysqld]\ninnodb-file-per-table=0\ninnodb-autoextend-increment=1\n{size}\n");
        std::fs::write(&file, options).expect("written");
    };
    bounded("40M");
    let args = [format!("--defaults-file={}", file.display())];
    let Some(mut database) = MariaDb::start_with("a_full_database_and_a_slow_one", &args).await else {
        return;
    };
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    absent_room(&redis, "lobby", 2).await;
    redis.join("lobby", "conn_live", "live", comet.address()).await;
    let (topic, settings) = archiving("archive-full", &database, &redis).await;
    let settings = settings.set("history", "rooms", r#"["lobby"]"#).set("history", "inbox", quoted("copy"));
    let gateway = settings.set("archive", "write_timeout", quoted("1s")).start().await;
    let filler =
        "CREATE TABLE halley.filler (number INT AUTO_INCREMENT PRIMARY KEY, body LONGBLOB) ENGINE = InnoDB";
    database.run(filler).await;
    let fill = "INSERT INTO halley.filler (body) VALUES (REPEAT('x', 1000000))";
    eventually("a full database", PATIENCE, async || database.try_run(fill).await.err()).await;
    let slow = "CREATE TRIGGER halley.slow BEFORE INSERT ON halley.halley_inbox FOR EACH ROW DO SLEEP(2)";
    let mut sent = 0;
    for fault in ["is full", "did not answer within 1s"] {
        for _ in 0..20 {
            sent += 1;
            kafka().produce_room(&topic, "lobby", format!("{sent}{}", "x".repeat(100_000))).await;
        }
        gateway.wait_until_settled(&topic).await;
        eventually_eq("live deliveries", sent, async || comet.deliveries().len()).await;
        let warned = async || {
            let ready = gateway.get("/readyz").await;
            assert_eq!(ready.status, 200, "{}", ready.body);
            warnings(&gateway).await.contains(fault).then_some(())
        };
        eventually(format_args!("a warning that it {fault}"), PATIENCE, warned).await;
        match fault {
            "is full" => {
                bounded("100M");
                database.stop();
                database.restart().await;
            }
            _ => database.run("DROP TRIGGER halley.slow").await,
        }
        eventually_eq("archived rows", 2 * sent as i64, async || database.archived().await).await;
        let rooms = "SELECT COUNT(*) FROM halley_history";
        eventually_eq("rows of the room", sent as i64, async || database.number(rooms).await).await;
        let recovered = async || (!warnings(&gateway).await.contains("archive")).then_some(());
        eventually("no warning", PATIENCE, recovered).await;
        if fault == "is full" {
            database.run(slow).await;
        }
    }
}

/// The authority decides, not only that there is encryption.
#[tokio::test]
async fn the_archives_database_is_reached_over_tls_that_is_verified() {
    let folder = folder("mariadb-tls");
    let (ours, other) = (Certificate::authority("ours"), Certificate::authority("other"));
    ours.write(folder.path(), "ours");
    other.write(folder.path(), "other");
    ours.issue("localhost", VALID).write(folder.path(), "server");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let args = [("ssl-ca", "ours.pem"), ("ssl-cert", "server.pem"), ("ssl-key", "server.key")];
    let args = args.map(|(option, name)| format!("--{option}={}", path(name)));
    let Some(database) = MariaDb::start_with("the_archives_database_is_reached_over_tls", &args).await else {
        return;
    };
    let config = |host: &str, mode: &str, authority: &str| {
        let properties = format!("?ssl-mode={mode}&ssl-ca={}", path(authority));
        halley::archive::Config { url: database.url_at(host, &properties), ..Default::default() }
    };
    database.run("ALTER USER 'halley'@'%' REQUIRE SSL").await;
    halley::archive::init(&config("localhost", "VERIFY_IDENTITY", "ours.pem")).await.expect("over TLS");
    for (host, mode, authority, is_reached) in [
        ("localhost", "VERIFY_IDENTITY", "ours.pem", true),
        ("127.0.0.1", "VERIFY_CA", "ours.pem", true),
        // Another name than that in the certificate.
        ("127.0.0.1", "VERIFY_IDENTITY", "ours.pem", false),
        ("localhost", "VERIFY_IDENTITY", "other.pem", false),
        ("localhost", "VERIFY_CA", "other.pem", false),
        // The server demands it of this user.
        ("localhost", "DISABLED", "ours.pem", false),
    ] {
        let probed = halley::archive::probe(&config(host, mode, authority)).await;
        assert_eq!(probed.is_ok(), is_reached, "{host} {mode} {authority}: {probed:?}");
    }
}

#[tokio::test]
async fn a_refused_row_becomes_a_dead_letter_and_holds_up_nothing() {
    let Some(database) = MariaDb::start("a_refused_row").await else { return };
    let redis = Redis::start().await;
    absent_room(&redis, "lobby", 40).await;
    let (topic, settings) = archiving("archive-row", &database, &redis).await;
    database
        .run(
            "CREATE TRIGGER halley.refuse BEFORE INSERT ON halley.halley_inbox FOR EACH ROW \
             IF NEW.user = 'user_7' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF",
        )
        .await;
    let gateway = settings.start().await;
    for n in 0..5 {
        kafka().produce_room(&topic, "lobby", &format!("message {n}")).await;
    }
    gateway.wait_until_settled(&topic).await;
    eventually_eq("archived rows", 5 * 39, async || database.archived().await).await;
    let letters = eventually("dead letters", PATIENCE, async || {
        let letters = kafka().read_all(&format!("{topic}.dead-letter"));
        (letters.len() == 5).then_some(letters)
    });
    for letter in letters.await {
        assert_eq!(letter.header("halley-stage").unwrap_or_default(), "archive");
        assert_eq!(letter.header("halley-origin-topic").unwrap_or_default(), format!("{topic}.archive"));
        assert!(
            letter.header("halley-reason").unwrap_or_default().contains("not this one"),
            "{}",
            letter.header("halley-reason").unwrap_or_default()
        );
    }
    assert_eq!(gateway.metric("halley_archive_rows_total{outcome=\"refused\"}").await, Some(5.0));

    // Once the cause is mended, a redrive archives what is missing, and nothing twice.
    database.run("DROP TRIGGER halley.refuse").await;
    let redrive = |more: &[&str]| {
        let mut redrive = std::process::Command::new(env!("CARGO_BIN_EXE_halley"));
        redrive.args(["dead-letter", "redrive", "--stage", "archive", "--config"]).arg(gateway.file());
        let output = redrive.args(more).output().expect("it runs");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), format!("{}{}", said(&output.stdout), said(&output.stderr)))
    };
    let archive_topic = format!("{topic}.archive");
    let (redriven, said) = redrive(&[]);
    assert!(!redriven && said.contains("--allow-topic"), "{said}");
    let (redriven, said) = redrive(&["--from-start", "--allow-topic", &archive_topic]);
    assert!(redriven, "{said}");
    eventually_eq("archived rows", 5 * 40, async || database.archived().await).await;
    let missing = "SELECT COUNT(*) FROM halley_inbox WHERE user = 'user_7'";
    assert_eq!(database.number(missing).await, 5);
    assert_eq!(kafka().read_all(&format!("{topic}.dead-letter")).len(), 5, "no new dead letters");
}

/// `halley archive` as processes of their own, killed again and again while gateways store.
#[tokio::test]
async fn killed_archivers_lose_and_repeat_nothing() {
    let Some(database) = MariaDb::start("killed_archivers").await else { return };
    let redis = Redis::start().await;
    absent_room(&redis, "lobby", 5).await;
    let (topic, settings) = archiving("archive-killed", &database, &redis).await;
    let gateway = settings.clone().set("archive", "url", quoted("")).start().await;
    let settings = settings.set("archive", "max_rows", 7).set("kafka", "session_timeout", quoted("6s"));
    let start = |settings: &crate::support::gateway::Gateway| {
        let folder = folder("archiver");
        let file = folder.path().join("halley.toml");
        std::fs::write(&file, settings.toml()).expect("written");
        let port = crate::support::free_port();
        let listen = format!("127.0.0.1:{port}");
        let file = file.display().to_string();
        let args = ["archive", "--config", &file, "--metrics-listen", &listen].map(str::to_owned);
        (ChildProcess::start(env!("CARGO_BIN_EXE_halley"), &args, folder).expect("starts"), listen)
    };
    let mut archivers = [start(&settings), start(&settings)];
    let mut sent = 0;
    for round in 0..6 {
        for _ in 0..25 {
            sent += 1;
            kafka().produce_room(&topic, "lobby", &format!("message {sent}")).await;
        }
        let before = database.archived().await;
        let progress = async || (database.archived().await > before || round == 0).then_some(());
        eventually("progress", PATIENCE, progress).await;
        archivers[round % 2].0.kill();
        archivers[round % 2] = start(&settings);
    }
    gateway.wait_until_settled(&topic).await;
    let archived = async || (database.archived().await == 5 * sent).then_some(());
    eventually("everything to be archived", PATIENCE * 2, archived).await;
    let distinct = "SELECT COUNT(DISTINCT user, body) FROM halley_inbox";
    assert_eq!(database.number(distinct).await, 5 * sent);
    for (mut archiver, listen) in archivers {
        let ready = http::get(&listen, "/readyz").await.expect("it answers");
        assert!(ready.status == 200 && ready.json()["warnings"] == serde_json::json!([]), "{ready:?}");
        let metrics = http::get(&listen, "/metrics").await.expect("it answers");
        assert!(metrics.body.contains("halley_archive_write_duration_seconds_bucket"), "{metrics:?}");
        assert!(metrics.body.contains("\nhalley_archive_ready 1\n"), "{metrics:?}");
        assert!(!metrics.body.contains("halley_ready"), "it is no gateway, whose alert looks at that");
        // As a container's health check asks it.
        let health = std::process::Command::new(env!("CARGO_BIN_EXE_halley"))
            .args(["health", "--url", &format!("http://{listen}")])
            .output()
            .expect("it runs");
        assert!(health.status.success(), "{health:?}");
        archiver.signal("TERM");
        let ended = archiver.wait(Duration::from_secs(20)).await;
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", archiver.log());
    }
}
