"""transformers' Trainer with batches of seconds, checkpoints that are known to be whole, and bounds."""

import math
import shutil
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint, rotate_checkpoints

from gmp_utils import integrity, memory, runs
from gmp_utils.batching import SecondsBatches, Utterances, collate
from gmp_utils.errors import GmpError

HASHES = "hashes.json"  # of a checkpoint's files, in it


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


def keep_whole(checkpoints: Path) -> None:
    """Remove checkpoints that were not finished, or have changed since, or whose best one is not whole."""
    whole: list[str] = []
    for checkpoint in sorted(
        checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name[11:])
    ):
        best = str(checkpoint)
        try:
            fault = integrity.damage(checkpoint, runs.read_json(checkpoint / HASHES))
            if not fault:
                state = runs.read_json(checkpoint / "trainer_state.json")
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


class SecondsTrainer(Trainer):
    """Trainer with our batches, and with the parts of the loss in its log."""

    def __init__(self, *args, schedule: Schedule, **kwargs):
        super().__init__(*args, **kwargs)
        self.schedule = schedule
        self.pieces = 1  # of a batch
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
        self.model.begin_update(self.state.global_step / max(self.state.max_steps, 1))
        while True:
            try:
                if self.pieces == 1:
                    return super().training_step(model, inputs, num_items_in_batch)
                return self._in_pieces(model, inputs)
            except torch.OutOfMemoryError:
                whole = self.args.world_size > 1 or self.model.loss_of_batch
                if whole or self.pieces >= len(inputs["lengths"]):
                    raise memory.too_small(self.schedule.batch_seconds) from None
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
            runs.write_json(written / HASHES, integrity.file_digests(written))
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
