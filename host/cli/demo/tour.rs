//! The tour: the steps of the demo, each of which checks its result.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::demo::comets::ReceivedCall;
use crate::cli::demo::environment::{DemoEnvironment, ROOMS, connection_of};
use crate::cli::demo::screen::Screen;
use crate::message::{Audience, RoomId};

/// How long to wait for what should happen.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long to wait for what should not happen.
const QUIET: Duration = Duration::from_millis(300);
/// Messages of the step under load, and the interval between them.
const TRAFFIC: usize = 240;
const TRAFFIC_EVERY: Duration = Duration::from_millis(5);

/// Runs the tour. Returns whether every step passed.
pub(super) async fn run(environment: &mut DemoEnvironment, screen: &Screen) -> anyhow::Result<bool> {
    screen.welcome();
    let mut passed = rooms(environment, screen).await?;
    passed &= users_and_everyone(environment, screen).await?;
    passed &= the_absent(environment, screen).await?;
    passed &= a_policy(environment, screen).await?;
    passed &= a_broken_policy(environment, screen).await?;
    passed &= a_swap_under_load(environment, screen).await?;
    screen.line("");
    let text = if passed { "Every step passed." } else { "Some steps failed; see above." };
    screen.verdict(passed, text);
    Ok(passed)
}

async fn rooms(environment: &mut DemoEnvironment, screen: &Screen) -> anyhow::Result<bool> {
    screen.step(1, "A room's message goes only to the comets that hold the room").await;
    let arrivals = send_and_show(environment, screen, &room("music"), "hello", 2).await?;
    let passed = is(&arrivals, &[(0, "BroadcastRoom", "hello"), (1, "BroadcastRoom", "hello")]);
    screen.verdict(
        passed,
        "one call for each comet, however many of its users are in the room; none to comet 3",
    );
    Ok(passed)
}

async fn users_and_everyone(environment: &mut DemoEnvironment, screen: &Screen) -> anyhow::Result<bool> {
    screen.step(2, "One user, and everyone").await;
    let key = |key: &str| Audience::Keys { server: None, keys: vec![Arc::from(key)] };
    let by_user = send_and_show(environment, screen, &key("erin"), "hi erin", 1).await?;
    let by_connection =
        send_and_show(environment, screen, &key(&connection_of("carol")), "hi carol", 1).await?;
    let everyone =
        send_and_show(environment, screen, &Audience::Everyone { speed: 0 }, "good evening", 3).await?;
    let passed = is(&by_user, &[(2, "PushMsg", "hi erin")])
        && is(&by_connection, &[(1, "PushMsg", "hi carol")])
        && is(&everyone, &[0, 1, 2].map(|comet| (comet, "Broadcast", "good evening")));
    screen.verdict(passed, "found by user id and by connection id; a broadcast reaches every comet");
    Ok(passed)
}

async fn the_absent(environment: &mut DemoEnvironment, screen: &Screen) -> anyhow::Result<bool> {
    screen.step(3, "An absent user gets the message later").await;
    let arrivals = send_and_show(environment, screen, &room("news"), "kick-off at eight", 2).await?;
    let waiting = eventually(async || environment.inbox_of("frank").await == 1).await;
    let expected = [(0, "BroadcastRoom", "kick-off at eight"), (2, "BroadcastRoom", "kick-off at eight")];
    let passed = is(&arrivals, &expected) && waiting;
    screen.verdict(
        passed,
        "frank is away: the message waits in his inbox (a policy could notify him, or drop it)",
    );
    screen.note("frank returns: his inbox is replayed over his new connection");
    let pushed = environment.come_back("frank").await?;
    let missed = environment.arrival(PATIENCE).await;
    missed.iter().for_each(|arrival| screen.arrived(arrival));
    let missed: Vec<_> = missed.into_iter().collect();
    let returned = pushed == 1 && is(&missed, &[(2, "PushMsg", "kick-off at eight")]);
    screen.verdict(returned, "he gets what he missed, with the same id, so that repeats can be dropped");
    Ok(passed && returned)
}

