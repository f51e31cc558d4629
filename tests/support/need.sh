#!/bin/sh
# need.sh PROGRAM PACKAGE...: ensures that a program is installed.
#
# As root on Debian or Ubuntu, missing packages are installed. Otherwise the exact command is printed
# and the exit status is 1. All output goes to stderr.
set -eu

program=$1
shift

if command -v "$program" >/dev/null 2>&1; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "need.sh: \`$program\` is missing; install it with this system's package manager (on Debian: apt-get install $*)" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "need.sh: \`$program\` is missing; install it with: sudo apt-get install -y $*" >&2
    exit 1
fi

echo "need.sh: \`$program\` is missing; installing $*" >&2
export DEBIAN_FRONTEND=noninteractive
install="apt-get install -y -q --no-install-recommends"
$install "$@" >&2 || { apt-get update -q >&2 && $install "$@" >&2; }
command -v "$program" >/dev/null 2>&1
