# Everything here works on a machine that has Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: demo test test-all lint check ui docs bench bench-seams clean

demo: $(VENV)/.installed ## segment a real micrograph through all assets
	$(BIN)/patchworks demo

ui: $(VENV)/.installed ## serve the Dagster UI of ./.patchworks
	$(BIN)/patchworks ui

test: $(VENV)/.installed-dev ## the tests, but for the slow ones
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-all: export PATCHWORKS_TESTS = all
test-all: test ## the slow ones too

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test-all ## what must be green before anything lands

docs: $(VENV)/.installed-docs ## the documentation site, into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed-dev ## whole jobs beside other tools, into benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.whole_jobs

bench-seams: $(VENV)/.installed-dev ## every rule, outline and other tool on made images, into docs/seams.md; half an hour
	$(BIN)/python benchmarks/bench_seams.py --volumes $(BENCH_ARGS) --write

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean: ## remove the environment and what the demo made
	rm -rf $(VENV) .patchworks build
