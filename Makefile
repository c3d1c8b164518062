# The same commands for people and for CI. Everything below `install` works from nothing but Python 3.11 and make.
PYTHON ?= python3
WORKERS ?= 3
BIN := .venv/bin
STAMP := .venv/installed

# One thread a process: the tests already run in parallel, and more threads than cores only wait for each other. A third
# process fills two cores while tests wait for servers and clusters.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo test check docs package bench

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv with attentune, the demo's backbone and the tools (once; again when the pins change)

# torch first and by itself, so that pip settles on one build of it (a CPU wheel, where pip is shown one).
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

demo: $(STAMP)  ## train, compare and serve small tasks on this machine; writes demo/report.html
	$(BIN)/python -m attentune.demo.run --output demo

test: $(STAMP)  ## run every test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

check: $(STAMP)  ## format, lint, types, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest --quiet tests/test_layers.py

docs: $(STAMP)  ## run every code block of the documents, then build the site, docs/_build/html
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal docs/checks
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet --fresh-env --write-all \
		--doctree-dir docs/_build/doctrees docs docs/_build/html

package: $(STAMP)  ## build sdist and wheel, and run the demo from the wheel in an empty environment
	$(BIN)/python scripts/check_package.py

bench: $(STAMP)  ## measure speed and memory beside peft, some four hours; ARGS=--quick for some minutes
	$(BIN)/python benchmarks/bench.py $(ARGS)
