"""Interventions: a classifier without a layer, with an emotion's direction, or another utterance's frames.

Probes show what a layer encodes, interventions what the classifier uses. Directions are differences of means
as in Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", 2024. Frames are patched as in
Heimersheim and Nanda, "How to use and interpret activation patching", 2024.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gmp_utils import GmpError
from gmp_utils.data.audio import FRAME_HOP, SAMPLE_RATE, normalize
from gmp_utils.data.corpus import open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.comparison import MIN_SPEAKERS, jackknife_interval, mean_of_ratios
from gmp_utils.models.classifiers import EmotionClassifier, MultitaskModel, UtteranceModel
from gmp_utils.models.encoder import capture
from gmp_utils.runs import hardware
from gmp_utils.runs.paths import fold_folder, stage_folder, stage_of
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features
from gmp_utils.training.batching import Utterances

CLASSIFIERS = {"multitask": MultitaskModel, "finetuned": EmotionClassifier}
MAX_UTTERANCES = 300  # of each part of a fold, drawn at random
ONE_BY_ONE = {"cuda": 0.0, "cpu": 0.0}  # seconds: batches of one utterance, without padding
PATCHES = 10  # of equal length in an utterance

Change = Callable[[Tensor, Tensor], Tensor]  # from a layer's output and input to a new output


@contextmanager
def changed(model: UtteranceModel, layer: int, change: Change) -> Iterator[None]:
    """Change the output, (batch, frames, hidden_size), of a layer, counted from 1."""

    def hook(_module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return change(output[0], inputs[0]), *output[1:]
        return change(output, inputs[0])

    handle = model.base_model.encoder.layers[layer - 1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _outputs(model: UtteranceModel) -> AbstractContextManager[dict[int, Tensor]]:
    """The outputs, (batch, frames, hidden_size), of all layers in the last forward pass, by layer."""
    return capture(model.base_model.encoder, {*range(1, model.n_layers + 1)}, model.n_layers)


def layer_means(model: UtteranceModel, inputs: Ragged, utterances: list[str]) -> np.ndarray:
    """Means over time of the outputs of all layers, (n_utterances, layers, hidden_size)."""
    model.eval().to(hardware.device())
    dataset, means = Utterances(inputs, utterances), []
    with _outputs(model) as outputs, torch.inference_mode():
        for _ in features.batches(dataset, "", model.hidden_states, ONE_BY_ONE):
            means.extend(output.float().mean(dim=1).cpu() for output in outputs.values())
    return torch.cat(means).reshape(len(utterances), model.n_layers, -1).numpy()


def patch(
    model: UtteranceModel, source: np.ndarray, target: np.ndarray, emotions: tuple[str, str]
) -> pd.DataFrame:
    """Classify an utterance with each tenth of each layer's frames replaced by another utterance's.

    Both are waveforms, (samples,) int16, of `emotions`. The source's frames are stretched linearly to the
    length of the target, so both should say the same text. Rows have the `layer` (from 1, up to the input of
    the head), the tenth's `start` and `end` (s), the `change` of the log-odds of the first emotion over the
    second one, and these log-odds of both utterances, `source` and `target`.
    """
    model.eval().to(hardware.device())
    first, second = (model.config.emotions.index(emotion) for emotion in emotions)

    def cnn_output(waveform: np.ndarray) -> tuple[Tensor, Tensor]:
        samples = torch.from_numpy(normalize(waveform))[None].to(hardware.device())
        lengths = torch.tensor([len(waveform)], device=hardware.device())
        return model.cnn(samples, lengths), model.frame_lengths(lengths)

    def log_odds(frames: Tensor, lengths: Tensor) -> Tensor:
        logits = model.logits(model.embed(frames, lengths)).float()
        return logits[:, first] - logits[:, second]

    rows = []
    with torch.inference_mode():
        with _outputs(model) as states:
            of_source = log_odds(*cnn_output(source)).item()
        frames, lengths = cnn_output(target)
        of_target, n_frames = log_odds(frames, lengths).item(), frames.shape[1]
        nearest = torch.linspace(0, states[1].shape[1] - 1, n_frames).round().long()
        tenths = np.arange(n_frames) * PATCHES // n_frames == np.arange(PATCHES)[:, None]
        inside = torch.from_numpy(tenths)[..., None].to(frames.device)
        batch = frames.expand(PATCHES, -1, -1), lengths.expand(PATCHES)
        for layer, output in states.items():
            with changed(model, layer, _replace(inside, output[:, nearest])):
                changes = (log_odds(*batch) - of_target).tolist()
            rows.extend((layer, part, change) for part, change in enumerate(changes))
    table = pd.DataFrame(rows, columns=["layer", "part", "change"])
    start, seconds = table.pop("part"), n_frames / PATCHES * FRAME_HOP / SAMPLE_RATE
    spans = {"start": start * seconds, "end": (start + 1) * seconds}
    return table.assign(**spans, source=of_source, target=of_target)


def _difference(rows: pd.DataFrame, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Mean difference over classes, with its jackknife interval over speakers, or utterances if too few."""
    over = "speaker" if rows.speaker.nunique() >= MIN_SPEAKERS else "utterance"
    table = rows.assign(total=after.astype(int) - before, n=1)
    sums = table.groupby([over, "emotion"])[["total", "n"]].sum().unstack(fill_value=0)
    sums = sums.to_numpy().reshape(len(sums), 2, -1)
    low, high = jackknife_interval(sums, lowest=-1)
    difference = float(mean_of_ratios(sums.sum(axis=0)))
    return {"difference": difference, "low": low, "high": high, "over": f"{over}s"}


