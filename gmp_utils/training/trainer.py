"""One way to train, used by every stage: transformers' Trainer on batches of seconds."""

import math
import os
import pickle
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
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint, rotate_checkpoints

from gmp_utils import GmpError
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import hardware
from gmp_utils.runs.files import file_digests, find_mismatch, read_json, write_json
from gmp_utils.training import distributed
from gmp_utils.training.batching import (
    FRAMES_PER_SECOND,
    DurationBatchSampler,
    Utterances,
    collate,
    to_gpu_if_it_fits,
)

HASHES = "hashes.json"  # of a checkpoint's files, in it


def training_bytes(model: SpeechModel, seconds: float) -> int:
    """Estimate what training needs: parameters, their gradients, Adam's moments, activations.

    A layer of a Transformer keeps 34 bytes per frame and hidden unit in 16 bits (Korthikanti et al.,
    "Reducing Activation Recomputation in Large Transformer Models", 2022, equation 1, without the
    attention matrix, which is not kept today), twice that in 32 bits. A CNN that is trained keeps
    three values per step and channel of each convolution.

    Parameters
    ----------
    model : SpeechModel
    seconds : float
        Padded audio per batch.

    Returns
    -------
    needed : int
        Bytes.
    """
    config, in_16_bits = model.config, hardware.bfloat16()
    held = sum(
        parameter.numel() * (16 if parameter.requires_grad else 4)
        for parameter in model.parameters()
    )
    per_frame = 34 * (1 if in_16_bits else 2) * config.hidden_size * config.num_hidden_layers
    activations = seconds * FRAMES_PER_SECOND * per_frame * model.train_encoder
    if model.train_cnn:
        rate, steps = 16000.0, 0.0
        for stride, channels in zip(config.conv_stride, config.conv_dim):
            rate /= stride
            steps += rate * channels
        activations += seconds * steps * 3 * (2 if in_16_bits else 4)
    return int(held + activations)


def too_small(batch_seconds: float) -> GmpError:
    """The error for a GPU on which a batch does not fit, however it is divided."""
    return GmpError(
        f"the GPU's memory does not suffice for batches of {batch_seconds} s; lower batch_seconds, or "
        "leave out long recordings (max_seconds of notebook 01)."
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, in which portions.

    Gradients are clipped to a norm of 1.

    Attributes
    ----------
    learning_rate : float
        Of Adam, reached after a warm-up over 10 % of the updates, then falling linearly to zero.
    epochs : int
        Passes over the training set, each followed by an evaluation; 0 where `max_steps` is given.
    max_steps : int
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
    max_steps: int = 0
    batch_seconds: float = 320.0
    batch_size: int = 64
    seed: int = 0
    processes: int = 1

    def __post_init__(self):
        if (self.epochs > 0) == (self.max_steps > 0) or min(self.epochs, self.max_steps) < 0:
            raise GmpError(
                f"{self.epochs} epochs and {self.max_steps} max_steps: expected one of them above 0."
            )
        for name in ("learning_rate", "batch_seconds", "batch_size", "processes"):
            if not getattr(self, name) > 0:
                raise GmpError(f"{name}: found {getattr(self, name)}, expected more than 0.")


def remove_incomplete_checkpoints(checkpoints: Path) -> None:
    """Remove checkpoints that were not finished, or have changed since, or whose best one is not whole."""
    whole: list[str] = []
    for checkpoint in sorted(
        checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name[11:])
    ):
        best = str(checkpoint)
        try:
            fault = find_mismatch(checkpoint, read_json(checkpoint / HASHES))
            if not fault:
                state = read_json(checkpoint / "trainer_state.json")
                best = state["best_model_checkpoint"] or best
        except (OSError, ValueError):
            fault = "was not finished"
        if best not in (str(checkpoint), *whole):
            fault = f"the best one before it, {Path(best).name}, is not there"
        if fault:
            print(f"{checkpoint.name} is left out: {fault}")
            shutil.rmtree(checkpoint)
        else:
            whole.append(str(checkpoint))


class Progress(TrainerCallback):
    """A bar on a terminal, a line per evaluation everywhere."""

    def __init__(self, by_update: bool):
        self.by_update = by_update
        self.bar, self.losses = None, []

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin, or go on, with the bar."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, disable=None)

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep a step's loss."""
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Print the line."""
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
        """Leave the bar."""
        self.bar.close()


def _counted(outputs: dict, inputs: dict) -> torch.Tensor:
    """Over how many frames, or utterances, a batch's losses are means."""
    return outputs.get("n_frames", torch.ones_like(inputs["lengths"])).sum()


