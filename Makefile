# `make demo` and `make test` do all their set-up in .venv; both work with and without a GPU.

PYTHON ?= python3
CUDA   ?= cuda13

VENV := .venv
BIN  := $(VENV)/bin
# What is installed decides the stamp: another CUDA, or an edited pyproject.toml, installs again.
DEMO_STAMP := $(VENV)/.installed-$(CUDA)
TEST_STAMP := $(VENV)/.installed-$(CUDA)-dev
DOCS_STAMP := $(VENV)/.installed-docs

PYTEST_ARGS ?= -n auto
# Tests import a part of what is installed for them, which Python compiles then; pip would compile all
# of torch, transformers and vLLM.
PIP_FOR_TESTS := -m pip install --quiet --no-compile

VLLM_VENV  := .venv-vllm
VLLM_NEEDS := tests/integrations/vllm/requirements.txt
VLLM_STAMP := $(VLLM_VENV)/.installed

.PHONY: demo test lint docs gpu-test vllm-test clean

demo: $(DEMO_STAMP)
	$(BIN)/podrt demo

test: lint
	$(BIN)/pytest $(PYTEST_ARGS)

lint: $(TEST_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site of docs/ and design/, in build/site; what a page gets wrong, such as a broken link, fails.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Tests share the device: one process, or several that take turns with what needs much memory.
gpu-test: $(TEST_STAMP)
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest tests/gpu $(GPU_TEST_ARGS)

# vLLM on a CPU, in an environment of its own: docs/vllm.md. One thread is faster than several that
# find other processes on their cores.
vllm-test: $(VLLM_STAMP)
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/integrations/vllm

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find podrt tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "podrt needs Python 3.11 or newer; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DEMO_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$(CUDA)]'
	@touch $@

$(TEST_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP_FOR_TESTS) --editable '.[$(CUDA),dev,engines]'
	@touch $@ $(DEMO_STAMP)

$(DOCS_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(VLLM_STAMP): $(VLLM_NEEDS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "vLLM's tests need Python 3.11 or 3.12; try: make PYTHON=python3.12 vllm-test" >&2; exit 1; }
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python $(PIP_FOR_TESTS) --no-deps --requirement $(VLLM_NEEDS)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@
