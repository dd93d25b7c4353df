# Everything a developer does here, in a virtual environment that this file makes and reuses: .venv
# `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The Python that makes .venv: 3.11 if there is one (PyBullet has no wheels for later ones), else 3.12 or 3.13.
# `make setup PYTHON=/path/to/python3.11` names another.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)

# Where pip looks for a smaller build of torch, e.g. https://download.pytorch.org/whl/cpu for one without CUDA.
TORCH_INDEX ?=

# Test processes at a time, and what else to hand to pytest, e.g. PYTEST_ARGS='-k leapfrog'.
TEST_JOBS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 3 ? cores : 3)))
PYTEST_ARGS ?=

# Options of `make gpu-check`, e.g. GPU_CHECK_ARGS=--ray
GPU_CHECK_ARGS ?=

# Where the demo's run goes: runs/demo, or the first of runs/demo-2, runs/demo-3, ... that is free.
DEMO_OUT ?= $(shell out=runs/demo; n=2; while [ -e $$out ]; do out=runs/demo-$$n; n=$$((n + 1)); done; echo $$out)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# Without tools and optional parts, which `make demo` does not need.
CORE_STAMP := $(VENV)/.installed-core

# Install packages while saying what is fetched, how large it is and how long it took. pip's own words are read, since
# its progress bar says nothing of the whole: $(call install,WHAT,ARGUMENTS OF pip install).
define install
	@echo "Installing $(1)"
	@began=$$SECONDS; $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off \
		--constraint constraints.txt $(2) | while read -r verb file rest; do \
			case "$$verb $$rest" in \
				Downloading*" MB)" | Downloading*" GB)") echo "  $$file $$rest" ;; \
				Using*" MB)" | Using*" GB)") echo "  $$rest, cached" ;; \
				"Installing packages:"*) echo "  unpacking $$(wc -w <<<"$${rest#*:}") packages" ;; \
			esac; \
		done; \
	echo "  $$((SECONDS - began)) s; $(VENV) has $$(du -sm $(VENV) | cut -f1) MB"
endef

comma := ,

# One thread in each process: the networks are small, and several processes share the cores.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
# Containers often forbid Python to keep its bytecode, and hundreds of processes start in the tests.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## +' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP)  ## Make .venv and install the package with its tools in it (again only when needed)
	@:

# What the package itself needs, the largest parts one by one.
define install_core
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		if [ -z "$(PYTHON)" ]; then \
			echo "error: rllib_hpo needs Python 3.11, 3.12 or 3.13, and none is on the PATH;" \
				"install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; \
		fi; \
		echo "Making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	$(call install,torch (the largest part),$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch)
	$(call install,Ray with RLlib,'ray[default$(comma)rllib$(comma)tune]')
	$(call install,rllib_hpo with the other packages that it needs,--editable .)
	@touch $(CORE_STAMP)
endef

$(CORE_STAMP): pyproject.toml constraints.txt
	$(install_core)

$(STAMP): pyproject.toml constraints.txt
	$(install_core)
	$(call install,tools and optional parts (tests and export and search and films),--editable '.[dev$(comma)dashboard$(comma)export$(comma)notebooks$(comma)search$(comma)video]')
	@touch $@

.PHONY: demo
demo: $(if $(wildcard $(STAMP)),$(STAMP),$(CORE_STAMP))  ## Run a small sweep (three algorithms on Hopper-v4, two seeds) and its report, in runs/demo
	@echo "1 of 2: training SAC, SAC-NF and SAC-HPO on Hopper-v4, two seeds each (about two minutes on two cores)"
	@$(BIN)/rllib-hpo sweep smoke --out $(DEMO_OUT) --wandb disabled
	@echo "2 of 2: the report"
	@$(BIN)/rllib-hpo report $(DEMO_OUT) --out $(DEMO_OUT)/report
	@echo; echo "Open the report in a browser:  file://$(abspath $(DEMO_OUT))/report/index.html"
	@echo "The table of results:          $(BIN)/rllib-hpo results show $(DEMO_OUT)"
	@echo "A run, with its checkpoints:   ls $(DEMO_OUT)/trials/sac-hpo-hopper-seed0"

.PHONY: lint
lint: setup  ## Check style, formatting, types and the boundaries between the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	for file in cluster/*.sbatch cluster/*.sh; do bash -n $$file; done

.PHONY: format
format: setup  ## Format the code and fix what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: test
test: setup  ## Run the default tests (10 minutes to half an hour on 2 cores)
	$(PYTEST)

.PHONY: test-slow
test-slow: setup  ## Run the tests marked slow or cluster: learning, kill and resume, several nodes
	$(PYTEST) -m "(slow or cluster) and not exhaustive" --timeout 1500 -rs

.PHONY: test-all
test-all: test test-slow  ## Run every test, also those that repeat others with each algorithm (hours)
	$(PYTEST) -m exhaustive --timeout 1500 -rs

.PHONY: support-page
support-page: setup  ## Write docs/rllib-support.md, what of RLlib is supported, from the table of the conformance tests
	$(BIN)/python -m tests.rllib.conformance.page

.PHONY: zoo
zoo: setup  ## Train the policies of zoo/ on Pendulum-v1 anew (half an hour on 2 cores), and collect them
	$(BIN)/rllib-hpo sweep zoo --out runs/zoo --wandb disabled
	$(BIN)/python -m benchmarks.zoo runs/zoo

.PHONY: evidence-report
evidence-report: setup  ## Write the page of evidence and its figure, from the rows of `python -m benchmarks.evidence`
	mkdir -p docs/images
	$(BIN)/rllib-hpo report benchmarks/results/evidence --out build/pictures
	cp build/pictures/figures/curves.png docs/images/curves.png
	$(BIN)/python -m benchmarks.evidence_page

.PHONY: pictures
pictures: evidence-report  ## Make docs/images, the pictures of README and the front page, from stored rows and policies
	$(BIN)/rllib-hpo policy-shape zoo/sac-hopper.safetensors zoo/sac-hpo-hopper.safetensors --out docs/images/policy-shape.png
	$(BIN)/rllib-hpo enjoy sac-hpo-hopper --video docs/images/hopper.mp4

DOCS_STAMP := $(VENV)/.installed-docs

$(DOCS_STAMP): $(STAMP)
	@$(PIP) install --constraint constraints.txt --editable '.[docs]'
	@touch $@

.PHONY: docs
docs: setup $(DOCS_STAMP)  ## Build the documentation site in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: docs-serve
docs-serve: setup $(DOCS_STAMP)  ## Serve the documentation at http://127.0.0.1:8000, and build it again when it changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

.PHONY: bench
bench: setup  ## Compare training speed with a hand-written loop, stable-baselines3 and RLlib's SAC
	@$(PIP) install --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.train_speed

.PHONY: gpu-check
gpu-check:  ## Check all that runs on a GPU, within six minutes; needs torch, numpy, pydantic and pytest
	$(or $(wildcard $(BIN)/python),python3) -m benchmarks.gpu_check $(GPU_CHECK_ARGS)

.PHONY: constraints
constraints:  ## Write constraints.txt anew: the newest versions that pyproject.toml admits
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip -qq install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) 'torch<2.16'
	build/constraints/bin/python -m pip -qq install --editable '.[dev,bench,dashboard,docs,export,notebooks,papers,pixels,search,video]'
	{ sed -n '/^#/p' constraints.txt; \
		build/constraints/bin/python -m pip freeze --exclude-editable \
		| sed 's/+[a-z0-9.]*$$//; s/_/-/g' | tr '[:upper:]' '[:lower:]' | LC_ALL=C sort; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

.PHONY: clean
clean:  ## Remove caches and build products (not .venv, not runs)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	rm -rf *.egg-info MUJOCO_LOG.TXT
	find rllib_hpo tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
