"""Features of utterances: the CNN's output and hidden states, on disk or batch by batch."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gmp_utils import GmpError
from gmp_utils.data.corpus import Corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.classifiers import EmotionClassifier, MultitaskModel
from gmp_utils.models.encoder import SpeechModel, cnn_digest
from gmp_utils.runs import hardware
from gmp_utils.runs.files import read_json
from gmp_utils.runs.stage import check_and_identify, make_stage
from gmp_utils.training.batching import SPEC_AUGMENT, DurationBatchSampler, Utterances, collate

# Padded seconds per batch. A CPU is slow with batches that do not fit into its caches.
CNN_SECONDS = {"cuda": 120.0, "cpu": 6.0}
ENCODER_SECONDS = {"cuda": 120.0, "cpu": 24.0}


def batches(
    dataset: Utterances, title: str, function: Callable, seconds: dict[str, float] = ENCODER_SECONDS
) -> Iterator[tuple[list[str], object]]:
    """Apply a function to a dataset batch by batch, and yield the utterances' names and the result.

    The function gets a batch's tensors by name. `seconds` are padded seconds per batch by device. Without a
    title, there is no progress bar.
    """
    sampler = DurationBatchSampler(dataset, seconds[hardware.device()], shuffle=False)
    for indices in tqdm(sampler, title, disable=None if title else True):
        batch = collate([dataset[index] for index in indices])
        batch = {key: value.to(hardware.device()) for key, value in batch.items()}
        try:
            result = function(**batch)
        except torch.OutOfMemoryError:
            longest = dataset.utterances[max(indices, key=lambda index: dataset.seconds[index])]
            found = f"the GPU's memory does not suffice for {longest}"
            raise GmpError(f"{found}; lower max_seconds in notebook 01.") from None
        yield [dataset.utterances[index] for index in indices], result


def outputs(function: Callable, dataset: Utterances, title: str = "") -> dict[str, np.ndarray]:
    """Outputs of a function for a dataset by name, (n_utterances, ...) float32; see `batches`."""
    seconds = CNN_SECONDS if dataset.inputs.is_waveform else ENCODER_SECONDS
    with torch.inference_mode():
        results = [result for _, result in batches(dataset, title, function, seconds)]
    names = results[0].keys()
    return {name: torch.cat([x[name] for x in results]).float().cpu().numpy() for name in names}


def model_inputs(model: SpeechModel, corpus: Corpus) -> Ragged:
    """A model's inputs: waveforms if its CNN is trained, else the CNN's output.

    The output of a frozen CNN is computed once for all stages and folds, and kept in the run's folder under
    a digest of the CNN's weights.
    """
    if model.train_cnn:
        return corpus.waveforms
    name, names = cnn_digest(model), list(corpus.manifest.index)
    stage = make_stage(
        corpus.stage.parent / "cnn" / name,
        lambda folder: write_cnn_output(model, corpus.waveforms, names, folder / "frames"),
        parameters={},
        stages=[corpus.stage],
        inputs=[name],
    )
    return Ragged.open(stage / "frames")


def _create(title: str, stem: Path, lengths: dict[str, int], dtype: type, dim: int):
    """Create a `Ragged` of frames, after an estimate of its size on disk."""
    needed = sum(lengths.values()) * dim * np.dtype(dtype).itemsize
    free = shutil.disk_usage(stem.parent).free
    remedy = "Free some space, or give a run_dir on another disk."
    hardware.estimate(f"{title} of {len(lengths)} utterances on disk", needed, free, remedy)
    return Ragged.create(stem, lengths, dtype, shape=(dim,))


def write_cnn_output(
    model: SpeechModel, waveforms: Ragged, utterances: Sequence[str], stem: Path
) -> None:
    """Write the CNN's output of utterances, (frames, conv_dim) float32."""
    model.eval().to(hardware.device())
    lengths = {name: int(model.frame_lengths(waveforms.lengths[name])) for name in utterances}
    store = _create("CNN output", stem, lengths, np.float32, model.config.conv_dim[-1])
    dataset = Utterances(waveforms, sorted(utterances, key=waveforms.lengths.get))
    with torch.inference_mode():
        for names, output in batches(dataset, "CNN", model.cnn, CNN_SECONDS):
            for utterance, frames in zip(names, output.cpu().numpy()):
                store[utterance][:] = frames[: store.lengths[utterance]]
    store.flush()


