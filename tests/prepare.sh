#!/usr/bin/env bash
# Fetches and builds what the tests need, once.
#
# Most of it waits for a network or keeps one core busy: it happens while cargo compiles the gateway and
# its tests. Fails if the gateway or a policy cannot be built. What only some stories need and cannot be
# had here is named; those stories say what they do not prove.
set -uo pipefail
cd "$(dirname "$0")/.."

logs=$(mktemp -d)
say() { printf 'prepare: %s\n' "$*" >&2; }

# step NAME COMMAND...: what it prints is kept until it ends. Exit code 3: its tools are missing.
step() {
    local name=$1 code=0 begin=$SECONDS
    shift
    "$@" >"$logs/$name" 2>&1 || code=$?
    case $code in
    0) say "$name: ready after $((SECONDS - begin)) s" ;;
    3) say "$name: not available here" && cat "$logs/$name" >&2 ;;
    *) say "$name: failed with $code" && cat "$logs/$name" >&2 ;;
    esac
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ]
}

kafka() {
    [ -n "${HALLEY_TEST_KAFKA:-}" ] || tests/support/fetch-kafka.sh || {
        echo "the stories use librdkafka's mock, and report what that cannot prove" >&2
        return 3
    }
}
policies() { plugins/build.sh && plugins/build.sh tests/guests; }

others() {
    local result=0
    step kafka kafka || result=1
    step policies policies || result=1
    step peers tests/peers/build.sh || result=1
    step languages plugins/languages/build.sh || result=1
    # Here because cargo-deny may have to be built.
    step licences .ci/deny.sh || result=1
    return "$result"
}

say "fetching and building servers, policies and peers, while cargo compiles"
others &
others=$!
# However this ends, nothing is left behind.
trap 'kill "$others" 2>/dev/null; wait; rm -rf "$logs"' EXIT
cargo test --locked --no-run || exit 1
wait "$others" || exit 1
