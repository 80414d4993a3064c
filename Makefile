# Everything runs in .venv, which both targets make and share.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RECIPE ?= demo
ROUNDS ?= 10
# Processes that run tests. Those that start Ray share a cluster within each, and leave half of a core idle.
WORKERS ?= 2
AT_ONCE := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
# Tests start some 500 processes: each would compile our packages again.
unexport PYTHONDONTWRITEBYTECODE
# The CUDA build of torch is several GB: where there is no GPU, PyTorch's own CPU index is used too, if it answers.
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX = $(shell command -v nvidia-smi >/dev/null 2>&1 || \
	{ curl -fsIL -m 5 $(CPU_INDEX)/torch/ >/dev/null 2>&1 && echo --extra-index-url $(CPU_INDEX); })

.PHONY: pipeline test soak fuzz audit lint install clean

## pipeline: install, start a Ray cluster of our own, run the main job on it (RECIPE=demo), stop the cluster
pipeline: install
	$(BIN)/python jobs/submit.py $(RECIPE) $(ARGS)

## test: install, then all tests, several at once: first the quick ones that start nothing, then the others, the longest first
test: install
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest $(AT_ONCE) -m "not slow and not ray and not soak"
	$(BIN)/python -m pytest $(AT_ONCE) -m "(slow or ray) and not soak"
else
	$(BIN)/python -m pytest $(if $(findstring not ray,$(ARGS)),$(AT_ONCE)) $(ARGS)
endif

## soak: the tests that kill things, ROUNDS times, and the fuzz; each test of each round is a line of results/soak.log
soak: install
	status=0; $(BIN)/python -m tests.fuzz --log results/soak.log $(FUZZ) || status=1; for round in $$(seq $(ROUNDS)); do \
		SOAK_LOG=results/soak.log $(BIN)/python -m pytest tests/faults -m faults $(ARGS) || status=1; \
	done; exit $$status

## fuzz: damaged videos, stored clips, annotations and checkpoints (FUZZ="--videos DIR": real ones too); see --help
fuzz: install
	$(BIN)/python -m tests.fuzz --log results/fuzz.log $(FUZZ)

## audit: look up the pinned packages in a database of vulnerabilities, if one answers
audit: install
	$(BIN)/python jobs/audit.py

## lint: format, lint and types
lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

## install: the environment, pinned by constraints.txt
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q $(TORCH_INDEX) -c constraints.txt -e ".[dev,notebooks]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) results .mypy_cache .ruff_cache .pytest_cache
