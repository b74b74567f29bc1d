.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
bin := .venv/bin
export PATH := $(CURDIR)/$(bin):$(PATH)

help:            ## list these commands
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 24

# Runs again only when the dependencies change. The marker is written last: an interrupted installation starts again.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} found, 3.11 or newer needed: make PYTHON=python3.11 ...")'
	@echo "installing into .venv (once; about 2 minutes and 6 GB, most of it torch)"
	@$(PYTHON) -m venv .venv
	@$(bin)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

setup: .venv/ready ## create .venv with the pinned dependencies and this package

repro: .venv/ready ## run the pipeline: every stage whose inputs have changed, in order
	@dvc repro
	@echo "next: make ui (runs, registry), dvc plots show (figures), dvc exp run -S train.epochs=4 (another training);"
	@echo "      source $(bin)/activate puts dvc, mlflow and cifar-resnet into PATH"

test: .venv/ready ## run every check: format, lint, types, tests
	@ruff format --check --quiet . && ruff check --quiet . && mypy
	@pytest

test-faults: .venv/ready ## kill trainings in many ways and compare with uninterrupted ones, about 11 minutes
	@pytest -m faults

test-services: .venv/ready postgresql ## run the tests with real servers: models over HTTP, MLflow on PostgreSQL, several writers
	@pytest -m services

# Debian and Ubuntu install the programs of the server outside of PATH. Without any server, one is installed.
postgresql:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { \
	  command -v apt-get >/dev/null || { echo "no PostgreSQL found: install its server, with initdb in PATH"; exit 1; }; \
	  root=$$([ "$$(id -u)" = 0 ] || echo sudo); $$root apt-get update -qq && $$root apt-get install -y -qq postgresql; }

benchmark: .venv/ready ## measure this machine and a training step, about 4 minutes (after make repro)
	@python benchmarks/benchmark.py

# A preset is a file of other values by their full names. `make -n` shows the command without running it.
override = $(shell sed -nE 's/^([a-z_.]+): *([^\#]*).*/\1=\2/p' 'presets/$(NAME).yaml' 2>/dev/null | tr -d ' ')
preset: .venv/ready ## train the values of presets/NAME.yaml as an experiment: make preset NAME=wide MORE='-S train.seed=1'
	@test -f 'presets/$(NAME).yaml' || { echo "NAME='$(NAME)' is not a preset; available presets:"; \
	  cd presets; for file in *.yaml; do sed "1!d; s/^#/  $${file%.yaml}:/" "$$file"; done; exit 1; } >&2
	dvc exp run --temp --name '$(NAME)' $(override:%=-S '%') $(MORE)

A := HEAD
B := workspace
compare: .venv/ready ## is B better than A? two Git revisions or DVC experiments: make compare A=HEAD B=workspace
	@cifar-resnet compare '$(A)' '$(B)'

search: .venv/ready ## search for a better network, or continue the search; section search of params.yaml
	@cifar-resnet search

ui: .venv/ready  ## open MLflow on http://127.0.0.1:5000
	@mlflow ui --host 127.0.0.1 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}

registry: .venv/ready ## list the registered models; `cifar-resnet registry --help` shows how to promote and roll back
	@cifar-resnet registry list

mlflow-backfill: .venv/ready ## add missing runs to MLflow, of the workspace, HEAD and every experiment
	@cifar-resnet backfill

params-docs: .venv/ready ## write docs/params.md and docs/params.schema.json, after a change of params.yaml or its fields
	@python docs/params.py

constraints: .venv/ready ## write the installed versions to constraints.txt, after a change in pyproject.toml
	@pip freeze --exclude-editable > constraints.txt

.PHONY: help setup repro preset test test-faults test-services postgresql registry mlflow-backfill compare search
.PHONY: benchmark ui params-docs constraints
