#!/bin/sh
# Grants a gateway what it needs in Kafka, and no more.
#
#   BROKERS=kafka:9093 PRINCIPAL=User:halley COMMAND_CONFIG=admin.properties examples/deploy/kafka/acls.sh
#
# It calls Kafka's own kafka-acls.sh, which has to be in PATH; repeating it changes nothing. ARCHIVE=yes also grants
# what `[archive]` needs.
set -eu

brokers=${BROKERS:-localhost:9092}
principal=${PRINCIPAL:-User:halley}
topic=${TOPIC:-push}
group=${GROUP:-halley}

allow() {
    # shellcheck disable=SC2086 # the option and its value, or nothing
    kafka-acls.sh --bootstrap-server "$brokers" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
        --add --allow-principal "$principal" "$@"
}

# The records, and the group that shares them.
allow --operation Read --operation Describe --topic "$topic"
allow --operation Read --operation Describe --group "$group"
# What the gateway writes. Read, and DescribeConfigs, are for `halley dead-letter` and `halley check --connect`.
allow --operation Write --operation Read --operation Describe --operation DescribeConfigs \
    --topic "$topic.dead-letter"
allow --operation Write --operation Describe --topic "$topic.offline"
# The producer is idempotent (needed before Kafka 3.0).
allow --operation IdempotentWrite --cluster
# `halley dead-letter redrive` writes letters back, and keeps its progress in a group of its own.
allow --operation Write --topic "$topic"
allow --operation Read --operation Describe --group "$group-redrive"
if [ "${ARCHIVE:-no}" = yes ]; then
    allow --operation Write --operation Read --operation Describe --topic "$topic.archive"
    allow --operation Read --operation Describe --group halley-archive
fi
