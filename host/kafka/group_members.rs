//! Which partitions the members of a consumer group have, as the group's coordinator knows it.

#![allow(unsafe_code, reason = "librdkafka's own calls; each block says why it is sound")]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::kafka::admin_request::AdminRequest;

/// The partitions that members of a group have, by topic and number.
pub(crate) type AssignedPartitions = BTreeSet<(String, i32)>;

/// A pending request that describes a consumer group.
pub(crate) struct DescribeGroup<'a>(AdminRequest<'a>);

impl<'a> DescribeGroup<'a> {
    /// Requests this group; `None` if no group can have that name.
    pub(crate) fn ask<C: ClientContext>(
        client: &'a Client<C>,
        group: &str,
        timeout: Duration,
    ) -> Option<Self> {
        let name = CString::new(group).ok()?;
        let mut names = [name.as_ptr()];
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
        Some(Self(AdminRequest::send(client, operation, timeout, |handle, options, queue| {
            // SAFETY: `send` passes valid pointers; the name lives until the end of the block, and
            // librdkafka copies it.
            unsafe {
                native::rd_kafka_DescribeConsumerGroups(
                    handle,
                    names.as_mut_ptr(),
                    names.len(),
                    options,
                    queue,
                );
            }
        })))
    }

    /// The response, if it arrives within this time: what the members have, or `None` while the group
    /// is rebalancing.
    ///
    /// # Errors
    /// When Kafka does not describe the group, for example because the client lacks DESCRIBE on it.
    pub(crate) fn answer(
        &self,
        within: Duration,
    ) -> Option<Result<Option<AssignedPartitions>, RDKafkaErrorCode>> {
        // SAFETY: the event is valid as long as the closure runs.
        let answer = self.0.answer(within, |event| unsafe { read_event(event) })?;
        Some(answer.and_then(|group| group))
    }
}

/// # Safety
/// The event is a valid one.
unsafe fn read_event(
    event: *mut native::rd_kafka_event_t,
) -> Option<Result<Option<AssignedPartitions>, RDKafkaErrorCode>> {
    // SAFETY: the caller's; all pointers are into the event, and live as long as it.
    unsafe {
        let result = native::rd_kafka_event_DescribeConsumerGroups_result(event);
        if result.is_null() {
            return None;
        }
        let mut count = 0;
        let described = native::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
        (count > 0).then(|| read_group(*described))
    }
}

/// # Safety
/// The description is a valid one.
unsafe fn read_group(
    group: *const native::rd_kafka_ConsumerGroupDescription_t,
) -> Result<Option<AssignedPartitions>, RDKafkaErrorCode> {
    // SAFETY: the caller's; all pointers are into the description. A member has an assignment, and that
    // a list, which may be empty (rd_kafka_MemberDescription_new).
    unsafe {
        let error = native::rd_kafka_ConsumerGroupDescription_error(group);
        let error = RDKafkaErrorCode::from(native::rd_kafka_error_code(error));
        if error != RDKafkaErrorCode::NoError {
            return Err(error);
        }
        let stable = native::rd_kafka_consumer_group_state_t::RD_KAFKA_CONSUMER_GROUP_STATE_STABLE;
        if native::rd_kafka_ConsumerGroupDescription_state(group) != stable {
            return Ok(None);
        }
        let mut assigned = AssignedPartitions::new();
        for at in 0..native::rd_kafka_ConsumerGroupDescription_member_count(group) {
            let member = native::rd_kafka_ConsumerGroupDescription_member(group, at);
            let assignment = native::rd_kafka_MemberDescription_assignment(member);
            let list = native::rd_kafka_MemberAssignment_partitions(assignment);
            if list.is_null() {
                continue;
            }
            for at in 0..usize::try_from((*list).cnt).unwrap_or_default() {
                let element = &*(*list).elems.add(at);
                let topic = CStr::from_ptr(element.topic).to_string_lossy().into_owned();
                assigned.insert((topic, element.partition));
            }
        }
        Ok(Some(assigned))
    }
}
