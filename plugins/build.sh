#!/bin/sh
# Builds policies to WebAssembly: every cdylib of a Cargo workspace, into its dist/ folder.
#
#   plugins/build.sh [WORKSPACE]      the bundled policies; or tests/guests, or your own
#
# It uses the wasm32-unknown-unknown target if that is installed or rustup can install it, else
# Debian's rustc-web packages, which contain the standard library's source. It prints which one it
# uses, and writes the paths of the built files to standard output. The workspaces share one target
# directory (HALLEY_GUEST_TARGET), so that dependencies (and with Debian's packages the standard
# library) are built once. With HALLEY_GUEST_QUIET it only prints errors; with
# HALLEY_GUEST_INSTALL=no it installs no packages, and prints which are missing.
# HALLEY_GUEST_DIST sets another output directory. `halley plugin build` contains this script.
set -eu

target=wasm32-unknown-unknown
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
workspace=$(CDPATH='' cd -- "${1:-$here}" && pwd)
target_dir=${HALLEY_GUEST_TARGET:-$here/target/guest}
dist=${HALLEY_GUEST_DIST:-$workspace/dist}
packages="rustc-web cargo-web rust-web-src lld"

say() { printf 'guests: %s\n' "$*" >&2; }
progress() { [ -n "${HALLEY_GUEST_QUIET:-}" ] || say "$@"; }

# at_most SECONDS COMMAND...: with a timeout, because a network may not answer.
at_most() { if command -v timeout >/dev/null; then timeout "$@"; else shift && "$@"; fi; }

# Speed before size: guests are small. (3 is no faster than 2.) A panic is a trap.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=2
export CARGO_PROFILE_RELEASE_LTO=true
export CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1
export CARGO_PROFILE_RELEASE_PANIC=abort
export CARGO_PROFILE_RELEASE_STRIP=true
# The caller's settings are for the host target. Panics name files without this machine's folders: the same
# source makes the same file elsewhere.
unset RUSTFLAGS CARGO_BUILD_TARGET CARGO_BUILD_RUSTFLAGS
cargo_home=${CARGO_HOME:-${HOME:-/root}/.cargo}
CARGO_ENCODED_RUSTFLAGS=$(printf -- '--remap-path-prefix=%s=/cargo\037--remap-path-prefix=%s=/plugins' "$cargo_home" "$here")
export CARGO_ENCODED_RUSTFLAGS

target_is_installed() {
    command -v cargo >/dev/null && libdir=$(rustc --print target-libdir --target $target 2>/dev/null) &&
        [ -d "$libdir" ]
}

# After a network failure, it is not tried again for a day, if there is an alternative.
rustup_refused=$target_dir/.rustup-refused
recently_refused() { [ -n "$(find "$rustup_refused" -mtime -1 2>/dev/null)" ]; }

rustup_adds_target() {
    command -v rustup >/dev/null || return 1
    say "asking rustup for the $target target"
    if at_most 120 rustup target add $target >&2; then return 0; fi
    mkdir -p "$target_dir" && touch "$rustup_refused"
    return 1
}

debian_is_complete() {
    [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] && command -v wasm-ld >/dev/null &&
        [ -f "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std/Cargo.toml" ]
}

debian_installs() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" -eq 0 ] && [ "${HALLEY_GUEST_INSTALL:-}" != no ] || return 1
    say "installing $packages"
    apt="at_most 900 apt-get -o Acquire::http::Timeout=30 -o Acquire::Retries=1"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # lists of words
    { $apt install -qq -y --no-install-recommends $packages ||
        { $apt update -qq && $apt install -qq -y --no-install-recommends $packages; }; } >&2
}

# Runs cargo; its messages on standard output name the built files.
build() {
    if target_is_installed; then
        progress "building $workspace with $(rustc --version)"
        cargo build "$@"
    else
        progress "building $workspace with $(/usr/bin/rustc --version), Debian's, and its source of std"
        RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld \
            /usr/bin/cargo build -Zbuild-std=std,panic_abort "$@"
    fi
}

find_a_way() {
    target_is_installed && return
    recently_refused && debian_is_complete && return
    rustup_adds_target && return
    debian_is_complete || debian_installs
}

cd "$workspace"
if ! find_a_way; then
    if command -v rustup >/dev/null; then
        say "no way to build for $target; install it with: rustup target add $target"
    else
        say "no way to build for $target; install Rust from https://rustup.rs, then: rustup target add $target"
        if command -v apt-get >/dev/null; then
            say "or, on Debian without rustup: sudo apt-get install -y --no-install-recommends $packages"
        fi
    fi
    exit 1
fi

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
build --release --workspace --lib --target $target --target-dir "$target_dir" \
    --message-format=json-render-diagnostics >"$messages"

# Files are replaced atomically, and only if they changed: a gateway may be watching.
mkdir -p "$dist"
grep -o '"[^"]*/release/[^"/]*\.wasm"' "$messages" | tr -d '"' | sort -u | while read -r made; do
    name=$(basename "$made")
    if ! cmp -s "$made" "$dist/$name"; then
        cp "$made" "$dist/.$name.new" && mv "$dist/.$name.new" "$dist/$name"
    fi
    progress "$dist/$name, $(wc -c <"$made") bytes"
    printf '%s\n' "$dist/$name"
done
