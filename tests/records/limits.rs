//! Oversized records.

use halley::message::{Audience, encode};

use crate::support::comet::{Behaviour, FakeComet, To};
use crate::support::gateway::{Gateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::peers::{Outgoing, Producer};
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq};

/// Peak memory of a process, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn keys(count: usize) -> Audience {
    Audience::Keys { server: None, keys: (0..count).map(|n| format!("key-{n}").into()).collect() }
}

#[tokio::test]
async fn oversized_parts_of_a_record_are_left_out_and_named() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("too-large", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let settings = gateway(&topic)
        .node(&comet)
        .set("delivery", "max_record", quoted("100KiB"))
        .set("delivery", "max_keys", 1000)
        .set("delivery", "max_headers", 10)
        .set("delivery", "max_header_bytes", quoted("1KiB"));
    let running = settings.start().await;

    let large = encode(&Audience::Everyone { speed: 0 }, 4, &[b'x'; 200 * 1024]);
    let id = kafka().produce_record(&topic, Some("k"), Some(&large), &[("trace", "1")]).await;
    let many = encode(&keys(1001), 4, b"hi");
    kafka().produce_record(&topic, None, Some(&many), &[]).await;
    let good = encode(&Audience::Everyone { speed: 0 }, 4, b"good");
    kafka().produce_record(&topic, None, Some(&good), &[("", ""); 11]).await;
    kafka().produce_record(&topic, None, Some(&good), &[("trace", &"x".repeat(1024))]).await;
    kafka().produce_record(&topic, None, Some(&good), &[]).await;
    running.wait_until_settled(&topic).await;
    comet.wait_for_deliveries(&[(To::Everyone { speed: 0 }, 4, "good")]).await;

    let mut letters = kafka().read_all(&dead_letters);
    letters.sort_by_key(|letter| letter.header("halley-origin-offset"));
    let headers = |name: &str| -> Vec<String> {
        letters.iter().map(|letter| letter.header(name).unwrap_or_default()).collect()
    };
    let [value, keys, count, bytes] = &headers("halley-reason")[..] else { panic!("{letters:#?}") };
    assert!(value.contains("larger than `[delivery] max_record`"), "{value}");
    assert!(keys.contains("1001 keys; `[delivery] max_keys` is 1000"), "{keys}");
    assert!(count.contains("11 headers") && count.contains("max_headers"), "{count}");
    assert!(bytes.contains("max_header_bytes"), "{bytes}");
    assert_eq!(headers("halley-message-id")[0], id, "as if the value were there");
    assert!(letters[0].value.as_deref().unwrap_or_default().is_empty());
    assert!(headers("halley-value-left-out")[0].starts_with(&format!("{} bytes, sha256 ", large.len())));
    assert_eq!(headers("trace"), ["1", "", "", ""]);
    assert_eq!(letters[2].value.as_deref(), Some(&good[..]));
}

/// Records with many unknown keys.
async fn keys_of_nobody(settings: Gateway, topic: &str, records: usize) -> (u64, u64) {
    let running = settings.start().await;
    let before = peak_kib(running.pid());
    let value = encode(&keys(50_000), 4, b"hi");
    for _ in 0..records {
        kafka().produce_record(topic, None, Some(&value), &[]).await;
    }
    running.wait_until_settled(topic).await;
    assert_eq!(running.get("/readyz").await.status, 200);
    (before, peak_kib(running.pid()))
}

#[tokio::test]
async fn records_of_many_keys_stay_below_the_memory_limit() {
    let redis = Redis::start().await;
    let topic = kafka().topic("many-keys", 1).await;
    let settings = gateway(&topic)
        .redis(&redis)
        .set("offline", "default", quoted("drop"))
        .set("delivery", "max_keys", 100_000)
        .set("delivery", "memory_limit", quoted("128MiB"));
    let (before, peak) = keys_of_nobody(settings, &topic, 12).await;
    assert!(peak < 128 * 1024, "{before} KiB before, then {peak} KiB");
}

#[tokio::test]
async fn near_the_memory_limit_admission_pauses_and_resumes() {
    const RECORDS: usize = 100;
    let comet = FakeComet::start().await;
    let topic = kafka().topic("short-memory", 1).await;
    // An unoptimised binary occupies 50 MiB by itself, most of it its own file.
    let settings = gateway(&topic)
        .node(&comet)
        .set("delivery", "memory_limit", quoted("80MiB"))
        .set("delivery", "request_timeout", quoted("2s"))
        .set("delivery", "delivery_timeout", quoted("120s"))
        .set("comets", "breaker_window", quoted("120s"));
    comet.behave(Behaviour::Hang);
    let running = settings.start().await;
    let body = vec![b'x'; 500 * 1024];
    for _ in 0..RECORDS {
        kafka().produce_everyone(&topic, 0, &body).await;
    }
    let stopped = async || running.metric("halley_memory_admission_stopped").await;
    eventually_eq("admission", Some(1.0), stopped).await;
    let problem = async || running.get("/readyz").await.body.contains("memory: ").then_some(());
    eventually("/readyz to name it", PATIENCE, problem).await;
    let peak = peak_kib(running.pid());
    assert!(peak < 128 * 1024, "{peak} KiB, of {} KiB in records", RECORDS * 500);

    comet.behave(Behaviour::Ok);
    running.wait_until_settled(&topic).await;
    eventually_eq("admission", Some(0.0), stopped).await;
    running.wait_until_ready().await;
}

#[tokio::test]
async fn oversized_unpacked_records_are_not_copied() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("unpacked", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let Some(producer) = Producer::new(kafka().brokers(), &topic).await else { return };
    let running = gateway(&topic).node(&comet).start().await;
    let before = peak_kib(running.pid());
    const UNPACKED: usize = 80_000_000;
    let gzip = producer.compression("gzip").batch_bytes(2 * UNPACKED);
    gzip.write(&[Outgoing::new(b"").zeros(UNPACKED)]).await;
    kafka().produce_everyone(&topic, 0, "after it").await;
    running.wait_until_settled(&topic).await;
    comet.wait_for_deliveries(&[(To::Everyone { speed: 0 }, 4, "after it")]).await;

    let left_out = kafka().read_all(&dead_letters)[0].header("halley-value-left-out").unwrap_or_default();
    assert!(left_out.starts_with("80000000 bytes, sha256 "), "{left_out}");
    // Kafka's client unpacks it once; a copy would double that.
    let grown = peak_kib(running.pid()) - before;
    assert!(grown * 1024 < UNPACKED as u64 * 8 / 5, "{grown} KiB more than the {before} KiB before");
}