def intervene(run_dir: str, fold: int, *, model: str, seed: int = 0) -> Path:
    """Intervene in one of `CLASSIFIERS`, on utterances of the part that the protocol selects on.

    The stage has two tables with `difference`, its 95% interval `low` to `high`, and the units `over` which
    it was computed. In ablations.parquet, `difference` is the change in the recall of each `emotion`, and in
    UAR, if a `layer` (from 1) is skipped. In directions.parquet, it is the change in the share of the other
    emotions' utterances that are classified as an `emotion`, if the difference between the mean frame of its
    training utterances and that of the others is added to each frame after a `layer`.
    """
    if model not in CLASSIFIERS:
        raise GmpError(f"model {model!r}: it has no classifier; use {' or '.join(CLASSIFIERS)}.")
    corpus, stage = open_corpus(run_dir), stage_folder(run_dir, stage_of(model), fold)

    def build(folder: Path) -> None:
        parts, rng = corpus.partition(fold), np.random.default_rng(seed)
        network = CLASSIFIERS[model].load(str(stage / "model"))
        inputs = features.model_inputs(network, corpus)
        drawn = (rng.permutation(parts[part]) for part in ("train", corpus.protocol.selection_part))
        # in order of length, so that there is little padding
        train, names = (sorted(x[:MAX_UTTERANCES].tolist(), key=inputs.lengths.get) for x in drawn)
        means = torch.from_numpy(layer_means(network, inputs, train)).to(hardware.device())
        rows = corpus.manifest.loc[names].reset_index(drop=True)
        labels, train_labels = (corpus.labels(x, "emotion") for x in (names, train))

        def predict(utterances: list[str]) -> np.ndarray:
            return features.embed_and_classify(network, inputs, utterances)[1].argmax(axis=1)

        before, ablations, directions = predict(names), [], []
        for layer in range(1, network.n_layers + 1):
            mean = means[:, layer - 1]
            with changed(network, layer, _skip):
                after = predict(names)
            hits = before == labels, after == labels
            for emotion in (*sorted(rows.emotion.unique()), "UAR"):
                chosen = (rows.emotion == emotion).to_numpy() | (emotion == "UAR")
                found = _difference(rows[chosen], *(x[chosen] for x in hits))
                ablations.append({"layer": layer, "emotion": emotion, **found})
            for index, emotion in enumerate(corpus.emotions):
                own = torch.from_numpy(train_labels == index)
                if not own.any():  # a rare emotion that was not drawn
                    continue
                direction = mean[own].mean(dim=0) - mean[~own].mean(dim=0)
                others = labels != index
                with changed(network, layer, _add(direction)):
                    after = predict(rows.utterance[others].tolist())
                pair = before[others] == index, after == index
                found = _difference(rows[others].assign(emotion=emotion), *pair)
                directions.append({"layer": layer, "emotion": emotion, **found})
        pd.DataFrame(ablations).to_parquet(folder / "ablations.parquet", index=False)
        pd.DataFrame(directions).to_parquet(folder / "directions.parquet", index=False)

    return make_stage(
        fold_folder(run_dir, fold) / "interventions" / model,
        build,
        parameters={"fold": fold, "model": model, "seed": seed},
        stages=[corpus.stage, stage],
    )


def _skip(_output: Tensor, x: Tensor) -> Tensor:
    return x


def _add(direction: Tensor) -> Change:
    return lambda output, _x: output + direction.to(output)


def _replace(inside: Tensor, states: Tensor) -> Change:
    return lambda output, _x: torch.where(inside, states, output)
