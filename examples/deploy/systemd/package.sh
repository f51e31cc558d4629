#!/bin/sh
# Makes the Debian package: examples/deploy/systemd/package.sh, from the root of the repository.
#
# It needs cargo-deb (`cargo install --locked cargo-deb`). The package has the stripped binary, the units, a default
# configuration that upgrades keep, the manual, completions, and the bundled policies. It is written to target/debian.
set -eu
cd "$(dirname "$0")/../../.."

command -v cargo-deb >/dev/null || {
    echo "package.sh: cargo-deb is missing; install it with: cargo install --locked cargo-deb" >&2
    exit 1
}
plugins/build.sh >/dev/null
cargo build --locked --release --bin halley
made=target/deb
rm -rf "$made"
mkdir -p "$made/man" "$made/completions"
target/release/halley man "$made/man"
target/release/halley completions bash >"$made/completions/halley.bash"
target/release/halley completions zsh >"$made/completions/_halley"
target/release/halley completions fish >"$made/completions/halley.fish"
cargo deb --locked --no-build "$@"
