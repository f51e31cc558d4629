#!/bin/sh
# Runs the fuzz targets, one after the other: tests/fuzz/run.sh [TARGET...]
#
#   FUZZ_SECONDS    how long each of them runs (60)
#
# No sanitizer: cc would build the C libraries with it as well, and then librdkafka's configure does
# not find them. The fuzzers look for panics and broken promises, which need no sanitizer.
#
# The first run builds all dependencies with instrumentation, which takes many minutes.
# New interesting inputs go to tests/fuzz/found/TARGET (not committed). A crash goes to
# tests/fuzz/artifacts/TARGET and ends the script: copy that file to tests/fuzz/corpus/TARGET, so that
# `cargo test` runs it from then on, and fix the bug.
set -eu
cd "$(dirname "$0")/../.."

VERSION=0.13.2
SECONDS_EACH=${FUZZ_SECONDS:-60}
# Memory limit in MB, maximum input length in bytes, timeout of one input in seconds.
MEMORY=2048
LENGTH=4096
TIMEOUT=10

say() { printf 'fuzz: %s\n' "$*"; }

if ! cargo fuzz --version >/dev/null 2>&1; then
    say "installing cargo-fuzz $VERSION"
    cargo install cargo-fuzz --version "$VERSION" --locked
fi

# Instrumentation needs nightly compiler flags, which the stable compiler accepts with
# RUSTC_BOOTSTRAP.
if command -v rustup >/dev/null && rustup toolchain list | grep -q '^nightly'; then
    say "using the nightly compiler"
    export RUSTUP_TOOLCHAIN=nightly
else
    say "no nightly compiler: using $(rustc --version) with RUSTC_BOOTSTRAP=1"
    export RUSTC_BOOTSTRAP=1
fi

say "building"
cargo fuzz build --fuzz-dir tests/fuzz --sanitizer none

[ $# -gt 0 ] || set -- record native_record plugin_answer redis_reply redis_stream admin_request registry_answer plugin_file dead_letter
for target in "$@"; do
    found=tests/fuzz/found/$target
    mkdir -p "$found"
    say "$target: $SECONDS_EACH s"
    # New inputs go to the first directory; the committed ones are only read.
    cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" "$found" "tests/fuzz/corpus/$target" -- \
        "-max_total_time=$SECONDS_EACH" "-max_len=$LENGTH" "-rss_limit_mb=$MEMORY" \
        "-timeout=$TIMEOUT" -print_final_stats=1 || {
        say "$target: failed; the input is in tests/fuzz/artifacts/$target"
        exit 1
    }
done
say "no crash: $*"
