//! Logins and ACLs, for which `rdkafka` has no functions.

#![allow(unsafe_code, reason = "librdkafka's own functions are the only way to grant rights")]

use std::ffi::CString;
use std::ptr;

use rdkafka::bindings as native;
use rdkafka::bindings::rd_kafka_AclOperation_t as Operation;
use rdkafka::bindings::rd_kafka_ResourceType_t as Type;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaRespErr;

use super::Kafka;

/// The password of the user `halley`.
pub const PASSWORD: &str = "a-password";

/// One user. Clients of other listeners may do everything, including the other stories' tools.
pub(super) const SECURITY: &str = "listener.name.detour.sasl.enabled.mechanisms=PLAIN
listener.name.detour.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_halley=\"a-password\";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
";

/// A permission to grant.
pub enum Right<'a> {
    /// All operations on this topic.
    Topic(&'a str),
    /// All operations on this consumer group.
    Group(&'a str),
}

impl Kafka {
    /// Grants a permission to the user `halley`.
    ///
    /// # Panics
    /// If the broker refuses.
    pub async fn grant(&self, right: Right<'_>) {
        let (kind, name) = match right {
            Right::Topic(name) => (Type::RD_KAFKA_RESOURCE_TOPIC, name.to_owned()),
            Right::Group(name) => (Type::RD_KAFKA_RESOURCE_GROUP, name.to_owned()),
        };
        self.grant_all(kind, name, Operation::RD_KAFKA_ACL_OPERATION_ALL).await;
    }

    /// Grants one operation, in the words of `kafka-acls.sh`, on a `topic`, a `group` or the `cluster`.
    ///
    /// # Panics
    /// If the broker refuses, or the operation is unknown.
    pub async fn grant_operation(&self, kind: &str, name: &str, operation: &str) {
        let kind = match kind {
            "topic" => Type::RD_KAFKA_RESOURCE_TOPIC,
            "group" => Type::RD_KAFKA_RESOURCE_GROUP,
            "cluster" => Type::RD_KAFKA_RESOURCE_BROKER,
            other => panic!("{other}"),
        };
        let operation = match operation {
            "Read" => Operation::RD_KAFKA_ACL_OPERATION_READ,
            "Write" => Operation::RD_KAFKA_ACL_OPERATION_WRITE,
            "Describe" => Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE,
            "DescribeConfigs" => Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS,
            "IdempotentWrite" => Operation::RD_KAFKA_ACL_OPERATION_IDEMPOTENT_WRITE,
            other => panic!("{other}"),
        };
        self.grant_all(kind, name.to_owned(), operation).await;
    }

    async fn grant_all(&self, kind: Type, name: String, operation: Operation) {
        let producer = self.producer.clone();
        super::blocking(move || grant(producer.client().native_ptr(), kind, &name, operation)).await;
    }
}

fn grant(client: *mut native::rd_kafka_t, kind: Type, name: &str, operation: Operation) {
    let text = |text: &str| CString::new(text).expect("no NUL byte");
    let (name, user, anywhere) = (text(name), text("User:halley"), text("*"));
    // SAFETY: the client lives for the whole call, names are copied, and everything created here is
    // destroyed here.
    unsafe {
        let mut binding = native::rd_kafka_AclBinding_new(
            kind,
            name.as_ptr(),
            native::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
            user.as_ptr(),
            anywhere.as_ptr(),
            operation,
            native::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
            ptr::null_mut(),
            0,
        );
        assert!(!binding.is_null(), "a valid permission");
        let queue = native::rd_kafka_queue_new(client);
        native::rd_kafka_CreateAcls(client, &raw mut binding, 1, ptr::null(), queue);
        let event = native::rd_kafka_queue_poll(queue, 30_000);
        assert!(!event.is_null(), "the broker answers");
        let error = native::rd_kafka_event_error(event);
        assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
        let mut count = 0;
        let results = native::rd_kafka_CreateAcls_result_acls(
            native::rd_kafka_event_CreateAcls_result(event),
            &raw mut count,
        );
        for at in 0..count {
            assert!(native::rd_kafka_acl_result_error(*results.add(at)).is_null(), "it is granted");
        }
        native::rd_kafka_event_destroy(event);
        native::rd_kafka_queue_destroy(queue);
        native::rd_kafka_AclBinding_destroy(binding);
    }
}
