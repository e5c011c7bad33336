# Every command makes its own .venv first; a second call with nothing changed costs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is written at the first import, as most of what is installed is never imported; without
# it every kernel and every rank would compile torch again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
PROFILE ?= mini
OUTPUTS ?= outputs
DATA ?=

.PHONY: chain test test-slow lint lab doctor clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip setuptools wheel
	$(INSTALL) torch
	$(INSTALL) --editable ".[all]"
	touch $@

chain: $(VENV)/.installed
	$(BIN)/python -m gmai_lib.chain --profile $(PROFILE) --outputs "$(OUTPUTS)" $(if $(DATA),--data "$(DATA)")

test: $(VENV)/.installed
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info" notebooks/*.ipynb

lab: $(VENV)/.installed
	$(BIN)/jupyter lab --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate notebooks

doctor: $(VENV)/.installed
	$(BIN)/python -m gmai_lib.doctor

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find $(OUTPUTS) -mindepth 1 ! -name .gitkeep -delete
