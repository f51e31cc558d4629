//! The writer with a scripted inbox.

use std::collections::HashMap;

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::super::Unavailable;
use super::super::tests::entry;
use super::*;
use crate::message::UserId;

/// The inbox's reaction to one pipeline.
type InboxScript = Box<dyn FnMut(&[InboxEntry]) -> Result<Stored, PartialStore> + Send>;

/// Records what is stored and reacts as scripted.
struct ScriptedInbox {
    act: Mutex<InboxScript>,
    /// The entries of each pipeline.
    pipelines: Mutex<Vec<Vec<String>>>,
}

#[async_trait]
impl Inbox for ScriptedInbox {
    async fn store(&self, entries: &[InboxEntry]) -> Result<Stored, PartialStore> {
        let names =
            entries.iter().map(|entry| format!("{} {}", entry.user, entry.message.record.origin.offset));
        self.pipelines.lock().push(names.collect());
        // Gives other tasks time to queue their entries.
        tokio::time::sleep(Duration::from_millis(1)).await;
        (self.act.lock())(entries)
    }
}

struct WriterHarness {
    queue: InboxQueue,
    inbox: Arc<ScriptedInbox>,
    _writer: JoinSet<()>,
}

impl WriterHarness {
    fn new(
        store_timeout: Duration,
        act: impl FnMut(&[InboxEntry]) -> Result<Stored, PartialStore> + Send + 'static,
    ) -> Self {
        let inbox = Arc::new(ScriptedInbox { act: Mutex::new(Box::new(act)), pipelines: Mutex::default() });
        let config = Config { store_timeout, ..Config::default() };
        let (queue, writer) = InboxQueue::new(Arc::clone(&inbox), &config);
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run(CancellationToken::new()));
        Self { queue, inbox, _writer: tasks }
    }

    async fn store(&self, entries: Vec<InboxEntry>) -> StoreResult {
        let places = self.queue.places(entries.len()).await.expect("the writer runs");
        places.store(entries, || ()).await.expect("the writer runs")
    }

    /// How often each entry was sent, and the number of pipelines.
    fn written(&self) -> (HashMap<String, usize>, usize) {
        let pipelines = self.inbox.pipelines.lock();
        let mut times = HashMap::new();
        for name in pipelines.iter().flatten() {
            *times.entry(name.clone()).or_default() += 1;
        }
        (times, pipelines.len())
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn full() -> Unavailable {
    Unavailable::simulated_oom("store_offline")
}

#[tokio::test]
async fn many_messages_share_pipelines_and_nothing_is_written_twice() {
    let world = WriterHarness::new(HOUR, |_| Ok(Stored::default()));
    let message = |offset: i64| (0..200).map(move |user| entry(&format!("u{user}"), offset, None)).collect();
    // Few enough to be polled in order.
    let all = (0..25).map(|offset| world.store(message(offset)));
    let stored = futures_util::future::join_all(all).await;
    assert!(stored.iter().all(|stored| *stored == StoreResult::default()));
    let (times, pipelines) = world.written();
    assert_eq!((times.len(), times.values().max()), (5000, Some(&1)));
    assert!(pipelines < 20, "{pipelines} pipelines for 25 messages");
    let pipelines = world.inbox.pipelines.lock();
    let of_one: Vec<_> = pipelines.iter().flatten().filter(|name| name.starts_with("u7 ")).collect();
    let expected: Vec<_> = (0..25).map(|offset| format!("u7 {offset}")).collect();
    assert_eq!(of_one, expected.iter().collect::<Vec<_>>(), "in the order of the queue");
}

#[tokio::test]
async fn the_writer_continues_where_redis_stopped() {
    // A Redis that accepts ten entries per pipeline, and permanently refuses one.
    let world = WriterHarness::new(HOUR, |entries| {
        let never = entries.iter().position(|entry| entry.user.as_str() == "u13");
        let not_stored =
            never.filter(|at| *at < 10).map(|entry| NotStored { entry, reason: "spoilt".into() });
        let not_stored: Vec<_> = not_stored.into_iter().collect();
        if entries.len() <= 10 {
            return Ok(Stored { not_stored, ..Stored::default() });
        }
        Err(PartialStore {
            stored: Box::new(Stored { not_stored, ..Stored::default() }),
            left: (10..entries.len()).collect(),
            error: full(),
        })
    });
    let stored = world.store((0..95).map(|user| entry(&format!("u{user}"), 1, None)).collect()).await;
    assert_eq!(
        stored,
        StoreResult {
            refused: vec![UserId::from("u13")],
            reason: Some("spoilt".into()),
            ..StoreResult::default()
        }
    );
    let pipelines = world.inbox.pipelines.lock();
    let taken: Vec<_> = pipelines.iter().flat_map(|pipeline| pipeline.iter().take(10)).collect();
    let expected: Vec<_> = (0..95).map(|user| format!("u{user} 1")).collect();
    assert_eq!(taken, expected.iter().collect::<Vec<_>>(), "each once, in order");
}

#[tokio::test]
async fn a_pipeline_that_was_too_slow_was_too_large() {
    let world = WriterHarness::new(HOUR, |entries| {
        let error = Unavailable::simulated_timeout("store_offline");
        let left = (0..entries.len()).collect();
        if entries.len() > 5 {
            Err(PartialStore { stored: Box::default(), left, error })
        } else {
            Ok(Stored::default())
        }
    });
    let mut problem = world.queue.problem();
    assert_eq!(
        world.store((0..300).map(|user| entry(&format!("u{user}"), 1, None)).collect()).await,
        StoreResult::default()
    );
    assert_eq!(*problem.borrow_and_update(), None, "the problem is cleared");
}

#[tokio::test]
async fn a_long_refusal_is_given_up_and_retried() {
    let refuses = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let world = WriterHarness::new(Duration::from_millis(300), {
        let refuses = Arc::clone(&refuses);
        move |entries| {
            let left = (0..entries.len()).collect();
            let refused = PartialStore { stored: Box::default(), left, error: full() };
            if refuses.load(Ordering::Relaxed) { Err(refused) } else { Ok(Stored::default()) }
        }
    });
    let begun = tokio::time::Instant::now();
    let ten = || (0..10).map(|user| entry(&format!("u{user}"), 1, None)).collect();
    let mut problem = world.queue.problem();
    let (stored, seen) = tokio::join!(world.store(ten()), async {
        problem.changed().await.expect("the writer runs");
        problem.borrow_and_update().clone()
    });
    assert!(seen.is_some_and(|seen| seen.contains("maxmemory")), "callers learn why");
    assert_eq!(stored.refused.len(), 10);
    assert!(stored.reason.as_ref().is_some_and(|why| why.contains("maxmemory")), "{stored:?}");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(300), "{waited:?}");

    assert_eq!(world.store(ten()).await.refused.len(), 10, "immediately: it still refuses");
    refuses.store(false, Ordering::Relaxed);
    assert_eq!(world.store(ten()).await, StoreResult::default(), "it is tried each time");
}

#[tokio::test]
async fn abandoned_entries_are_not_written() {
    let world = WriterHarness::new(HOUR, |_| Ok(Stored::default()));
    let places = world.queue.places(1).await.expect("the writer runs");
    let mut abandoned = Box::pin(places.store(vec![entry("ann", 1, None)], || ()));
    assert!(futures_util::poll!(&mut abandoned).is_pending());
    drop(abandoned);
    assert_eq!(world.store(vec![entry("bob", 2, None)]).await, StoreResult::default());
    assert_eq!(world.written().0.into_keys().collect::<Vec<_>>(), ["bob 2"]);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let world = WriterHarness::new(HOUR, |_| Ok(Stored::default()));
    let all = world.queue.places(QUEUE_SLOTS).await.expect("the writer runs");
    let one = world.queue.places(1);
    tokio::pin!(one);
    assert!(futures_util::poll!(&mut one).is_pending());
    drop(all);
    assert!(one.await.is_some());
    assert!(world.queue.places(usize::MAX).await.is_some(), "a larger request gets all slots");
}
