#!/bin/sh
# fetch-mariadb.sh: prints where MariaDB's server is, fetching it if necessary.
#
# Prints three lines to stdout, and progress to stderr: the server, its installation (--basedir), and a
# data directory with the system tables, to be copied. Environment:
#   HALLEY_CACHE     where fetched files are kept (default: .cache in the repository).
# An installed server is used. Otherwise Debian's packages are unpacked into the cache (about 8 MB), which
# needs no privileges. Exit status 3: MariaDB is neither installed, nor can it be fetched here.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${HALLEY_CACHE:-$here/../../.cache}/mariadb
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

say() { echo "fetch-mariadb.sh: $*" >&2; }

fetch() {
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || {
        say "mariadbd is missing; install MariaDB's server with this system's package manager"
        exit 3
    }
    say "unpacking Debian's mariadb-server-core into $cache (8 MB, once)"
    # Filled in a temporary directory and renamed, so that an interrupted or concurrent fetch leaves no
    # incomplete directory.
    partial=$(mktemp -d "$cache/fetching.XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    packages="mariadb-server-core libaio1 liburing2 libnuma1 libpcre2-8-0"
    download() { (cd "$partial" && apt-get download -q $packages >&2 2>/dev/null); }
    download || { [ "$(id -u)" -eq 0 ] && apt-get update -q >&2 && download; } || {
        say "cannot download $packages"
        exit 3
    }
    for package in "$partial"/*.deb; do
        dpkg-deb -x "$package" "$partial/root"
    done
    mv -T "$partial/root" "$cache/root" 2>/dev/null || [ -d "$cache/root" ]
}

if command -v mariadbd >/dev/null 2>&1; then
    server=$(command -v mariadbd)
    base=/usr
else
    [ -x "$cache/root/usr/sbin/mariadbd" ] || fetch
    server=$cache/root/usr/sbin/mariadbd
    base=$cache/root/usr
    LD_LIBRARY_PATH=$(echo "$base"/lib/*-linux-gnu)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi

data=$cache/data
if [ ! -d "$data" ]; then
    new=$(mktemp -d "$cache/data.XXXXXX")
    scripts=$base/share/mysql
    {
        printf 'CREATE DATABASE IF NOT EXISTS mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\n'
        cat "$scripts/mysql_system_tables.sql" "$scripts/mysql_performance_tables.sql" \
            "$scripts/mysql_system_tables_data.sql"
    } | "$server" --no-defaults --bootstrap --basedir="$base" --datadir="$new" --user="$(id -un)" \
        --enforce-storage-engine= --innodb-log-file-size=8M --max-allowed-packet=8M >"$new.log" 2>&1 || {
        say "the system tables cannot be created: $(tail -n 5 "$new.log")"
        rm -rf "$new" "$new.log"
        exit 1
    }
    rm -f "$new.log"
    mv -T "$new" "$data" 2>/dev/null || rm -rf "$new"
fi
printf '%s\n%s\n%s\n' "$server" "$base" "$data"
