"""One way to train, used by every stage: transformers' Trainer on batches of seconds."""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint

from gmp_utils import distributed, hardware, runs
from gmp_utils.batching import SecondsBatches, Utterances, collate, resident
from gmp_utils.encoders import SpeechModel
from gmp_utils.errors import GmpError


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, in which portions.

    Gradients are clipped to a norm of 1.

    Attributes
    ----------
    learning_rate : float
        Of Adam, reached after a warm-up over 10 % of the updates, then falling linearly to zero.
    epochs : int
        Passes over the training set, each followed by an evaluation; 0 where `updates` is given.
    updates : int
        Optimiser steps, evaluated ten times on the way; 0 where `epochs` is given.
    batch_seconds : float
        Padded seconds of audio per batch.
    batch_size : int
        Utterances per batch, at most.
    seed : int
    processes : int
        GPUs that share every batch, or processes where there is none. Batches, masks, updates and
        metrics are those of one process, up to rounding; only dropout is drawn differently.
    """

    learning_rate: float = 1e-4
    epochs: int = 0
    updates: int = 0
    batch_seconds: float = 320.0
    batch_size: int = 64
    seed: int = 0
    processes: int = 1

    def __post_init__(self):
        if (self.epochs > 0) == (self.updates > 0) or min(self.epochs, self.updates) < 0:
            raise GmpError(
                f"{self.epochs} epochs and {self.updates} updates: expected one of them above 0."
            )
        for name in ("learning_rate", "batch_seconds", "batch_size", "processes"):
            if not getattr(self, name) > 0:
                raise GmpError(f"{name}: found {getattr(self, name)}, expected more than 0.")


class _Progress(TrainerCallback):
    """A bar on a terminal, a line per evaluation everywhere."""

    def __init__(self, by_update: bool):
        self.by_update = by_update
        self.bar, self.losses = None, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, disable=None)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        shown = {
            name.removeprefix("eval_").replace("_", " "): value
            for name, value in (metrics or {}).items()
            if not name.endswith(("runtime", "per_second", "epoch", "eval_loss", "time"))
        }
        unit = "update" if self.by_update else "epoch"
        now = f"{state.global_step}/{state.max_steps}"
        if not self.by_update:
            now = f"{state.epoch:.0f}/{state.num_train_epochs}"
        values = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
        tqdm.write(f"{unit} {now}: training loss {np.mean(self.losses):.3f}; held out: {values}")
        self.losses = []

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class _SecondsTrainer(Trainer):
    """Trainer with our batches, and with the parts of the loss in its log."""

    def __init__(self, *args, schedule: Schedule, **kwargs):
        super().__init__(*args, **kwargs)
        self.schedule = schedule
        self._parts: dict[str, torch.Tensor] = {}

    def _loader(self, dataset: Utterances, train: bool) -> DataLoader:
        sampler = SecondsBatches(
            dataset,
            self.schedule.batch_seconds,
            self.schedule.batch_size,
            shuffle=train,
            seed=self.schedule.seed,
            process=self.args.process_index,
            n_processes=self.args.world_size,
        )
        if train:
            sampler.even_out(self.schedule.epochs or self.schedule.updates // len(sampler) + 1)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
        return prepare_data_loader(loader, self.args.device, 1, 0, put_on_device=True)

    def get_train_dataloader(self) -> DataLoader:
        return self._loader(self.train_dataset, train=True)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return self._loader(eval_dataset or self.eval_dataset, train=False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        if model.training:
            if self.args.world_size > 1:  # losses are means, and their gradients will be averaged
                counted = outputs.get("n_frames", torch.ones_like(inputs["lengths"])).sum().float()
                share = counted / self.accelerator.reduce(counted, "mean")
                outputs |= {k: share * v for k, v in outputs.items() if k.endswith("loss")}
            self._parts = {
                name: value.detach() for name, value in outputs.items() if name.endswith("_loss")
            }
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs, start_time=None):
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise GmpError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}; "
                    "lower learning_rate."
                )
            parts = self.accelerator.reduce(self._parts, "mean")
            logs |= {name: float(value) for name, value in parts.items()}
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """Let every process predict its batches, and each know the metrics of all."""
        self.model.eval()
        steps = (self.prediction_step(self.model, batch, False)[1:] for batch in dataloader)
        every = gather_object([nested_numpify(step) for step in steps])
        predictions, labels = reduce(nested_concat, every)
        metrics = self.compute_metrics(EvalPrediction(predictions, labels))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions, labels, metrics, len(dataloader.dataset))


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

    Checkpoints lie in checkpoints/ while it lasts; a training that finds some goes on from the last.
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
        The selected epoch's row of history.csv: epoch, step, training losses, metrics.

    Raises
    ------
    GmpError
        If the loss is no number any more, or there are fewer GPUs than processes.
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
    for checkpoint in checkpoints.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():  # written last
            shutil.rmtree(checkpoint)
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
        save_total_limit=1,
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
    trainer = _SecondsTrainer(
        model=model,
        args=arguments,
        train_dataset=training_set,
        eval_dataset=held_out,
        compute_metrics=metrics,
        schedule=schedule,
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        trainer.add_callback(_Progress(by_update=bool(schedule.updates)))
        if os.environ.get("TENSORBOARD"):
            from torch.utils.tensorboard import SummaryWriter

            trainer.add_callback(TensorBoardCallback(SummaryWriter(folder / "tensorboard")))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
    if not trainer.is_world_process_zero():
        return
    history = _history(trainer.state.log_history)
    last = len(history) - 1
    best = history[judge].argmin() if judge.endswith("loss") else history[judge].argmax()
    history["selected"] = history.index == (last if selection == "last" else best)
    history.to_csv(folder / "history.csv", index=False)
    trainer.model.save_pretrained(folder / "model")
    selected = history[history.selected].iloc[0].drop("selected").to_dict()
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
