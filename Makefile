.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
bin := .venv/bin
export PATH := $(CURDIR)/$(bin):$(PATH)

help:            ## list these commands
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 24

# Set up once; again only when the dependencies change. The marker is written last, so an interrupted set-up is done over.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} found, 3.11 or newer needed: make PYTHON=python3.11 ...")'
	@echo "setting up .venv (once; about 2 minutes and 6 GB, most of it torch)"
	@$(PYTHON) -m venv .venv
	@$(bin)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

setup: .venv/ready ## create .venv with the pinned dependencies and this package

repro: .venv/ready ## run the pipeline: whatever changed since the last time, in order
	@dvc repro
	@echo "next: make ui (runs, registry), dvc plots show (figures), dvc exp run -S train.epochs=4 (another training);"
	@echo "      for dvc and mlflow by name: source $(bin)/activate"

test: .venv/ready ## run every check: format, lint, types, tests
	@ruff format --check --quiet . && ruff check --quiet . && mypy
	@pytest

test-faults: .venv/ready ## kill trainings in every way and compare with an unbroken one, about 11 minutes
	@pytest -m faults

test-services: .venv/ready postgresql ## run the tests with real servers: models over HTTP, MLflow on PostgreSQL, several writers
	@pytest -m services

# Debian's and Ubuntu's server keeps its programs out of PATH; only where there is none is one installed.
postgresql:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { \
	  command -v apt-get >/dev/null || { echo "no PostgreSQL found: install its server, so that initdb is in PATH"; exit 1; }; \
	  root=$$([ "$$(id -u)" = 0 ] || echo sudo); $$root apt-get update -qq && $$root apt-get install -y -qq postgresql; }

benchmark: .venv/ready ## measure this machine and a training step, about 4 minutes (after make repro)
	@python benchmarks/benchmark.py

# A preset is a file of other values by their full names; `make -n` shows the command without running it.
override = $(shell sed -nE 's/^([a-z_.]+): *([^\#]*).*/\1=\2/p' 'presets/$(NAME).yaml' 2>/dev/null | tr -d ' ')
preset: .venv/ready ## train the values of presets/NAME.yaml as an experiment: make preset NAME=wide MORE='-S train.seed=1'
	@test -f 'presets/$(NAME).yaml' || { echo "NAME='$(NAME)' is no preset; there are"; \
	  cd presets; for each in *.yaml; do sed "1!d; s/^#/  $${each%.yaml}:/" "$$each"; done; exit 1; } >&2
	dvc exp run --temp --name '$(NAME)' $(override:%=-S '%') $(MORE)

A := HEAD
B := workspace
compare: .venv/ready ## is B better than A? two Git revisions or DVC experiments: make compare A=HEAD B=workspace
	@python -m cifar_resnet compare '$(A)' '$(B)'

search: .venv/ready ## look for a better network, as `search:` in params.yaml says; the same command goes on
	@python -m cifar_resnet search

ui: .venv/ready  ## open MLflow on http://127.0.0.1:5000
	@mlflow ui --host 127.0.0.1 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}

models: .venv/ready ## list the registered models; `python -m cifar_resnet models --help` says how to promote and roll back
	@python -m cifar_resnet models list

mlflow-rebuild: .venv/ready ## show in MLflow what it lacks of the workspace and of every experiment
	@python -m cifar_resnet rebuild

constraints: .venv/ready ## write the installed versions to constraints.txt, after a change in pyproject.toml
	@pip freeze --exclude-editable > constraints.txt

.PHONY: help setup repro preset test test-faults test-services postgresql models mlflow-rebuild compare search benchmark ui constraints
