//! What this client may do with a topic, as the brokers' authorizer says (KIP-430). Nothing is read or
//! written for it.
//!
//! The `rdkafka` crate has no safe call for it. Brokers before 2.3, and some other servers that speak
//! Kafka's protocol, do not answer this part of the question.

#![allow(unsafe_code, reason = "librdkafka's own calls; each block says why it is sound")]

use std::ffi::CString;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::bindings::rd_kafka_AclOperation_t as Operation;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::kafka::admin_request::AdminRequest;
use crate::kafka::topic_ids::described;

/// The operations on a topic that this client is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopicRights(Vec<u32>);

impl TopicRights {
    /// Asks the brokers; `None` if they do not say. Blocks for up to the timeout.
    pub(super) fn ask<C: ClientContext>(client: &Client<C>, topic: &str, timeout: Duration) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        let mut names = [topic.as_ptr()];
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let request = AdminRequest::send(client, operation, timeout, |handle, options, queue| {
            // SAFETY: `send` passes valid pointers to what it owns; the name lives until the end of the
            // block, and librdkafka copies it. A returned error is ours.
            unsafe {
                let error =
                    native::rd_kafka_AdminOptions_set_include_authorized_operations(options.cast_mut(), 1);
                if !error.is_null() {
                    native::rd_kafka_error_destroy(error);
                }
                let wanted = native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
                native::rd_kafka_DescribeTopics(handle, wanted, options, queue);
                native::rd_kafka_TopicCollection_destroy(wanted);
            }
        });
        // SAFETY: the event is valid as long as the closure runs.
        request.answer(timeout, |event| unsafe { read_event(event) })?.ok()
    }

    /// Whether records may be read.
    pub(super) fn may_read(&self) -> bool {
        self.allows(Operation::RD_KAFKA_ACL_OPERATION_READ)
    }

    /// Whether records may be written.
    pub(super) fn may_write(&self) -> bool {
        self.allows(Operation::RD_KAFKA_ACL_OPERATION_WRITE)
    }

    fn allows(&self, operation: Operation) -> bool {
        let all = Operation::RD_KAFKA_ACL_OPERATION_ALL as u32;
        self.0.iter().any(|allowed| [operation as u32, all].contains(allowed))
    }
}

/// # Safety
/// The event is a valid one.
unsafe fn read_event(event: *mut native::rd_kafka_event_t) -> Option<TopicRights> {
    // SAFETY: the caller's; all pointers are into the event, and live as long as it.
    unsafe {
        let topic = described(event)?.next()?;
        let error = native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(topic));
        if RDKafkaErrorCode::from(error) != RDKafkaErrorCode::NoError {
            return None;
        }
        let mut count = 0;
        let operations = native::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        if operations.is_null() {
            return None;
        }
        // As numbers: brokers may name operations that these bindings do not know.
        Some(TopicRights(std::slice::from_raw_parts(operations.cast::<u32>(), count).to_vec()))
    }
}
