# One command each: make book, make test, make notebooks. `make help` lists them all.
#
# Variables
#   PYTHON       the interpreter that creates .venv (3.11 or newer); default python3
#   TORCH_INDEX  address of a package index with another build of torch, for example the CPU-only or a CUDA build.
#                PyTorch's install page names it: the address behind --index-url. Empty: what pip serves by itself.
#   JOBS         test processes; default 2
#   SECONDS      how long `make fuzz` looks; default 60
#   MUTANTS      arguments of tests/mutants.py, such as "choice length" or "--sample 40 --seed 0"; default: every mutant
#   NB           the notebooks that `make notebooks` runs; default all
#
# Everything is installed in .venv and built in _build; nothing outside this folder is written.

PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= 2
SECONDS ?= 60

VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
NB ?= $(NOTEBOOKS)
TORCH_PIN = $(shell sed -n 's/^torch==//p' constraints.txt)

# The cells of one notebook share a kernel, so they must stay in one process: loadscope, never the default distribution.
NBVAL = $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout 600 --timeout 900 -n $(JOBS) --dist loadscope

.DEFAULT_GOAL := help
.PHONY: help book lab exercises pdf test fast fuzz facts mutants test-package test-notebooks test-site sweep package notebooks robust lint types format clean distclean

help: ## show this list
	@echo "Usage: make TARGET [PYTHON=python3.12] [TORCH_INDEX=address] [JOBS=4]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"dplearn needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}. Name another one: make PYTHON=python3.11")'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
ifneq ($(strip $(TORCH_INDEX)),)
	@echo "installing torch $(TORCH_PIN) from the index in TORCH_INDEX"
	@# --no-deps: the other pins need not exist on that index.
	$(BIN)/python -m pip install --no-deps --index-url $(TORCH_INDEX) torch==$(TORCH_PIN)
endif
	@echo "installing the pinned versions (minutes the first time)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[book,test]"
	@touch $@

book: $(VENV)/.ready ## build the HTML book from the stored outputs, warnings as errors, and check it
	@# A fresh, complete build: Sphinx neither removes old pages nor repeats the warnings of unchanged ones.
	rm -rf _build/html
	$(BIN)/jupyter-book build . -W --keep-going -n --all
	$(BIN)/python book/_tools/check_site.py _build/html
	@echo "Open $(CURDIR)/_build/html/index.html"

lab: $(VENV)/.lab-ready ## open the chapters in JupyterLab, with their text laid out as in the book
	$(BIN)/jupyter lab notebooks

$(VENV)/.lab-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[lab]"
	@touch $@

exercises: $(VENV)/.ready ## the chapters for a class, without solutions and outputs, in _build/exercises
	$(BIN)/python book/_tools/make_exercises.py _build/exercises

pdf: $(VENV)/.ready ## the whole book on paper, in _build/book.pdf (needs Chromium, and builds the book where it is not built)
	@test -f _build/html/index.html || $(MAKE) book
	$(BIN)/python book/_tools/make_pdf.py _build/html _build/book.pdf

test: test-package test-notebooks ## all tests: the package, then every notebook, re-executed and compared

test-package: $(VENV)/.ready ## the tests of the package, the project files and the built site
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadscope

fast: $(VENV)/.ready ## the quick tests, those of plain pytest: under three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope

test-notebooks: $(VENV)/.ready ## strict nbval: re-execute every notebook and compare each stored output
ifeq ($(NOTEBOOKS),)
	@echo "no notebooks yet"
else
	OMP_NUM_THREADS=1 $(NBVAL) notebooks
endif

test-site: $(VENV)/.ready ## only the browser test of the built pages (after make book)
	$(BIN)/python -m pytest tests/book/test_site.py -m "not slow" -ra

sweep: $(VENV)/.ready ## the slow tests: a prompt in every text architecture that transformers knows, and real models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/backbones tests/zoo/test_real.py -m "slow or not slow" -n $(JOBS)

fuzz: $(VENV)/.ready ## random settings, damaged checkpoints, odd masks: for SECONDS, with a new seed that is printed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seconds $(SECONDS)

facts: $(VENV)/.ready ## what has to keep standing, as figures: how often it was tried, how often it went wrong
	OMP_NUM_THREADS=1 $(BIN)/python tests/facts.py

mutants: $(VENV)/.mutants ## break the package in small ways and count what the tests notice (half an hour; MUTANTS="--sample 40")
	$(BIN)/python tests/mutants.py --jobs $(JOBS) $(MUTANTS)

$(VENV)/.mutants: $(VENV)/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[mutants]"
	@touch $@

package: $(VENV)/.ready ## build wheel and sdist, install each in an empty environment, and try what ships
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_package.py -m "slow or not slow"

notebooks: $(VENV)/.ready ## re-execute the notebooks and store them in the normal form
	$(if $(NB),OMP_NUM_THREADS=1 $(BIN)/python book/_tools/refresh_notebooks.py $(NB),@echo "no notebooks yet")

robust: $(VENV)/.ready ## strict nbval as on other machines: two instruction sets times two thread counts
ifeq ($(NOTEBOOKS),)
	@echo "no notebooks yet"
else
	@for cpu in default avx2; do for threads in 1 2; do \
	    echo "ATEN_CPU_CAPABILITY=$$cpu OMP_NUM_THREADS=$$threads"; \
	    ATEN_CPU_CAPABILITY=$$cpu OMP_NUM_THREADS=$$threads $(NBVAL) notebooks || exit 1; \
	done; done
endif

lint: $(VENV)/.ready ## ruff, over the package, the tests, the tools and the notebooks
	$(BIN)/ruff check .

types: $(VENV)/.ready ## mypy over the package; pyproject.toml lists where inner functions may go without types
	$(BIN)/python -m mypy

format: $(VENV)/.ready ## let ruff lay out the code and sort the imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## remove what was built, keep .venv
	rm -rf _build build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV) *.egg-info
