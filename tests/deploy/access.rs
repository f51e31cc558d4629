//! The rights that a gateway needs, as the files grant them: Redis' ACL, Kafka's topics and ACLs.

use std::process::Command;

use serde_json::json;

use super::{deployed, halley, read};
use crate::support::child_process::ChildProcess;
use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, Plugin, gateway, quoted};
use crate::support::kafka::acl::PASSWORD;
use crate::support::kafka::{Kafka, kafka};
use crate::support::redis::Redis;
use crate::support::{
    PATIENCE, eventually, eventually_eq, folder, free_port, print_uncaptured, repository, unique,
};

/// The lines of the ACL file, with this password in place of each digest.
fn acl_lines(password: &str) -> Vec<String> {
    let mut users = Vec::new();
    let lines = read(&deployed("redis/halley.acl"))
        .lines()
        .map(|line| {
            let words: Vec<String> = line
                .split(' ')
                .map(|word| if word.starts_with('#') { format!(">{password}") } else { word.to_owned() })
                .collect();
            assert_eq!(words[0], "user", "Redis refuses everything else in such a file, comments included");
            users.push(words[1].clone());
            words.join(" ")
        })
        .collect();
    assert_eq!(users, ["default", "admin", "comet", "halley"]);
    lines
}

#[tokio::test]
async fn redis_starts_with_the_file_and_needs_passwords() {
    let (folder, port) = (folder("aclfile"), free_port());
    let file = folder.path().join("users.acl");
    let lines = acl_lines("secret");
    std::fs::write(&file, lines.join("\n") + "\n").expect("written");
    let args = format!("--port {port} --bind 127.0.0.1 --appendonly no --aclfile {}", file.display());
    let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
    let Ok(_server) = ChildProcess::start("redis-server", &args, folder) else {
        return print_uncaptured("NOT PROVEN: `redis_starts_with_the_file` needs redis-server");
    };
    let run = async |login: &str, words: &[&str]| -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(format!("redis://{login}127.0.0.1:{port}"))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await
    };
    eventually("redis to start", PATIENCE, async || run("admin:secret@", &["PING"]).await.ok()).await;
    let nobody = run("", &["GET", "x"]).await.expect_err("no password").to_string();
    assert!(nobody.contains("NOAUTH") || nobody.contains("uthentication"), "{nobody}");
    // The next line of the file, and the comets, who write what gateways read.
    run("admin:secret@", &["ACL", "LOAD"]).await.expect("the admin may load it again");
    for words in [
        &["SADD", "room:connections:lobby", "conn_1"][..],
        &["HSET", "connection:info:conn_1", "comet_id", "127.0.0.1:1"],
        &["SET", "user:online:user_1", "conn_1", "EX", "60"],
        &["EXPIRE", "user:online:user_1", "60"],
        &["DEL", "connection:info:conn_1"],
    ] {
        run("comet:secret@", words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    }
    for words in
        [&["GET", "halley:redrive-key"][..], &["XRANGE", "halley:inbox:user_1", "-", "+"], &["FLUSHALL"]]
    {
        assert!(run("comet:secret@", words).await.is_err(), "{words:?}");
    }
}