class DurationTrainer(Trainer):
    """Trainer with our batches, and with the parts of the loss in its log."""

    def __init__(self, *args, schedule: TrainingConfig, **kwargs):
        super().__init__(*args, **kwargs)
        self.schedule = schedule
        self.pieces = 1  # of a batch
        self._parts: dict[str, torch.Tensor] = {}

    def _loader(self, dataset: Utterances, train: bool) -> DataLoader:
        sampler = DurationBatchSampler(
            dataset,
            self.schedule.batch_seconds,
            self.schedule.batch_size,
            shuffle=train,
            seed=self.schedule.seed,
            process=self.args.process_index,
            n_processes=self.args.world_size,
        )
        if train:
            sampler.fix_batches_per_epoch(
                self.schedule.epochs or self.schedule.max_steps // len(sampler) + 1
            )
            self._batches = sampler
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
        return prepare_data_loader(loader, self.args.device, 1, 0, put_on_device=True)

    def get_train_dataloader(self) -> DataLoader:
        """Batches to train on."""
        return self._loader(self.train_dataset, train=True)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Batches to evaluate on."""
        return self._loader(eval_dataset or self.eval_dataset, train=False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Run the model; keep the parts of the loss."""
        outputs = model(**inputs)
        if model.training:
            if self.args.world_size > 1 and not self.model.loss_of_batch:
                # losses are means, and their gradients will be averaged
                counted = _counted(outputs, inputs).float()
                share = counted / self.accelerator.reduce(counted, "mean")
                outputs |= {k: share * v for k, v in outputs.items() if k.endswith("loss")}
            self._parts = {
                name: value.detach() for name, value in outputs.items() if name.endswith("_loss")
            }
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Make a step; where the GPU's memory does not suffice, piece by piece, with the same gradient."""
        self.model.on_step_begin(self.state.global_step / max(self.state.max_steps, 1))
        while True:
            try:
                if self.pieces == 1:
                    return super().training_step(model, inputs, num_items_in_batch)
                return self._in_pieces(model, inputs)
            except torch.OutOfMemoryError:
                whole = self.args.world_size > 1 or self.model.loss_of_batch
                if whole or self.pieces >= len(inputs["lengths"]):
                    raise too_small(self.schedule.batch_seconds) from None
            model.zero_grad()
            torch.cuda.empty_cache()
            self.pieces *= 2
            tqdm.write(f"out of memory: batches are computed in {self.pieces} pieces from now on")

    def _in_pieces(self, model, inputs) -> torch.Tensor:
        model.train()
        losses, counts, parts, n = [], [], [], len(inputs["lengths"])
        for rows in np.array_split(np.arange(n), min(self.pieces, n)):
            piece = {name: values[rows] for name, values in inputs.items()}
            with self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(model, piece, return_outputs=True)
            counted = _counted(outputs, piece)
            self.accelerator.backward(loss * counted)
            losses.append(loss.detach() * counted)
            counts.append(counted)
            parts.append({name: value * counted for name, value in self._parts.items()})
        total = sum(counts)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= total
        self._parts = {name: sum(part[name] for part in parts) / total for name in self._parts}
        return sum(losses) / total

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            written = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            write_json(written / HASHES, file_digests(written))
            best = self.state.best_model_checkpoint
            rotate_checkpoints(self.args.output_dir, 1, best, use_mtime=True)

    def log(self, logs, start_time=None):
        """Keep a step's numbers, with the parts of the loss; refuse what is none."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise GmpError(self._no_number(name.replace("grad_norm", "gradient"), logs[name]))
        if "loss" in logs:
            parts = self.accelerator.reduce(self._parts, "mean")
            logs |= {name: float(value) for name, value in parts.items()}
        super().log(logs, start_time)

    def _no_number(self, what: str, value: float) -> str:
        step, sampler = self.state.global_step, self._batches
        sampler.set_epoch((step - 1) // len(sampler))
        batch = list(sampler)[(step - 1) % len(sampler)]
        names = ", ".join(sampler.dataset.utterances[index] for index in batch)
        last = get_last_checkpoint(self.args.output_dir)
        kept = f"{Path(last).name} is good" if last else "there is no checkpoint yet"
        return (
            f"the {what} is {value} at step {step}, of the utterances {names}; {kept}. Listen to them, "
            "or lower learning_rate."
        )

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
    schedule: TrainingConfig,
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
        See `gmp_utils.data.protocol`; "last" keeps the last epoch.

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
    remove_incomplete_checkpoints(checkpoints)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    size = f"{n_parameters / 1e6:.1f} M parameters, batches of {schedule.batch_seconds:g} s"
    needed = training_bytes(model, schedule.batch_seconds)
    hardware.estimate(size, needed, hardware.free_bytes(), "Lower batch_seconds.")
    work = (training_set, held_out, folder, schedule, metrics, judge, selection)
    if schedule.processes == 1:
        _fit(model, *work)
    else:
        begun = checkpoints / "begun"
        model.save_pretrained(begun)
        load = type(model).load
        distributed.launch(_fit_saved, (load, begun, *work), schedule.processes, checkpoints)
        model.load_state_dict(load(str(folder / "model")).state_dict())
    shutil.rmtree(checkpoints)
    return read_json(folder / "metrics.json")


def _fit_saved(load: Callable[[str], SpeechModel], begun: Path, *work) -> None:
    """What each of several processes does: a model goes to them as files."""
    _fit(load(str(begun)), *work)


def _fit(
    model: SpeechModel,
    training_set: Utterances,
    held_out: Utterances,
    folder: Path,
    schedule: TrainingConfig,
    metrics: Callable[[EvalPrediction], dict[str, float]],
    judge: str,
    selection: str,
) -> None:
    """Train as `train` says, in the only process or in one of several."""
    every = max(schedule.max_steps // 10, 1)
    strategy = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if schedule.max_steps:
        strategy = {name: "steps" for name in strategy} | {"eval_steps": every, "save_steps": every}
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps or -1,
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
    shared, placed = training_set.inputs, to_gpu_if_it_fits(training_set.inputs)
    for dataset in (training_set, held_out):
        dataset.inputs = placed if dataset.inputs is shared else to_gpu_if_it_fits(dataset.inputs)
    trainer = DurationTrainer(
        model=model,
        args=arguments,
        train_dataset=training_set,
        eval_dataset=held_out,
        compute_metrics=metrics,
        schedule=schedule,
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        trainer.add_callback(Progress(by_update=bool(schedule.max_steps)))
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
    write_json(folder / "metrics.json", selected)


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
