# Halley. `make` alone lists the targets.

.DEFAULT_GOAL := help
.PHONY: help build plugins demo check models test deploy-check soak bench bench-plugins bench-languages fuzz clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

build: ## The gateway, optimised: target/release/halley
	@.ci/deps.sh build
	cargo build --locked --release --bin halley

plugins: ## The bundled policies and the tests' guests, to WebAssembly
	@.ci/deps.sh build
	@plugins/build.sh >/dev/null
	@plugins/build.sh tests/guests >/dev/null

demo: ## A complete demo in one process, with nothing to install
	@.ci/deps.sh build
	@plugins/build.sh >/dev/null & policies=$$!; \
		cargo build --locked --profile demo --no-default-features --bin halley && wait $$policies
	@target/demo/halley demo $(DEMO_ARGS)

check: ## Format, lints, and licences and versions of dependencies, without running anything
	@.ci/deps.sh build
	cargo fmt --check
	cargo fmt --check --all --manifest-path plugins/Cargo.toml
	cargo fmt --check --all --manifest-path tests/guests/Cargo.toml
	cargo fmt --check --manifest-path examples/my-policy/Cargo.toml
	cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
	cargo clippy --locked --all-targets --all-features -- -D warnings
	cargo clippy --locked --manifest-path plugins/Cargo.toml --all-targets -- -D warnings
	@.ci/deny.sh

# Stories that run compilers: they would starve the fault stories, so they run separately.
BUILDERS := plugin_cli:: languages::

test: ## Everything: lints, unit tests, policies, and the stories on real Kafka and Redis
	@.ci/deps.sh test
	@tests/prepare.sh
	@tests/background.sh $(MAKE) --no-print-directory check models -- \
		tests/run.sh 5 -- $(foreach story,$(BUILDERS),--skip $(story))
	@tests/run.sh 2 --test stories -- $(BUILDERS)
	cargo test --locked --manifest-path plugins/Cargo.toml
	cargo test --locked --manifest-path examples/my-policy/Cargo.toml

models: ## Models of threads: queues, counters and locks under many interleavings
	cargo test --locked --features models --lib model::

# Builds helm and others once, which takes five minutes; stories check the same files in cheaper ways.
deploy-check: ## Dockerfile, compose.yaml and Helm chart, with hadolint, compose-go, helm and kubeconform
	@tests/deploy/check.sh

# One at a time: they print figures, and need the machine for themselves.
soak: ## Long runs: many faults, memory, throughput; HALLEY_SOAK_MINUTES (10)
	@.ci/deps.sh test
	@[ -n "$$HALLEY_TEST_KAFKA" ] || tests/support/fetch-kafka.sh >/dev/null
	@$(MAKE) --no-print-directory plugins
	@tests/peers/build.sh >/dev/null || [ $$? -eq 3 ]
	cargo test --locked --test stories -- --test-threads 1 --nocapture --ignored soak::
	cargo test --locked --test stories -- --test-threads 1 --nocapture a_thousand_swaps

# Ends everything that it starts, however it ends. BENCH_ARGS: --quick, --row NAME, --rounds N, --json, --list.
bench: ## The CPU cost of a message compared to bare floors; BENCH_ARGS=--quick takes a minute
	@.ci/deps.sh build
	@tests/support/fetch-kafka.sh >/dev/null
	cargo build --locked --release --bin halley --example bench
	@target/release/examples/bench $(BENCH_ARGS)

bench-plugins: ## The cost of policies compared to native Rust code; a minute
	@.ci/deps.sh build
	@plugins/build.sh >/dev/null
	@plugins/build.sh tests/guests >/dev/null
	cargo run --locked --release --example bench_plugins

bench-languages: ## The cost per message of the same policy in Rust, C, Go, Python and JavaScript
	@.ci/deps.sh build
	@plugins/build.sh >/dev/null
	@plugins/languages/build.sh || [ $$? -eq 3 ]
	cargo run --locked --release --example bench_languages

fuzz: ## Fuzzes all external inputs with libFuzzer, nine targets, FUZZ_SECONDS (60) each
	@.ci/deps.sh build
	@tests/fuzz/run.sh

clean: ## Removes all build output
	cargo clean
	rm -rf plugins/target plugins/dist plugins/languages/dist tests/guests/dist tests/fuzz/target .cache
