# The commands of the repository; `make help` lists them. Everything that they
# install is pinned: Cargo.lock, requirements/python.txt, image/packages.txt and the
# digests in scripts/fetch-onnxruntime.py.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Targets share one cargo lock and one binary's place: in order, never at once.
.NOTPARALLEL:

CARGO ?= cargo
PYTHON ?= python3
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 5
# Measured runs of each model under each budget, at least.
BENCH_RUNS ?= 30

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
DEVELOPMENT := $(TARGET)/release
PRODUCTION := $(TARGET)/production
ONNXRUNTIME := $(TARGET)/onnxruntime/libonnxruntime.so.1.32.0
VENV_PYTHON := $(CURDIR)/.venv/bin/python

# ONNX Runtime's Python package, too, sends nothing (crates/engine/src/telemetry.rs).
export ORT_DISABLE_TELEMETRY := 1
export PYTHON
export CARGO_TARGET_DIR := $(TARGET)
export OCCLUDE_PYTHON := $(VENV_PYTHON)
export OCCLUDE_BINARY := $(DEVELOPMENT)/occlude
export OCCLUDE_PRODUCTION_BINARY := $(PRODUCTION)/occlude
export OCCLUDE_NODE_TESTS := $(TARGET)/node-tests
export OCCLUDE_IMAGE := $(TARGET)/image

.PHONY: help
help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## the whole story in a terminal: seal, serve, verify, infer
	@$(VENV_PYTHON) -B demo/demo.py

.PHONY: test
test: test-image build postgresql test-packages node-tests ## every test, fuzz targets for a few seconds, sanitizers
	@$(VENV_PYTHON) scripts/test.py --fuzz-seconds $(FUZZ_SECONDS)

.PHONY: build
build: onnxruntime ## target/release/occlude, with the simulated TEE and switches that weaken it (for development)
	$(CARGO) build --release --locked --package occlude-cli --features simulated

.PHONY: release
release: production ## target/production/occlude, without the simulated TEE and without switches

# Both builds share one target folder, so that the dependencies are compiled once;
# the copy keeps the production binary when `make build` links the other again.
.PHONY: production
production: onnxruntime
	$(CARGO) build --release --locked --package occlude-cli
	@install -d $(PRODUCTION)
	@install -m 0755 $(DEVELOPMENT)/occlude $(PRODUCTION)/occlude
	@! grep --quiet --text occlude/v1/simulated-evidence $(PRODUCTION)/occlude || \
	    { rm $(PRODUCTION)/occlude; echo "error: the production build holds the simulated TEE" >&2; exit 1; }
	@! grep --quiet --text OCCLUDE_WEAKENING $(PRODUCTION)/occlude || \
	    { rm $(PRODUCTION)/occlude; echo "error: the production build can be weakened" >&2; exit 1; }
	@install -m 0755 $(ONNXRUNTIME) $(PRODUCTION)/

.PHONY: onnxruntime
onnxruntime: venv ## the pinned ONNX Runtime library, beside target/release/occlude
	@$(VENV_PYTHON) scripts/fetch-onnxruntime.py

.PHONY: venv
venv: ## .venv, with the Python packages of requirements/python.txt
	@scripts/venv

.PHONY: conformance
conformance: onnxruntime node-tests ## every node test of the onnx package, sealed and run
	$(CARGO) test --release --locked --package occlude-engine --test conformance -- --all

.PHONY: node-tests
node-tests: venv
	@$(VENV_PYTHON) -B scripts/node-tests.py $(OCCLUDE_NODE_TESTS)

.PHONY: postgresql
postgresql:
	@scripts/postgresql

.PHONY: test-packages
test-packages:
	@scripts/test-packages

.PHONY: image
image: production ## target/image: a virtual machine that does nothing but serve
	@$(PYTHON) -B scripts/image.py --output $(OCCLUDE_IMAGE)

# Without it, its test says that it skips.
.PHONY: test-image
test-image: production
	-@$(PYTHON) -B scripts/image.py --output $(OCCLUDE_IMAGE)

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZ_SECONDS seconds
	@scripts/fuzz $(FUZZ_SECONDS)

.PHONY: sanitize
sanitize: ## the crates with unsafe code under the sanitizers that this toolchain has
	@scripts/sanitize

.PHONY: lint
lint: ## formatting, clippy, types in Python, documentation, dependencies
	@scripts/lint

.PHONY: bench
bench: build ## time and memory of sealing, and of five models; refreshes docs/benchmarks.md
	@$(VENV_PYTHON) scripts/models.py $(TARGET)/models
	@missed=0; \
	$(CARGO) run --release --locked --package occlude-container --example throughput || missed=1; \
	$(VENV_PYTHON) -B scripts/bench.py $(TARGET)/models $(TARGET)/bench --runs $(BENCH_RUNS) || missed=1; \
	$(VENV_PYTHON) -B scripts/benchmarks.py $(TARGET)/models $(TARGET)/evaluate --runs $(BENCH_RUNS) || missed=1; \
	exit $$missed

# Needs pip-tools; what it writes is reviewed like code.
.PHONY: requirements
requirements:
	cd requirements && pip-compile --generate-hashes --allow-unsafe --strip-extras \
	    --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	    --no-emit-options --output-file python.txt python.in

.PHONY: clean
clean: ## removes everything that was made
	rm -rf $(TARGET) fuzz/target fuzz/corpus fuzz/artifacts .venv demo-output
