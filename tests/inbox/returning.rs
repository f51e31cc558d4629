//! Users who return while messages keep coming, through the example comet: nothing falls between what is
//! replayed and what is live.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::browser::{Browser, example};
use crate::support::child_process::ChildProcess;
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder, free_port, http};

/// Users, each alone in a room, and messages for each of them.
const USERS: usize = 20;
const MESSAGES: usize = 60;

/// What a user's browser shows, until it has everything.
async fn everything(mut browser: Browser, user: usize) -> (usize, usize) {
    let (mut seen, mut missed) = (BTreeSet::new(), 0);
    while seen.len() < MESSAGES {
        let event = browser.next().await;
        let Some(body) = event["body"].as_str() else { continue };
        assert!(seen.insert(body.to_owned()), "user {user} got {body} twice: the comet drops repeats");
        missed += usize::from(event["missed"] == true);
    }
    (user, missed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_falls_between_replay_and_live() {
    let redis = Redis::start().await;
    let [grpc, web, api] = [(); 3].map(|()| format!("127.0.0.1:{}", free_port()));
    let url = format!("http://{api}");
    let args =
        ["--listen", &grpc, "--http", &web, "--redis", redis.url(), "--inbox", &url].map(str::to_owned);
    let mut comet = ChildProcess::start(&example("comet"), &args, folder("example")).expect("starts");
    eventually("the page", PATIENCE, async || http::get(&web, "/").await.ok()).await;
    for user in 0..USERS {
        redis.join(&format!("room_{user}"), &format!("old_{user}"), &format!("user_{user}"), &grpc).await;
        redis.offline(&format!("user_{user}")).await;
    }
    let topic = Arc::new(kafka().topic("returning", 4).await);
    // For a while after a return, the cached route of the room says that the user is away.
    let settings = gateway(&topic).redis(&redis).set("api", "listen", quoted(&api));
    let gateway = settings
        .set("routing.cache", "exact", quoted("off"))
        .set("routing.cache", "max_age", quoted("300ms"))
        .start()
        .await;

    let produced = Arc::new(AtomicBool::new(false));
    let producing = {
        let (topic, produced) = (Arc::clone(&topic), Arc::clone(&produced));
        async move {
            for number in 0..MESSAGES {
                for user in 0..USERS {
                    kafka().produce_room(&topic, &format!("room_{user}"), number.to_string()).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            produced.store(true, Ordering::Relaxed);
        }
    };
    let mut browsers = JoinSet::new();
    let returning = async {
        for user in 0..USERS {
            // One after another, in the middle of the traffic.
            let stored = format!("halley:inbox:user_{user}");
            let is_away = async || {
                let some = redis.stream(&stored).await.len() > user * 2;
                (some || produced.load(Ordering::Relaxed)).then_some(())
            };
            eventually("something to be missed", PATIENCE, is_away).await;
            let browser = Browser::enter(&web, &format!("room_{user}"), &format!("user_{user}")).await;
            browsers.spawn(everything(browser, user));
        }
    };
    tokio::join!(producing, returning);
    let mut missed = 0;
    while let Some(ended) = browsers.join_next().await {
        let (user, count) = ended.expect("every browser gets everything");
        assert!(count > 0, "user {user} missed nothing");
        missed += count;
    }
    gateway.wait_until_settled(&topic).await;
    let handed_over = gateway.metric(r#"halley_offline_handed_over_total{outcome="delivered"}"#).await;
    assert!(handed_over > Some(0.0), "some were stored while their user returned; {missed} were missed");
    comet.signal("TERM");
    assert!(comet.wait(PATIENCE).await.is_some_and(|status| status.success()), "{}", comet.log());
}
