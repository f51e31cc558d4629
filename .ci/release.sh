#!/bin/sh
# Builds a release: .ci/release.sh FOLDER. It gets the stripped binary, its SBOM, and their checksums.
#
# Two runs on one revision, with one version of Rust and one C compiler, make equal binaries: dependencies are those of
# Cargo.lock, paths of the machine are replaced, and nothing contains the time. HALLEY_REVISION replaces what git says.
set -eu
out=$(realpath -m "${1:?the folder to fill}")
cd "$(dirname "$0")/.."

home=${CARGO_HOME:-$HOME/.cargo}
target=${CARGO_TARGET_DIR:-$PWD/target}
# C sources of dependencies (librdkafka, zstd, jemalloc) are compiled with these as well.
RUSTFLAGS="--remap-path-prefix=$PWD=/halley --remap-path-prefix=$home=/cargo --remap-path-prefix=$target=/target"
CFLAGS="-ffile-prefix-map=$target=/target -ffile-prefix-map=$home=/cargo"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export RUSTFLAGS CFLAGS SOURCE_DATE_EPOCH CXXFLAGS="$CFLAGS"

cargo build --locked --release --config 'profile.release.strip="symbols"' --bin halley
mkdir -p "$out"
cp "$target/release/halley" "$out/halley"
[ -n "${HALLEY_NO_SBOM:-}" ] || .ci/sbom.sh "$out/halley.cdx.json" >/dev/null
(cd "$out" && sha256sum halley* >SHA256SUMS && cat SHA256SUMS)
