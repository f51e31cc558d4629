#!/usr/bin/env bash
# Runs tests of this package, and retries failed ones one at a time: tests/run.sh THREADS ARGUMENTS...
#
# THREADS go to the test runner, ARGUMENTS to cargo up to `--`, then to the runner. Stories start
# servers and wait for them; next to compilers and each other, a machine with two cores can be slower
# than a story's deadlines. A test that also fails alone has failed; one that passes is reported as
# flaky, to be investigated.
set -uo pipefail
cd "$(dirname "$0")/.."

threads=$1
shift
cargo=() runner=() target=cargo
for argument in "$@"; do
    if [ "$argument" = -- ] && [ "$target" = cargo ]; then
        target=runner
    elif [ "$target" = cargo ]; then
        cargo+=("$argument")
    else
        runner+=("$argument")
    fi
done

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if cargo test --locked --no-fail-fast "${cargo[@]}" -- --test-threads "$threads" "${runner[@]}" 2>&1 | tee "$log"; then
    exit 0
fi
mapfile -t failed < <(sed -nE 's/^test (\S+) \.\.\. FAILED$/\1/p' "$log" | sort -u)
# The build failed, or too many tests failed to blame the load.
if [ "${#failed[@]}" -eq 0 ] || [ "${#failed[@]}" -gt 8 ]; then
    exit 1
fi
printf '\ntests: retrying one at a time: %s\n' "${failed[*]}"
cargo test --locked --no-fail-fast "${cargo[@]}" -- --test-threads 1 --exact "${failed[@]}" || exit 1
printf '\ntests: FLAKY, failed first and passed alone: %s\n' "${failed[*]}"
