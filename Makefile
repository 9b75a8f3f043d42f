# What a user of this checkout types. Everything lands in .venv and .trainer; `make clean` removes both.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
UNSLOTH_PIP := envs/unsloth/bin/python -m pip --disable-pip-version-check
TORCH  := $(shell grep '^torch==' requirements.lock)

.PHONY: demo up down test check bench spec clean install install-dev env-unsloth

demo: install        ## one fine-tuning job, all the way
	@$(BIN)/trainer demo

up: install          ## leave the service running on 127.0.0.1:8000
	@$(BIN)/trainer up

down: install        ## end it and all that it started
	@$(BIN)/trainer down

test: install-dev    ## all tests
	$(BIN)/python -m pytest

check: install-dev   ## style, types, layers, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m serve_app.openapi_docs --check

bench: install-dev   ## speed, each figure beside something else in the same run
	$(BIN)/python -m benchmarks

spec: install-dev    ## write docs/API_SPEC.md anew
	$(BIN)/python -m serve_app.openapi_docs

install: .venv/installed
install-dev: .venv/installed-dev

# torch comes first and alone: asked for by another package, pip would bring a CUDA build of gigabytes.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet -c requirements.lock setuptools
	$(PIP) install --quiet --no-build-isolation -c requirements.lock -e '.[service,train,local]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --quiet --no-build-isolation -c requirements.lock -e '.[service,train,local,dev]'
	@touch $@

env-unsloth: envs/unsloth/installed   ## Unsloth's own environment, for GPUs; TRAINER_ENVS_ROOT=envs

envs/unsloth/installed: envs/unsloth.lock pyproject.toml
	$(PYTHON) -m venv envs/unsloth
	$(UNSLOTH_PIP) install --quiet $(TORCH)
	$(UNSLOTH_PIP) install --quiet -c envs/unsloth.lock setuptools
	$(UNSLOTH_PIP) install --quiet --no-build-isolation -c envs/unsloth.lock -e '.[unsloth]'
	$(UNSLOTH_PIP) check
	@touch $@

clean:               ## end the service, remove what was installed
	@if [ -x $(BIN)/trainer ]; then $(BIN)/trainer down; fi
	rm -rf .venv .trainer envs/unsloth