async fn a_policy(environment: &mut DemoEnvironment, screen: &Screen) -> anyhow::Result<bool> {
    screen.step(4, "A policy, dropped in while the gateway runs").await;
    let before = send_and_show(environment, screen, &room("games"), "buy spam now", 2).await?;
    let took = swap(environment, |environment| {
        environment.folder.install_keyword_filter()?;
        environment.folder.mask_with('*')
    })
    .await?;
    screen.note(&format!("keyword_filter.wasm is active after {} ms, without a restart", took.as_millis()));
    let after = send_and_show(environment, screen, &room("games"), "buy spam now", 2).await?;
    let all = |arrivals: &[ReceivedCall], body: &str| {
        arrivals.len() == 2 && arrivals.iter().all(|a| a.body == body)
    };
    let passed = all(&before, "buy spam now") && all(&after, "buy **** now");
    screen.verdict(passed, "the same message, before and after");
    Ok(passed)
}

async fn a_broken_policy(environment: &mut DemoEnvironment, screen: &Screen) -> anyhow::Result<bool> {
    screen.step(5, "A broken policy changes nothing").await;
    let generation = environment.gateway.policies().status().generation;
    environment.folder.break_keyword_filter()?;
    let refused = eventually(async || environment.gateway.policies().status().last_refusal.is_some()).await;
    print_refusal(environment, screen);
    let arrivals = send_and_show(environment, screen, &room("games"), "more spam", 2).await?;
    let still = environment.gateway.policies().status().generation == generation;
    let passed = refused && still && arrivals.iter().all(|arrival| arrival.body == "more ****");
    environment.folder.install_keyword_filter()?;
    screen.verdict(passed, "the previous version stays active, and /v1/plugins says why");
    Ok(passed)
}

async fn a_swap_under_load(environment: &mut DemoEnvironment, screen: &Screen) -> anyhow::Result<bool> {
    screen.step(6, "A swap in the middle of traffic: nothing lost, nothing mixed").await;
    let mut bodies: HashMap<(usize, String), Vec<String>> = HashMap::new();
    let (mut sent, mut expected, mut arrived) = (0, 0, 0);
    let mut ticks = tokio::time::interval(TRAFFIC_EVERY);
    while sent < TRAFFIC {
        ticks.tick().await;
        let name = ROOMS[sent % ROOMS.len()];
        environment.produce(&room(name), &format!("{sent} spam")).await?;
        sent += 1;
        expected += 2;
        if sent == TRAFFIC / 2 {
            environment.folder.mask_with('#')?;
        }
        while let Ok(arrival) = environment.comets.arrivals.try_recv() {
            arrived += 1;
            bodies.entry((arrival.comet, arrival.to)).or_default().push(arrival.body);
        }
        if sent == TRAFFIC {
            screen
                .note(&format!("{sent} messages sent to three rooms, the mask changed from * to # half-way"));
        }
    }
    while arrived < expected {
        let Some(arrival) = environment.arrival(PATIENCE).await else { break };
        arrived += 1;
        bodies.entry((arrival.comet, arrival.to)).or_default().push(arrival.body);
    }
    let extra = environment.arrival(QUIET).await.is_some();
    let (stars, hashes) = bodies.values().flatten().fold((0, 0), |(stars, hashes), body| {
        (stars + usize::from(body.ends_with(" ****")), hashes + usize::from(body.ends_with(" ####")))
    });
    screen.note(&format!(
        "{arrived} of {expected} calls arrived: {stars} from the old version, {hashes} from the new one"
    ));
    let in_order = bodies.values().all(|bodies| is_in_order(bodies));
    let passed = arrived == expected && !extra && stars + hashes == arrived && hashes > 0 && in_order;
    screen.verdict(passed, "all arrived, once, in order, each decided by one version");
    Ok(passed)
}

/// Numbers increase, and no message of the old version follows one of the new.
fn is_in_order(bodies: &[String]) -> bool {
    let number = |body: &String| body.split(' ').next().and_then(|n| n.parse::<usize>().ok());
    let first_new = bodies.iter().position(|body| body.ends_with('#')).unwrap_or(bodies.len());
    bodies.is_sorted_by_key(number) && bodies[first_new..].iter().all(|body| body.ends_with('#'))
}