def layer_states_by_length(
    model: SpeechModel,
    inputs: Ragged,
    utterances: Sequence[str],
    layers: Sequence[int],
    speaker: dict[str, np.ndarray] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Utterances with hidden states, (layers, frames, hidden_size) float16, from the shortest to the longest.

    `inputs` are those of `model_inputs`, `speaker` the speaker weights, (n_speakers,), by utterance.
    """
    ordered = sorted(utterances, key=inputs.lengths.get)
    conditions = {"speaker": np.stack([speaker[name] for name in ordered])} if speaker else None
    dataset, encode = Utterances(inputs, ordered, conditions), model.hidden_states
    model.eval().to(hardware.device())
    with torch.inference_mode():
        for names, (states, valid) in batches(dataset, "encoder", partial(encode, layers=layers)):
            stacked = torch.stack(states, dim=1).half().cpu().numpy()
            for name, values, length in zip(names, stacked, valid.sum(dim=1).tolist()):
                if not np.isfinite(values[:, :length]).all():
                    found = f"{name}: NaN, or values too large for 16 bits, in a layer of the model"
                    raise GmpError(f"{found}; its training diverged, or its weights are damaged.")
                yield name, values[:, :length]


def pooled_layers(model: SpeechModel, inputs: Ragged, utterances: Sequence[str]) -> np.ndarray:
    """Mean and standard deviation over time of layers, (n_utterances, layers, 2 · hidden_size) float32."""
    layers, row = range(model.n_layers + 1), {name: index for index, name in enumerate(utterances)}
    pooled = np.empty((len(utterances), len(layers), 2 * model.config.hidden_size), np.float32)
    for name, states in layer_states_by_length(model, inputs, utterances, layers):
        states = states.astype(np.float32)
        pooled[row[name]] = np.concatenate([states.mean(axis=1), states.std(axis=1)], axis=-1)
    return pooled


def layer_frames(
    model: SpeechModel,
    inputs: Ragged,
    utterances: Sequence[str],
    layer: int,
    stem: Path,
    speaker: dict[str, np.ndarray] | None = None,
) -> Ragged:
    """Write hidden states of a layer, (frames, hidden_size) float16; see `layer_states_by_length`."""
    lengths = {name: inputs.lengths[name] for name in utterances}
    if inputs.is_waveform:
        lengths = {name: int(model.frame_lengths(length)) for name, length in lengths.items()}
    dim = model.config.hidden_size
    frames = _create(f"layer {layer}", stem, lengths, np.float16, dim)
    for name, (states,) in layer_states_by_length(model, inputs, utterances, [layer], speaker):
        frames[name][:] = states
    frames.flush()
    return frames


def labeled_sets(
    model: SpeechModel, corpus: Corpus, fold: int, tasks: tuple[str, ...], seed: int
) -> list[Utterances]:
    """A fold's training set, with SpecAugment's masks, and the set to select on, with labels for tasks."""
    inputs, parts, sets = model_inputs(model, corpus), corpus.partition(fold), []
    for part in ("train", corpus.protocol.selection_part):
        targets = {task: corpus.labels(parts[part], task) for task in tasks}
        masked = part == "train" and model.config.spec_augment
        masks = (SPEC_AUGMENT[0], seed, model.config.hidden_size) if masked else ()
        sets.append(Utterances(inputs, parts[part], targets, None, *masks))
    return sets


def embed_and_classify(
    model: MultitaskModel | EmotionClassifier, inputs: Ragged, utterances: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n_utterances, head.size) and logits (n_utterances, emotions) of utterances, float32."""

    def forward(**batch: torch.Tensor) -> dict[str, torch.Tensor]:
        embedded = model.embed(**batch)
        return {"features": embedded, "logits": model.logits(embedded)}

    model.eval().to(hardware.device())
    results = outputs(forward, Utterances(inputs, utterances), "classify")
    return results["features"], results["logits"]


def open_labels(stage: Path) -> tuple[Ragged, list[int]]:
    """Pseudo-labels and scales of a finished stage of notebook 04."""
    check_and_identify(stage)
    return Ragged.open(stage / "labels"), read_json(stage / "params.json")["scales"]
