//! The client with real clusters: healthy, resharding, failing, and repaired.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::Value;

use super::connection::PIPELINE_LIMIT;
use super::testing::redis_nodes::{command, soon};
use super::testing::{RedisCluster, RedisServer, client, client_of, eventually, run};
use super::*;

fn bulk(text: impl ToString) -> Value {
    Value::BulkString(text.to_string().into_bytes())
}

fn get(key: &str) -> Cmd {
    command(&["GET", key])
}

fn set(key: &str, value: &str) -> Cmd {
    command(&["SET", key, value])
}

#[tokio::test]
async fn a_batch_over_all_slots_is_answered_in_order() {
    let cluster = RedisCluster::start().await;
    let client = client_of(&cluster.url());
    client.ping().await.expect("all nodes answer");
    let count = PIPELINE_LIMIT * 4 + 7;
    let sets = (0..count).map(|n| set(&format!("key {n}"), &n.to_string())).collect();
    let replies = client.run_scan("test", sets).await.expect("answers");
    assert!(replies == vec![Value::Okay; count], "{} replies", replies.len());
    let gets = (0..count).map(|n| get(&format!("key {n}"))).collect();
    let expected: Vec<_> = (0..count).map(bulk).collect();
    assert!(client.run_scan("test", gets).await.expect("answers") == expected);

    let mut many = redis::cmd("MGET");
    many.arg((0..count).map(|n| format!("key {n}")).collect::<Vec<_>>()).arg("nobody's");
    let list = Value::Array(expected.into_iter().chain([Value::Nil]).collect());
    let around = || command(&["ECHO", "around"]);
    let replies = client.run_small("test", vec![around(), many, around()]).await.expect("answers");
    assert!(replies == [bulk("around"), list, bulk("around")]);
    assert_eq!(client.run_small("test", Vec::new()).await, Ok(vec![]));
}

#[tokio::test]
async fn a_refused_command_is_one_reply_among_the_cluster_s() {
    let cluster = RedisCluster::start().await;
    let client = client_of(&cluster.url());
    run(&client, &["SET", "text", "x"]).await;
    let commands = vec![
        command(&["SMEMBERS", "text"]),
        command(&["NONSENSE", "text"]),
        command(&["MSET", "a", "1", "b", "2"]),
        command(&["SORT_RO", "room:connections:", "BY", "nosort", "GET", "connection:info:*->comet_id"]),
        get("text"),
    ];
    let replies = client.run_small("test", commands).await.expect("answers");
    assert_eq!(refusal(&replies[0]), Some(Refusal::WrongType));
    for (reply, said) in [(1, "unknown command"), (2, "CROSSSLOT"), (3, "denied in Cluster mode")] {
        let refusal = refusal(&replies[reply]);
        assert!(matches!(&refusal, Some(Refusal::Other(text)) if text.contains(said)), "{refusal:?}");
    }
    assert_eq!(replies[4], bulk("x"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_during_calls() {
    let cluster = RedisCluster::start().await;
    let client = client_of(&cluster.url());
    // Slots with thirty keys each, all of them on one node.
    let mut tags = Vec::new();
    for number in 0.. {
        let tag = format!("{{{number}}}");
        if cluster.owner(&tag).await == 0 {
            tags.push(tag);
        }
        if tags.len() == 12 {
            break;
        }
    }
    let keys: Vec<String> = tags.iter().flat_map(|tag| (0..30).map(move |n| format!("{tag}{n}"))).collect();
    client.run_small("test", keys.iter().map(|key| set(key, key)).collect()).await.expect("answers");
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (client, keys, tags, done, calls) =
            (client.clone(), keys.clone(), tags.clone(), done.clone(), calls.clone());
        callers.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let call = calls.fetch_add(1, Ordering::Relaxed);
                let mut commands: Vec<Cmd> = keys.iter().map(|key| get(key)).collect();
                commands.extend(tags.iter().map(|tag| command(&["INCR", &format!("{tag}count")])));
                // Keys that do not exist are asked of the new node.
                commands.extend(tags.iter().map(|tag| set(&format!("{tag}new{call}"), "x")));
                let mut replies = client.run_scan("test", commands).await.expect("no trouble");
                assert!(replies.drain(..keys.len()).eq(keys.iter().map(bulk)), "a wrong reply");
                assert!(replies.drain(..tags.len()).all(|reply| matches!(reply, Value::Int(_))));
                assert!(replies == vec![Value::Okay; tags.len()]);
            }
        });
    }
    for (number, tag) in tags.iter().enumerate() {
        let (slot, to) = (cluster.slot(tag).await, 1 + number % 2);
        cluster.begin_move(slot, 0, to).await;
        let before = calls.load(Ordering::Relaxed);
        cluster.move_keys(slot, 0, to, 15).await;
        // The slot stays half moved for some calls.
        soon("calls in between", async || (calls.load(Ordering::Relaxed) > before + 8).then_some(())).await;
        while cluster.move_keys(slot, 0, to, 100).await > 0 {}
        cluster.end_move(slot, 0, to).await;
    }
    done.store(true, Ordering::Relaxed);
    while let Some(outcome) = callers.join_next().await {
        outcome.expect("every reply was right");
    }
    let calls = calls.load(Ordering::Relaxed);
    for tag in &tags {
        assert_ne!(cluster.owner(tag).await, 0, "it has moved");
        let counted = run(&client, &["GET", &format!("{tag}count")]).await;
        assert_eq!(counted, bulk(calls), "each call counted once");
    }
}