#[tokio::test]
async fn redis_grants_what_a_gateway_needs_and_no_more() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    for line in acl_lines("secret").iter().filter(|line| line.starts_with("user halley ")) {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg(line.split(' ').skip(1).collect::<Vec<_>>());
        redis.run::<()>(command).await;
    }
    let topic = kafka().topic("redis-acl", 1).await;
    for suffix in ["dead-letter", "offline"] {
        kafka().create_topic(&format!("{topic}.{suffix}"), 1).await;
    }
    for room in ["lobby", "away"] {
        redis.join(room, &format!("conn_{room}"), &format!("user_{room}"), comet.address()).await;
    }
    redis.offline("user_away").await;
    let url = redis.url().replace("redis://", "redis://halley:secret@");
    let bundled = |name: &str, config: serde_json::Value| {
        let file = repository(&format!("plugins/dist/{}.wasm", name.replace('-', "_")));
        Plugin::new(name, file).set("deadline", quoted("5s")).config(&config)
    };
    let quota = json!({ "messages": 100, "minutes": 10, "spare": [] });
    let settings = gateway(&topic)
        .set("redis", "url", quoted(&url))
        .plugin(bundled("duplicate-guard", json!({ "duplicates": { "within": "60s" } })))
        .plugin(bundled("room-quota", quota).set("state", quoted("shared")));
    let gateway = settings.start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    kafka().produce_room(&topic, "away", "for later").await;
    kafka().produce_keys(&topic, None, &["user_lobby"], "for you").await;
    kafka().produce_everyone(&topic, 0, "for all").await;
    gateway.wait_until_settled(&topic).await;
    eventually_eq("deliveries", 3, async || comet.deliveries().len()).await;
    // A room that changes is read again, and what was stored is read, acknowledged and erased.
    redis.join("lobby", "conn_2", "user_2", comet.address()).await;
    kafka().produce_room(&topic, "lobby", "to both").await;
    gateway.wait_until_settled(&topic).await;
    let config = gateway.file().display().to_string();
    for args in [&["inbox", "read", "user_away"][..], &["inbox", "delete", "user_away", "--yes"]] {
        let done = halley(&[args, &["--config", &config]].concat());
        assert!(done.status.success(), "{args:?}: {done:?}");
    }
    let problems = gateway.get("/readyz").await.json();
    assert_eq!(problems["warnings"].to_string().matches("ACL").count(), 0, "{problems}");
    nothing_needed_is_denied(&redis).await;
}

/// Redis has denied nothing until now, and denies what a gateway does not do.
async fn nothing_needed_is_denied(redis: &Redis) {
    let log: Vec<redis::Value> = {
        let mut command = redis::cmd("ACL");
        command.arg("LOG");
        redis.run(command).await
    };
    assert!(log.is_empty(), "Redis denied: {log:#?}");
    for forbidden in [
        &["SADD", "room:connections:lobby", "x"][..],
        &["SET", "user:online:user_1", "x"],
        &["DEL", "other"],
        &["FLUSHALL"],
        &["CONFIG", "GET", "*"],
        &["KEYS", "*"],
        &["ACL", "LIST"],
        &["EVAL", "return 1", "0"],
        &["PUBLISH", "x", "y"],
    ] {
        let mut command = redis::cmd("ACL");
        command.arg("DRYRUN").arg("halley").arg(forbidden);
        let said: String = redis.run(command).await;
        assert_ne!(said, "OK", "{forbidden:?}");
    }
}

/// Runs a script with stand-ins for these tools, each with its exit code; returns the calls, the tool's name first.
pub(super) fn calls(
    script: &str,
    tools: &[(&str, i32)],
    args: &[&str],
    environment: &[(&str, &str)],
) -> Vec<Vec<String>> {
    let folder = folder("tools");
    let log = folder.path().join("calls");
    for (tool, code) in tools {
        let program = folder.path().join(tool);
        let text = format!(
            "#!/bin/sh\nprintf '%s\\t' {tool} \"$@\" >>'{0}'\necho >>'{0}'\nexit {code}\n",
            log.display()
        );
        std::fs::write(&program, text).expect("written");
        let executable = Command::new("/bin/chmod").arg("+x").arg(&program).status();
        assert!(executable.is_ok_and(|status| status.success()));
    }
    let mut command = Command::new("/bin/sh");
    command.arg(deployed(script)).args(args).envs(environment.iter().copied());
    let path = std::env::var("PATH").unwrap_or_default();
    let done = command.env("PATH", format!("{}:{path}", folder.path().display())).output().expect("sh");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let log = std::fs::read_to_string(&log).expect("they were called");
    log.lines().map(|line| line.trim_end().split('\t').map(str::to_owned).collect()).collect()
}

/// The values of an option.
fn values<'a>(call: &'a [String], option: &str) -> Vec<&'a str> {
    call.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

