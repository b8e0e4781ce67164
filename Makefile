# make run · make lab · make protocols · make test · make test-browser · make lint · make notebooks · make clean · make help
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

comma := ,
known   := CORPUS CORPUS_DIR ENCODER FOLDS GMPS PRESET RUN CORES PYTHON
given   := $(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(name)))
unknown := $(filter-out $(known) MAKEFLAGS,$(given))
$(if $(strip $(unknown)),$(error unknown variable $(unknown); this Makefile takes $(known)))

.DEFAULT_GOAL := help
.PHONY: help run protocols test test-browser lab lint notebooks clean

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

# The series under four protocols, and one table of them all: four times as long as make run.
PROTOCOLS := strict oracle last transductive
protocol_run = runs/protocols/$(subst $() ,-,$(strip $(or $(CORPUS),synthetic) \
	$(notdir $(or $(ENCODER),embedded)) $(basename $(notdir $(PRESET))) $(1)))

protocols: .venv/installed
	for name in $(PROTOCOLS); do \
		$(MAKE) run PRESET="$(PRESET) presets/protocols/$$name.yaml" RUN=$(call protocol_run,$$name) || exit 1; done
	$(BIN)/papermill notebooks/07_results.ipynb $(call protocol_run,strict)/notebooks/07_protocols.ipynb \
		-p run_dir $(call protocol_run,strict) -y \
		"compared_runs: [$(subst $() ,$(comma) ,$(foreach name,$(filter-out strict,$(PROTOCOLS)),$(call protocol_run,$(name))))]"

test: .venv/installed
	$(BIN)/python -m pytest tests

test-browser: .venv/installed
	$(BIN)/python -m pytest tests/test_explorer.py

# Without asking the network for news or newer versions.
lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: run
	$(BIN)/papermill notebooks/00_pretrain_encoder.ipynb runs/demo/notebooks/00_pretrain_encoder.ipynb
	$(BIN)/python workflow/commit_outputs.py

clean:
	rm -rf runs .venv
