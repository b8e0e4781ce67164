"""What an encoder makes of utterances, written to disk: the CNN's output, a layer's frames."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gmp_utils import GmpError
from gmp_utils.data.corpus import Corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.encoder import SpeechModel, cnn_digest
from gmp_utils.runs import hardware
from gmp_utils.runs.files import read_json
from gmp_utils.runs.stage import check_and_identify, make_stage
from gmp_utils.training.batching import SPEC_AUGMENT, DurationBatchSampler, Utterances, collate

# In a batch; on a CPU what does not fit its caches is slow.
CNN_SECONDS = {"cuda": 120.0, "cpu": 6.0}
ENCODER_SECONDS = {"cuda": 120.0, "cpu": 24.0}


def batches(
    dataset: Utterances,
    title: str,
    function: Callable,
    seconds: dict[str, float] = ENCODER_SECONDS,
) -> Iterator[tuple[Sequence[str], object]]:
    """Apply a function to a dataset, once, batch by batch.

    Parameters
    ----------
    dataset : Utterances
    title : str
        Of the progress bar; "" for none.
    function : callable
        Of a batch's tensors by name, on the GPU where there is one.
    seconds : dict of str to float
        Padded seconds of audio per batch on each device; where that does not fit, halves are tried.

    Yields
    ------
    names : sequence of str
    found : object
        What the function made of their batch.
    """
    sampler = DurationBatchSampler(dataset, seconds[hardware.device()], shuffle=False)
    for indices in tqdm(sampler, title, disable=None if title else True):
        batch = collate([dataset[index] for index in indices])
        batch = {key: value.to(hardware.device()) for key, value in batch.items()}
        yield from in_halves(function, [dataset.utterances[index] for index in indices], batch)


def model_inputs(model: SpeechModel, corpus: Corpus) -> Ragged:
    """What the model is fed: the CNN's output, computed once, or waveforms where the CNN is trained.

    A frozen CNN gives the same output in every stage, fold and epoch; it is kept in the run's folder
    under the name of its weights.

    Parameters
    ----------
    model : SpeechModel
    corpus : Corpus

    Returns
    -------
    inputs : Ragged
        (samples,) int16 or (frames, conv_dim) float32 per utterance.
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
        module=__name__,
    )
    return Ragged.open(stage / "frames")


def _create(
    title: str,
    stem: Path,
    utterances: Sequence[str],
    lengths: Sequence[int],
    dtype: type,
    dim: int,
) -> Ragged:
    """`Ragged.create` of frames, once it is said how much of the disk they take."""
    needed = sum(lengths) * dim * np.dtype(dtype).itemsize
    free = shutil.disk_usage(stem.parent).free
    remedy = "Free some space, or give a run_dir on another disk."
    hardware.estimate(f"{title} on disk", needed, free, remedy)
    return Ragged.create(stem, utterances, lengths, dtype, (dim,))


def write_cnn_output(
    model: SpeechModel, waveforms: Ragged, utterances: Sequence[str], stem: Path
) -> None:
    """Run the CNN over utterances, and write (frames, conv_dim) float32 of each."""
    model.eval().to(hardware.device())
    lengths = [int(model.frame_lengths(waveforms.lengths[name])) for name in utterances]
    dim, title = model.config.conv_dim[-1], f"the CNN's output for {len(lengths)} utterances"
    store = _create(title, stem, utterances, lengths, np.float32, dim)
    dataset = Utterances(waveforms, sorted(utterances, key=waveforms.lengths.get))
    with torch.inference_mode():
        for names, output in batches(dataset, "CNN", model.cnn, CNN_SECONDS):
            for utterance, frames in zip(names, output.cpu().numpy()):
                store[utterance][:] = frames[: store.lengths[utterance]]
    store.flush()


