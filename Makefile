# Every target does its own set-up in .venv; nothing is done again when nothing has changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test check install bench clean

demo: install          ## train on Python's own standard library, evaluate, and write some text
	$(BIN)/throughtime demo

test: install          ## all tests, with coverage
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

check: install         ## formatting, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install         ## speed against a bare PyTorch script, both sides in one run
	$(BIN)/python benchmarks/language_model.py

install: $(STAMP)      ## the package and its tools, in .venv, at the tested versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[tensorboard]" --group dev
	@touch $@

clean:                 ## forget the installation and the caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
