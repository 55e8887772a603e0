# Everything a newcomer needs: `make demo` and `make test` make their own virtual environment first.
# Overrides: PYTHON=python3.12  VENV=/elsewhere/venv  CONSTRAINTS=  (empty: pip chooses torch, e.g. a CUDA build)

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PROTLOOM = $(VENV)/bin/protloom
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
WORKERS ?= auto
# one thread a test process: as many processes as cores already keep the machine busy
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal

# without those that need a corpus or a finished run; each says in its first lines how it is called
BENCHMARKS = $(filter-out benchmarks/ankh3_joint.py benchmarks/first_run_figure.py benchmarks/trainer_loop.py \
	benchmarks/conftest.py $(wildcard benchmarks/test_*.py),$(wildcard benchmarks/*.py))

.PHONY: demo test test-slow lint bench bench-tables docs clean
.DELETE_ON_ERROR:

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found: install one, or say PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml $(wildcard constraints.txt) | $(VENV)/bin/python
	$(PIP) -e '.[tasks]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(wildcard constraints.txt) | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

# Pretrains a small network on the simulated proteome, then asks what it has learnt.
demo: $(VENV)/.demo
	$(PROTLOOM) train recipe:demo --out $(RUN)
	$(PROTLOOM) task run sim-ss3 sim-contact --model $(RUN)
	@echo "run folder: $(RUN)   (loss curves: $(VENV)/bin/tensorboard --logdir $(RUN)/tensorboard)"

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Times every part with pytest-benchmark and compares with the last saved run of this machine, if there is one.
bench: $(VENV)/.dev
	$(VENV)/bin/python -m pytest benchmarks -n 0 -q --benchmark-autosave --benchmark-group-by=group \
		--benchmark-columns=median,iqr,rounds $(if $(wildcard .benchmarks/*/*.json),--benchmark-compare)

# Measures the tables of benchmarks/results, each beside another program or another form.
bench-tables: $(VENV)/.dev
	for script in $(BENCHMARKS); do $(VENV)/bin/python $$script || exit 1; done

# The site, into docs/_build/index.html; a warning is an error.
docs: $(VENV)/.dev
	$(VENV)/bin/sphinx-build -W --keep-going -q -b html docs docs/_build

clean:
	rm -rf $(VENV) dist docs/_build .mypy_cache .ruff_cache .benchmarks
