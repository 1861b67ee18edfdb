# Needs Python 3.11 or newer and make, nothing else. Everything is installed into .venv.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python3.14,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))

.PHONY: demo test engines clean

demo: $(READY)  ## compare four schedulers on three workloads; prints where figures and report are
	@$(BIN)/suite run quickstart

test: $(READY)  ## lint, types and all tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

engines: $(READY)  ## install real vLLM, SGLang and two routers for the CPU; tests that need one that is not there are skipped
	@$(BIN)/suite engines install vllm --device cpu
	@$(BIN)/suite engines install sglang --device cpu
	@$(BIN)/suite engines install vllm-router
	@$(BIN)/suite engines install sglang-router

clean:  ## remove the environments and the caches; results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
