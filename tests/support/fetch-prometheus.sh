#!/bin/sh
# fetch-prometheus.sh: prints where prometheus and promtool are, one per line, fetching them if necessary.
#
# Installed ones are used. Otherwise Debian's package is unpacked into the cache (20 MB), which needs no privileges
# and starts no service. Environment:
#   HALLEY_CACHE     where fetched files are kept (default: .cache in the repository).
# Exit status 3: Prometheus is neither installed, nor can it be fetched here.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${HALLEY_CACHE:-$here/../../.cache}/prometheus
say() { echo "fetch-prometheus.sh: $*" >&2; }

if command -v prometheus >/dev/null 2>&1 && command -v promtool >/dev/null 2>&1; then
    command -v prometheus
    command -v promtool
    exit 0
fi
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
if [ ! -x "$cache/root/usr/bin/promtool" ]; then
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || {
        say "prometheus and promtool are missing; install Prometheus with this system's package manager"
        exit 3
    }
    say "unpacking Debian's prometheus into $cache (20 MB, once)"
    # Filled in a temporary directory and renamed, so that an interrupted or concurrent fetch leaves no
    # incomplete directory.
    partial=$(mktemp -d "$cache/fetching.XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    download() { (cd "$partial" && apt-get download -q prometheus >&2 2>/dev/null); }
    download || { [ "$(id -u)" -eq 0 ] && apt-get update -q >&2 && download; } || {
        say "cannot download prometheus"
        exit 3
    }
    dpkg-deb -x "$partial"/prometheus*.deb "$partial/all"
    mkdir -p "$partial/root/usr/bin"
    mv "$partial/all/usr/bin/prometheus" "$partial/all/usr/bin/promtool" "$partial/root/usr/bin/"
    mv -T "$partial/root" "$cache/root" 2>/dev/null || [ -d "$cache/root" ]
fi
printf '%s\n%s\n' "$cache/root/usr/bin/prometheus" "$cache/root/usr/bin/promtool"
