#!/bin/sh
# Builds the policies in other languages into plugins/languages/dist/.
#
#   plugins/languages/build.sh [javascript|python|c|go]...      all of them by default
#   plugins/languages/build.sh --project FOLDER LANGUAGE WORLD NAME
#
# The second form builds a project created by `halley plugin new --language`, which contains this
# script: into FOLDER/dist/NAME.wasm (HALLEY_GUEST_DIST sets another directory), whose path it
# prints. HALLEY_GUEST_INSTALL=no: installs no packages, and prints which are missing.
#
# The tools of a language are fetched in pinned versions into the cache (HALLEY_CACHE, default
# .cache in the repository) and kept there. A policy is rebuilt only if one of its inputs changed.
#
# Exits with 0 if everything is in dist/, 1 if a build failed, and 3 if nothing failed but the
# tools of a language are not available here; it prints which ones, and how to install them.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ "${1:-}" = --project ]; then
    project=$(CDPATH='' cd -- "$2" && pwd)
    world=$4
    name=$5
    wit=$project/wit
    cache=${HALLEY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/halley}/languages
    dist=${HALLEY_GUEST_DIST:-$project/dist}
    main=policy
    set -- "$3"
else
    project=""
    world=filter-policy
    wit=$(CDPATH='' cd -- "$here/../../wit" && pwd)
    cache=${HALLEY_CACHE:-$here/../../.cache}/languages
    dist=$here/dist
    main=mask_words
fi
mkdir -p "$cache" "$dist"
cache=$(CDPATH='' cd -- "$cache" && pwd)
# The file names that wit-bindgen derives from a world.
bindings=$(printf %s "$world" | tr - _)

componentize_py=0.25.1
wit_bindgen=0.61.1

say() { printf 'languages: %s\n' "$*" >&2; }

# lacking REASON...: the tools of this language are not available.
lacking() {
    say "$language is not built: $*"
    exit 3
}

# failed REASON...: the tools are available, and the build failed.
failed() {
    say "$language: $*"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# at_most SECONDS COMMAND...: with a timeout, because a network may not answer.
at_most() { if has timeout; then timeout "$@"; else shift && "$@"; fi; }

# The caller's settings are for the host target.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET CARGO_BUILD_RUSTFLAGS

# --- shared by several languages -------------------------------------------------------------

# node_packages: `$node` is a folder with the npm packages of package-lock.json.
node_packages() {
    has node && has npm || lacking "node and npm are missing; install Node.js 20 or newer"
    major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge 20 ] || lacking "Node.js $(node --version) is too old; install 20 or newer"
    node=$cache/node-$(sum "$here/package-lock.json")
    [ -d "$node" ] && return
    say "fetching npm packages into $node (about 400 MB, once)"
    aside node
    cp "$here/package.json" "$here/package-lock.json" "$aside/"
    # Not `npm ci`: it requires packages for other platforms, which a registry may lack.
    (cd "$aside" && at_most 600 npm install --no-audit --no-fund --loglevel=error >&2) ||
        lacking "npm cannot fetch the packages of plugins/languages/package.json"
    keep "$aside" "$node"
}

# wit_bindgen: `$bindgen` is wit-bindgen of the pinned version.
wit_bindgen() {
    bindgen=$cache/wit-bindgen-$wit_bindgen/bin/wit-bindgen
    [ -x "$bindgen" ] && return
    if has wit-bindgen && [ "$(wit-bindgen --version)" = "wit-bindgen-cli $wit_bindgen" ]; then
        bindgen=wit-bindgen
        return
    fi
    has cargo || lacking "cargo is missing, which installs wit-bindgen; see https://rustup.rs"
    say "building wit-bindgen-cli $wit_bindgen with cargo (some minutes, once)"
    aside wit-bindgen
    # It only generates a few files, so build it fast instead of optimized.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_TARGET_DIR="$aside/target" at_most 1200 \
        cargo install -q wit-bindgen-cli --version $wit_bindgen --locked \
        --no-default-features --features c,go --root "$aside" >&2 ||
        lacking "cargo cannot install wit-bindgen-cli $wit_bindgen"
    rm -rf "$aside/target"
    keep "$aside" "$cache/wit-bindgen-$wit_bindgen"
}

# debian PACKAGE...: checks for packages; root installs missing ones, others get the command.
debian() {
    missing=""
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" -eq 0 ] && [ "${HALLEY_GUEST_INSTALL:-}" != no ] || lacking "missing; install with: sudo apt-get install -y --no-install-recommends$missing"
    say "installing$missing"
    apt="at_most 900 apt-get -o Dpkg::Use-Pty=0 -o Acquire::http::Timeout=30 -o Acquire::Retries=1"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # lists of words
    { $apt install -qq -y --no-install-recommends $missing ||
        { $apt update -qq && $apt install -qq -y --no-install-recommends $missing; }; } >&2 ||
        lacking "apt-get cannot install$missing"
}

# aside NAME: `$aside` is a temporary directory, so that an interrupted fetch leaves no partial one.
aside() { aside=$(mktemp -d "$cache/$1.XXXXXX"); }

# keep ASIDE PLACE: moves it to its place, unless another process was faster.
keep() { mv -T "$1" "$2" 2>/dev/null || { rm -rf "$1" && [ -d "$2" ]; }; }

sum() { cat "$@" | cksum | tr -d ' '; }

# --- the languages: each writes the policy to `$made` -------------------------------------------

