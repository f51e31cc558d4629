#!/bin/sh
# Writes the bill of materials of the binary as CycloneDX: .ci/sbom.sh FILE (JSON).
#
# Takes the cargo-cyclonedx that is installed; else builds one into .cache, once: some minutes on two cores.
set -eu
file=$(realpath -m "${1:?the file to write}")
cd "$(dirname "$0")/.."

version=0.5.9
root=$PWD/.cache/cargo-cyclonedx-$version
PATH=$PATH:$root/bin
if ! command -v cargo-cyclonedx >/dev/null; then
    echo "sbom: building cargo-cyclonedx $version into .cache, once" >&2
    mkdir -p .cache
    cargo install --quiet --locked --debug --root "$root" --target-dir "$root/target" "cargo-cyclonedx@$version"
    rm -rf "$root/target"
fi
# It writes next to the manifest, and takes no other place.
cargo cyclonedx --format json --spec-version 1.5 --target x86_64-unknown-linux-gnu --override-filename halley-sbom
mkdir -p "$(dirname "$file")"
mv halley-sbom.json "$file"
echo "$file"
