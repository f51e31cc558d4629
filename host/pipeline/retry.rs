//! Retries work until it succeeds or its partition is cancelled, for example while Redis or Kafka
//! is unreachable. Records are held, never dropped. [`Stalls`] lists what is held, and why.

use std::fmt::Display;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::stalls::{HeldRecord, StallGuard, StallStage, Stalls};

/// The partition was cancelled before the work was done; its records are delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cancelled;

/// With the clients' own back-off of half a second, work resumes within a second after the
/// server is reachable again.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));

/// The record, or the first one of a batch, that is held while work is retried.
#[derive(Clone, Copy)]
pub(super) struct HoldContext<'a> {
    pub(super) stalls: &'a Stalls,
    pub(super) topic: &'a Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: Option<i64>,
    pub(super) cancel: &'a CancellationToken,
}

/// One piece of work at one stage that is retried. It is one stall from its first failure until it
/// is dropped, however many calls it takes: a policy that stalls between two successful look-ups
/// has not recovered in between.
pub(super) struct Retry<'a> {
    hold: HoldContext<'a>,
    stage: StallStage,
    since: Instant,
    backoff: Backoff,
    stall: Option<StallGuard>,
}

impl<'a> Retry<'a> {
    pub(super) fn new(hold: HoldContext<'a>, stage: StallStage) -> Self {
        Self { hold, stage, since: Instant::now(), backoff: BACKOFF, stall: None }
    }

    /// Tries until `attempt` succeeds or the partition is abandoned.
    pub(super) async fn until_done<T, E: Display, F: Future<Output = Result<T, E>>>(
        &mut self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Cancelled> {
        let cancel = self.hold.cancel;
        loop {
            let result = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(self.cancelled()),
                result = attempt() => result,
            };
            match result {
                Ok(done) => return Ok(done),
                Err(error) => self.failed(&error),
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(self.cancelled()),
                () = tokio::time::sleep(self.backoff.next_wait(fastrand::f64())) => {}
            }
        }
    }

    fn failed(&mut self, error: &dyn Display) {
        let HoldContext { stalls, topic, partition, offset, .. } = self.hold;
        let begin = || {
            let held = HeldRecord { stage: self.stage, topic: Arc::clone(topic), partition, offset };
            stalls.begin_since(held, self.since)
        };
        self.stall.get_or_insert_with(begin).set_cause(error);
    }

    fn cancelled(&mut self) -> Cancelled {
        if let Some(stall) = self.stall.take() {
            stall.cancel();
        }
        Cancelled
    }
}

/// Tries until `attempt` succeeds or the partition is abandoned.
pub(super) async fn retry_until_cancelled<T, E: Display, F: Future<Output = Result<T, E>>>(
    hold: HoldContext<'_>,
    stage: StallStage,
    attempt: impl FnMut() -> F,
) -> Result<T, Cancelled> {
    Retry::new(hold, stage).until_done(attempt).await
}

/// Waits for work that another task retries, and reports a stall while that task has a `problem`.
pub(super) async fn wait_while_held<T>(
    hold: HoldContext<'_>,
    stage: StallStage,
    mut problem: watch::Receiver<Option<Arc<str>>>,
    work: impl Future<Output = T>,
) -> Result<T, Cancelled> {
    let mut retry = Retry::new(hold, stage);
    let mut work = pin!(work);
    loop {
        let cause = problem.borrow_and_update().clone();
        match cause {
            Some(cause) => retry.failed(&cause),
            None => drop(retry.stall.take()),
        }
        tokio::select! {
            biased;
            () = hold.cancel.cancelled() => return Err(retry.cancelled()),
            done = &mut work => return Ok(done),
            changed = problem.changed() => if changed.is_err() {
                // No task is left to report a problem: the work finishes without it.
                break;
            },
        }
    }
    tokio::select! {
        () = hold.cancel.cancelled() => Err(retry.cancelled()),
        done = work => Ok(done),
    }
}

