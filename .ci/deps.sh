#!/bin/sh
# Installs the system packages that a step needs: .ci/deps.sh build | test
#
# Missing packages are installed if run as root on Debian or Ubuntu; otherwise the exact command is
# printed.
set -eu

say() { printf 'deps: %s\n' "$*" >&2; }

missing=""
# need PACKAGE CHECK...: adds the package unless the check succeeds.
need() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
wanted=""
# want PACKAGE CHECK...: the same for optional packages of some stories.
want() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || wanted="$wanted $package"
}
has() { command -v "$1"; }

if ! has cargo >/dev/null; then
    say "cargo is missing; install Rust with rustup (https://rustup.rs), then run this again"
    exit 1
fi

case ${1:-build} in
build | test)
    need build-essential has c++
    need build-essential has make
    need pkg-config has pkg-config
    need libssl-dev pkg-config --exists openssl
    need zlib1g-dev pkg-config --exists zlib
    ;;
*)
    say "usage: $0 build|test"
    exit 2
    ;;
esac
if [ "${1:-build}" = test ]; then
    [ -n "${HALLEY_TEST_REDIS:-}" ] || need redis-server has redis-server
    need redis-tools has redis-cli
    need openssl has openssl
    need docker-registry has docker-registry
    want golang-go has go
    want python3 has python3
    want python3-venv python3 -c 'import ensurepip, venv'
fi

if [ -n "$wanted" ] && [ "$(id -u)" -eq 0 ] && has apt-get >/dev/null; then
    missing="$missing$wanted"
elif [ -n "$wanted" ]; then
    say "missing (by their Debian names):$wanted; the stories that need them are skipped"
fi
[ -n "$missing" ] || exit 0
packages=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
command="apt-get install -y --no-install-recommends $packages"
if ! has apt-get >/dev/null; then
    say "missing (by their Debian names): $packages- install them with your package manager"
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    say "missing: $packages"
    say "install with: sudo $command"
    exit 1
fi
say "installing: $packages"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of words
apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages >/dev/null
