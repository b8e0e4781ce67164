"""Training in every stage: transformers' Trainer with batches limited in seconds.

The environment variable REPORT_TO names Trainer's loggers, such as "tensorboard" or "wandb,mlflow".
"""

import math
import os
import shutil
import signal
import time
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint

from gmp_utils import GmpError
from gmp_utils.data.audio import SAMPLE_RATE
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import hardware
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.training.batching import DurationBatchSampler, Utterances, collate, to_gpu_if_it_fits

CHECKPOINT_SECONDS = 60.0  # minimum time between checkpoints that are not the best


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters of a training by Adam."""

    learning_rate: float = 1e-4  # after a warm-up over 10% of the steps, before a linear decay
    epochs: int = 0  # each followed by an evaluation; 0 if `max_steps` is given
    max_steps: int = 0  # optimizer steps, with up to ten evaluations; 0 if `epochs` is given
    batch_seconds: float = 320.0  # padded seconds of audio per batch
    batch_size: int = 64  # utterances per batch, at most
    seed: int = 0
    processes: int = 1  # GPUs, or processes on a CPU, that share every batch; rounding differs
    head_learning_rate: float = 0.0  # of the heads; 0 for `learning_rate`
    weight_decay: float = 0.0  # of AdamW, which equals Adam at 0
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam's moving averages
    max_grad_norm: float = 1.0  # to which gradients are clipped; 0 for no clipping

    def __post_init__(self):
        if (self.epochs > 0) == (self.max_steps > 0) or min(self.epochs, self.max_steps) < 0:
            found = f"{self.epochs} epochs and {self.max_steps} max_steps"
            raise GmpError(f"{found}: expected one of them above 0.")
        for name in ("learning_rate", "batch_seconds", "batch_size", "processes"):
            if not getattr(self, name) > 0:
                raise GmpError(f"{name}: found {getattr(self, name)}, expected more than 0.")


def training_bytes(model: SpeechModel, seconds: float) -> int:
    """Estimate the memory, in bytes, of training with batches of `seconds`, padding included.

    It counts parameters, gradients, Adam's moments, and per frame and hidden unit of a trained layer 34 bytes
    in 16 bits (Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
    2022, equation 1, without the attention matrix), 68 in 32 bits. A trained CNN keeps three values per step
    and channel of each convolution.
    """
    config, value_bytes = model.config, 2 if hardware.bfloat16() else 4
    n_layers = config.num_hidden_layers - getattr(config, "frozen_layers", 0)
    static = sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters())
    per_frame = 17 * value_bytes * config.hidden_size * n_layers
    rates = SAMPLE_RATE / np.cumprod(config.conv_stride)  # steps per second of each convolution
    activations = seconds * rates[-1] * per_frame * model.train_encoder
    if model.train_cnn:
        activations += seconds * 3 * value_bytes * (rates @ np.array(config.conv_dim))
    return int(static + activations)


def _out_of_memory(config: TrainingConfig) -> GmpError:
    found = f"the GPU's memory does not suffice for batches of {config.batch_seconds} s"
    return GmpError(f"{found}; lower batch_seconds, or max_seconds of notebook 01.")


def remove_incomplete_checkpoints(checkpoints: Path, processes: int) -> None:
    """Remove checkpoints that are incomplete or truncated, or whose best checkpoint is missing.

    Trainer writes trainer_state.json after the other files of its process.
    """
    states = [f"rng_state_{index}.pth" for index in range(processes)]
    archives = ["optimizer.pt", "scheduler.pt", *(states if processes > 1 else ["rng_state.pth"])]
    complete = set()
    for path in sorted(checkpoints.rglob("checkpoint-*"), key=lambda path: int(path.name[11:])):
        try:
            best = read_json(path / "trainer_state.json")["best_model_checkpoint"] or str(path)
            safe_open(path / "model.safetensors", "pt")
            damaged = [name for name in archives if zipfile.ZipFile(path / name).testzip()]
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
            damaged = [path.name]
        if damaged or best not in {str(path), *complete}:
            print(f"{path.name} is incomplete and not used.")
            shutil.rmtree(path)
        else:
            complete.add(str(path))


class PrintEvaluations(TrainerCallback):
    """Print a line per evaluation."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Print the training loss since the last evaluation, and the metrics."""
        entries = takewhile(lambda entry: "loss" in entry, reversed(state.log_history[:-1]))
        loss = np.mean([entry["loss"] for entry in entries])
        time = f"epoch {state.epoch:.0f}/{state.num_train_epochs}"
        if args.max_steps > 0:
            time = f"step {state.global_step}/{state.max_steps}"
        values = ", ".join(
            f"{name.removeprefix('eval_').replace('_', ' ')} {value:.3f}"
            for name, value in (metrics or {}).items()
            if not name.endswith(("runtime", "per_second", "epoch", "eval_loss", "time"))
        )
        print(f"{time}: training loss {loss:.3f}; validation: {values}", flush=True)


