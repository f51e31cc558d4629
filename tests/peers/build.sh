#!/bin/sh
# Builds the test peers that share no code with the gateway.
#
#   tests/peers/build.sh [go|comet-go|python]...      default: all
#
# Prints one line for each:
#   go       the program with the comet on grpc-go and the producer on franz-go
#   comet-go the comet of examples/comet-go, which takes messages by stream
#   python   the Python that runs the comet on gRPC's C core (python/comet.py): it has grpcio
#
# Dependencies are fetched once, in pinned versions, into the cache (HALLEY_CACHE, default .cache in
# the repository; Go's modules into Go's own cache). Builds are cached there as well, and repeated only
# when their sources change.
#
# Exit code: 0 if all peers are available, 1 if a build failed, 3 if only the tools of a peer are
# missing; prints which, and how to install them.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${HALLEY_CACHE:-$here/../../.cache}/peers
mkdir -p "$cache"
cache=$(CDPATH='' cd -- "$cache" && pwd)

grpcio=1.76.0

say() { printf 'peers: %s\n' "$*" >&2; }

# lacking REASON...: the tools of this peer are missing.
lacking() {
    say "$peer is not available: $*"
    exit 3
}

has() { command -v "$1" >/dev/null 2>&1; }

# at_most SECONDS COMMAND...: runs a command with a timeout, for an unresponsive network.
at_most() { if has timeout; then timeout "$@"; else shift && "$@"; fi; }

build_go() { build_with_go go "$here/go"; }

build_comet_go() { build_with_go comet-go "$here/../../examples/comet-go"; }

# build_with_go NAME FOLDER
build_with_go() {
    sh "$here/../support/need.sh" go golang-go || lacking "install Go 1.19 or newer"
    minor=$(go env GOVERSION | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    [ "${minor:-0}" -ge 19 ] || lacking "$(go env GOVERSION) is too old; install Go 1.19 or newer"
    made=$cache/$1-$(find "$2" -type f | LC_ALL=C sort | xargs cat | cksum | tr -d ' ')
    if [ ! -x "$made" ]; then
        # Use the installed Go only.
        export GOTOOLCHAIN=local GOFLAGS=-mod=readonly
        (cd "$2" && at_most 300 go mod download >&2) || lacking "go cannot fetch the modules of $2/go.mod"
        say "building $1 (a minute, once)"
        # A fast build matters more than fast code.
        (cd "$2" && at_most 900 go build -buildvcs=false -gcflags='all=-N -l' -ldflags='-s -w' -o "$made.$$" . >&2) || exit 1
        mv "$made.$$" "$made"
    fi
    echo "$made"
}

build_python() {
    has python3 || lacking "python3 is missing; install Python 3.9 or newer with venv"
    venv=$cache/grpcio-$grpcio
    if ! "$venv/bin/python" -c 'import grpc' 2>/dev/null; then
        say "fetching grpcio $grpcio into $venv (about 7 MB, once)"
        rm -rf "$venv"
        python3 -m venv "$venv" >&2 || lacking "python3 has no venv; on Debian: apt-get install python3-venv"
        at_most 300 "$venv/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: \
            "grpcio==$grpcio" >&2 || lacking "pip cannot fetch grpcio $grpcio"
    fi
    echo "$venv/bin/python"
}

[ $# -gt 0 ] || set -- go comet-go python
result=0
for peer in "$@"; do
    case $peer in go | comet-go | python) ;; *)
        say "unknown peer \`$peer\`; expected go, comet-go or python"
        exit 2
        ;;
    esac
    code=0
    ("build_$(echo "$peer" | tr - _)") || code=$?
    # A failed build takes precedence over missing tools.
    case $code in 0) ;; 3) [ "$result" -ne 0 ] || result=3 ;; *) result=1 ;; esac
done
exit "$result"