/// Creates the topics that the script would create, on this broker. Returns their names.
async fn create_topics(kafka: &Kafka, topic: &str) -> Vec<String> {
    let environment =
        [("TOPIC", topic), ("PARTITIONS", "2"), ("REPLICAS", "1"), ("MIN_INSYNC", "1"), ("ARCHIVE", "yes")];
    let mut created = Vec::new();
    for call in calls("kafka/topics.sh", &[("kafka-topics.sh", 0)], &[], &environment) {
        let name = values(&call, "--topic")[0];
        let partitions = values(&call, "--partitions")[0].parse().expect("a number");
        let settings: Vec<_> =
            values(&call, "--config").iter().filter_map(|setting| setting.split_once('=')).collect();
        assert!(call.iter().any(|word| word == "--if-not-exists"), "running it again is harmless");
        kafka.create_topic_with(name, partitions, &settings).await;
        created.push(name.to_owned());
    }
    created
}

#[tokio::test]
async fn topics_are_created_as_brokers_accept_them() {
    if !kafka().can_prove("topics_are_created_as_brokers_accept_them") {
        return;
    }
    let topic = unique("created");
    let created = create_topics(kafka(), &topic).await;
    let expected = ["", ".dead-letter", ".offline", ".archive"].map(|suffix| format!("{topic}{suffix}"));
    assert_eq!(created, expected);
}

#[tokio::test]
async fn kafka_grants_what_a_gateway_needs() {
    let Some((kafka, secured)) = Kafka::own_secured().await else { return };
    let comet = FakeComet::start().await;
    let (topic, group) = (unique("granted"), unique("halley"));
    create_topics(&kafka, &topic).await;
    let environment = [("TOPIC", topic.as_str()), ("GROUP", group.as_str())];
    for call in calls("kafka/acls.sh", &[("kafka-acls.sh", 0)], &[], &environment) {
        assert_eq!(values(&call, "--allow-principal"), ["User:halley"]);
        for operation in values(&call, "--operation") {
            if call.iter().any(|word| word == "--cluster") {
                kafka.grant_operation("cluster", "kafka-cluster", operation).await;
            }
            for kind in ["topic", "group"] {
                for name in values(&call, &format!("--{kind}")) {
                    kafka.grant_operation(kind, name, operation).await;
                }
            }
        }
    }
    let login = |settings: Gateway| {
        let properties = format!(
            r#"{{ "security.protocol" = "SASL_PLAINTEXT", "sasl.mechanisms" = "PLAIN", "sasl.username" = "halley", "sasl.password" = {} }}"#,
            quoted(PASSWORD)
        );
        settings.set("kafka", "properties", properties)
    };
    let settings =
        gateway(&topic).kafka(&kafka).set("kafka", "brokers", quoted(&secured)).group(&group).node(&comet);
    let gateway = login(settings).start().await;
    kafka.produce_everyone(&topic, 0, "hello").await;
    // A record that cannot be decoded becomes a dead letter.
    kafka.produce_raw(&topic, None, Some(b"\xff\xff"), &[], None).await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), 1);
    let dead = format!("{topic}.dead-letter");
    eventually_eq("dead letters", 1, async || kafka.read_all(&dead).len()).await;
    let config = gateway.file().display().to_string();
    let listed = halley(&["dead-letter", "list", "--config", &config, "--json"]);
    assert!(listed.status.success() && listed.stdout.len() > 10, "{listed:?}");
    let redriven = halley(&["dead-letter", "redrive", "--config", &config, "--dry-run"]);
    assert!(redriven.status.success(), "{redriven:?}");
    let checked = halley(&["check", "--connect", "--json", "--config", &config]);
    let report = String::from_utf8_lossy(&checked.stdout).into_owned();
    let found: serde_json::Value =
        serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {checked:?}"));
    let refused: Vec<_> = found["connections"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|about| about["ok"] == false && about.to_string().to_lowercase().contains("authoriz"))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}