build_javascript() {
    node_packages
    # The engine would import clocks, randomness and wasi:http, which a policy does not need. It
    # reports exceptions on standard error, which goes to the plugin's log (stdio).
    at_most 300 "$node/node_modules/.bin/componentize-js" "$source/$main.js" \
        --wit "$wit" --world-name "$world" --out "$made" \
        -d random -d clocks -d http -d fetch-event >"$log" 2>&1
}

build_python() {
    has python3 || lacking "python3 is missing; install Python 3.10 or newer with venv"
    venv=$cache/componentize-py-$componentize_py
    if [ ! -x "$venv/bin/componentize-py" ]; then
        # A venv cannot be moved: it is created in place and counts only when complete.
        say "fetching componentize-py $componentize_py into $venv (about 50 MB, once)"
        python3 -m venv "$venv" >&2 || lacking "python3 has no venv; on Debian: apt-get install python3-venv"
        at_most 600 "$venv/bin/pip" install -q --disable-pip-version-check \
            "componentize-py==$componentize_py" >&2 ||
            lacking "pip cannot fetch componentize-py $componentize_py"
    fi
    # Not `--stub-wasi`: CPython reports exceptions on standard error, which goes to the plugin's log.
    (cd "$source" && at_most 300 "$venv/bin/componentize-py" -q -d "$wit" -w "$world" \
        componentize "$main" -o "$made" >"$log" 2>&1)
}

build_c() {
    if has dpkg-query; then
        debian clang lld wasi-libc libclang-rt-dev-wasm32 libjsmn-dev
        jsmn=/usr/include/jsmn.h
    else
        has clang && has wasm-ld || lacking "clang and wasm-ld are missing; install LLVM 14 or newer, wasi-libc and jsmn"
        jsmn=${JSMN:-/usr/include/jsmn.h}
        [ -f "$jsmn" ] || lacking "jsmn.h is missing; set JSMN to where it is"
    fi
    wit_bindgen
    "$bindgen" c "$wit" -w "$world" --out-dir "$work" >"$log" 2>&1
    # A copy, because the host's other headers are not for this target.
    mkdir "$work/include" && cp "$jsmn" "$work/include/"
    # The gateway creates the component: the object file contains the world.
    at_most 120 clang --target=wasm32-wasi -mexec-model=reactor -O2 -Wall -Wextra -Werror \
        -I "$work" -I "$work/include" -Wl,--strip-all -o "$made" \
        "$source"/*.c "$work/$bindings.c" "$work/${bindings}_component_type.o" >"$log" 2>&1
}

build_go() {
    has go || lacking "go is missing; install Go 1.25 or newer"
    minor=$(go env GOVERSION | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    [ "${minor:-0}" -ge 25 ] || lacking "$(go env GOVERSION) is too old; install Go 1.25 or newer"
    node_packages
    wit_bindgen
    "$bindgen" go "$wit" -w "$world" --out-dir "$work" >"$log" 2>&1
    (cd "$source" && tar cf - --exclude ./target --exclude ./dist --exclude ./wit .) | tar xf - -C "$work"
    (cd "$work" && at_most 300 go mod download >&2) || lacking "go cannot fetch the modules of plugins/languages/go/go.mod"
    # The bindings allocate before Go's runtime is initialized, with one of Go's internal functions.
    (cd "$work" && GOOS=wasip1 GOARCH=wasm at_most 600 \
        go build -buildmode=c-shared -ldflags='-s -w -checklinkname=0' -o core.wasm . >"$log" 2>&1) || return 1
    ln -s "$node/node_modules" "$work/node_modules" && cp "$here/component.mjs" "$work/"
    at_most 120 node "$work/component.mjs" "$work/core.wasm" "$wit/policy.wit" "$world" "$made" >"$log" 2>&1
}

# build LANGUAGE: in a subshell, since `lacking` and `failed` end it.
build() {
    language=$1
    if [ -n "$project" ]; then
        source=$project
        file=$dist/$name.wasm
    else
        source=$here/$language
        file=$dist/mask_words_$language.wasm
    fi
    inputs=$(find "$wit" "$source" "$here/package-lock.json" "$here/component.mjs" "$here/build.sh" \
        \( -name target -o -name dist -o -name .git -o -name __pycache__ \) -prune -o -type f -exec cksum {} + |
        LC_ALL=C sort | cksum | tr -d ' ')$world
    [ -f "$file" ] && [ "$(cat "$dist/.$language" 2>/dev/null)" = "$inputs" ] && return
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    log=$work/log
    made=$work/made.wasm
    say "building $language"
    "build_$language" || { cat "$log" >&2 && failed "the build failed"; }
    [ -s "$made" ] || { cat "$log" >&2 && failed "the build left no file"; }
    mv "$made" "$file.new" && mv "$file.new" "$file"
    echo "$inputs" >"$dist/.$language"
    [ -n "$project" ] || say "$file, $(wc -c <"$file") bytes"
}

[ $# -gt 0 ] || set -- javascript python c go
result=0
for language in "$@"; do
    case $language in javascript | python | c | go) ;; *)
        say "no language \`$language\`; there are javascript, python, c and go"
        exit 2
        ;;
    esac
    code=0
    (build "$language") || code=$?
    # A failure takes precedence over missing tools.
    case $code in 0) ;; 3) [ "$result" -ne 0 ] || result=3 ;; *) result=1 ;; esac
done
[ -z "$project" ] || [ "$result" -ne 0 ] || printf '%s\n' "$dist/$name.wasm"
exit "$result"
