//! The cost of an idle gateway, by thread.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::support::comet::FakeComet;
use crate::support::gateway::gateway;
use crate::support::kafka::kafka;
use crate::support::print_uncaptured;
use crate::support::redis::Redis;

/// How long it is observed.
const WATCHED: Duration = Duration::from_secs(30);

/// CPU time in nanoseconds and number of time slices, by thread name.
fn threads(pid: u32) -> BTreeMap<String, (u64, u64)> {
    let mut threads: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("a running process").flatten() {
        let (Ok(name), Ok(stat)) =
            (fs::read_to_string(task.path().join("comm")), fs::read_to_string(task.path().join("schedstat")))
        else {
            continue;
        };
        let numbers: Vec<u64> = stat.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let of_name = threads.entry(name.trim().to_owned()).or_default();
        *of_name = (of_name.0 + numbers[0], of_name.1 + numbers[2]);
    }
    threads
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: make soak"]
async fn an_idle_gateway_costs_little() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let topic = kafka().topic("soak-nothing", 4).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    kafka().create_topic(&format!("{topic}.offline"), 1).await;
    let gateway = gateway(&topic).redis(&redis).node(&comet).start().await;
    kafka().produce_everyone(&topic, 0, "one").await;
    gateway.wait_until_settled(&topic).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = threads(gateway.pid());
    tokio::time::sleep(WATCHED).await;
    let after = threads(gateway.pid());
    let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / WATCHED.as_secs_f64();
    let mut lines: Vec<_> = after
        .iter()
        .map(|(name, (time, turns))| {
            let (time_then, turns_then) = before.get(name).copied().unwrap_or_default();
            (per_second(*time, time_then) / 1e6, per_second(*turns, turns_then), name)
        })
        .collect();
    lines.sort_by(|one, other| other.0.total_cmp(&one.0));
    let (time, turns) = lines.iter().fold((0.0, 0.0), |(time, turns), line| (time + line.0, turns + line.1));
    let line = |(time, turns, name): &(f64, f64, &String)| {
        format!("\n  {time:7.3} ms/s {turns:7.1} turns/s  {name}")
    };
    let lines: String = lines.iter().map(line).collect();
    print_uncaptured(format_args!("idle: {time:.1} ms of CPU a second, {turns:.0} turns a second{lines}"));
    assert!(time < 100.0, "{time} ms/s");
}
