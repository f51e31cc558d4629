//! Asks Kafka every few seconds whether the consumed topics were recreated, and whether each of their
//! partitions has a member of the group.
//!
//! By the time librdkafka notices, a recreated topic may have more records than the old one. Then
//! no offset regresses, and the first records of the new log would be skipped (a known limitation,
//! see `rd_kafka_topic_metadata_update`). With this check they arrive late and out of order, but
//! they arrive.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tracing::debug;

use crate::consumer::context::Context;
use crate::consumer::unassigned::Unassigned;
use crate::kafka::{DescribeGroup, DescribeTopics, Topics};

/// How often topics are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The pending request, and when the next one is due.
pub(super) struct TopicWatch<'a> {
    consumer: &'a BaseConsumer<Context>,
    question: Question<'a>,
    unassigned: Unassigned,
}

/// What is asked: first the topics, then who has their partitions.
enum Question<'a> {
    At(Instant),
    Topics(DescribeTopics<'a>),
    Group(DescribeGroup<'a>, Topics),
}

impl<'a> TopicWatch<'a> {
    pub(super) fn new(consumer: &'a BaseConsumer<Context>) -> Self {
        let question = Question::At(Instant::now() + CHECK_INTERVAL);
        let unassigned = Unassigned::new(consumer.context().metadata_refresh());
        Self { consumer, question, unassigned }
    }

    /// Handles a response, or sends a request when one is due. Never blocks.
    pub(super) fn update(&mut self, now: Instant) {
        let (client, context) = (self.consumer.client(), self.consumer.context());
        let asked = match &mut self.question {
            Question::At(due) => (now >= *due).then(|| {
                let topics = context.watched_topics();
                let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
                (!names.is_empty())
                    .then(|| Question::Topics(DescribeTopics::ask(client, &names, REQUEST_TIMEOUT)))
            }),
            Question::Topics(question) => question.answer(Duration::ZERO).map(|answer| match answer {
                Ok(topics) => {
                    context.update_topics(&topics);
                    let question = DescribeGroup::ask(client, context.group(), REQUEST_TIMEOUT);
                    question.map(|question| Question::Group(question, topics))
                }
                Err(error) => {
                    debug!(%error, "kafka did not describe the topics");
                    None
                }
            }),
            Question::Group(question, topics) => question.answer(Duration::ZERO).map(|answer| {
                match answer {
                    Ok(Some(assigned)) => {
                        context.set_unassigned(self.unassigned.update(now, topics, &assigned));
                    }
                    Ok(None) => self.unassigned.clear(),
                    Err(error) => debug!(%error, "kafka did not describe the group"),
                }
                None
            }),
        };
        if let Some(next) = asked {
            self.question = next.unwrap_or(Question::At(now + CHECK_INTERVAL));
        }
    }
}