/// What to try after the tour.
pub(super) fn print_hints(environment: &DemoEnvironment, screen: &Screen) {
    let folder = environment.folder.policies();
    screen.line("");
    screen.line("  The gateway keeps running, with a little traffic, until Ctrl-C. Meanwhile:");
    screen.line(&format!("    drop your own policy (.wasm) into     {}", folder.display()));
    screen.line(&format!(
        "    or change the configuration           {}",
        environment.folder.config().display()
    ));
    screen.line(&format!(
        "    look at it                            curl http://{}/v1/plugins",
        environment.admin
    ));
    screen.line(&format!(
        "    push a version of it                  halley plugin push FILE --gateway unix:{}",
        environment.folder.socket().display()
    ));
    screen.line(&format!("    send your own message                 cargo run --example produce -- --brokers {} room music hello", environment.brokers()));
    screen.line("");
}

/// Produces a little traffic and shows what arrives. Ends only with an error.
pub(super) async fn keep_running(environment: &mut DemoEnvironment, screen: &Screen) -> anyhow::Result<()> {
    let phrases = ["what a goal", "who is playing?", "cheap spam here", "so good", "first!"];
    let mut ticks = tokio::time::interval(Duration::from_secs(2));
    let mut before = environment.gateway.policies().status();
    for number in 0.. {
        ticks.tick().await;
        let (name, body) = (ROOMS[number % ROOMS.len()], phrases[number % phrases.len()]);
        screen.sent(name, body);
        environment.produce(&room(name), body).await?;
        while let Some(arrival) = environment.arrival(Duration::from_millis(500)).await {
            screen.arrived(&arrival);
        }
        let now = environment.gateway.policies().status();
        if now.generation != before.generation {
            let names: Vec<_> = now.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
            screen.note(&format!(
                "policies changed: {} active, as generation {}",
                names.join(", "),
                now.generation
            ));
        } else if now.last_refusal.as_ref().map(|r| r.at) != before.last_refusal.as_ref().map(|r| r.at) {
            print_refusal(environment, screen);
        }
        before = now;
    }
    Ok(())
}

/// Produces a message and shows what arrives: the expected calls and any others.
async fn send_and_show(
    environment: &mut DemoEnvironment,
    screen: &Screen,
    audience: &Audience,
    body: &str,
    expected: usize,
) -> anyhow::Result<Vec<ReceivedCall>> {
    let to = match audience {
        Audience::Room(room) => format!("room {room}"),
        Audience::Keys { keys, .. } => keys.join(", "),
        Audience::Everyone { .. } => "everyone".to_owned(),
    };
    screen.sent(&to, body);
    environment.produce(audience, body).await?;
    let mut arrivals = Vec::new();
    loop {
        let patience = if arrivals.len() < expected { PATIENCE } else { QUIET };
        let Some(arrival) = environment.arrival(patience).await else { break };
        screen.arrived(&arrival);
        arrivals.push(arrival);
    }
    arrivals.sort_by_key(|arrival| arrival.comet);
    Ok(arrivals)
}

/// Why the last candidate was refused, without the path of the demo's own folder.
fn print_refusal(environment: &DemoEnvironment, screen: &Screen) {
    let Some(refusal) = environment.gateway.policies().status().last_refusal else { return };
    let folder = format!("{}/", environment.folder.policies().display());
    for problem in &refusal.errors {
        screen.note(&format!("refused: {}", problem.replace(&folder, "")));
    }
}

/// Changes policies and waits until the change is active.
async fn swap(
    environment: &DemoEnvironment,
    change: impl Fn(&DemoEnvironment) -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let wanted = |environment: &DemoEnvironment| {
        environment.gateway.policies().status().plugins.iter().any(|p| p.name == "keyword-filter")
    };
    let since = Instant::now();
    change(environment)?;
    anyhow::ensure!(eventually(async || wanted(environment)).await, "the policy was not activated");
    Ok(since.elapsed())
}

async fn eventually(condition: impl AsyncFn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

fn is(arrivals: &[ReceivedCall], expected: &[(usize, &str, &str)]) -> bool {
    let shape: Vec<_> = arrivals.iter().map(|a| (a.comet, a.method, a.body.as_str())).collect();
    shape == expected
}

fn room(name: &str) -> Audience {
    Audience::Room(RoomId::from(name))
}
