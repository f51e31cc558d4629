//! Bringing dead letters back to their topics of origin.
//!
//! # Promises
//! - Only the comets that did not take a message are to have it again, unless all are to.
//! - What is written is the original record (key, value, headers, timestamp, partition) with
//!   the message's id beside it, so that readers recognise the message.
//! - A dead letter counts as done only once the broker has confirmed it. What a filter leaves
//!   out, what is refused and what could not be written stays for another run.
//! - What is written is proven to be redriven: gateways believe no other record that it is.
//! - It is written to topics that the caller allows, whatever letters say of their origin.
//! - Letters go back in the order in which they stand in the dead-letter topic, one batch at a
//!   time: nothing overtakes.
//! - When a topic takes nothing, the rest of that topic waits for another run; other topics go
//!   on.
//! - What is wrong with one letter alone holds up no other: a part of it was left out, it is too
//!   large for its topic, and the like. It is refused by name.
//! - A letter that its topic finds too old (or too new) is written with the time of now, and
//!   has its own in a header.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dead_letter::back::{Restamp, back, destination, prove};
use crate::dead_letter::remembered::Remembered;
use crate::dead_letter::{DeadLetter, Fate, Order, Reader, Summary};
use crate::kafka::{self, NotWritten, OrderedSender, Written, blocking, partitions};

/// The most letters that go back together. A stop waits for them.
const TOGETHER: usize = 200;
/// How often progress is committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Redrives until the end that the topic has now, or until `stop`. `tell` hears of each record.
///
/// # Errors
/// When it cannot begin: Kafka is away, or a property is refused.
pub async fn redrive(
    config: &kafka::Config,
    order: Order,
    tell: &mut (dyn FnMut(&DeadLetter, &Fate) + Send),
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Summary> {
    let Some(mut reader) = Reader::open(config, &order.group).await? else {
        return Ok(Summary { missing: true, ..Summary::default() });
    };
    let topic = &config.dead_letter_topic;
    let remembered = Remembered::load(&mut reader, topic, &order.group).await?;
    if !order.from_start {
        remembered.firsts().for_each(|(partition, next)| reader.records.begin_at(partition, next));
    }
    let summary = Summary { made_again: remembered.made_again(), ..Summary::default() };
    let mut run = Run {
        pace: order.rate.map(Pace::new),
        order,
        dead_letters: topic.as_str(),
        sender: OrderedSender::new(config)?,
        remembered,
        summary,
        targets: HashMap::new(),
        ready: Vec::new(),
        taken: 0,
        next_commit: Instant::now() + COMMIT_EVERY,
        stop: CancellationToken::new(),
        tell,
    };
    let stopped = run.stop.clone();
    let ended = {
        let work = run.everything(&mut reader);
        tokio::pin!(work);
        tokio::select! {
            biased;
            // What is on its way is waited for.
            () = stop => {
                stopped.cancel();
                work.await
            }
            ended = &mut work => ended,
        }
    };
    run.summary.interrupted = stopped.is_cancelled();
    run.broken(ended);
    let saved = run.commit().await;
    run.broken(saved);
    Ok(run.summary)
}

struct Run<'a> {
    order: Order,
    dead_letters: &'a str,
    sender: OrderedSender,
    pace: Option<Pace>,
    remembered: Remembered,
    summary: Summary,
    /// How many partitions each topic of origin has, or why it takes nothing.
    targets: HashMap<Arc<str>, Result<i32, String>>,
    /// What goes back next, in order; all of one topic.
    ready: Vec<DeadLetter>,
    taken: u64,
    next_commit: Instant,
    stop: CancellationToken,
    tell: &'a mut (dyn FnMut(&DeadLetter, &Fate) + Send),
}

