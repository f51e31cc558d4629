//! Writes dead letters back to their topics of origin.
//!
//! # Promises
//! - Only the comets that did not accept a message receive it again, unless all are requested.
//! - The written record is the original (key, value, headers, timestamp, partition) plus the message
//!   id, by which readers recognise the message.
//! - A dead letter counts as done only after the broker has confirmed it. Letters that are excluded,
//!   refused or could not be written stay for another run.
//! - Written records carry a proof; gateways accept no other record as redriven.
//! - Records are written only to topics that the caller allows, whatever letters claim as their
//!   origin.
//! - Letters go back in the order of the dead-letter topic, one batch at a time: none overtakes.
//! - If a topic accepts nothing, its remaining letters wait for another run; other topics continue.
//! - A problem with one letter holds up no other: a part was left out, it is too large for its topic,
//!   and so on. Such letters are refused and reported.
//! - A letter whose topic refuses its timestamp is written with the current time, and keeps the
//!   original in a header.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dead_letter::checkpoint::CheckpointStore;
use crate::dead_letter::redrive_record::{Restamp, destination, prove, redrive_record};
use crate::dead_letter::{DeadLetter, Reader, RedriveOptions, RedriveOutcome, RedriveSummary};
use crate::kafka::{self, OrderedWriter, WriteError, WriteOutcome, blocking, partitions};

/// Maximum batch size. A stop waits for the batch.
const MAX_BATCH: usize = 200;
/// Commit interval of the progress.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Redrives up to the current end of the topic, or until `stop`. `report` is called for each record.
///
/// # Errors
/// If it cannot start: Kafka is unreachable, or a property is rejected.
pub async fn redrive(
    config: &kafka::Config,
    options: RedriveOptions,
    report: &mut (dyn FnMut(&DeadLetter, &RedriveOutcome) + Send),
    stop: impl Future<Output = ()>,
) -> anyhow::Result<RedriveSummary> {
    let Some(mut reader) = Reader::open(config, &options.group).await? else {
        return Ok(RedriveSummary { missing: true, ..RedriveSummary::default() });
    };
    let topic = &config.dead_letter_topic;
    let checkpoint = CheckpointStore::load(&mut reader, topic, &options.group).await?;
    if !options.from_start {
        checkpoint.resume_offsets().for_each(|(partition, next)| reader.records.begin_at(partition, next));
    }
    let summary = RedriveSummary { recreated: checkpoint.recreated(), ..RedriveSummary::default() };
    let mut run = RedriveRun {
        rate_limit: options.rate.map(RateLimit::new),
        options,
        dead_letters: topic.as_str(),
        sender: OrderedWriter::new(config)?,
        checkpoint,
        summary,
        targets: HashMap::new(),
        ready: Vec::new(),
        taken: 0,
        next_commit: Instant::now() + COMMIT_EVERY,
        stop: CancellationToken::new(),
        report,
    };
    let stopped = run.stop.clone();
    let ended = {
        let work = run.redrive_all(&mut reader);
        tokio::pin!(work);
        tokio::select! {
            biased;
            // A batch in progress is completed.
            () = stop => {
                stopped.cancel();
                work.await
            }
            ended = &mut work => ended,
        }
    };
    run.summary.interrupted = stopped.is_cancelled();
    run.aborted(ended);
    let saved = run.commit().await;
    run.aborted(saved);
    Ok(run.summary)
}

/// Why a topic accepts no letters.
#[derive(Clone, Debug, thiserror::Error)]
enum TargetError {
    #[error("topic `{0}` not found; create it, or exclude it with the filters")]
    NotFound(String),
    #[error("{0}")]
    Failed(String),
}

struct RedriveRun<'a> {
    options: RedriveOptions,
    dead_letters: &'a str,
    sender: OrderedWriter,
    rate_limit: Option<RateLimit>,
    checkpoint: CheckpointStore,
    summary: RedriveSummary,
    /// The number of partitions of each topic of origin, or why it accepts nothing.
    targets: HashMap<Arc<str>, Result<i32, TargetError>>,
    /// The next batch, in order; all of one topic.
    ready: Vec<DeadLetter>,
    taken: u64,
    next_commit: Instant,
    stop: CancellationToken,
    report: &'a mut (dyn FnMut(&DeadLetter, &RedriveOutcome) + Send),
}

