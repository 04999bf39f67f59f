# Needs Python 3.11 or newer (with its venv module) and make; everything else goes into .venv.
#
#   make demo    install, then make pictures with the built-in model
#   make test    install with the test extras, then every check and every test
#   make check   the checks alone: style, format, types
#   make docs    build the documentation with the pages of the interface into site/; a warning is an error
#   make clean   remove what the two above made
#
# constraints.txt pins what CI uses. It pins torch by version only: which build of that version comes (CPU or CUDA, and for which
# CUDA) is decided by your pip configuration. On Linux the default build carries CUDA, several gigabytes; for a CPU-only build point
# pip at the PyTorch project's CPU index first (PIP_EXTRA_INDEX_URL or pip.conf; see "Get started" on the PyTorch site).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TREES := src tests website $(wildcard benchmarks examples)

.PHONY: demo test check lint format types docs fast slow clean

demo: $(VENV)/.installed
	$(BIN)/unnoise generate "a red apple" "a blue heart" "a black cat" "파란 자동차" --seed 7 --out demo
	@echo "the pictures are in $(CURDIR)/demo"

test: check docs fast slow

check: lint format types

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

format: $(VENV)/.installed-test
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-test
	$(BIN)/python website/build.py

fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto -m "not slow"

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto -m slow

# The stamps are older than pyproject.toml or constraints.txt only when something must be installed again.
$(VENV)/.created:
	$(PYTHON) -c "import sys; sys.exit('unnoise needs Python 3.11 or newer, got ' + sys.version.split()[0]) if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) --editable ".[test]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist demo site src/unnoise.egg-info .pytest_cache .ruff_cache
	find $(TREES) -name __pycache__ -type d -prune -exec rm -rf {} +
