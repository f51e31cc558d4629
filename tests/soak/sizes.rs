//! Records of reported sizes, with the memory they take, and a comet without traffic for long.

use std::time::{Duration, Instant};

use halley::message::{Audience, encode};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::support::comet::To;
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::peers::{PeerComet, Stack};
use crate::support::redis::Redis;
use crate::support::{eventually, eventually_eq, print_uncaptured, resident_kib};

/// Maximum duration of one run, on a busy machine.
const LONG: Duration = Duration::from_secs(600);

/// The peak memory of a process, in MiB.
fn peak_mib(gateway: &RunningGateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// Waits until everything is settled, and prints the time and the memory it took.
async fn measure(what: &str, gateway: &RunningGateway, topic: &str, since: Instant) -> u64 {
    let settled =
        async || (kafka().committed(gateway.group(), topic).await == kafka().ends(topic)).then_some(());
    eventually("everything to be settled", LONG, settled).await;
    let (peak, now) = (peak_mib(gateway), resident_kib(gateway.pid()) / 1024);
    print_uncaptured(format_args!("{what}: {:.1?}, at most {peak} MiB, then {now} MiB", since.elapsed()));
    peak
}

async fn many_keys(what: &str, settings: Gateway, redis: &Redis, topic: &str) -> u64 {
    let letters: Vec<char> = ('0'..='9').chain('a'..='z').chain('A'..='Z').collect();
    let key =
        |n: usize| [n / 3_844, n / 62 % 62, n % 62].map(|digit| letters[digit]).iter().collect::<String>();
    let keys = (0..170_000).map(|n| key(n).as_str().into()).collect();
    let value = encode(&Audience::Keys { server: None, keys }, 4, b"hi");
    assert!(value.len() > 800_000, "{}", value.len());
    for _ in 0..40 {
        kafka().produce_record(topic, None, Some(&value), &[]).await;
    }
    let since = Instant::now();
    let gateway = settings.redis(redis).set("offline", "default", quoted("drop")).start().await;
    measure(what, &gateway, topic, since).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn records_of_170_000_keys_stay_below_the_memory_limit() {
    let redis = Redis::start().await;
    let topic = || kafka().topic("soak-keys", 1);
    let refused = topic().await;
    let what = "40 records of 850 KB with 170,000 keys, by default (dead letters)";
    let peak = many_keys(what, gateway(&refused), &redis, &refused).await;
    assert!(peak < 512, "{peak} MiB");
    assert_eq!(kafka().read_all(&format!("{refused}.dead-letter")).len(), 40);
    let taken = topic().await;
    let settings =
        gateway(&taken).set("delivery", "max_keys", 200_000).set("delivery", "memory_limit", quoted("1GiB"));
    let peak =
        many_keys("the same with max_keys = 200000 and a limit of 1 GiB", settings, &redis, &taken).await;
    assert!(peak < 1024, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn records_of_100_000_headers_count_what_they_cost() {
    let mut redis = Redis::not_started();
    let topic = kafka().topic("soak-headers", 1).await;
    let value = encode(&Audience::Room("nobody".into()), 4, b"hi");
    let headers = vec![("", ""); 100_000];
    for _ in 0..300 {
        kafka().produce_record(&topic, None, Some(&value), &headers).await;
    }
    let since = Instant::now();
    let settings = gateway(&topic)
        .redis(&redis)
        .set("delivery", "max_headers", 200_000)
        .set("delivery", "max_header_bytes", quoted("8MiB"))
        .set("delivery", "max_in_flight_bytes", quoted("1MiB"));
    let gateway = settings.start_unready().await;
    let paused = async || gateway.metric("halley_partitions_paused").await;
    eventually_eq("paused partitions", Some(1.0), paused).await;
    eventually("/readyz to name Redis", LONG, async || {
        gateway.get("/readyz").await.body.contains("redis").then_some(())
    })
    .await;
    let held = peak_mib(&gateway);
    redis.restart().await;
    let what = format!("300 records with 100,000 headers, Redis away at first ({held} MiB then)");
    let peak = measure(&what, &gateway, &topic, since).await;
    assert!(peak < 512, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn a_record_that_decompresses_to_400_mb_is_not_copied() {
    let topic = kafka().topic("soak-gzip", 1).await;
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka().brokers())
        .set("compression.codec", "gzip")
        .set("message.max.bytes", "900000000")
        .set("queue.buffering.max.kbytes", "2000000")
        .set("message.timeout.ms", "300000")
        .create()
        .expect("a producer");
    let large = vec![0; 400_000_000];
    let record: FutureRecord<'_, str, [u8]> = FutureRecord::to(&topic).payload(&large);
    producer.send(record, LONG).await.expect("its topic takes it");
    drop((producer, large));
    let since = Instant::now();
    let gateway = gateway(&topic).start().await;
    let peak = measure("a gzip record of 400 MB", &gateway, &topic, since).await;
    assert!(peak < 560, "{peak} MiB");
    assert_eq!(kafka().read_all(&format!("{topic}.dead-letter")).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn an_idle_foreign_comet_keeps_its_connection_for_39_s() {
    for stack in [Stack::GrpcGo, Stack::GrpcCore] {
        let Some(comet) = PeerComet::start(stack).await else { continue };
        let topic = kafka().topic("soak-idle", 1).await;
        let gateway = gateway(&topic).node_at(comet.address()).start().await;
        kafka().produce_everyone(&topic, 0, "before").await;
        gateway.wait_until_settled(&topic).await;
        tokio::time::sleep(Duration::from_secs(39)).await;
        kafka().produce_everyone(&topic, 0, "after").await;
        gateway.wait_until_settled(&topic).await;
        let everyone = To::Everyone { speed: 0 };
        comet.wait_for_deliveries(&[(everyone.clone(), 4, "before"), (everyone, 4, "after")]).await;
        let of = |name: &str| format!("{name}{{comet=\"{}\"}}", comet.address());
        assert_eq!(gateway.metric(&of("halley_comet_retries_total")).await, Some(0.0));
        assert_eq!(gateway.metric(&of("job_dispatch_failed_total")).await, Some(0.0));
        if stack == Stack::GrpcGo {
            assert_eq!(comet.connections(), (1, 0), "the same connection");
        }
        print_uncaptured(format_args!("{stack:?}: 39 s without a call, then one: no retry, no failure"));
    }
}