/// Waits for what others do, which may take long without a failure here: what takes longer than
/// `usual` holds the record, and `cause` says what is waited for.
pub(super) async fn hold_behind<T>(
    hold: HoldContext<'_>,
    stage: StallStage,
    usual: Duration,
    cause: impl Fn() -> String,
    work: impl Future<Output = T>,
) -> Result<T, Cancelled> {
    let mut retry = Retry::new(hold, stage);
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            () = hold.cancel.cancelled() => return Err(retry.cancelled()),
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(usual) => retry.failed(&cause()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        stalls: Stalls,
        topic: Arc<str>,
        cancel: CancellationToken,
    }

    impl World {
        fn new() -> Self {
            Self { stalls: Stalls::default(), topic: "push".into(), cancel: CancellationToken::new() }
        }

        fn hold(&self) -> HoldContext<'_> {
            let Self { stalls, topic, cancel } = self;
            HoldContext { stalls, topic, partition: 3, offset: Some(42), cancel }
        }
    }

    #[tokio::test]
    async fn it_retries_until_it_succeeds() {
        let world = World::new();
        let mut left = 3;
        let attempt = || {
            left -= 1;
            let result = if left == 0 { Ok("done") } else { Err("away") };
            async move { result }
        };
        assert_eq!(retry_until_cancelled(world.hold(), StallStage::Guard, attempt).await, Ok("done"));
        assert_eq!(world.stalls.held(), 0, "the problem is cleared");
    }

    #[tokio::test]
    async fn it_stops_when_the_partition_is_cancelled() {
        let world = World::new();
        let attempt = || {
            world.cancel.cancel();
            async { Err::<(), _>("away") }
        };
        assert_eq!(retry_until_cancelled(world.hold(), StallStage::Guard, attempt).await, Err(Cancelled));
        assert_eq!(world.stalls.held(), 0);
    }

    #[tokio::test]
    async fn waiting_for_another_task_is_a_stall_while_it_has_a_problem() {
        // Long enough for the other future to be polled, whichever is polled first.
        let others_turn = async || {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        };
        let world = World::new();
        let (tell, problem) = watch::channel(None);
        let (done, work) = tokio::sync::oneshot::channel();
        let waits = wait_while_held(world.hold(), StallStage::Inbox, problem, work);
        let trace = async {
            assert_eq!(world.stalls.held(), 0, "nothing is wrong");
            tell.send_replace(Some("full".into()));
            others_turn().await;
            assert_eq!(world.stalls.held(), 1);
            tell.send_replace(None);
            others_turn().await;
            assert_eq!(world.stalls.held(), 0, "the problem is cleared");
            tell.send_replace(Some("full".into()));
            drop(tell);
            others_turn().await;
            done.send("done").expect("somebody waits");
        };
        assert_eq!(tokio::join!(waits, trace).0, Ok(Ok("done")));
        assert_eq!(world.stalls.held(), 0);
    }

    #[tokio::test]
    async fn who_waits_long_for_others_holds_its_record_and_says_for_what() {
        let world = World::new();
        let usual = Duration::from_millis(1);
        let (done, work) = tokio::sync::oneshot::channel();
        let cause = || "room `r` is being looked up for push/1: waiting for that".to_owned();
        let waits = hold_behind(world.hold(), StallStage::Resolve, usual, cause, work);
        let trace = async {
            assert_eq!(world.stalls.held(), 0, "that is what it takes usually");
            while world.stalls.held() == 0 {
                tokio::time::sleep(usual).await;
            }
            done.send("done").expect("somebody waits");
        };
        assert_eq!(tokio::join!(waits, trace).0, Ok(Ok("done")));
        assert_eq!(world.stalls.held(), 0, "the problem is cleared");
    }

    #[tokio::test]
    async fn a_success_on_the_way_ends_no_stall() {
        let world = World::new();
        let mut retry = Retry::new(world.hold(), StallStage::Policy);
        for _ in 0..2 {
            let mut failed = false;
            let attempt = || {
                let result = if std::mem::replace(&mut failed, true) { Ok(()) } else { Err("stalled") };
                async move { result }
            };
            assert_eq!(retry.until_done(attempt).await, Ok(()));
            assert_eq!(world.stalls.held(), 1, "the same stall");
        }
        let third = BACKOFF.wait_after(3, 1.0);
        assert_eq!(retry.backoff.next_wait(1.0), third, "it backs off");
        drop(retry);
        assert_eq!(world.stalls.held(), 0);
    }
}
