# The active virtual environment, or .venv, which is made when it is not there.
VENV := $(or $(VIRTUAL_ENV),.venv)
PY := $(VENV)/bin/python
# An environment may serve several checkouts, so the stamp carries this one's path.
STAMP := $(VENV)/.fourfold$(subst /,-,$(CURDIR))
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python
WORKERS := 2
PYTEST := $(PY) -m pytest -q -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint types golden docs

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## make the environment ready (the others do it by themselves)

demo: $(STAMP)  ## plan llama-8b, then train a small model over 4 processes on this machine
	$(PY) examples/demo.py

test: $(STAMP)  ## the tests for every change, on 2 cores in at most 10 minutes
	$(PYTEST) -m "not slow"

test-all: $(STAMP)  ## every test, in at most 60 minutes
	$(PYTEST)

lint: $(STAMP)  ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(PY) -m mypy

golden: $(STAMP)  ## write the golden texts anew, then show what changed
	$(PYTEST) --update-golden
	git status --short tests/golden

docs: $(STAMP)  ## check the links, commands and snippets of the documents
	$(PY) -m pytest -q tests/structure/test_docs.py

$(STAMP): pyproject.toml scripts/install.py
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then \
	    $$python scripts/install.py "$(VENV)" && touch "$@"; exit $$?; \
	  fi; \
	done; \
	echo "Fourfold needs Python 3.11 to 3.14; name one with make PYTHON=/path/to/python" >&2; exit 2
