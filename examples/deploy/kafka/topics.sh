#!/bin/sh
# Creates the topics that a gateway needs; existing ones are left alone.
#
#   BROKERS=kafka:9092 PARTITIONS=24 examples/deploy/kafka/topics.sh
#
# It calls Kafka's own kafka-topics.sh, which has to be in PATH. COMMAND_CONFIG names its properties file (TLS,
# SASL). ARCHIVE=yes also creates the topic of `[archive]`.
set -eu

brokers=${BROKERS:-localhost:9092}
topic=${TOPIC:-push}
# At most one gateway works on a partition, and each has an instance of every plugin: two to four for each core
# that the gateways will ever have.
partitions=${PARTITIONS:-12}
replicas=${REPLICAS:-3}
min_insync=${MIN_INSYNC:-2}

create() {
    name=$1
    count=$2
    shift 2
    # shellcheck disable=SC2086 # the option and its value, or nothing
    kafka-topics.sh --bootstrap-server "$brokers" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
        --create --if-not-exists --topic "$name" --partitions "$count" --replication-factor "$replicas" \
        --config min.insync.replicas="$min_insync" "$@"
}

day=86400000
# Messages. A gateway that was away reads on where it stopped: retention is how long it may be away.
create "$topic" "$partitions" --config retention.ms=$((7 * day))
# What could not be delivered: kept until somebody looked. A letter has headers in addition to its record, and
# keeps its time.
create "$topic.dead-letter" 3 --config retention.ms=$((30 * day)) \
    --config max.message.bytes=$((2 * 1024 * 1024)) --config message.timestamp.type=LogAppendTime
# Notifications of absent users, for a mobile push service.
create "$topic.offline" "$partitions" --config retention.ms=$((1 * day))
if [ "${ARCHIVE:-no}" = yes ]; then
    # Stored messages on their way to MySQL.
    create "$topic.archive" "$partitions" --config retention.ms=$((7 * day)) \
        --config max.message.bytes=$((2 * 1024 * 1024))
fi
