# make run · make lab · make experiment · make plan · make report · make bench · make test · make test-browser · make test-faults · make lint · make notebooks · make clean · make help
# Everything happens in .venv, which is made, and brought up to date, when it has to be.
# Values may hold quotes, spaces and $; names in a PRESET of several files then need quotes of their own.

CORPUS          ?=
CORPUS_DIR      ?=
TEST_CORPUS     ?=
TEST_CORPUS_DIR ?=
ENCODER         ?=
FOLDS           ?=
SEEDS           ?=
GMPS            ?=
PRESET          ?=
RECIPE          ?=
RUN             ?=
TENSORBOARD     ?=
NAME            ?=
CORES           ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
comma           := ,
GPUS            ?= $(if $(CUDA_VISIBLE_DEVICES),$(words $(subst $(comma), ,$(CUDA_VISIBLE_DEVICES))),$(shell \
	nvidia-smi -L 2>/dev/null | wc -l))
experiments     := $(notdir $(basename $(wildcard workflow/config/*.yaml)))
recipes         := $(notdir $(basename $(wildcard presets/recipes/*.yaml)))
settings := CORPUS CORPUS_DIR TEST_CORPUS TEST_CORPUS_DIR ENCODER FOLDS SEEDS GMPS PRESET RECIPE RUN \
	TENSORBOARD CORES GPUS

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin

known   := $(settings) NAME PYTHON
origins := $(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(name)))
unknown := $(filter-out $(known) MAKEFLAGS,$(origins))
$(if $(strip $(unknown)),$(error unknown variable $(unknown); this Makefile takes $(known)))

# Values reach recipes by the environment as they were typed: neither make nor a shell reads them.
typed   := $(foreach name,$(known),$(if $(filter command environment,$(origin $(name))),$(name)))
$(foreach name,$(typed),$(eval override $(name) := $$(value $(name))))
SLOTS   := $(or $(filter-out 0,$(GPUS)),1)
export $(known) SLOTS

SNAKEMAKE = $(BIN)/snakemake --snakefile workflow/Snakefile --cores "$$CORES" --resources "gpu=$$SLOTS"

.DEFAULT_GOAL := help
.PHONY: help run experiment plan report bench test test-browser test-faults lab lint notebooks clean

help:
	@sed -n '1,3p' Makefile
	@printf '%s\n' "Variables of make run: $(foreach name,$(settings),$(name)='$$$(name)')" \
		"Of make experiment: NAME='$$NAME', of $(experiments), and the same but GMPS; of make run not SEEDS" \
		"RECIPE is one of $(recipes)"

.venv/installed: pyproject.toml constraints.txt
	"$$PYTHON" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[all]'
	$(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true
	@touch $@

run: .venv/installed
	@EXPERIMENT= $(SNAKEMAKE)

# NAME is of a file in workflow/config, or the path of one; again, and it goes on where it was.
experiment: .venv/installed
	$(if $(NAME),,$(error NAME says which experiment, of $(experiments)))
	@EXPERIMENT="$$NAME" $(SNAKEMAKE) --keep-going

# What is done of it, what is missing, and about how long that will take. Without NAME, of make run.
plan: .venv/installed
	@EXPERIMENT="$$NAME" $(BIN)/python workflow/plan.py

# One HTML file that needs no network, of what there is so far.
report: .venv/installed
	@EXPERIMENT="$$NAME" $(BIN)/python workflow/report.py

# Each stage beside a reference, about twenty minutes; on the recordings of CORPUS_DIR, or on noise.
bench: .venv/installed
	$(BIN)/python benchmarks/stages.py $${CORPUS_DIR:+--recordings "$$CORPUS_DIR"}

test: .venv/installed
	$(BIN)/python -m pytest tests

test-browser: .venv/installed
	$(BIN)/python -m pytest tests/test_explorer.py

# Every fault as often as tests/README.md says; make test tries each a few times.
test-faults: .venv/installed
	FAULTS=full $(BIN)/python -m pytest tests/test_kills.py tests/test_fuzz.py tests/test_numbers.py \
		tests/test_safety.py tests/test_workflow_faults.py tests/test_privacy.py

# For this machine and those who know the token; without asking the network for news or newer versions.
lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir=notebooks --ServerApp.ip=127.0.0.1 \
		--ServerApp.allow_remote_access=False --LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: run
	for name in 00_pretrain_encoder 09_recognize; do \
		$(BIN)/papermill notebooks/$$name.ipynb runs/demo/notebooks/$$name.ipynb || exit; \
	done
	$(MAKE) run RECIPE=papt CORPUS=synthetic_speakers RUN=runs/personal
	$(BIN)/python workflow/commit_outputs.py

clean:
	rm -rf runs .venv
