# syntax=docker/dockerfile:1.9
# Halley's images:
#
#   docker build -t halley .                                    the gateway (the last stage)
#   docker build -t halley-policies --target policies .         the bundled policies alone, for an image volume
#   docker build -t halley-examples --target examples .         the example comet and producer
#
# Without git in the build context, the revision comes from --build-arg REVISION="$(git describe --always)".

FROM rust:1.95-bookworm AS source
WORKDIR /src
# The version of Rust is the image's.
ENV RUSTUP_TOOLCHAIN=1.95 CARGO_TERM_COLOR=never
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY host host
COPY wit wit
COPY plugins plugins
COPY examples examples

FROM source AS build
ARG REVISION=unknown
ENV HALLEY_REVISION=$REVISION
# Stripped; paths of the build are not in it, so that two builds of one revision are equal.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    RUSTFLAGS="--remap-path-prefix=/src=/halley --remap-path-prefix=/usr/local/cargo=/cargo" \
    cargo build --locked --release --config 'profile.release.strip="symbols"' --bin halley

FROM source AS build-examples
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --locked --release --config 'profile.release.strip="symbols"' --example comet --example produce

FROM source AS build-policies
RUN rustup target add wasm32-unknown-unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry plugins/build.sh

FROM scratch AS policies
COPY --from=build-policies /src/plugins/dist/ /

# What the binaries link: glibc, libgcc, OpenSSL and zlib; and certificate authorities.
FROM debian:bookworm-20250811-slim AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 65532 --user-group --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin halley

FROM base AS examples
COPY --from=build-examples /src/target/release/examples/comet /usr/bin/halley-example-comet
COPY --from=build-examples /src/target/release/examples/produce /usr/bin/halley-example-produce
USER 65532:65532
ENTRYPOINT ["/usr/bin/halley-example-comet"]

FROM base AS gateway
COPY --from=build /src/target/release/halley /usr/bin/halley
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/halley/
# Active where a [[plugin]] names them.
COPY --from=build-policies /src/plugins/dist/ /usr/share/halley/plugins/
# Only the gateway's user writes the state and the admin socket; nothing else in the image is written. With a read-only
# root file system, mount a tmpfs at /run/halley.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/halley /run/halley && install -d /etc/halley
USER 65532:65532
WORKDIR /etc/halley
VOLUME /var/lib/halley
# The places that belong to the image, whatever the configuration says.
ENV HALLEY__POLICIES__STATE_DIR=/var/lib/halley \
    HALLEY__ADMIN__SOCKET=/run/halley/admin.sock
# Admin, API, probes, and metrics of `halley archive`. The admin listener is on loopback by default, and the others are
# off: HALLEY__ADMIN__PROBE_LISTEN=0.0.0.0:9095 opens the one for probes and Prometheus.
EXPOSE 9093 9094 9095 9096
# The configuration is /etc/halley/halley.toml, if there is one; otherwise the defaults and HALLEY__SECTION__KEY.
# `halley health` asks `[admin] probe_listen`, or `listen`, of the same configuration. `halley archive` has neither:
# give its containers the health check ["CMD", "/usr/bin/halley", "health", "--url", "http://127.0.0.1:9096"].
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/bin/halley", "health"]
# SIGTERM drains: give it longer than `[delivery] shutdown_grace` and 10 s (docker stop --time 35).
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/halley"]
CMD ["run"]
