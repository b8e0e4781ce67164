"""The stages that each stage reads, for the workflow and for the stages themselves."""

from gmp_utils.runs import paths, weights
from gmp_utils.runs.paths import FINETUNE, FOLD, INITIALIZATIONS

GENERATE_GMPS, RETRAIN = FOLD + paths.GENERATE_GMPS, FOLD + paths.RETRAIN
TRAIN_MULTITASK = FOLD + paths.TRAIN_MULTITASK


def upstream(stage: str, parameters: dict) -> list[str]:
    """Stages that a stage reads, as paths in the run's folder, with ``{fold}`` for those of a fold.

    `stage` is the name of a notebook. For one classifier of notebook 06, `parameters` contain its `loss`.
    """
    stages = [paths.PREPARE_DATA]
    match stage:
        case paths.PRETRAIN_ENCODER | paths.PREPARE_DATA:
            return []
        case paths.PROBE_LAYERS:
            stages.append(paths.stage_of(parameters["model"]))
        case paths.GENERATE_GMPS:
            if parameters["clustered_model"] == "multitask":
                stages.append(TRAIN_MULTITASK)
        case paths.RETRAIN:
            objective = parameters["objective"]
            if objective == "own":
                objective = weights.pretraining_objective(parameters["encoder"])
            if objective == "clusters":
                stages.append(GENERATE_GMPS)
            if parameters["retrain_from"] == "multitask":
                stages.append(TRAIN_MULTITASK)
        case paths.FINETUNE:
            if parameters.get("loss") == "ce-then-ams":
                stages.append(f"{FOLD}{FINETUNE}/{INITIALIZATIONS[parameters['use_gmps']]}/ce")
            elif parameters["use_gmps"]:
                stages.append(RETRAIN)
        case paths.PERSONALIZE:
            if "papt" in parameters["representations"]:
                stages.append(GENERATE_GMPS)
        case paths.RESULTS | paths.RECOGNIZE:
            stages += [f"{FOLD}{FINETUNE}/{name}" for name in INITIALIZATIONS.values()]
    return list(dict.fromkeys(stages))
