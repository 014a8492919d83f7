# Every target sets up what it needs; a second run finds it done. PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
# Extra arguments: make test ARGS="-k noise", make demo ARGS="--data digits", make demo PIP_ARGS="--index-url ..."
ARGS ?=
PIP_ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# OMP_WAIT_POLICY: threads that wait sleep, so that a busy machine slows the tests a little and not a hundredfold.
PYTEST := OMP_WAIT_POLICY=passive $(PY) -m pytest
CSRC := $(shell find csrc -type f)
CSRC_FORMATTED := $(filter %.h %.cpp %.cu %.cuh,$(CSRC))

.PHONY: demo test-quick test test-slow test-all cases lint format bench docs info native setup clean
.DELETE_ON_ERROR:

demo: setup
	$(PY) -m fastforget demo $(ARGS)

test-quick: setup $(VENV)/.test
	$(PYTEST) tests/test_quick.py $(ARGS)

# A worker on each core, eight at most; ARGS="-n0 ..." goes without workers. One that is done takes over half of another's rest.
test: setup $(VENV)/.test
	$(PYTEST) -n auto --maxprocesses 8 --dist worksteal -m "not slow" $(ARGS)

# What builds, and what runs kernels in an interpreter, an emulator or under sanitizers: few tests that take minutes, so one at a time.
test-slow: setup $(VENV)/.test
	$(PYTEST) -n auto --maxprocesses 8 --dist load --maxschedchunk 1 -m slow $(ARGS)

test-all: test test-slow

# Set-ups as people have them: case, expected, got.
cases: setup $(VENV)/.test
	OMP_WAIT_POLICY=passive $(PY) -m tests.field_cases $(ARGS)

lint: setup $(VENV)/.test $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/clang-format --dry-run --Werror $(CSRC_FORMATTED)

# Rewrites csrc in place.
format: $(VENV)/.lint
	$(VENV)/bin/clang-format -i $(CSRC_FORMATTED)

bench: setup
	$(PY) -m fastforget bench --readme $(ARGS)

info: setup
	$(PY) -m fastforget info

# The generated parts of README and docs/, from committed rows and from the code.
docs: setup
	$(PY) -m fastforget._bench.docs $(ARGS)

# The native parts alone, all of them or an error.
native: $(VENV)/.deps
	FASTFORGET_REQUIRE_NATIVE=1 $(PY) setup.py -q build_native

setup: $(VENV)/.installed

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "fastforget needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)." \
	    "Choose one: make PYTHON=python3.11 ..."; exit 1; }
	@echo "== $(VENV): a virtual environment with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.deps: requirements/build.txt requirements/nodeps.txt requirements/triton.txt | $(VENV)/.created
	@echo "== pinned dependencies (torch is the large one: several minutes on a slow line)"
	@$(PIP) -r requirements/build.txt
	@$(PIP) --no-deps -r requirements/nodeps.txt
	@$(PY) -c 'import triton' 2>/dev/null || $(PIP) --no-deps -r requirements/triton.txt
	@touch $@

$(VENV)/.test: requirements/test.txt | $(VENV)/.deps
	@echo "== test tools"
	@$(PIP) -r requirements/test.txt
	@touch $@

$(VENV)/.lint: requirements/lint.txt | $(VENV)/.created
	@echo "== lint tools"
	@$(PIP) -r requirements/lint.txt
	@touch $@

# Built here first, because pip would swallow the progress; its own build then finds everything up to date.
$(VENV)/.installed: $(VENV)/.deps setup.py pyproject.toml $(CSRC)
	@echo "== native parts (the CUDA kernels, where nvcc is found, take some minutes)"
	@$(PY) setup.py -q build_native
	@$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

clean:
	rm -rf build dist fastforget.egg-info fastforget/_lib fastforget/_host*.so
	rm -f $(VENV)/.installed
