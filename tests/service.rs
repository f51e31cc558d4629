//! The gateway as a service: draining, crashing, restarting; health and metrics.

use crate::support::comet::{Behaviour, FakeComet};
use crate::support::gateway::{Gateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq};

async fn lobby(comet: &FakeComet, topic: &str) -> (Redis, Gateway) {
    let redis = Redis::start().await;
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let gateway = gateway(topic).redis(&redis);
    (redis, gateway)
}

fn heard(comet: &FakeComet) -> Vec<String> {
    comet.deliveries().into_iter().map(|(_, _, body)| body).collect()
}

#[tokio::test]
async fn sigterm_under_load_loses_and_repeats_nothing() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("drain", 2).await;
    let (_redis, settings) = lobby(&comet, &topic).await;
    comet.behave(Behaviour::Delay(std::time::Duration::from_millis(5)));
    let first = settings.clone().start().await;
    let load = async {
        for number in 0..400 {
            kafka().produce_room(&topic, "lobby", number.to_string()).await;
        }
    };
    let stop = async {
        comet.wait_for(50).await;
        first.sigterm().await
    };
    let ((), status) = tokio::join!(load, stop);
    assert!(status.success(), "{status:?}; {first:?}");
    let second = settings.group(first.group()).start().await;
    second.wait_until_settled(&topic).await;
    assert_eq!(heard(&comet), (0..400).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_killed_gateway_loses_nothing() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("killed", 2).await;
    let (_redis, settings) = lobby(&comet, &topic).await;
    // A dead member holds its partitions until its session ends.
    let settings = settings.set("kafka", "session_timeout", quoted("6s"));
    let first = settings.clone().start().await;
    for number in 0..300 {
        kafka().produce_room(&topic, "lobby", number.to_string()).await;
        if number == 150 {
            first.kill();
        }
    }
    let second = settings.group(first.group()).start().await;
    second.wait_until_settled(&topic).await;
    let mut heard: Vec<u32> = heard(&comet).iter().map(|body| body.parse().expect("a number")).collect();
    heard.sort_unstable();
    heard.dedup();
    assert_eq!(heard, (0..300).collect::<Vec<_>>(), "some perhaps twice, none lost");
}

#[tokio::test]
async fn a_paused_partition_resumes_after_reassignment() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("paused", 2).await;
    let (redis, settings) = lobby(&comet, &topic).await;
    let rooms: Vec<String> = (0..8).map(|n| format!("room-{n}")).collect();
    for room in &rooms {
        redis.join(room, &format!("conn-{room}"), &format!("user-{room}"), comet.address()).await;
    }
    let settings = settings
        .set("delivery", "max_in_flight", 4)
        .set("delivery", "max_in_flight_bytes", quoted("16KiB"))
        .set("delivery", "request_timeout", quoted("500ms"))
        .set("delivery", "delivery_timeout", quoted("120s"))
        .set("comets", "breaker_window", quoted("120s"))
        .set("kafka", "session_timeout", quoted("6s"));
    comet.behave(Behaviour::Hang);
    let first = settings.clone().start().await;
    for number in 0..80 {
        kafka().produce_room(&topic, &rooms[number % rooms.len()], number.to_string()).await;
    }
    let paused = async || first.metric("halley_partitions_paused").await;
    eventually_eq("paused partitions", Some(2.0), paused).await;

    // Another member takes one of them, and returns it.
    let second = settings.group(first.group()).start().await;
    let assigned = async || first.metric("halley_partitions_assigned").await;
    eventually_eq("partitions of the first", Some(1.0), assigned).await;
    second.kill();
    eventually_eq("partitions of the first", Some(2.0), assigned).await;
    comet.behave(Behaviour::Ok);
    first.wait_until_settled(&topic).await;
    let mut heard: Vec<u32> = heard(&comet).iter().map(|body| body.parse().expect("a number")).collect();
    heard.sort_unstable();
    heard.dedup();
    assert_eq!(heard, (0..80).collect::<Vec<_>>());
}

#[tokio::test]
async fn grace_timeout_and_second_signal_exit_with_a_failure() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("grace", 1).await;
    let (_redis, settings) = lobby(&comet, &topic).await;
    comet.behave(Behaviour::Hang);
    let patient = settings.set("delivery", "request_timeout", quoted("60s")).set(
        "delivery",
        "delivery_timeout",
        quoted("60s"),
    );

    let short = patient.clone().set("delivery", "shutdown_grace", quoted("300ms")).start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    comet.wait_for(1).await;
    assert_eq!(short.sigterm().await.code(), Some(1), "what is in flight cannot be finished");

    let long = patient.group(short.group()).start().await;
    comet.wait_for(2).await;
    long.signal("TERM");
    long.signal("INT");
    long.wait_for_log("stopping: finishing what is in flight").await;
    let reason = async || long.get("/readyz").await.body.contains("stopping").then_some(());
    eventually("/readyz to say that it stops", PATIENCE, reason).await;
    // Some supervisors send two signals at once: they count as one.
    long.wait_for_log("ignoring a second signal so soon after the first; still stopping").await;
    let ended = eventually("the end by a later signal", PATIENCE, async || {
        let ended = long.ended();
        if ended.is_none() {
            long.signal("TERM");
        }
        ended
    });
    assert_eq!(ended.await.code(), Some(1));
}

