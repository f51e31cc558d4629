//! Which partitions the members of a consumer group have, as the group's coordinator knows it.
//!
//! librdkafka (2.12) has a newer call, `rd_kafka_DescribeConsumerGroups`, which must not be used by a process
//! that has to live: if it times out before the coordinator can be reached, the process aborts in
//! `rd_kafka_enq_once_del_source_return` as soon as it can (`rd_kafka_coord_req_fsm` uses what the
//! timeout has freed).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Buf;
use bytes::TryGetError;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::KafkaResult;

/// The partitions that members of a group have, by topic and number.
pub(crate) type AssignedPartitions = BTreeSet<(String, i32)>;

/// The partitions that members of a group have; `None` while it rebalances, if it is unknown or not to be
/// described, and if it uses the protocol of KIP-848. Blocks for up to `timeout`.
///
/// # Errors
/// When Kafka does not describe its groups in time.
pub(crate) fn assigned_partitions<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    timeout: Duration,
) -> KafkaResult<Option<AssignedPartitions>> {
    let groups = client.fetch_group_list(Some(group), timeout)?;
    let stable = groups.groups().iter().find(|group| group.state() == "Stable");
    Ok(stable.and_then(|group| {
        let assignments = group.members().iter().filter_map(|member| member.assignment());
        let all: Result<Vec<_>, _> = assignments.map(read_assignment).collect();
        all.ok().map(|all| all.into_iter().flatten().collect())
    }))
}

/// The partitions of an assignment: version, topics with their partitions, and user data. See
/// `ConsumerProtocolAssignment.json` in Apache Kafka.
fn read_assignment(mut bytes: &[u8]) -> Result<AssignedPartitions, TryGetError> {
    let mut assigned = AssignedPartitions::new();
    let _version = bytes.try_get_i16()?;
    for _ in 0..bytes.try_get_i32()? {
        let length = usize::try_from(bytes.try_get_i16()?).unwrap_or_default();
        let Some((topic, rest)) = bytes.split_at_checked(length) else {
            return Err(TryGetError { requested: length, available: bytes.len() });
        };
        bytes = rest;
        for _ in 0..bytes.try_get_i32()? {
            assigned.insert((String::from_utf8_lossy(topic).into_owned(), bytes.try_get_i32()?));
        }
    }
    Ok(assigned)
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_assignment_is_read_as_it_was_written(
            topics in prop::collection::btree_map("[a-z]{1,8}", prop::collection::btree_set(0..100_i32, 0..4), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            bytes.put_i16(1);
            bytes.put_i32(topics.len() as i32);
            for (topic, numbers) in &topics {
                bytes.put_i16(topic.len() as i16);
                bytes.put_slice(topic.as_bytes());
                bytes.put_i32(numbers.len() as i32);
                numbers.iter().for_each(|number| bytes.put_i32(*number));
            }
            let whole = bytes.len();
            prop_assert!(read_assignment(&bytes[..cut.index(whole)]).is_err(), "something is missing");
            bytes.put_i32(-1);
            let all = topics.iter().flat_map(|(topic, numbers)| numbers.iter().map(|number| (topic.clone(), *number)));
            prop_assert_eq!(read_assignment(&bytes).expect("complete"), all.collect::<AssignedPartitions>());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(assigned) = read_assignment(&bytes) {
                prop_assert!(assigned.len() * 4 <= bytes.len());
            }
        }
    }
}
