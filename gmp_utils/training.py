"""One way to train, used by every stage: transformers' Trainer on batches of seconds."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from transformers import EvalPrediction, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from gmp_utils import distributed, hardware, memory, runs
from gmp_utils.batching import Utterances, resident
from gmp_utils.encoders import SpeechModel
from gmp_utils.errors import GmpError
from gmp_utils.trainer import Progress, Schedule, SecondsTrainer, keep_whole


def train(
    model: SpeechModel,
    training_set: Utterances,
    held_out: Utterances,
    folder: Path,
    schedule: Schedule,
    metrics: Callable[[EvalPrediction], dict[str, float]],
    judge: str,
    selection: str = "validation",
) -> dict:
    """Train a model; leave model/, history.csv and metrics.json in a folder.

    Checkpoints lie in checkpoints/ while it lasts; a training that finds some goes on from the last
    that is whole. Where the GPU's memory does not suffice, batches are computed in pieces, with the
    same gradients, and metrics.json says so; but not where a loss is of the whole batch.
    With TENSORBOARD in the environment there is tensorboard/, too, with every step as events.
    Afterwards the model has the weights of the selected epoch.

    Parameters
    ----------
    model : SpeechModel
        Its forward returns a dict: `loss`, further losses named `<part>_loss` while training, and
        the predictions that `metrics` reads. Losses are means over utterances, or over the frames
        that it counts in `n_frames`.
    training_set, held_out : Utterances
    folder : Path
    schedule : Schedule
    metrics : callable
        Predictions on `held_out`, in any order, to numbers.
    judge : str
        The metric that selects the epoch; greater is better, unless it ends in "loss".
    selection : str
        See `gmp_utils.protocol`; "last" keeps the last epoch.

    Returns
    -------
    selected : dict
        The selected epoch's row of history.csv: epoch, step, training losses, metrics; and how many
        `parameters` were trained.

    Raises
    ------
    GmpError
        If the loss is no number any more, a single utterance does not fit into the GPU's memory, a
        checkpoint is not ours, or there are fewer GPUs than processes.
    """
    if not len(training_set):
        raise GmpError("the training set is empty.")
    n_gpus = torch.cuda.device_count()
    if 0 < n_gpus < schedule.processes:
        raise GmpError(
            f"processes: found {schedule.processes}, expected at most {n_gpus}, the GPUs."
        )
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    keep_whole(checkpoints)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    size = f"{n_parameters / 1e6:.1f} M parameters, batches of {schedule.batch_seconds:g} s"
    needed = memory.training_bytes(model, schedule.batch_seconds)
    memory.estimate(size, needed, memory.free_bytes(), "Lower batch_seconds.")
    work = (training_set, held_out, folder, schedule, metrics, judge, selection)
    if schedule.processes == 1:
        _fit(model, *work)
    else:
        begun = checkpoints / "begun"
        model.save_pretrained(begun)
        load = type(model).load
        distributed.call(_fit_saved, (load, begun, *work), schedule.processes, checkpoints)
        model.load_state_dict(load(str(folder / "model")).state_dict())
    shutil.rmtree(checkpoints)
    return runs.read_json(folder / "metrics.json")


def _fit_saved(load: Callable[[str], SpeechModel], begun: Path, *work) -> None:
    """What each of several processes does: a model goes to them as files."""
    _fit(load(str(begun)), *work)


def _fit(
    model: SpeechModel,
    training_set: Utterances,
    held_out: Utterances,
    folder: Path,
    schedule: Schedule,
    metrics: Callable[[EvalPrediction], dict[str, float]],
    judge: str,
    selection: str,
) -> None:
    """Train as `train` says, in the only process or in one of several."""
    every = max(schedule.updates // 10, 1)
    strategy = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if schedule.updates:
        strategy = {name: "steps" for name in strategy} | {"eval_steps": every, "save_steps": every}
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.updates or -1,
        learning_rate=schedule.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.0,
        **strategy,
        logging_strategy="steps",
        logging_steps=1,
        load_best_model_at_end=selection != "last",
        metric_for_best_model=judge,
        seed=schedule.seed,
        use_cpu=hardware.device() == "cpu",
        label_names=list(training_set.targets) or ["lengths"],
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        report_to="none",
    )
    arguments.seed += arguments.process_index  # of dropout
    if arguments.device.type == "cuda":  # asked for the first time, this chooses the process's GPU
        arguments._n_gpu = 1  # DataParallel would split what hidden_states' hooks collect
    shared, placed = training_set.inputs, resident(training_set.inputs)
    for dataset in (training_set, held_out):
        dataset.inputs = placed if dataset.inputs is shared else resident(dataset.inputs)
    trainer = SecondsTrainer(
        model=model,
        args=arguments,
        train_dataset=training_set,
        eval_dataset=held_out,
        compute_metrics=metrics,
        schedule=schedule,
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        trainer.add_callback(Progress(by_update=bool(schedule.updates)))
        if os.environ.get("TENSORBOARD"):
            from torch.utils.tensorboard import SummaryWriter

            trainer.add_callback(TensorBoardCallback(SummaryWriter(folder / "tensorboard")))
    try:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
    except pickle.UnpicklingError as error:
        raise GmpError(
            f"{folder / 'checkpoints'}: a checkpoint holds more than numbers, and is not read. It is not "
            "ours: remove the folder, and ask who wrote it."
        ) from error
    if not trainer.is_world_process_zero():
        return
    history = _history(trainer.state.log_history)
    last = len(history) - 1
    best = history[judge].argmin() if judge.endswith("loss") else history[judge].argmax()
    history["selected"] = history.index == (last if selection == "last" else best)
    history.to_csv(folder / "history.csv", index=False)
    trainer.model.save_pretrained(folder / "model")
    selected = history[history.selected].iloc[0].drop("selected").to_dict()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    selected["parameters"] = sum(parameter.numel() for parameter in trained)
    if trainer.pieces > 1:
        selected["pieces per batch"] = trainer.pieces
    runs.write_json(folder / "metrics.json", selected)


def _history(log: list[dict]) -> pd.DataFrame:
    """Trainer's log as a table: a row per evaluation, training's numbers averaged since the last."""
    rows, steps = [], []
    for entry in log:
        if "loss" in entry:
            steps.append(entry)
        elif "train_runtime" not in entry:
            means = pd.DataFrame(steps).mean().drop(["epoch", "step", "learning_rate"])
            rows.append({**means, **entry})
            steps = []
    table = pd.DataFrame(rows).filter(regex="^(?!eval_(loss|runtime|.*(per_second|time))$)")
    table = table.rename(columns=lambda name: name.removeprefix("eval_"))
    return table[["epoch", "step", *sorted(set(table) - {"epoch", "step"})]]
