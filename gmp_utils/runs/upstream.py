"""The stages that each stage reads, for the workflow and for the stages themselves."""

from gmp_utils.runs import paths, weights
from gmp_utils.runs.paths import (
    FINETUNE,
    FOLD,
    GENERATE_GMPS,
    INITIALIZATIONS,
    RETRAIN,
    TRAIN_MULTITASK,
)


def upstream(stage: str, parameters: dict) -> list[str]:
    """Stages that a stage reads.

    Parameters
    ----------
    stage : str
        Name of its notebook, such as "05_retrain".
    parameters : dict
        Of that notebook. For one classifier of notebook 06, also its `loss`.

    Returns
    -------
    stages : list of str
        Folders below the run's, with ``{fold}`` where they belong to a fold.
    """
    stages = [paths.PREPARE_DATA]
    match stage:
        case paths.PRETRAIN_ENCODER | paths.PREPARE_DATA:
            return []
        case paths.PROBE_LAYERS:
            stages.append(paths.stage_of(parameters["model"]))
        case paths.GENERATE_GMPS:
            if parameters["clustered_model"] == "multitask":
                stages.append(FOLD + TRAIN_MULTITASK)
        case paths.RETRAIN:
            objective = parameters["objective"]
            if objective == "own":
                objective = weights.pretraining_objective(parameters["encoder"])
            if objective == "clusters":
                stages.append(FOLD + GENERATE_GMPS)
            if parameters["retrain_from"] == "multitask":
                stages.append(FOLD + TRAIN_MULTITASK)
        case paths.FINETUNE:
            if parameters.get("loss") == "ce-then-ams":
                stages.append(f"{FOLD}{FINETUNE}/{INITIALIZATIONS[parameters['use_gmps']]}/ce")
            elif parameters["use_gmps"]:
                stages.append(FOLD + RETRAIN)
        case paths.PERSONALIZE:
            if "papt" in parameters["representations"]:
                stages.append(FOLD + GENERATE_GMPS)
        case paths.RESULTS | paths.RECOGNIZE:
            stages += [f"{FOLD}{FINETUNE}/{name}" for name in INITIALIZATIONS.values()]
    return list(dict.fromkeys(stages))
