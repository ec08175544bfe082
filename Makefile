# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: quickstart test test-long test-cluster lint docs reference nightly bench soak install dev clean
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)
	$(BIN)/bitfront run sweeps/quickstart.yaml

install: $(INSTALLED)

# Most tests wait, for Ray, servers and browsers: two files at a time, each on one thread, the long ones not last.
test: lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m long

# Needs Debian's postgresql, and root for networks of their own; without root all share loopback.
test-cluster: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m cluster

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Always whole, so that no warning is lost: a link or section that leads nowhere is one, and ends it.
docs: $(INSTALLED_DEV)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --write-all \
		-c docs -d docs/_build/doctrees . docs/_build/html
	@echo docs/_build/html/index.html

# The pages that follow from settings, commands and registries.
reference: $(INSTALLED)
	$(BIN)/python docs/generate

# Repeats what the papers claim, as far as two CPU cores can, and compares it with what was accepted; the first night is accepted.
nightly: $(INSTALLED)
	$(BIN)/bitfront nightly sweeps/nightly --storage bitfront-nightly --accept-new

bench: $(INSTALLED)
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/ddp.py
	$(BIN)/python benchmarks/quantizers.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/mixture.py
	$(BIN)/python benchmarks/partition.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/allocation.py
	$(BIN)/python benchmarks/perturbation.py
	$(BIN)/python benchmarks/reference_maps.py
	$(BIN)/python benchmarks/transfer.py --out benchmarks/transfer
	$(BIN)/python benchmarks/early_stopping.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/recording.py

# Ten minutes of a sweep, and whether its driver's memory grows.
soak: $(INSTALLED)
	$(BIN)/python benchmarks/soak.py --out benchmarks/soak

dev: $(INSTALLED_DEV)
	$(BIN)/pre-commit install

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	touch $@

$(INSTALLED_DEV): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@ $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis docs/_build
