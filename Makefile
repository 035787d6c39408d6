# make demo: everything from nothing to the printed table.  make test: the same for the tests.
# make docs: the documentation site, in docs/_build/html.  make lint types: ruff and mypy.
# make test PYTHON=python3.12 uses another interpreter; make test CONSTRAINTS=constraints-lowest.txt uses the oldest
# versions that setup.cfg allows, in an environment of their own.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS ?= constraints.txt
VENV ?= .venv-$(VERSION)$(patsubst constraints%.txt,%,$(CONSTRAINTS))
BIN := $(VENV)/bin
# What is imported is compiled then; all that is installed would take half as long again.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable
# Two processes on two cores: each runs eight CPU devices.
WORKERS ?= 2
TESTS ?=

.PHONY: demo test lint types docs install clean
demo: $(VENV)/.installed-demo
	$(BIN)/clipdata demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-lint
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "The site: docs/_build/html/index.html"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is Python $(VERSION); clipdata_jax needs 3.11 or newer: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# An older pip takes twice as long to choose among 160 packages; where no newer one is found, it does.
	-$(BIN)/python -m pip install --quiet 'pip >= 25.1'

$(VENV)/.installed-demo: $(VENV)/bin/python setup.cfg $(CONSTRAINTS)
	$(INSTALL) .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python setup.cfg $(CONSTRAINTS)
	$(INSTALL) '.[test,tfds,filters,entries]'
	touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-lint: $(VENV)/bin/python setup.cfg $(CONSTRAINTS)
	$(INSTALL) '.[lint]'
	touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-docs: $(VENV)/bin/python setup.cfg $(CONSTRAINTS)
	$(INSTALL) '.[docs]'
	touch $@ $(VENV)/.installed-demo

install: $(VENV)/.installed-test

clean:
	rm -rf .venv-* demo-output docs/_build docs/commands

# Retrains the model that ships with the demo: draws its data, about 40 minutes on 2 cores.
.PHONY: demo-model
demo-model: $(VENV)/.installed-demo
	$(BIN)/python tools/train_demo_model.py configs/demo_model.py
