# Set-up, checks, tests and the demo. `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup check fix test demo bench docs clean

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
CACHE   := $(or $(COLDPRESS_CACHE),$(HOME)/.cache/coldpress)
export COLDPRESS_CACHE := $(CACHE)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(VENV)/.demo ## install everything the pipeline needs (compiles the runtime once)

check: $(VENV)/.dev ## formatter, linter, types, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python .ci/readme.py --check

fix: $(VENV)/.dev ## format and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(VENV)/.dev ## every test, against the real peers
	.ci/packages cmake podman buildah skopeo umoci crun docker-registry openssl qemu-user-static chromium chromium-driver
	$(BIN)/python benchmarks/peers.py > /dev/null
	-$(BIN)/python -m benchmarks.gptqmodel_peer install > /dev/null
	-$(BIN)/python -m benchmarks.model_signing_peer > /dev/null
	$(BIN)/python -m pytest

demo: $(VENV)/.demo ## compress, evaluate, report, package and ask the embedded model
	$(BIN)/coldpress run recipes/demo.yaml

bench: $(VENV)/.dev ## the measured reports (reports/*.json)
	$(BIN)/python benchmarks/demo.py

docs: $(VENV)/.demo ## write README's generated parts from reports/
	$(BIN)/python .ci/readme.py

clean: ## remove what was built here; the caches in $COLDPRESS_CACHE stay
	rm -rf runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt runtime.txt
	.ci/packages gcc g++ mmdebstrap
	.ci/venv $(PYTHON) $(VENV) compress,evaluate,report,serve,package,sign
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@
