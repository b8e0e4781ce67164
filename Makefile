# make run · make test · make lab · make lint · make notebooks · make clean · make help
# Everything happens in .venv, which is made, and brought up to date, when it has to be.

CORPUS     ?=
CORPUS_DIR ?=
ENCODER    ?=
FOLDS      ?= 1
GMPS       ?= yes
PRESET     ?=
RUN        ?=
CORES      ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
export CORPUS CORPUS_DIR ENCODER FOLDS GMPS PRESET RUN

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin

known   := CORPUS CORPUS_DIR ENCODER FOLDS GMPS PRESET RUN CORES PYTHON
given   := $(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(name)))
unknown := $(filter-out $(known) MAKEFLAGS,$(given))
$(if $(strip $(unknown)),$(error unknown variable $(unknown); this Makefile takes $(known)))

.DEFAULT_GOAL := help
.PHONY: help run test lab lint notebooks clean

help:
	@sed -n '1,2p' Makefile
	@echo "Variables of make run: CORPUS=$(CORPUS) CORPUS_DIR=$(CORPUS_DIR) ENCODER=$(ENCODER)" \
	      "FOLDS='$(FOLDS)' GMPS='$(GMPS)' PRESET=$(PRESET) RUN=$(RUN) CORES=$(CORES)"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[all]'
	$(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true
	@touch $@

run: .venv/installed
	@$(BIN)/snakemake --snakefile workflow/Snakefile --cores $(CORES)

test: .venv/installed
	$(BIN)/python -m pytest tests

lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: run
	$(BIN)/papermill notebooks/00_pretrain_encoder.ipynb runs/demo/notebooks/00_pretrain_encoder.ipynb
	$(BIN)/python workflow/commit_outputs.py

clean:
	rm -rf runs .venv
