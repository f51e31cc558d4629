#!/usr/bin/env bash
# Runs a command in the background, at the lowest priority, while another one runs:
# tests/background.sh COMMAND... -- COMMAND...
#
# Stories wait for servers much of the time; what only needs a processor fits in between. The output of the
# first command follows that of the second one. Fails if either fails.
set -uo pipefail

background=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    background+=("$1")
    shift
done
shift

log=$(mktemp)
# A moment later: cargo locks its folder while it looks what to build, and the other command goes first.
(sleep 20 && exec nice -n 19 "${background[@]}") >"$log" 2>&1 &
process=$!
# However this ends, nothing is left behind.
trap 'kill "$process" 2>/dev/null; wait; rm -f "$log"' EXIT

result=0
"$@" || result=1
printf 'background: %s\n' "${background[*]}"
wait "$process" || result=1
cat "$log"
exit "$result"
