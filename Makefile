# make run · make lab · make experiment · make plan · make report · make bench · make test · make test-browser · make lint · make notebooks · make clean · make help
# Everything happens in .venv, which is made, and brought up to date, when it has to be.

CORPUS          ?=
CORPUS_DIR      ?=
TEST_CORPUS     ?=
TEST_CORPUS_DIR ?=
ENCODER         ?=
FOLDS           ?=
SEEDS           ?=
GMPS            ?=
PRESET          ?=
RUN             ?=
TENSORBOARD     ?=
NAME            ?=
CORES           ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
comma           := ,
GPUS            ?= $(if $(CUDA_VISIBLE_DEVICES),$(words $(subst $(comma), ,$(CUDA_VISIBLE_DEVICES))),$(shell \
	nvidia-smi -L 2>/dev/null | wc -l))
experiments     := $(notdir $(basename $(wildcard workflow/config/*.yaml)))
settings := CORPUS CORPUS_DIR TEST_CORPUS TEST_CORPUS_DIR ENCODER FOLDS SEEDS GMPS PRESET RUN \
	TENSORBOARD CORES GPUS
export $(settings)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin

SNAKEMAKE = $(BIN)/snakemake --snakefile workflow/Snakefile --cores $(CORES) \
	--resources gpu=$(or $(filter-out 0,$(GPUS)),1)

known   := $(settings) NAME PYTHON
given   := $(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(name)))
unknown := $(filter-out $(known) MAKEFLAGS,$(given))
$(if $(strip $(unknown)),$(error unknown variable $(unknown); this Makefile takes $(known)))

.DEFAULT_GOAL := help
.PHONY: help run experiment plan report bench test test-browser lab lint notebooks clean

help:
	@sed -n '1,2p' Makefile
	@echo "Variables of make run: $(foreach name,$(settings),$(name)='$($(name))')"
	@echo "Of make experiment: NAME='$(NAME)', of $(experiments)," \
	      "and the same but GMPS; of make run not SEEDS"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[all]'
	$(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true
	@touch $@

run: .venv/installed
	@EXPERIMENT= $(SNAKEMAKE)

# NAME is of a file in workflow/config, or the path of one; again, and it goes on where it was.
experiment: .venv/installed
	$(if $(NAME),,$(error NAME says which experiment, of $(experiments)))
	@EXPERIMENT='$(NAME)' $(SNAKEMAKE) --keep-going

# What is done of it, what is missing, and about how long that will take. Without NAME, of make run.
plan: .venv/installed
	@EXPERIMENT='$(NAME)' $(BIN)/python workflow/plan.py

# One HTML file that needs no network, of what there is so far.
report: .venv/installed
	@EXPERIMENT='$(NAME)' $(BIN)/python workflow/report.py

# Each stage beside a reference, about twenty minutes; on the recordings of CORPUS_DIR, or on noise.
bench: .venv/installed
	$(BIN)/python benchmarks/stages.py $(if $(CORPUS_DIR),--recordings '$(CORPUS_DIR)')

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
