//! Requests to Kafka that are answered later: the calls of librdkafka's admin API for which the
//! `rdkafka` crate has no safe call.

#![allow(unsafe_code, reason = "librdkafka's own calls; each block says why it is sound")]

use std::marker::PhantomData;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

/// A pending request. Dropping it drops its answer.
pub(super) struct AdminRequest<'a> {
    queue: *mut native::rd_kafka_queue_t,
    /// The client outlives the request.
    _client: PhantomData<&'a ()>,
}

impl<'a> AdminRequest<'a> {
    /// Creates the options of an operation, and the queue for its answer, and has `send` pass both to
    /// the client's call. They are valid until `send` returns.
    pub(super) fn send<C: ClientContext>(
        client: &'a Client<C>,
        operation: native::rd_kafka_admin_op_t,
        timeout: Duration,
        send: impl FnOnce(
            *mut native::rd_kafka_t,
            *const native::rd_kafka_AdminOptions_t,
            *mut native::rd_kafka_queue_t,
        ),
    ) -> Self {
        let handle = client.native_ptr();
        let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the handle lives as long as the client. The options live until the end of the block,
        // and librdkafka copies them. The queue is ours until it is dropped.
        unsafe {
            let queue = native::rd_kafka_queue_new(handle);
            let options = native::rd_kafka_AdminOptions_new(handle, operation);
            let (mut text, capacity) = ([0; 128], 128);
            native::rd_kafka_AdminOptions_set_request_timeout(
                options,
                milliseconds,
                text.as_mut_ptr(),
                capacity,
            );
            send(handle, options, queue);
            native::rd_kafka_AdminOptions_destroy(options);
            Self { queue, _client: PhantomData }
        }
    }

    /// The answer, if it arrives within this time. `read` copies what it needs: the event is valid
    /// while it runs. `None` from `read` counts as no answer.
    pub(super) fn answer<T>(
        &self,
        within: Duration,
        read: impl FnOnce(*mut native::rd_kafka_event_t) -> Option<T>,
    ) -> Option<Result<T, RDKafkaErrorCode>> {
        let milliseconds = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is ours. The event is ours until it is destroyed.
        unsafe {
            let event = native::rd_kafka_queue_poll(self.queue, milliseconds);
            if event.is_null() {
                return None;
            }
            let error = RDKafkaErrorCode::from(native::rd_kafka_event_error(event));
            let answer = match error {
                RDKafkaErrorCode::NoError => read(event).map(Ok),
                error => Some(Err(error)),
            };
            native::rd_kafka_event_destroy(event);
            answer
        }
    }
}

impl Drop for AdminRequest<'_> {
    fn drop(&mut self) {
        // SAFETY: the queue is ours, and the client still lives. A late answer is dropped with it.
        unsafe { native::rd_kafka_queue_destroy(self.queue) }
    }
}
