"""Names of folders: the project, its runs, their stages and figures."""

import re
from pathlib import Path

from gmp_utils import GmpError, check_choice

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
PRETRAIN_ENCODER = "00_pretrain_encoder"
PREPARE_DATA = "01_prepare_data"
TRAIN_MULTITASK = "02_train_multitask"
PROBE_LAYERS = "03_probe_layers"
GENERATE_GMPS = "04_generate_gmps"
RETRAIN = "05_retrain"
FINETUNE = "06_finetune"
RESULTS = "07_results"
PERSONALIZE = "08_personalize"
RECOGNIZE = "09_recognize"
ROBUSTNESS = "robustness"  # of notebook 07
FOLD = "fold{fold}/"
MODELS = {  # models that can be probed, and their stages
    "encoder": PREPARE_DATA,
    "multitask": FOLD + TRAIN_MULTITASK,
    "retrained": FOLD + RETRAIN,
    "finetuned": f"{FOLD}{FINETUNE}/retrained/ams",
}
HELPERS = {
    "probe": FINETUNE,
    "interventions": PROBE_LAYERS,
}  # folders of a fold, and their notebooks
INITIAL_MODELS = ("encoder", "multitask", "retrained")  # of `MODELS`, for fine-tuning


def run_folder(run_dir: str) -> Path:
    """Folder of a run; relative paths start at the checkout."""
    return ROOT / Path(run_dir).expanduser()


def fold_folder(run_dir: str, fold: int) -> Path:
    """Folder of a run's fold."""
    return stage_folder(run_dir, FOLD, fold)


def stage_folder(run_dir: str, stage: str, fold: int) -> Path:
    """Folder of a stage, whose name may contain ``{fold}``."""
    return run_folder(run_dir) / stage.format(fold=fold)


def run_and_fold(stage: Path) -> tuple[str, int]:
    """Run and fold of the folder of a fold's stage."""
    folder = next(path for path in stage.parents if re.fullmatch(r"fold\d+", path.name))
    return str(folder.parent), int(folder.name.removeprefix("fold"))


def figures_folder(run_dir: str) -> Path:
    """Folder of a run's figures: figures/<run>, or the run's own figures/ if it is not in runs/."""
    run = run_folder(run_dir)
    in_runs = run.is_relative_to(ROOT / "runs")
    return ROOT / "figures" / run.relative_to(ROOT / "runs") if in_runs else run / "figures"


def stage_of(model: str) -> str:
    """Stage of a model of `MODELS`, with ``{fold}`` in it."""
    check_choice("model", model, MODELS)
    return MODELS[model]


def missing_artifact(folder: Path, notebook: str) -> GmpError:
    """The error for a stage that does not exist yet."""
    remedy = f"run notebooks/{notebook}.ipynb with the same run_dir and fold."
    return GmpError(f"{display_path(folder)}: not found; {remedy}")


def notebook_of(folder: Path) -> str:
    """Notebook that makes a stage's folder."""
    names = [part for part in folder.parts if (NOTEBOOKS / f"{part}.ipynb").is_file()]
    helpers = [notebook for name, notebook in HELPERS.items() if name in folder.parts]
    return [PREPARE_DATA, *helpers, *names][-1]


def display_path(path: Path) -> str:
    """Path for messages: relative to the checkout if it is inside."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
