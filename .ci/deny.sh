#!/bin/sh
# Checks licences, versions and sources of all dependencies (deny.toml), and known vulnerabilities where
# the database of advisories can be had.
#
# Takes the cargo-deny that is installed; else builds one into .cache, once: two minutes on two cores.
# Where it cannot be had, this says so; that is an error only where CI is set.
set -eu
cd "$(dirname "$0")/.."

version=0.20.2
root=$PWD/.cache/cargo-deny-$version

say() { printf 'deny: %s\n' "$*" >&2; }

PATH=$PATH:$root/bin
if ! command -v cargo-deny >/dev/null; then
    say "building cargo-deny $version into .cache, once"
    mkdir -p .cache
    # Unoptimised and without debug information: it looks at some hundred crates and takes a second or two.
    if ! CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --no-default-features --root "$root" \
        --target-dir "$root/target" "cargo-deny@$version" >"$root.log" 2>&1; then
        tail -n 5 "$root.log" >&2
        say "cargo-deny cannot be built, so that licences, versions and sources of dependencies are NOT checked;"
        say "install it with: cargo install --locked cargo-deny"
        [ -z "${CI:-}" ]
        exit
    fi
    rm -rf "$root/target" "$root.log"
fi

cargo deny --log-level error --locked check --hide-inclusion-graph licenses bans sources
if cargo deny --log-level off fetch db >/dev/null 2>&1; then
    # A new advisory says nothing about this change: it is shown and fails nothing.
    cargo deny --log-level error --locked check --disable-fetch --hide-inclusion-graph advisories ||
        say "there are advisories about dependencies, see above: update them, or say in deny.toml why they do not concern us"
else
    say "the database of advisories cannot be had; vulnerabilities of dependencies are not checked"
fi
