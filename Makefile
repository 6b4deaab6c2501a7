# Every verb of a developer. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
# Where rustup puts cargo, for shells that don't know.
export PATH := $(PATH):$(HOME)/.cargo/bin

STEP := e2e/step.sh
CLUSTER := e2e/cluster/cluster.sh
IMAGES := $(or $(PGHERD_CACHE),$(HOME)/.cache/pgherd)/images
TARGET := $(or $(CARGO_TARGET_DIR),target)
BUILT = $(TARGET)/$(shell rustc -vV | sed -n 's/^host: //p')/debug
# One selection of packages for everything, so that cargo compiles each dependency once.
ALL := --workspace --locked
# Names of test programs: tests/NAME.rs or tests/NAME/main.rs.
tests_in = $(foreach d,$(1),$(patsubst $(d)/tests/%.rs,--test %,$(wildcard $(d)/tests/*.rs)) \
  $(patsubst $(d)/tests/%/main.rs,--test %,$(wildcard $(d)/tests/*/main.rs)))
UNIT_TESTS := --lib --bins $(call tests_in,crds operator operator/core operator/stream operator/agent)
E2E_TESTS := $(call tests_in,e2e)
# The PostgreSQL of the tests on Kubernetes: 15, 17 or 18.
VERSION := 17
# What e2e-versions runs.
OF_EACH_VERSION := create:: failover_required:: backup_restore:: replica_from_backup:: restore_in_place:: incremental:: verification::
CHARTS := charts/pgherd charts/postgres-cluster
SCRIPTS := .ci/run crds/tests/*.sh e2e/*.sh e2e/bench/backup/*.sh e2e/bench/backup/peers/*.sh e2e/cluster/*.sh e2e/images/*/*.sh

.PHONY: help
help: ## Lists the verbs.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

##@ The two that a newcomer needs

.PHONY: demo
demo: deps cluster-up images load store ## Shows the whole job on a local Kubernetes, step by step (builds what it needs).
	@$(STEP) "demo" e2e/with-cluster.sh $(BUILT)/demo

.PHONY: test
test: deps fmt-check cluster-build check sim images cluster-up load store e2e faults-short ## Runs all checks, all tests, and the tests on a local Kubernetes.

.PHONY: ci
ci: test ## The same as test: what .ci/run runs.

# Building

.PHONY: deps
deps: ## Installs Debian packages that are missing, and checks for Rust.
	@e2e/deps.sh

.PHONY: build
build: ## Compiles all programs.
	@$(STEP) "cargo build" cargo build $(ALL) --bins

.PHONY: image
image: build ## Builds the images of pgherd and of the tests' writer into target/images.
	@$(STEP) "pgherd images" e2e/images/pgherd/build.sh

.PHONY: images
images: image ## Builds all images: besides, PostgreSQL 17 and MinIO.
	@$(STEP) "PostgreSQL image" e2e/images/postgres/build.sh 17
	@$(STEP) "MinIO image" e2e/images/minio/build.sh

.PHONY: load
load: ## Brings the images to the nodes of the cluster that is up.
	@$(STEP) "images to the nodes" e2e/cluster/load-image.sh $(IMAGES)/postgres-17.tar $(IMAGES)/minio.tar \
	  $(IMAGES)/toolbox-17.tar $(TARGET)/images/*.tar

.PHONY: version
version: # Builds and loads the images of a VERSION that is not the usual one.
ifneq ($(VERSION),17)
	@$(STEP) "PostgreSQL $(VERSION) images" e2e/images/minio/build.sh $(VERSION)
	@$(STEP) "images to the nodes" e2e/cluster/load-image.sh $(IMAGES)/postgres-$(VERSION).tar $(IMAGES)/toolbox-$(VERSION).tar
endif

.PHONY: store
store: ## Starts MinIO with TLS in the cluster that is up.
	@$(STEP) "MinIO in the cluster" e2e/with-cluster.sh e2e/cluster/minio.sh

.PHONY: crds
crds: build ## Generates crds/*.yaml and docs/api.md from the types, and copies the former into the chart.
	@$(BUILT)/crdgen crds docs/api.md
	@$(MAKE) chart

.PHONY: chart
chart: ## Copies crds/*.yaml into the chart, and the version from Cargo.toml.
	@mkdir -p charts/pgherd/files/crds
	@rm -f charts/pgherd/files/crds/*.yaml
	@cp crds/*.yaml charts/pgherd/files/crds/
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1); \
	  sed -i -E "s/^(version|appVersion): .*/\1: $$version/" $(addsuffix /Chart.yaml,$(CHARTS))

.PHONY: manifest
manifest: ## Renders target/install.yaml, for `kubectl apply` without Helm.
	@mkdir -p $(TARGET)
	@{ printf 'apiVersion: v1\nkind: Namespace\nmetadata:\n  name: pgherd-system\n'; \
	  e2e/with-cluster.sh helm template pgherd charts/pgherd --namespace pgherd-system; } >$(TARGET)/install.yaml
	@echo "wrote $(TARGET)/install.yaml"

# Checking

.PHONY: check
check: deps fmt-check lint unit second-store drift ## Runs everything that needs no cluster.

.PHONY: fmt
fmt: ## Formats the code.
	@cargo fmt --all

.PHONY: fmt-check
fmt-check: ## Checks the formatting.
	@$(STEP) "formatting" cargo fmt --all --check

.PHONY: lint
lint: ## Runs clippy and shellcheck; a warning fails.
	@$(STEP) "shellcheck" shellcheck -x -S warning $(SCRIPTS)
	@$(STEP) "clippy" cargo clippy $(ALL) --all-targets -- -D warnings