impl Run<'_> {
    async fn everything(&mut self, reader: &mut Reader) -> anyhow::Result<()> {
        while let Some(letters) = self.stop.clone().run_until_cancelled(reader.read()).await {
            let letters = letters?;
            if letters.is_empty() {
                break;
            }
            for letter in letters {
                let enough = self.order.limit.is_some_and(|limit| self.taken >= limit);
                if enough || self.stop.is_cancelled() {
                    return self.write().await;
                }
                self.take(letter, reader).await?;
            }
            self.write().await?;
        }
        self.write().await
    }

    /// One dead letter.
    async fn take(&mut self, letter: DeadLetter, reader: &Reader) -> anyhow::Result<()> {
        if !self.order.from_start && self.remembered.contains(&letter) {
            self.summary.before += 1;
            return Ok(());
        }
        if !self.order.filter.means(&letter) {
            self.summary.left_out += 1;
            return Ok(());
        }
        let (dead_letters, allowed) = (self.dead_letters, &self.order.allowed);
        let topic = match destination(&letter, dead_letters, allowed, self.order.all_comets) {
            Ok(topic) => topic,
            Err(why) => return self.refuse(&letter, &why),
        };
        self.taken += 1;
        let known = self.targets.contains_key(&topic);
        let target = match self.targets.get(&topic) {
            Some(target) => target.clone(),
            None => find_target(reader, &topic).await,
        };
        self.targets.insert(Arc::clone(&topic), target.clone());
        match target {
            Ok(_) if self.order.dry_run => self.written(&letter, topic),
            Ok(_) => self.queue(letter, topic).await?,
            Err(why) => self.fail(&letter, why, !known),
        }
        Ok(())
    }

    /// Waits for its turn, and puts it behind those that go back next.
    async fn queue(&mut self, letter: DeadLetter, topic: Arc<str>) -> anyhow::Result<()> {
        let other = self.ready.first().is_some_and(|first| topic_of(first) != topic);
        if other || self.ready.len() >= TOGETHER {
            self.write().await?;
        }
        let due = self.pace.as_mut().map(Pace::turn);
        if let Some(due) = due.filter(|due| *due > Instant::now()) {
            self.write().await?;
            if self.next_commit < due {
                self.commit().await?;
            }
            let wait = tokio::time::sleep_until(due);
            if self.stop.clone().run_until_cancelled(wait).await.is_none() {
                return Ok(());
            }
        }
        self.ready.push(letter);
        Ok(())
    }

    /// Writes what goes back next, and notes what became of it.
    async fn write(&mut self) -> anyhow::Result<()> {
        let letters = std::mem::take(&mut self.ready);
        let Some(topic) = letters.first().map(topic_of) else { return Ok(()) };
        let count = match self.targets.get(&topic).cloned() {
            Some(Ok(count)) => count,
            Some(Err(why)) => {
                letters.iter().for_each(|letter| self.fail(letter, why.clone(), false));
                return Ok(());
            }
            None => 0,
        };
        let key = self.order.key.clone().context("there is no key to prove what is redriven")?;
        let proven = |letter| {
            let mut record = back(letter, count, self.order.all_comets);
            prove(&mut record, &topic, &key);
            record
        };
        let records = letters.iter().map(proven).collect();
        let answers = self.sender.write(&topic, records, &Restamp { topic: &topic, key: &key }).await;
        for (letter, answer) in letters.iter().zip(answers) {
            self.answered(letter, &topic, answer)?;
        }
        if Instant::now() >= self.next_commit { self.commit().await } else { Ok(()) }
    }

    fn answered(
        &mut self,
        letter: &DeadLetter,
        topic: &Arc<str>,
        answer: Result<Written, NotWritten>,
    ) -> anyhow::Result<()> {
        match answer {
            Ok(written) => {
                self.remembered.add(letter);
                self.summary.restamped += u64::from(written == Written::Fitted);
                self.written(letter, Arc::clone(topic));
            }
            Err(NotWritten { refusal: Some(_), reason, .. }) => {
                self.refuse(letter, &format!("topic `{topic}` does not take it: {reason}"))?;
            }
            Err(error) => {
                let before = self.targets.insert(Arc::clone(topic), Err(error.to_string()));
                self.fail(letter, error.to_string(), before.is_none_or(|target| target.is_ok()));
            }
        }
        Ok(())
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        self.next_commit = Instant::now() + COMMIT_EVERY;
        self.summary.forgotten = self.remembered.save().await?;
        Ok(())
    }

    fn written(&mut self, letter: &DeadLetter, topic: Arc<str>) {
        *self.summary.redriven.entry(Arc::clone(&topic)).or_default() += 1;
        (self.tell)(letter, &Fate::Written(topic));
    }

    fn refuse(&mut self, letter: &DeadLetter, why: &str) -> anyhow::Result<()> {
        self.summary.refused += 1;
        (self.tell)(letter, &Fate::Refused(why.to_owned()));
        Ok(())
    }

    fn fail(&mut self, letter: &DeadLetter, why: String, first: bool) {
        self.summary.failed += 1;
        if first {
            (self.tell)(letter, &Fate::Failed(why));
        }
    }

    fn broken(&mut self, ended: anyhow::Result<()>) {
        if let Err(error) = ended {
            self.summary.broken.get_or_insert(format!("{error:#}"));
        }
    }
}

/// Where a letter goes back to.
fn topic_of(letter: &DeadLetter) -> Arc<str> {
    letter.origin.as_ref().map_or_else(|| Arc::from(""), |origin| Arc::clone(&origin.topic))
}

async fn find_target(reader: &Reader, topic: &str) -> Result<i32, String> {
    let name = topic.to_owned();
    match blocking(reader.records.consumer(), move |consumer| partitions(consumer, &name)).await {
        Ok(Some(partitions)) => Ok(i32::try_from(partitions.len()).unwrap_or(i32::MAX)),
        Ok(None) => Err(format!("there is no topic `{topic}`; create it, or leave it out with the filter")),
        Err(error) => Err(format!("topic `{topic}`: {error:#}")),
    }
}

/// Spreads records over time.
struct Pace {
    period: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: NonZeroU32) -> Self {
        Self { period: Duration::from_secs(1) / rate.get(), next: Instant::now() }
    }

    /// When the next record may go. After a stall, a tenth of a second is caught up and no more.
    fn turn(&mut self) -> Instant {
        let now = Instant::now();
        let turn = self.next.max(now.checked_sub(Duration::from_millis(100)).unwrap_or(now));
        self.next = turn + self.period;
        turn
    }
}