def layer_states(
    model: SpeechModel,
    inputs: Ragged,
    utterances: Sequence[str],
    layers: Sequence[int],
    speaker: dict[str, np.ndarray] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Hidden states utterance by utterance, in order of length.

    Parameters
    ----------
    model : SpeechModel
    inputs : Ragged
        See `model_inputs`.
    utterances : sequence of str
    layers : sequence of int
    speaker : dict of str to (n_speakers,) float32, optional
        By utterance, see `SpeechModel.hidden_states`.

    Yields
    ------
    name : str
    states : (layers, frames, hidden_size) float16
    """
    ordered = sorted(utterances, key=inputs.lengths.get)
    told = {"speaker": np.stack([speaker[name] for name in ordered])} if speaker else None
    dataset = Utterances(inputs, ordered, told)
    model.eval().to(hardware.device())
    with torch.inference_mode():
        found = batches(dataset, "encoder", partial(model.hidden_states, layers=layers))
        for names, (states, valid) in found:
            stacked = torch.stack(states, dim=1).half().cpu().numpy()
            for name, values, length in zip(names, stacked, valid.sum(dim=1).tolist()):
                if not np.isfinite(values[:, :length]).all():
                    raise GmpError(
                        f"{name}: layers {list(layers)} of the model hold values that are no numbers, or "
                        "too large for 16 bits; its weights are damaged, or its training went astray."
                    )
                yield name, values[:, :length]


def layer_frames(
    model: SpeechModel,
    inputs: Ragged,
    utterances: Sequence[str],
    layer: int,
    stem: Path,
    speaker: dict[str, np.ndarray] | None = None,
) -> Ragged:
    """Frames of one layer, written to disk.

    Parameters
    ----------
    model, inputs, utterances, speaker
        See `layer_states`.
    layer : int
    stem : Path
        Where they go, see `Ragged.create`.

    Returns
    -------
    frames : Ragged
        (frames, hidden_size) float16 per utterance.
    """
    lengths = [inputs.lengths[name] for name in utterances]
    if inputs.values.ndim == 1:
        lengths = [int(model.frame_lengths(length)) for length in lengths]
    dim, title = model.config.hidden_size, f"layer {layer} of {len(lengths)} utterances"
    frames = _create(title, stem, utterances, lengths, np.float16, dim)
    for name, (states,) in layer_states(model, inputs, utterances, [layer], speaker):
        frames[name][:] = states
    frames.flush()
    return frames


def in_halves(
    function: Callable, names: Sequence[str], batch: dict[str, Tensor]
) -> Iterator[tuple[Sequence[str], object]]:
    """Apply a function to a batch, and to its halves where the GPU's memory does not suffice.

    Parameters
    ----------
    function : callable
        Of the batch's tensors by name.
    names : sequence of str
        Of the batch's utterances.
    batch : dict of (batch, ...) Tensor

    Yields
    ------
    names : sequence of str
        Of those that were computed together.
    found : object
        What the function made of them.

    Raises
    ------
    GmpError
        If the memory does not suffice for a single utterance.
    """
    try:
        found = function(**batch)
    except torch.OutOfMemoryError:
        if len(names) == 1:
            raise GmpError(
                f"the GPU's memory does not suffice for {names[0]} alone; leave it out (max_seconds of "
                "notebook 01)."
            ) from None
    else:
        yield names, found
        return
    torch.cuda.empty_cache()
    half = len(names) // 2
    for rows in (slice(None, half), slice(half, None)):
        piece = {name: values[rows] for name, values in batch.items()}
        yield from in_halves(function, names[rows], piece)


def labelled(
    corpus: Corpus,
    inputs: Ragged,
    utterances: list[str],
    tasks: tuple[str, ...],
    masked_size: int = 0,
    seed: int = 0,
) -> Utterances:
    """Utterances with their labels for some tasks ("emotion", "gender").

    Parameters
    ----------
    corpus : Corpus
    inputs : Ragged
    utterances : list of str
    tasks : tuple of str
    masked_size : int
        The model's hidden size, where frames and features are masked by `SPEC_AUGMENT`; else 0.
    seed : int
        Of the masks.
    """
    targets = {task: corpus.labels(utterances, task) for task in tasks}
    masking = SPEC_AUGMENT[0] if masked_size else None
    return Utterances(inputs, utterances, targets, None, masking, seed, masked_size)


def embed_and_classify(
    model: EmotionClassifier, corpus: Corpus, inputs: Ragged, utterances: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embed and classify utterances.

    Returns
    -------
    vectors : (n_utterances, head.size) float32
    logits : (n_utterances, emotions) float32
    """
    dataset = labelled(corpus, inputs, utterances, ())
    model.eval().to(hardware.device())
    with torch.inference_mode():
        vectors = [found.float() for _, found in batches(dataset, "classify", model.embed)]
        logits = [model.logits(feature).float() for feature in vectors]
    return torch.cat(vectors).cpu().numpy(), torch.cat(logits).cpu().numpy()


def open_labels(stage: Path) -> tuple[Ragged, list[int]]:
    """Pseudo-labels of a finished stage, and its scales."""
    check_and_identify(stage)
    return Ragged.open(stage / "labels"), read_json(stage / "params.json")["scales"]