class DurationTrainer(Trainer):
    """Trainer with batches of similar durations, which logs each part of the loss."""

    def __init__(self, *args, config: TrainingConfig, **kwargs):
        super().__init__(*args, **kwargs)
        self.config = config
        self._parts: list[dict[str, torch.Tensor]] = []  # of the loss, since the last log
        self._saved_at = -math.inf  # seconds

    def _loader(self, dataset: Utterances, train: bool) -> DataLoader:
        sampler = batch_sampler(dataset, self.config, self.args, train)
        if train:
            self._sampler, steps = sampler, self.args.gradient_accumulation_steps
            n_batches = self.config.max_steps * steps
            sampler.fix_batches_per_epoch(self.config.epochs or n_batches // len(sampler) + 1)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
        return prepare_data_loader(loader, self.args.device, 1, 0, put_on_device=True)

    def get_train_dataloader(self) -> DataLoader:
        """Return the training batches."""
        return self._loader(self.train_dataset, train=True)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Return the validation batches."""
        return self._loader(eval_dataset or self.eval_dataset, train=False)

    def create_optimizer(self, model=None):
        """Create AdamW with one learning rate for the encoder and one for the heads."""
        if self.optimizer is None:
            encoder, config = set(self.model.base_model.parameters()), self.config
            trained = [p for p in self.model.parameters() if p.requires_grad]
            head = {"params": [p for p in trained if p not in encoder]}
            head["lr"] = config.head_learning_rate or config.learning_rate
            groups = [{"params": [p for p in trained if p in encoder]}, head]
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args)
            settings["weight_decay"] = config.weight_decay
            self.optimizer = optimizer([group for group in groups if group["params"]], **settings)
        return self.optimizer

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Call the model's hook, and take a step."""
        self.model.on_step_begin(self.state.global_step / max(self.state.max_steps, 1))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Run the model, and keep the parts of the loss."""
        outputs = model(**inputs)
        if model.training:
            if self.args.world_size > 1 and not self.model.loss_of_batch:
                # losses are means over the frames or utterances of a process, and gradients will be averaged
                n = outputs.get("n_frames", torch.ones_like(inputs["lengths"])).sum().float()
                weight = n / self.accelerator.reduce(n, "mean")
                outputs |= {k: weight * v for k, v in outputs.items() if k.endswith("loss")}
            self._parts.append({k: v.detach() for k, v in outputs.items() if k.endswith("_loss")})
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs, start_time=None):
        """Add the parts of the loss. NaN and infinity raise a GmpError."""
        for name, title in (("loss", "loss"), ("grad_norm", "gradient")):
            if not math.isfinite(logs.get(name, 0.0)):
                raise self._not_finite(f"the {title} is {logs[name]}")
        if "loss" in logs:
            for name in self._parts[0]:
                mean = sum(parts[name] for parts in self._parts) / len(self._parts)
                logs[name] = float(self.accelerator.reduce(mean, "mean"))
            self._parts.clear()
        super().log(logs, start_time)

    def _not_finite(self, problem: str) -> GmpError:
        """The error, with the utterances in the last step's batches of all processes."""
        step, accumulated = self.state.global_step, self.args.gradient_accumulation_steps
        epoch, index = divmod(step - 1, math.ceil(len(self._sampler) / accumulated))
        sampler = replace(self._sampler, process=0, n_processes=1)
        sampler.set_epoch(epoch)
        batches, dataset = list(sampler)[index * accumulated :][:accumulated], sampler.dataset
        names = ", ".join(dataset.utterances[i % len(dataset)] for batch in batches for i in batch)
        last = get_last_checkpoint(self.args.output_dir)
        kept = f"{Path(last).name} is good" if last else "there is no checkpoint yet"
        found = f"{problem} at step {step}, for the utterances {names}; {kept}"
        return GmpError(f"{found}. Listen to them, or lower the learning rate.")

    def _determine_best_metric(self, metrics, trial):
        """Whether the model is the best. Any other is saved only if the last checkpoint is old enough."""
        is_best = super()._determine_best_metric(metrics, trial)
        age = gather_object([time.monotonic() - self._saved_at])[0]
        self.control.should_save &= is_best or age >= CHECKPOINT_SECONDS
        return is_best

    def _save_checkpoint(self, model, trial):
        """Save the model, and note the time."""
        super()._save_checkpoint(model, trial)
        self._saved_at = time.monotonic()

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """Predict this process's batches, and compute the metrics of all."""
        self.model.eval()
        steps = (self.prediction_step(self.model, batch, False)[1:] for batch in dataloader)
        gathered = gather_object([nested_numpify(step) for step in steps])
        predictions, labels = reduce(nested_concat, gathered)
        metrics = self.compute_metrics(EvalPrediction(predictions, labels))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions, labels, metrics, len(dataloader.dataset))


