//! One question for all that wait for its answer.
//!
//! Whoever comes while a question is under way needs the next one, which is asked once for all of them.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Questions, numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    /// The latest one that was begun.
    begun: AtomicU64,
    /// The latest one that was answered, and how; held while one is under way.
    answered: Mutex<(u64, bool)>,
}

impl Confirmations {
    /// Waits for a question that is asked after this call, and returns its answer.
    pub(super) async fn next<F: Future<Output = bool>>(&self, ask: impl FnOnce() -> F) -> bool {
        let needed = self.begun.load(Ordering::Acquire) + 1;
        let mut answered = self.answered.lock().await;
        if answered.0 >= needed {
            return answered.1;
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        *answered = (number, ask().await);
        answered.1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn those_that_wait_share_the_next_question() {
        let confirmations = Arc::new(Confirmations::default());
        let (asked, answers) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let mut waiting = JoinSet::new();
        let mut wait = || {
            let (confirmations, asked, answers) = (confirmations.clone(), asked.clone(), answers.clone());
            waiting.spawn(async move {
                let ask = || async {
                    asked.fetch_add(1, Ordering::SeqCst);
                    answers.acquire().await.expect("not closed").forget();
                    true
                };
                assert!(confirmations.next(ask).await);
            });
        };
        wait();
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (0..100).for_each(|_| wait());
        tokio::time::sleep(Duration::from_millis(20)).await;
        answers.add_permits(101);
        while waiting.join_next().await.transpose().expect("no panic").is_some() {}
        assert_eq!(asked.load(Ordering::SeqCst), 2, "the second one is for a hundred");
    }
}
