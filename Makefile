# make run · make lab · make experiment · make plan · make report · make bench · make test · make test-slow · make lint · make docs · make notebooks · make clean · make help
# Everything happens in .venv, which is made, and brought up to date, when it has to be.
# The variables below, and ARGS for any other option, go to `python -m gmp_utils`; other names are ignored.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN    := .venv/bin

# WSL sets NAME to the name of the computer.
ifneq ($(WSL_DISTRO_NAME),)
ifeq ($(origin NAME),environment)
NAME :=
endif
endif
VARIABLES := NAME CORPUS CORPUS_DIR TEST_CORPUS TEST_CORPUS_DIR ENCODER FOLDS SEEDS FINETUNE_FROM PRESET RECIPE RUN \
	REPORT_TO CORES GPUS
# Values stay as they were typed: make does not expand a $ in them, and the shell gets them in quotes.
$(foreach name,$(VARIABLES),$(eval override $(name) := $$(value $(name))))
export $(VARIABLES)

GMP      := $(BIN)/python -m gmp_utils
SETTINGS := $${CORPUS:+--corpus "$$CORPUS"} $${CORPUS_DIR:+--corpus-dir "$$CORPUS_DIR"} \
	$${TEST_CORPUS:+--test-corpus "$$TEST_CORPUS"} $${TEST_CORPUS_DIR:+--test-corpus-dir "$$TEST_CORPUS_DIR"} \
	$${ENCODER:+--encoder "$$ENCODER"} $${PRESET:+--preset "$$PRESET"} $${RUN:+--run-dir "$$RUN"} \
	$${FOLDS:+--folds $$FOLDS}
OF_RUN   := $${FINETUNE_FROM:+--finetune-from $$FINETUNE_FROM} $${RECIPE:+--recipe "$$RECIPE"}
OF_EXPERIMENT := $${SEEDS:+--seeds $$SEEDS}
EXECUTION := $${REPORT_TO:+--report-to "$$REPORT_TO"} $${CORES:+--cores "$$CORES"} $${GPUS:+--gpus "$$GPUS"}

.DEFAULT_GOAL := help
.PHONY: help run experiment plan report bench test test-slow lab lint docs notebooks clean

help:
	@sed -n '1,3p' Makefile
	@echo "make run: CORPUS CORPUS_DIR TEST_CORPUS TEST_CORPUS_DIR ENCODER FOLDS FINETUNE_FROM PRESET RECIPE RUN REPORT_TO CORES GPUS"
	@echo "make experiment NAME=...: the same without FINETUNE_FROM and RECIPE, and SEEDS"
	@echo "NAME: $(notdir $(basename $(wildcard workflow/config/*.yaml)))"
	@echo "RECIPE: $(notdir $(basename $(wildcard presets/recipes/*.yaml)))"
	@echo "What each means: .venv/bin/python -m gmp_utils run --help"

.venv/installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; (3, 11) <= sys.version_info < (3, 13) or sys.exit("Python 3.11 or 3.12 is needed: set PYTHON")'
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[all]'
	$(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true
	@touch $@

run: .venv/installed
	@$(GMP) run $(SETTINGS) $(OF_RUN) $(EXECUTION) $(ARGS)

# NAME is of a file in workflow/config, or the path of one. Repeated, it resumes.
experiment: .venv/installed
	@$(GMP) experiment "$$NAME" $(SETTINGS) $(OF_EXPERIMENT) $(EXECUTION) $(ARGS)

# What is done, what is missing, and about how long that will take. Without NAME, of make run.
plan: .venv/installed
	@$(GMP) plan $${NAME:+"$$NAME"} $(SETTINGS) $(OF_RUN) $(OF_EXPERIMENT) $(ARGS)

# One HTML file that needs no network, of what there is so far.
report: .venv/installed
	@$(GMP) report $${NAME:+"$$NAME"} $(SETTINGS) $(OF_RUN) $(OF_EXPERIMENT) $(ARGS)

# Each stage beside a reference, about twenty minutes; on the recordings of CORPUS_DIR, or on noise.
bench: .venv/installed
	$(BIN)/python benchmarks/stages.py $${CORPUS_DIR:+--recordings "$$CORPUS_DIR"}

# Two files of tests at a time, then those of the notebooks, whose training runs take all cores.
test: .venv/installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not slow" --ignore tests/test_notebooks.py \
		--numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m "not slow" tests/test_notebooks.py

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# For this machine and those who know the token; without asking the network for news or newer versions.
lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir=notebooks --ServerApp.ip=127.0.0.1 \
		--ServerApp.allow_remote_access=False --LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pages and notebooks as a site, in site/; nothing is executed.
docs: .venv/installed
	$(BIN)/python workflow/parameters_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Runs the demo, puts its outputs into the committed notebooks, and draws the figure of docs/findings.md.
notebooks: run
	for name in 00_pretrain_encoder 09_recognize; do \
		$(BIN)/papermill notebooks/$$name.ipynb runs/demo/notebooks/$$name.ipynb || exit; \
	done
	$(GMP) run --recipe papt --corpus synthetic_speakers --run-dir runs/personal
	$(BIN)/python workflow/commit_outputs.py
	$(BIN)/python benchmarks/encoder_probes.py --picture figures/readme-encoder.png

clean:
	rm -rf site .venv
