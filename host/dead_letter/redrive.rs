//! Bringing dead letters back to their topics of origin.
//!
//! # Promises
//! - What is written is the original record (key, value, headers, timestamp, partition) with
//!   the message's id beside it, so that readers recognise the message.
//! - A dead letter counts as done only once the broker has confirmed it. What a filter leaves
//!   out, what is refused and what could not be written stays for another run.
//! - When a topic takes nothing, the rest of that topic waits for another run, so that nothing
//!   overtakes; other topics go on.
//! - What is wrong with one letter alone holds up no other: its value was left out, it is too
//!   large for its topic, and the like. It is refused by name.
//! - A letter that its topic finds too old (or too new) is written with the time of now, and
//!   has its own in a header. It may come after those that were in flight beside it.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::dead_letter::back::{back, back_without_time};
use crate::dead_letter::remembered::Remembered;
use crate::dead_letter::{DeadLetter, Fate, Order, Reader, Summary};
use crate::kafka::{self, NotWritten, Refusal, Sender, blocking, partitions};
use crate::message::Origin;

/// Records that wait for their confirmation. librdkafka sends five at a time to each broker;
/// all of these must have their turn within one attempt, even when each is refused.
const IN_FLIGHT: usize = 100;
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
    let remembered = Remembered::load(&reader, topic, &order.group).await?;
    if !order.from_start {
        remembered.firsts().for_each(|(partition, next)| reader.records.begin_at(partition, next));
    }
    // Not in batches: what the broker refuses is one letter then, and nothing overtakes.
    let sender = Arc::new(Sender::one_by_one(config)?);
    let mut run = Run {
        pace: order.rate.map(Pace::new),
        order,
        dead_letters: topic.as_str(),
        sender,
        remembered,
        summary: Summary::default(),
        targets: HashMap::new(),
        in_flight: FuturesUnordered::new(),
        taken: 0,
        next_commit: Instant::now() + COMMIT_EVERY,
        tell,
    };
    tokio::select! {
        biased;
        () = stop => run.summary.interrupted = true,
        ended = run.everything(&mut reader) => run.broken(ended),
    }
    let finished = run.finish().await;
    run.broken(finished);
    Ok(run.summary)
}

type Confirmation = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What the broker said.
struct Answer {
    letter: DeadLetter,
    result: Result<(), NotWritten>,
    /// It went without its time.
    restamped: bool,
}

struct Run<'a> {
    order: Order,
    dead_letters: &'a str,
    sender: Arc<Sender>,
    pace: Option<Pace>,
    remembered: Remembered,
    summary: Summary,
    /// How many partitions each topic of origin has, or why it takes nothing.
    targets: HashMap<Arc<str>, Result<i32, String>>,
    in_flight: FuturesUnordered<Confirmation>,
    taken: u64,
    next_commit: Instant,
    tell: &'a mut (dyn FnMut(&DeadLetter, &Fate) + Send),
}

impl Run<'_> {
    async fn everything(&mut self, reader: &mut Reader) -> anyhow::Result<()> {
        loop {
            let letters = reader.read().await?;
            if letters.is_empty() {
                return Ok(());
            }
            for letter in letters {
                if self.order.limit.is_some_and(|limit| self.taken >= limit) {
                    return Ok(());
                }
                self.take(letter, reader).await?;
            }
        }
    }

    /// One dead letter. Cancelled at any wait, it has not happened.
    async fn take(&mut self, letter: DeadLetter, reader: &Reader) -> anyhow::Result<()> {
        let at = &letter.record.origin;
        if !self.order.from_start && self.remembered.contains(at.partition, at.offset) {
            self.summary.before += 1;
            return Ok(());
        }
        if !self.order.filter.means(&letter) {
            self.summary.left_out += 1;
            return Ok(());
        }
        let topic = match &letter.origin {
            Some(origin) if *origin.topic != *self.dead_letters => Arc::clone(&origin.topic),
            Some(_) => return self.refuse(&letter, "it comes from the dead-letter topic itself"),
            None => return self.refuse(&letter, "it has no `halley-origin-topic` header"),
        };
        if let Some(why) = &letter.value_left_out {
            let origin = letter.origin.as_ref().map(Origin::to_string).unwrap_or_default();
            let why = format!("its value was left out ({why}); it may still stand at {origin}");
            return self.refuse(&letter, &why);
        }
        self.taken += 1;
        let known = self.targets.contains_key(&topic);
        let target = match self.targets.get(&topic) {
            Some(target) => target.clone(),
            None => find_target(reader, &topic).await,
        };
        self.targets.insert(Arc::clone(&topic), target.clone());
        match target {
            Ok(_) if self.order.dry_run => self.written(&letter, topic),
            Ok(count) => self.write(letter, topic, count).await?,
            Err(why) => self.fail(&letter, why, !known),
        }
        Ok(())
    }

    /// Waits for its turn and puts it on its way.
    async fn write(&mut self, letter: DeadLetter, topic: Arc<str>, count: i32) -> anyhow::Result<()> {
        while self.in_flight.len() >= IN_FLIGHT {
            self.confirm_one().await?;
        }
        if let Some(due) = self.pace.as_mut().map(Pace::turn) {
            self.wait_until(due).await?;
        }
        let confirmed = self.sender.enqueue(&topic, back(&letter, count));
        let sender = Arc::clone(&self.sender);
        self.in_flight.push(Box::pin(async move {
            let mut result = confirmed.await;
            let restamped = matches!(&result, Err(error) if error.refusal == Some(Refusal::Timestamp));
            if restamped {
                result = sender.enqueue(&topic, back_without_time(&letter, count)).await;
            }
            Answer { letter, result, restamped }
        }));
        Ok(())
    }

    /// Confirmations are noticed and committed while it waits.
    async fn wait_until(&mut self, due: Instant) -> anyhow::Result<()> {
        loop {
            let commit = self.next_commit;
            tokio::select! {
                () = tokio::time::sleep_until(due) => return Ok(()),
                done = self.confirm_one(), if !self.in_flight.is_empty() => done?,
                () = tokio::time::sleep_until(commit), if commit < due => self.commit().await?,
            }
        }
    }

    async fn confirm_one(&mut self) -> anyhow::Result<()> {
        let Some(Answer { letter, result, restamped }) = self.in_flight.next().await else { return Ok(()) };
        let topic = letter.origin.as_ref().map_or_else(|| Arc::from(""), |origin| Arc::clone(&origin.topic));
        match result {
            Ok(()) => {
                let at = letter.record.origin.clone();
                self.remembered.add(at.partition, at.offset);
                self.summary.restamped += u64::from(restamped);
                self.written(&letter, topic);
            }
            Err(NotWritten { refusal: Some(_), reason, .. }) => {
                self.refuse(&letter, &format!("topic `{topic}` does not take it: {reason}"))?;
            }
            Err(error) => {
                let first = self.targets.insert(topic, Err(error.to_string())).is_none_or(|t| t.is_ok());
                self.fail(&letter, error.to_string(), first);
            }
        }
        if Instant::now() >= self.next_commit { self.commit().await } else { Ok(()) }
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        self.next_commit = Instant::now() + COMMIT_EVERY;
        self.summary.forgotten = self.remembered.save().await?;
        Ok(())
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        while !self.in_flight.is_empty() {
            self.confirm_one().await?;
        }
        self.commit().await
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