def batch_sampler(
    dataset: Utterances, config: TrainingConfig, arguments: TrainingArguments, train: bool
) -> DurationBatchSampler:
    """A process's batches, divided by the steps over which gradients are accumulated."""
    steps = arguments.gradient_accumulation_steps
    return DurationBatchSampler(
        dataset,
        config.batch_seconds / steps,
        max(config.batch_size // steps, 1),
        shuffle=train,
        seed=config.seed,
        process=arguments.process_index,
        n_processes=arguments.world_size,
    )


def fit_batches_to_memory(
    model: SpeechModel, dataset: Utterances, config: TrainingConfig, arguments: TrainingArguments
) -> None:
    """Accumulate gradients over as many steps as it takes for the largest batch to fit into memory.

    The batch is tried forward and backward, with memory for Adam's moments allocated. The mean over smaller
    batches differs from that over the whole batch if their sizes differ.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    while True:
        sampler, steps = batch_sampler(dataset, config, arguments, train=True), config.max_steps
        steps *= arguments.gradient_accumulation_steps
        batches = {}
        for epoch in range(config.epochs or steps // len(sampler) + 1):
            sampler.set_epoch(epoch)
            size = {len(x) * max(dataset.seconds[np.array(x) % len(dataset)]): x for x in sampler}
            batches[max(size)] = size[max(size)]
        largest = batches[max(batches)]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            _moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]
            batch = collate([dataset[index] for index in largest])
            batch = {name: values.to(arguments.device) for name, values in batch.items()}
            model.train()(**batch)["loss"].backward()
            break
        except torch.OutOfMemoryError:
            if model.loss_of_batch or len(largest) == 1:
                raise _out_of_memory(config) from None
            arguments.gradient_accumulation_steps *= 2
        finally:
            _moments = batch = None
            model.zero_grad()
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    steps = max(gather_object([arguments.gradient_accumulation_steps]))
    arguments.gradient_accumulation_steps = steps
    if steps > 1:
        print(f"GPU memory is too small: gradients are accumulated over {steps} smaller batches")
        arguments.output_dir += f"/accumulated-{steps}"  # to resume with the same batches only
        Path(arguments.output_dir).mkdir(exist_ok=True)


def train(
    model: SpeechModel,
    training_set: Utterances,
    validation_set: Utterances,
    folder: Path,
    config: TrainingConfig,
    *,
    compute_metrics: Callable[[EvalPrediction], dict[str, float]],
    selection_metric: str,
    selection: str = "validation",
) -> dict:
    """Train a model, and write model/, history.csv and metrics.json.

    Training resumes from the last complete one of checkpoints/, which is removed at the end. Then the model
    has the weights of the selected epoch: that with the highest `selection_metric`, or the lowest if its name
    ends in "loss", or the last epoch if `selection` is "last". Returns the selected row of history.csv,
    the number of trained `parameters`, and the `accumulation_steps` of gradients.

    The model's forward returns a dict of `loss`, parts of it named `<part>_loss` while training, and the
    predictions for `compute_metrics`, which gets the validation set in any order. Losses are means over
    utterances, or over `n_frames` frames.
    """
    if not len(training_set):
        raise GmpError("the training set is empty.")
    n_gpus = torch.cuda.device_count()
    if 0 < n_gpus < config.processes:
        raise GmpError(f"processes: found {config.processes}, expected at most {n_gpus} (GPUs).")
    if (folder / "metrics.json").is_file():  # it was interrupted after this training
        model.merge_updates()
        model.load_state_dict(type(model).load(str(folder / "model")).state_dict())
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return read_json(folder / "metrics.json")
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    remove_incomplete_checkpoints(checkpoints, config.processes)
    if hardware.device() == "cpu":  # on a GPU, `fit_batches_to_memory` tries the largest batch
        title = f"{model.num_parameters() / 1e6:.1f} M parameters, batches of {config.batch_seconds:g} s"
        needed = training_bytes(model, config.batch_seconds)
        hardware.estimate(title, needed, hardware.free_memory(), "Lower batch_seconds.")
    sets, metrics = (training_set, validation_set), (compute_metrics, selection_metric, selection)
    if config.processes == 1:
        _fit(model, *sets, folder, config, *metrics)
    else:
        initial, load = str(checkpoints / "initial"), type(model).load
        model.merge_updates()  # which are still 0
        model.save_pretrained(initial)
        task = load, initial, config.seed, *sets, folder, config, *metrics
        launch(_fit_saved, *task, processes=config.processes, folder=checkpoints)
        model.load_state_dict(load(str(folder / "model")).state_dict())
    shutil.rmtree(checkpoints)
    return read_json(folder / "metrics.json")


def launch(function: Callable, *arguments, processes: int, folder: Path) -> None:
    """Call an importable function in several connected processes, and re-raise a GmpError of any of them.

    Its message is passed by a file in the folder.
    """
    message = folder / "error.txt"
    message.unlink(missing_ok=True)
    settings = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    settings |= {"run_id": uuid.uuid4().hex, "signals_to_handle": "SIGTERM"}
    call = elastic_launch(LaunchConfig(1, 1, processes, **settings), _call)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        call(message, function, *arguments)
    except ChildFailedError as error:
        if message.is_file():
            raise GmpError(message.read_text(encoding="utf-8")) from None
        raise GmpError(f"one of {processes} processes failed, see its output above.") from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _call(message: Path, function: Callable, *arguments) -> None:
    """Call a function in one of several processes."""
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    hardware.prepare_libraries()
    torch.set_num_threads(max(torch.get_num_threads() // processes, 1))
    try:
        function(*arguments)
    except GmpError as error:
        message.write_text(str(error), encoding="utf-8")
        raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fit_saved(load: Callable[[str], SpeechModel], initial: str, seed: int, *task) -> None:
    """Run `_fit` in one of several processes, which read the model from files."""
    set_seed(seed)  # LoRA's updates are not in the files
    _fit(load(initial), *task)


def _arguments(
    folder: Path, config: TrainingConfig, selection_metric: str, selection: str
) -> TrainingArguments:
    strategy, every = "steps" if config.max_steps else "epoch", math.ceil(config.max_steps / 10)
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm,
        warmup_steps=0.1,
        **dict.fromkeys(("eval_strategy", "save_strategy"), strategy),
        **dict.fromkeys(("eval_steps", "save_steps"), every),
        save_total_limit=1,  # besides the best
        logging_steps=1,
        load_best_model_at_end=selection != "last",
        metric_for_best_model=None if selection == "last" else selection_metric,
        seed=config.seed,
        use_cpu=hardware.device() == "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        report_to=(os.environ.get("REPORT_TO") or "none").split(","),
    )
    arguments.seed += arguments.process_index  # of dropout
    if arguments.device.type == "cuda":  # reading it selects the process's GPU
        arguments._n_gpu = 1  # otherwise Trainer splits batches over GPUs, which bypasses hooks
    return arguments


def _fit(
    model: SpeechModel,
    training_set: Utterances,
    validation_set: Utterances,
    folder: Path,
    config: TrainingConfig,
    compute_metrics: Callable[[EvalPrediction], dict[str, float]],
    selection_metric: str,
    selection: str,
) -> None:
    """Train in this process, which may be one of several."""
    arguments = _arguments(folder, config, selection_metric, selection)
    arguments.label_names = list(training_set.targets) or ["lengths"]
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    inputs = to_gpu_if_it_fits(training_set.inputs)
    if validation_set.inputs is training_set.inputs:
        validation_set = replace(validation_set, inputs=inputs)
    training_set = replace(training_set, inputs=inputs)
    if arguments.device.type == "cuda":
        fit_batches_to_memory(model.to(arguments.device), training_set, config, arguments)
    settings = {"train_dataset": training_set, "eval_dataset": validation_set, "config": config}
    trainer = DurationTrainer(model, arguments, compute_metrics=compute_metrics, **settings)
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        trainer.add_callback(PrintEvaluations)
    try:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
    except torch.OutOfMemoryError:
        raise _out_of_memory(config) from None
    if trainer.is_world_process_zero():
        _write_results(trainer, folder)


def _write_results(trainer: DurationTrainer, folder: Path) -> None:
    history = _history(trainer.state.log_history)
    selected_step = trainer.state.best_global_step or history.step.iloc[-1]
    history["selected"] = history.step == selected_step
    history.to_csv(folder / "history.csv", index=False)
    selected = history[history.selected].iloc[0].drop("selected").to_dict()
    selected["parameters"] = trainer.model.num_parameters(only_trainable=True)
    trainer.model.merge_updates()
    for name in ("frozen_layers", "lora_rank"):  # of this training only
        if hasattr(trainer.model.config, name):
            setattr(trainer.model.config, name, 0)
    trainer.model.save_pretrained(folder / "model")
    selected["accumulation_steps"] = trainer.args.gradient_accumulation_steps
    write_json(folder / "metrics.json", selected)


def _history(log: list[dict]) -> pd.DataFrame:
    """Trainer's log as a table: a row per evaluation, with means over the steps before it."""
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
