# The environment is .venv here; every target makes it first, so a fresh machine needs only
# Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
# By a path, not by an import hook, which a folder called visrec beside the checkout would hide.
EDITABLE := --config-settings editable_mode=compat --editable
# What the demo and the tests need alike: no telemetry, no look-ups on a model hub.
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test chaos cover check help-pages bench lock clean

.venv/runtime: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "visrec needs Python 3.11 or 3.12, found %d.%d: make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint requirements.lock $(EDITABLE) .
	@touch $@

.venv/dev: .venv/runtime
	$(PY) -m pip install --quiet --constraint requirements.lock $(EDITABLE) '.[dev,bench]'
	@touch $@

lock: .venv/dev  ## write the versions that are installed now
	$(PY) -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

demo: .venv/runtime  ## the whole chain on the sample gallery, on this machine
	.venv/bin/visrec demo

check: .venv/dev  ## lint, format and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

help-pages: .venv/dev  ## write the help of the commands, after a change of keys
	$(PY) -m tests.write_help_pages

# Two processes, each with a Ray cluster (once a test asks for it) and an S3 server of its own. The
# tests of a file stay together and in their order, for the longest files are among the first.
test: .venv/dev  ## all tests but the long form of the chaos suite
	$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25

chaos: .venv/dev  ## the promises at their full counts, and the table of what was measured
	$(PY) -m tests.chaos

cover: .venv/dev  ## the same, slower, and which lines no test reached
	$(PY) -m pytest --cov --cov-report=term-missing:skip-covered --cov-fail-under=85

clean:
	rm -rf .venv runs

bench: .venv/dev  ## all figures, and what moved; DATA=folder of movies/ and clothing/
	$(PY) -m benchmarks $(if $(DATA),--data $(DATA))