impl RedriveRun<'_> {
    async fn redrive_all(&mut self, reader: &mut Reader) -> anyhow::Result<()> {
        while let Some(letters) = self.stop.clone().run_until_cancelled(reader.read()).await {
            let letters = letters?;
            if letters.is_empty() {
                break;
            }
            for letter in letters {
                let enough = self.options.limit.is_some_and(|limit| self.taken >= limit);
                if enough || self.stop.is_cancelled() {
                    return self.write().await;
                }
                self.take(letter, reader).await?;
            }
            self.write().await?;
        }
        self.write().await
    }

    /// Handles one dead letter.
    async fn take(&mut self, letter: DeadLetter, reader: &Reader) -> anyhow::Result<()> {
        if !self.options.from_start && self.checkpoint.contains(&letter) {
            self.summary.before += 1;
            return Ok(());
        }
        if !self.options.filter.matches(&letter) {
            self.summary.left_out += 1;
            return Ok(());
        }
        let (dead_letters, allowed) = (self.dead_letters, &self.options.allowed);
        let topic = match destination(&letter, dead_letters, allowed, self.options.all_comets) {
            Ok(topic) => topic,
            Err(why) => {
                self.refuse(&letter, why.to_string());
                return Ok(());
            }
        };
        self.taken += 1;
        let known = self.targets.contains_key(&topic);
        let target = match self.targets.get(&topic) {
            Some(target) => target.clone(),
            None => find_target(reader, &topic).await,
        };
        self.targets.insert(Arc::clone(&topic), target.clone());
        match target {
            Ok(_) if self.options.dry_run => self.written(&letter, topic),
            Ok(_) => self.queue(letter, topic).await?,
            Err(why) => self.fail(&letter, &why, !known),
        }
        Ok(())
    }

    /// Waits for the rate limit, and appends the letter to the next batch.
    async fn queue(&mut self, letter: DeadLetter, topic: Arc<str>) -> anyhow::Result<()> {
        let other = self.ready.first().is_some_and(|first| topic_of(first) != topic);
        if other || self.ready.len() >= MAX_BATCH {
            self.write().await?;
        }
        let due = self.rate_limit.as_mut().map(RateLimit::turn);
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

    /// Writes the next batch and records the outcomes.
    async fn write(&mut self) -> anyhow::Result<()> {
        let letters = std::mem::take(&mut self.ready);
        let Some(topic) = letters.first().map(topic_of) else { return Ok(()) };
        let count = match self.targets.get(&topic).cloned() {
            Some(Ok(count)) => count,
            Some(Err(why)) => {
                letters.iter().for_each(|letter| self.fail(letter, &why, false));
                return Ok(());
            }
            None => 0,
        };
        let key = self.options.key.clone().context("no key to prove redriven records")?;
        let proven = |letter| {
            let mut record = redrive_record(letter, count, self.options.all_comets);
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
        answer: Result<WriteOutcome, WriteError>,
    ) -> anyhow::Result<()> {
        match answer {
            Ok(written) => {
                self.checkpoint.add(letter);
                self.summary.restamped += u64::from(written == WriteOutcome::Fitted);
                self.written(letter, Arc::clone(topic));
            }
            Err(WriteError { refusal: Some(_), reason, .. }) => {
                self.refuse(letter, format!("topic `{topic}` refused it: {reason}"));
            }
            Err(error) => {
                let why = TargetError::Failed(error.to_string());
                let before = self.targets.insert(Arc::clone(topic), Err(why.clone()));
                self.fail(letter, &why, before.is_none_or(|target| target.is_ok()));
            }
        }
        Ok(())
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        self.next_commit = Instant::now() + COMMIT_EVERY;
        self.summary.forgotten = self.checkpoint.save().await?;
        Ok(())
    }

    fn written(&mut self, letter: &DeadLetter, topic: Arc<str>) {
        *self.summary.redriven.entry(Arc::clone(&topic)).or_default() += 1;
        (self.report)(letter, &RedriveOutcome::Written(topic));
    }

    fn refuse(&mut self, letter: &DeadLetter, why: String) {
        self.summary.refused += 1;
        (self.report)(letter, &RedriveOutcome::Refused(why));
    }

    fn fail(&mut self, letter: &DeadLetter, why: &TargetError, first: bool) {
        self.summary.failed += 1;
        if first {
            (self.report)(letter, &RedriveOutcome::Failed(why.to_string()));
        }
    }

    fn aborted(&mut self, ended: anyhow::Result<()>) {
        if let Err(error) = ended {
            self.summary.aborted.get_or_insert(format!("{error:#}"));
        }
    }
}

/// The topic of origin.
fn topic_of(letter: &DeadLetter) -> Arc<str> {
    letter.origin.as_ref().map_or_else(|| Arc::from(""), |origin| Arc::clone(&origin.topic))
}

async fn find_target(reader: &Reader, topic: &str) -> Result<i32, TargetError> {
    let name = topic.to_owned();
    match blocking(reader.records.consumer(), move |consumer| partitions(consumer, &name)).await {
        Ok(Some(partitions)) => Ok(i32::try_from(partitions.len()).unwrap_or(i32::MAX)),
        Ok(None) => Err(TargetError::NotFound(topic.to_owned())),
        Err(error) => Err(TargetError::Failed(format!("topic `{topic}`: {error:#}"))),
    }
}

/// Limits the rate of records.
struct RateLimit {
    period: Duration,
    next: Instant,
}

impl RateLimit {
    fn new(rate: NonZeroU32) -> Self {
        Self { period: Duration::from_secs(1) / rate.get(), next: Instant::now() }
    }

    /// When the next record may be sent. After a stall, at most a tenth of a second is caught up.
    fn turn(&mut self) -> Instant {
        let now = Instant::now();
        let turn = self.next.max(now.checked_sub(Duration::from_millis(100)).unwrap_or(now));
        self.next = turn + self.period;
        turn
    }
}