.PHONY: unit
unit: ## Runs unit, property and snapshot tests. More at a time than there are processors: many wait for a server.
	@$(STEP) "unit, property and snapshot tests" env INSTA_UPDATE=no RUST_TEST_THREADS=4 cargo test $(ALL) $(UNIT_TESTS)

.PHONY: second-store
second-store: ## Runs the tests of backups, restores and the WAL archive again, on versitygw instead of MinIO.
	@$(STEP) "backups and restores on versitygw" env PGHERD_TEST_STORE=versitygw RUST_TEST_THREADS=4 cargo test $(ALL) \
	  --test streams --test verification -- --skip on_minio --skip on_versity --skip memory

.PHONY: model
model: ## Checks the failover protocol in every order of steps within bounds; T=deep goes further (docs/adr/0002).
	@$(STEP) "model of the failover" cargo test --locked -p pgherd-core --test model -- --nocapture \
	  $(if $(filter deep%,$(T)),--ignored) $(T)

# How often each property is tried.
N := 20000
.PHONY: fuzz
fuzz: ## Feeds what comes from servers and stores, changed at random, to everything that reads it: N=cases of each property.
	@$(STEP) "texts and histories" env PROPTEST_CASES=$(N) cargo test --locked -p pgherd-core --test props_text
	@$(STEP) "protocol, archives, keys and names" env PROPTEST_CASES=$(N) cargo test --locked -p pgherd-stream --lib --test protocol
	@$(STEP) "pg_controldata" env PROPTEST_CASES=$(N) cargo test --locked -p pgherd-agent --lib control
	@$(STEP) "captures of a real server and a real backup" env PROPTEST_CASES=$(N) cargo test --locked -p pgherd-stream \
	  --test streams -- hostile mutations --nocapture

# The first seed, and how many there are.
FIRST := 1
SEEDS := 60
.PHONY: sim
sim: ## Simulates clusters under random pairs of faults: SEEDS=n of them, from FIRST=seed on; TRACE=1 prints what happens.
	@$(STEP) "simulation" env PGHERD_SIM_FIRST=$(FIRST) PGHERD_SIM_SEEDS=$(SEEDS) $(if $(TRACE),PGHERD_SIM_TRACE=1) \
	  cargo test $(ALL) --test sim -- --nocapture $(T)

.PHONY: drift
drift: build ## Checks that generated files are current.
	@$(STEP) "generated files" e2e/drift.sh $(BUILT)/crdgen

.PHONY: chart-check
chart-check: ## Lints and renders the charts (needs helm, which cluster-up builds).
	@$(STEP) "charts" e2e/with-cluster.sh e2e/charts.sh

# The cluster

.PHONY: cluster-build
cluster-build: ## Builds the programs of the local Kubernetes (also MinIO, which unit tests use), and starts nothing.
	@$(STEP) "programs of Kubernetes" $(CLUSTER) build

.PHONY: cluster-up
cluster-up: ## Starts a local Kubernetes, or takes that of KUBECONFIG (the first time: builds it).
	@$(STEP) "Kubernetes" $(CLUSTER) up

.PHONY: cluster-down
cluster-down: ## Stops the local Kubernetes and leaves nothing behind.
	@$(CLUSTER) down

.PHONY: cluster-status
cluster-status: ## Says what is up.
	@$(CLUSTER) status

# Tests at a time, of those that may run beside each other.
TOGETHER := 3
.PHONY: e2e
e2e: chart-check crds-e2e version ## Runs the tests on the cluster that is up; T=name runs one, VERSION=18 (15) another PostgreSQL.
	@[ -n "$(strip $(E2E_TESTS))" ] || { echo "error: no tests in e2e/tests" >&2; exit 1; }
	@$(STEP) "tests on Kubernetes" e2e/with-cluster.sh env PGHERD_E2E=1 PGHERD_E2E_POSTGRES=$(VERSION) \
	  cargo test $(ALL) $(E2E_TESTS) -- --ignored --test-threads=$(TOGETHER) --nocapture $(T)

.PHONY: e2e-versions
e2e-versions: ## Runs a part of the tests with PostgreSQL 15 and 18 on the cluster that is up; T=name some.
	@for version in 15 18; do $(MAKE) e2e VERSION=$$version T="$(or $(T),$(OF_EACH_VERSION))"; done

.PHONY: faults
faults: version ## Injects faults on the cluster that is up; T=name (or number) some, SHORT=1 a short selection, RUNS=n times each.
	@$(STEP) "faults" e2e/with-cluster.sh env PGHERD_E2E_POSTGRES=$(VERSION) $(BUILT)/faults $(if $(SHORT),--short) $(if $(RUNS),--runs $(RUNS)) $(T)

.PHONY: faults-short
faults-short: ## Injects the faults of continuous integration: seconds without writes are noted, anything lost fails.
	@$(MAKE) faults SHORT=1

.PHONY: bench-failover
bench-failover: ## Measures failovers on the cluster that is up: RUNS=n (20) of each; T=name some.
	@$(STEP) "failover benchmark" e2e/with-cluster.sh $(BUILT)/bench-failover $(if $(RUNS),--runs $(RUNS)) $(T)

.PHONY: bench-backup
bench-backup: deps build ## Measures backups beside other tools', without Kubernetes: GIB=n (3), RUNS=n (2); T=name some.
	@$(STEP) "backup benchmark" e2e/bench/backup/run.sh $(BUILT)/bench-backup $(or $(PGHERD),$(BUILT)/pgherd) \
	  $(if $(GIB),--gib $(GIB)) $(if $(RUNS),--runs $(RUNS)) $(T)

.PHONY: crds-e2e
crds-e2e: ## Checks the custom resources' rules against the API server of the cluster that is up.
	@$(STEP) "rules of the custom resources on Kubernetes" e2e/with-cluster.sh crds/tests/apply.sh
