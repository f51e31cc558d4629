//! Asks Kafka every few seconds whether the consumed topics were recreated, and whether each of their
//! partitions has a member of the group.
//!
//! By the time librdkafka notices, a recreated topic may have more records than the old one. Then
//! no offset regresses, and the first records of the new log would be skipped (a known limitation,
//! see `rd_kafka_topic_metadata_update`). With this check they arrive late and out of order, but
//! they arrive.

use std::sync::mpsc::{self, TryRecvError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use tracing::debug;

use crate::consumer::context::Context;
use crate::consumer::unassigned::Unassigned;
use crate::kafka::{AssignedPartitions, DescribeTopics, Topics, assigned_partitions};
use crate::panics;

/// How often topics are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the group may take to be described: a gateway that stops meanwhile waits for it at its end.
const GROUP_TIMEOUT: Duration = Duration::from_secs(3);
/// Every broker is asked for its groups: once for so many refreshes of the metadata.
const GROUP_CHECKS: u32 = 4;

/// The pending request, and when the next one is due. Requests that block run on threads of `scope`.
pub(super) struct TopicWatch<'scope, 'a> {
    scope: &'scope Scope<'scope, 'a>,
    consumer: &'a BaseConsumer<Context>,
    question: Question<'a>,
    unassigned: Unassigned,
    /// When the group is described next.
    next_group: Instant,
}

/// What is asked: first the topics, then who has their partitions.
enum Question<'a> {
    At(Instant),
    Topics(DescribeTopics<'a>),
    Group(mpsc::Receiver<KafkaResult<Option<AssignedPartitions>>>, Topics),
}

impl<'scope, 'a> TopicWatch<'scope, 'a> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'a>, consumer: &'a BaseConsumer<Context>) -> Self {
        let now = Instant::now();
        let question = Question::At(now + CHECK_INTERVAL);
        let unassigned = Unassigned::new(consumer.context().metadata_refresh());
        Self { scope, consumer, question, unassigned, next_group: now }
    }

    /// Asks who has the partitions, if that is due and can be in question: other groups assign what is new.
    fn ask_group(&mut self, now: Instant, topics: Topics) -> Option<Question<'a>> {
        let (consumer, context) = (self.consumer, self.consumer.context());
        if now < self.next_group || !context.is_static_member() {
            return None;
        }
        self.next_group = now + context.metadata_refresh() / GROUP_CHECKS;
        let (sender, answer) = mpsc::channel();
        let ask = move || assigned_partitions(consumer.client(), consumer.context().group(), GROUP_TIMEOUT);
        let run = move || drop(sender.send(panics::call_or_abort("the description of the group", ask)));
        let thread = std::thread::Builder::new().name("kafka-group".into()).spawn_scoped(self.scope, run);
        thread.is_ok().then_some(Question::Group(answer, topics))
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
                    self.ask_group(now, topics)
                }
                Err(error) => {
                    debug!(%error, "kafka did not describe the topics");
                    None
                }
            }),
            Question::Group(answer, topics) => match answer.try_recv() {
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(None),
                Ok(Ok(Some(assigned))) => {
                    context.set_unassigned(self.unassigned.update(now, topics, &assigned));
                    Some(None)
                }
                Ok(Ok(None)) => {
                    self.unassigned.clear();
                    Some(None)
                }
                Ok(Err(error)) => {
                    debug!(%error, "kafka did not describe the group");
                    Some(None)
                }
            },
        };
        if let Some(next) = asked {
            self.question = next.unwrap_or(Question::At(now + CHECK_INTERVAL));
        }
    }
}
