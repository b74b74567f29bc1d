.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
bin := .venv/bin
export PATH := $(CURDIR)/$(bin):$(PATH)
# A hook of another repository sets variables that lead Git there.
unexport $(filter-out GIT_CONFIG_%,$(shell git rev-parse --local-env-vars 2>/dev/null))

help:            ## list these commands
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 28

# Installs when pyproject.toml or constraints.txt have another content, or when .venv's Python does not run (.venv comes from
# another machine). The marker, a copy of both, is removed first and written last: after an interruption .venv is made anew.
# PyTorch for CPUs only (1 GB instead of 6): make setup PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
usable := $(shell $(bin)/python -c 'print("usable")' 2>/dev/null)
.venv/ready: pyproject.toml constraints.txt $(if $(usable),,FORCE)
	@[ -e .git ] || git rev-parse --git-dir >/dev/null 2>&1 || { echo "this folder is not in a Git repository, which DVC needs:" \
	  "clone the project, or run: git init && git add --all && git commit --message start"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} found, 3.11 or newer needed: make PYTHON=python3.11 ...")'
	@{ test '$(usable)' && cat pyproject.toml constraints.txt | cmp --quiet - $@; } || { \
	  echo "installing into .venv: PyTorch, DVC, MLflow, what the tests need (once; a few minutes and 6 GB, most of it PyTorch)" && \
	  clear=$$(test '$(usable)' -a -e $@ || echo --clear) && rm -f $@ && $(PYTHON) -m venv $$clear .venv && \
	  $(bin)/python .ci/install.py train,test && $(bin)/python .ci/portable_venv.py; }
	@cat pyproject.toml constraints.txt > $@
FORCE:

# An extra of pyproject.toml that only some commands need. The marker has its name.
.venv/demo .venv/services: .venv/ready
	@cmp --quiet .venv/ready $@ || { echo "installing the extra '$(@F)' into .venv (once)" && \
	  $(bin)/python .ci/install.py $(@F) && $(bin)/python .ci/portable_venv.py; }
	@cp .venv/ready $@

setup: .venv/ready ## create .venv with the pinned dependencies and this package
	@echo "next: source $(bin)/activate && cifar-resnet predict photo.jpg (classifies your picture),"
	@echo "      make demo (a page in the browser), make quick (a small experiment), make repro (the pipeline); make help lists all"

repro: .venv/ready ## run the pipeline: every stage whose inputs have changed, in order
	@dvc repro
	@echo "next: make ui (runs, registry), dvc plots show (figures), dvc exp run --temp -S train.seed=1 (another seed);"
	@echo "      source $(bin)/activate puts dvc, mlflow and cifar-resnet into PATH"

test: .venv/ready ## run every check: format, lint, types, tests
	@ruff format --check --quiet . && ruff check --quiet . && mypy
	@pytest

test-faults: .venv/ready ## kill trainings in many ways and compare with uninterrupted ones, about 11 minutes
	@pytest -m faults

test-services: .venv/services postgresql chromium ## run the tests with real servers and a browser: models over HTTP, the demo, MLflow on PostgreSQL
	@pytest -m services

# Debian and Ubuntu install the programs of the server outside of PATH. What is missing is installed.
apt_install = { command -v apt-get >/dev/null || { echo "$@ not found: install it, with $(1) in PATH"; exit 1; }; \
  root=$$([ "$$(id -u)" = 0 ] || echo sudo); $$root apt-get update -qq && $$root apt-get install -y -qq $@; }
postgresql:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || $(call apt_install,initdb)
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || $(call apt_install,chromium)

benchmark: .venv/ready ## measure this machine and a training step, about 4 minutes (after make repro)
	@python benchmarks/benchmark.py

benchmark-inference: .venv/ready ## compare prediction with torch and ONNX Runtime, about 5 minutes (after make repro)
	@python benchmarks/inference.py

# A preset is a file of other values by their full names. `make -n` shows the command without running it.
# `eval` reads the preset once, so that its mistakes are printed once.
quote = '$(subst ','\'',$(1))'
preset = $(call quote,presets/$(NAME).yaml)
hash := \#
verbatim = $(subst $(hash),\$(hash),$(subst $$,$$$$,$(1)))
options = $(eval options := $(call verbatim,$(shell test -f $(preset) && $(bin)/python -m cifar_resnet.params.overrides $(preset))))$(options)
preset: .venv/ready ## train the values of presets/NAME.yaml as an experiment: make preset NAME=wide MORE='--name wide-1 -S train.seed=1'
	@test -f $(preset) || { echo NAME=$(call quote,'$(NAME)') is not a preset\; available presets:; \
	  cd presets; for file in *.yaml; do sed "1!d; s/^#/  $${file%.yaml}:/" "$$file"; done; exit 1; } >&2
	@python -c 'from cifar_resnet import errors; from cifar_resnet.versioning import revisions; errors.run(revisions.require_temporary_copies, "preset")'
	@python -m cifar_resnet.versioning.temporary_copy $(options) $(MORE)
	$(if $(options),dvc exp run --temp --name $(call quote,$(NAME)) $(options) $(MORE),@exit 1)

# DVC runs no second experiment of the same name from one commit. After a failure the previous one is back.
# Stages that have run already are restored from DVC's cache.
quick: .venv/ready ## run all six stages on a small network as an experiment: a few minutes, at least 85 % test accuracy
	@head="$$(git rev-parse HEAD)"; ref="refs/exps/$${head::2}/$${head:2}/quick"; \
	before="$$(git rev-parse --quiet --verify "$$ref")"; \
	trap '[ -z "$$before" ] || git show-ref --quiet "$$ref" || git update-ref "$$ref" "$$before"' EXIT; \
	git update-ref -d "$$ref" && \
	$(MAKE) --no-print-directory preset NAME=quick
	@python -m cifar_resnet.cli.quick

A := HEAD
B := workspace
compare: .venv/ready ## is B better than A? Git revisions, DVC experiments or pretrained: make compare A=HEAD B=workspace
	@cifar-resnet compare $(call quote,$(A)) $(call quote,$(B))

search: .venv/ready ## search for a better network, or continue the search; section search of params.yaml
	@cifar-resnet search

demo: .venv/demo ## start a page for the browser that classifies your pictures
	@cifar-resnet demo

ui: .venv/ready  ## start MLflow on 127.0.0.1 and print the addresses of the run table and of the champion
	@cifar-resnet ui

registry: .venv/ready ## list the registered models; `cifar-resnet registry --help` shows how to promote and roll back
	@cifar-resnet registry list

mlflow-backfill: .venv/ready ## add missing runs to MLflow, of the workspace, HEAD and every experiment
	@cifar-resnet backfill

MODEL := data/model
pretrained: .venv/ready ## write src/cifar_resnet/pretrained from an evaluated model: make pretrained MODEL=data/model
	@python benchmarks/pretrained.py $(call quote,$(MODEL))

params-docs: .venv/ready ## write docs/params.md and docs/params.schema.json, after a change of params.yaml or its fields
	@python docs/params.py

constraints: .venv/demo .venv/services ## write the installed versions to constraints.txt, after a change in pyproject.toml
	@pip freeze --exclude-editable > .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt

.PHONY: help setup repro preset quick pretrained test test-faults test-services postgresql chromium demo registry
.PHONY: mlflow-backfill compare search benchmark benchmark-inference ui params-docs constraints FORCE