#[tokio::test]
async fn a_primary_that_dies_is_replaced() {
    let mut cluster = RedisCluster::start_with_replicas().await;
    let client = client_of(&cluster.url());
    let keys: Vec<String> = (0..100).map(|n| format!("key {n}")).collect();
    let sets = || keys.iter().map(|key| set(key, "x")).collect::<Vec<_>>();
    client.run_small("test", sets()).await.expect("answers");
    let epoch = client.scan_epoch();
    let dead = cluster.kill_owner("key 0").await;
    let unavailable = client.run_small("test", sets()).await.expect_err("nobody serves its slots");
    assert!(unavailable.to_string().starts_with("Redis at redis+cluster://127.0.0.1:"), "{unavailable}");
    client.ping().await.expect_err("one of them is dead");
    eventually("the replica serves", async || client.run_small("test", sets()).await.is_ok()).await;
    eventually("all serve", async || client.ping().await.is_ok()).await;
    assert_eq!(client.last_problem(), None);
    assert!(client.scan_epoch() > epoch, "another server answers");

    // It returns as a replica, and its successor dies.
    cluster.node(dead).start().await;
    let nodes = cluster.nodes();
    soon("the replica to catch up", async || {
        let facts = nodes[dead].facts(&["INFO", "replication"]).await;
        facts.get("master_link_status").is_some_and(|status| status == "up").then_some(())
    })
    .await;
    cluster.kill_owner("key 0").await;
    eventually("it serves again", async || client.run_small("test", sets()).await.is_ok()).await;
}

#[tokio::test]
async fn without_a_replica_calls_wait_for_the_primary_s_return() {
    let mut cluster = RedisCluster::start_with(3, 0, "1000", &[]).await;
    let client = client_of(&cluster.url());
    let others = (0..).map(|n| format!("key {n}"));
    let owner = cluster.owner("key").await;
    let mut other = String::new();
    for key in others {
        if cluster.owner(&key).await != owner {
            other = key;
            break;
        }
    }
    cluster.node(owner).kill();
    client.run_small("test", vec![get("key")]).await.expect_err("nobody serves its slot");
    eventually("the cluster says so", async || {
        let outcome = client.run_small("test", vec![get(&other)]).await;
        outcome.is_err_and(|error| error.to_string().contains("CLUSTERDOWN"))
    })
    .await;
    let said = client.last_problem().expect("it is down").to_string();
    assert!(said.contains("`redis-cli --cluster check`"), "{said}");
    client.ping().await.expect_err("the others are down, too");
    cluster.node(owner).start().await;
    eventually("the cluster is whole", async || client.ping().await.is_ok()).await;
    client.run_small("test", vec![get("key"), get(&other)]).await.expect("both are served");
}

#[tokio::test]
async fn a_silent_node_costs_one_timeout() {
    let cluster = RedisCluster::start().await;
    let timeout = Duration::from_millis(300);
    let config = Config {
        url: cluster.url(),
        connect_timeout: timeout,
        response_timeout: timeout,
        scan_timeout: timeout,
        ..Config::default()
    };
    let client = client(&config);
    client.ping().await.expect("all nodes answer");
    let owner = cluster.owner("key").await;
    cluster.nodes()[owner].freeze();
    let start = Instant::now();
    client.run_small("test", vec![get("key")]).await.expect_err("silence");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    cluster.nodes()[owner].thaw();
    eventually("it answers again", async || client.ping().await.is_ok()).await;
}

#[tokio::test]
async fn one_living_node_suffices_and_logins_are_used() {
    let cluster = RedisCluster::start().await;
    for node in cluster.nodes() {
        let user = ["ACL", "SETUSER", "halley", "on", ">p@ss", "~*", "+@all"];
        node.tell::<()>(&user).await;
    }
    let nobody = RedisServer::unreachable().config().url.replace("redis://", "");
    let living = cluster.nodes()[1].address();
    let url = format!("redis+cluster://halley:p%40ss@{nobody},{living}");
    let client = client_of(&url);
    let who = |n: u32| vec![set(&format!("key {n}"), "x"), command(&["ACL", "WHOAMI"])];
    let replies = client.run_small("test", (0..50).flat_map(who).collect()).await.expect("answers");
    assert_eq!(replies.chunks(2).next(), Some(&[Value::Okay, bulk("halley")][..]));
    assert_eq!(client.endpoint(), format!("redis+cluster://{nobody},{living}"));

    let wrong = client_of(&url.replace("p%40ss", "hunter2")).ping().await.expect_err("the wrong password");
    let said = wrong.to_string();
    assert!(said.contains("check user and password") && !said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn a_url_of_the_wrong_kind_is_reported() {
    let cluster = RedisCluster::start().await;
    let one = client_of(&format!("redis://{}", cluster.nodes()[0].address()));
    let gets = (0..50).map(|n| get(&format!("key {n}"))).collect();
    let said = one.run_small("test", gets).await.expect_err("not all are here").to_string();
    assert!(said.contains("MOVED") && said.contains("this is a cluster"), "{said}");

    let server = RedisServer::start().await;
    let url = server.config().url.replace("redis://", "redis+cluster://");
    let said = client_of(&url).ping().await.expect_err("no cluster").to_string();
    assert!(said.contains("cluster support disabled") && said.contains("this is not a cluster"), "{said}");
}
