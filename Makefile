# make demo    create .venv, install pyvae, train the demo and write its report
# make test    install what the tests need, check style and types, run the tests
# make slow    the tests that take minutes
# make bench   time the ops on this machine
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint slow bench
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/pyvae train demo --out $(RUN) --log-every 10
	$(BIN)/pyvae report $(RUN)
	@echo "open $(RUN)/report.html"

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed-test
	$(BIN)/python -m pytest benchmarks --benchmark-only

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	@echo "installing pyvae into $(VENV): torch alone is some 200 MB, several GB with CUDA"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch "setuptools>=77" ninja
	$(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable ".[test]" lightning pythae
	# without torchvision, whose wheels want a torch with CUDA and keep Lightning from loading beside one without
	$(PIP) --no-deps disent
	touch $@