#[tokio::test]
async fn health_metrics_and_the_api_answer() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("admin", 1).await;
    let (_redis, settings) = lobby(&comet, &topic).await;
    let gateway = settings.start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    gateway.wait_until_settled(&topic).await;

    assert_eq!(gateway.get("/healthz").await.body.trim(), "ok");
    assert_eq!(gateway.get("/nothing/here").await.status, 404);
    let comets = gateway.get("/v1/comets").await.json();
    assert_eq!(comets["comets"][0]["address"], comet.address().as_str(), "{comets}");
    // The lag is part of librdkafka's statistics, once per second.
    let lag = format!("halley_consumer_lag{{topic=\"{topic}\",partition=\"0\"}}");
    eventually_eq("the lag", Some(0.0), async || gateway.metric(&lag).await).await;
    let metrics = gateway.get("/metrics").await.body;
    let promised = [
        "job_dispatch_success_total{",
        "active_comet_nodes 1",
        "room_connection_count_bucket{",
        "halley_redis_call_duration_seconds_bucket{le=\"0.0001\",operation=\"get_room_connections\"}",
        "halley_stage_duration_seconds_count{stage=\"resolve\"}",
        "halley_messages_total{outcome=\"delivered\"} 1",
        "halley_policy_generation 1",
    ];
    let missing: Vec<_> = promised.iter().filter(|name| !metrics.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?} not in\n{metrics}");
    assert!(!metrics.contains("# EOF"), "plain text unless OpenMetrics is asked for");
    let accept = [("Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")];
    let open = gateway.send("GET", "/metrics", &accept, &[]).await;
    assert!(open.body.ends_with("# EOF\n"), "OpenMetrics");
}

#[tokio::test]
async fn a_fenced_instance_exits_and_reports_it() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("fenced", 2).await;
    if !kafka().can_prove("a_process_whose_instance_name_is_taken_ends_and_says_so") {
        return;
    }
    let (_redis, settings) = lobby(&comet, &topic).await;
    let settings = settings.set("kafka", "instance_id", quoted("gateway-1"));
    let first = settings.clone().start().await;
    kafka().produce_room(&topic, "lobby", "before").await;
    first.wait_until_settled(&topic).await;

    let second = settings.group(first.group()).start().await;
    let status = first.wait().await;
    assert_eq!(status.code(), Some(1), "{first:?}");
    let said = format!("{first:?}");
    assert!(said.contains("kafka has fenced this process out of the consumer group"), "{said}");
    kafka().produce_room(&topic, "lobby", "after").await;
    second.wait_until_settled(&topic).await;
    assert_eq!(heard(&comet), ["before", "after"]);
}

#[tokio::test]
async fn the_process_restricts_itself() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("sandbox", 1).await;
    let (_redis, settings) = lobby(&comet, &topic).await;
    let files = crate::support::folder("sandbox");
    let state = files.path().join("not/yet/there");
    let settings = settings.set("policies", "state_dir", quoted(&state.display().to_string()));
    let privileges = |gateway: &crate::support::gateway::RunningGateway| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("NoNewPrivs:")).unwrap_or_default().to_owned();
        line.trim_start_matches("NoNewPrivs:").trim().to_owned()
    };

    let restricted = settings.clone().start().await;
    assert_eq!(privileges(&restricted), "1", "{restricted:?}");
    kafka().produce_room(&topic, "lobby", "hello").await;
    comet.wait_for(1).await;
    assert!(state.join("lock").exists(), "what it has to write, it writes");
    assert!(restricted.sigterm().await.success());

    let free = settings.set("process", "sandbox", quoted("off")).start().await;
    assert_eq!(privileges(&free), "0", "{free:?}");
    assert!(free.sigterm().await.success());
}

#[tokio::test]
async fn sighup_stops_nothing() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("hangup", 1).await;
    let (_redis, settings) = lobby(&comet, &topic).await;
    let gateway = settings.clone().start().await;
    gateway.signal("HUP");
    gateway.wait_for_log_that("SIGHUP").await;
    // Policies are read again at once; what needs a restart is named.
    let rarely = settings.set("policies", "rescan_interval", quoted("1h"));
    std::fs::write(gateway.file(), rarely.set("delivery", "max_batch", 7).toml()).expect("written");
    gateway.signal("HUP");
    let changed = gateway
        .wait_for_log(
            "the configuration changed outside [[plugin]] and policies.directory; restart to apply it",
        )
        .await;
    assert_eq!(changed["keys"], "delivery.max_batch, policies.rescan_interval", "{changed}");
    kafka().produce_room(&topic, "lobby", "hello").await;
    comet.wait_for(1).await;
    assert!(gateway.sigterm().await.success());
}

#[tokio::test]
async fn the_service_manager_hears_of_start_progress_and_stop() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("notify", 1).await;
    let (_redis, settings) = lobby(&comet, &topic).await;
    let folder = crate::support::folder("notify");
    let path = folder.path().join("notify.sock");
    let socket = tokio::net::UnixDatagram::bind(&path).expect("a socket");
    let gateway = settings
        .environment("NOTIFY_SOCKET", &path.display().to_string())
        .environment("WATCHDOG_USEC", "900000")
        .start()
        .await;
    let heard = async |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let received = tokio::time::timeout(crate::support::PATIENCE, socket.recv(&mut buffer)).await;
            let length = received.unwrap_or_else(|_| panic!("no {wanted}: {gateway:?}")).expect("readable");
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    heard("READY=1").await;
    heard("STATUS=delivering").await;
    heard("WATCHDOG=1").await;
    heard("WATCHDOG=1").await;
    gateway.signal("TERM");
    heard("STOPPING=1").await;
    assert!(gateway.wait().await.success());
}
