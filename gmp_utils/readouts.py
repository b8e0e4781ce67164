"""What else is linear in a classifier's frames: whether it is speech, who speaks, and ratings.

The classifier stays as it is. Readouts are fitted on a fold's training speakers, and on sounds without speech
that are made here.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torchaudio.functional import lowpass_biquad

from gmp_utils import features
from gmp_utils.audio import SAMPLE_RATE
from gmp_utils.batching import Utterances
from gmp_utils.ragged import Ragged
from gmp_utils.recognizer import Recognizer

NOISES = ("silence", "white", "pink", "brown", "hum", "tone", "clicks")
MOST = (
    400  # utterances that speech is learnt from, as many again that are altered, and as many noises
)
SLOPES = {"white": 0.0, "pink": -0.5, "brown": -1.0}  # of log amplitude over log frequency


def noise(kind: str, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A sound without speech.

    Parameters
    ----------
    kind : str
        One of `NOISES`.
    n_samples : int
        At 16 kHz.
    rng : numpy Generator

    Returns
    -------
    waveform : (n_samples,) float32
        In [-1, 1]; silence is zero.
    """
    seconds = np.arange(n_samples) / SAMPLE_RATE
    if kind == "silence":
        return np.zeros(n_samples, np.float32)
    sound = 0.05 * rng.normal(size=n_samples)
    if kind in SLOPES:
        spectrum = np.fft.rfft(sound)
        spectrum *= np.arange(1, len(spectrum) + 1) ** SLOPES[kind]
        sound = np.fft.irfft(spectrum, n_samples)
    elif kind == "hum":
        for number, level in enumerate(rng.uniform(0.1, 1, 6), start=1):
            sound += level * np.sin(2 * np.pi * rng.choice([50, 60]) * number * seconds)
    elif kind == "tone":
        sound += np.sin(2 * np.pi * rng.uniform(100, 3000) * seconds)
    else:
        sound[rng.random(n_samples) < 5 / SAMPLE_RATE] += 5
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def altered(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech as it may come: with noise 5 to 25 dB below it, and every other time as by telephone.

    Parameters
    ----------
    waveform : (n_samples,) int16
    rng : numpy Generator

    Returns
    -------
    waveform : (n_samples,) float32
    """
    speech = waveform.astype(np.float32) / 32768
    if rng.random() < 0.5:
        speech = lowpass_biquad(torch.from_numpy(speech), SAMPLE_RATE, 3400).numpy()
    added = noise(rng.choice(NOISES[1:4]), len(speech), rng)
    level = speech.std() / max(float(added.std()), 1e-9)
    return speech + added * level * 10 ** (-rng.uniform(5, 25) / 20)


def joined(waveforms: Sequence[np.ndarray]) -> Ragged:
    """Waveforms as one store in memory, named by number."""
    names = list(map(str, range(len(waveforms))))
    return Ragged(np.concatenate(waveforms), names, list(map(len, waveforms)))


def _batches(inputs: Ragged, utterances: Sequence[str], function: Callable) -> Iterator:
    """Apply a function batch by batch; of waveforms as much at once as suits the CNN, which needs most."""
    waveforms = inputs.values.ndim == 1
    seconds = features.CNN_SECONDS if waveforms else features.ENCODER_SECONDS
    for _, found in features.batches(Utterances(inputs, utterances), "", function, seconds):
        yield found


def raw(model: Recognizer, inputs: Ragged, utterances: Sequence[str]) -> tuple[np.ndarray, ...]:
    """See `Recognizer.raw`; of many utterances."""
    with torch.inference_mode():
        found = list(_batches(inputs, utterances, model.raw))
    return tuple(torch.cat(part).float().cpu().numpy() for part in zip(*found))


def recognized(
    model: Recognizer, inputs: Ragged, utterances: Sequence[str]
) -> dict[str, np.ndarray]:
    """What a recognizer hears in utterances.

    Parameters
    ----------
    model : Recognizer
    inputs : Ragged
        Waveforms, or the CNN's output for them.
    utterances : sequence of str

    Returns
    -------
    found : dict
        `emotions` (n_utterances, emotions), calibrated probabilities; `speech` (n_utterances,); where the
        model knows them `female` (n_utterances,) and `ratings` (n_utterances, ratings). float32.
    """
    with torch.inference_mode():
        batches = list(_batches(inputs, utterances, model.recognize))
    found = {key: torch.cat([own[key] for own in batches]) for key in batches[0]}
    found["emotions"] = found.pop("logits").exp()
    return {key: values.float().cpu().numpy() for key, values in found.items()}


def heard_as_speech(
    model: Recognizer, waveforms: Ragged, utterances: Sequence[str], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """What enters the Transformer, on average, of utterances altered and of noises as long as they are.

    Parameters
    ----------
    model : Recognizer
    waveforms : Ragged
    utterances : sequence of str
        At most `MOST` of them are taken.
    seed : int

    Returns
    -------
    speech, noises : (n, hidden_size) float32
    """
    rng = np.random.default_rng(seed)
    chosen = list(rng.permutation(list(utterances))[:MOST])
    spoken = joined([altered(waveforms[name], rng) for name in chosen])
    kinds = np.resize(NOISES, len(chosen))
    noises = joined(
        [noise(kind, waveforms.lengths[name], rng) for kind, name in zip(kinds, chosen)]
    )
    return raw(model, spoken, spoken.utterances)[1], raw(model, noises, noises.utterances)[1]


def set_linear(layer: nn.Linear, fitted) -> None:
    """Put a fitted scaler and linear model of scikit-learn into one layer."""
    scaler, linear = fitted[0], fitted[-1]
    weight = np.atleast_2d(linear.coef_) / scaler.scale_
    bias = np.atleast_1d(linear.intercept_) - weight @ scaler.mean_
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))


def fit_binary(layer: nn.Linear, means: np.ndarray, positive: np.ndarray) -> None:
    """Fit a logistic regression, both classes of the same weight, into a layer of one output.

    Parameters
    ----------
    layer : Linear
    means : (n, hidden_size) float32
    positive : (n,) bool
    """
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    set_linear(layer, make_pipeline(StandardScaler(), model).fit(means, positive))


def fit_ratings(layer: nn.Linear, means: np.ndarray, ratings: np.ndarray) -> None:
    """Fit a ridge regression, its penalty by leave-one-out, into a layer of as many outputs.

    Parameters
    ----------
    layer : Linear
    means : (n, hidden_size) float32
    ratings : (n, n_ratings) float
    """
    model = RidgeCV(alphas=np.logspace(0, 4, 9))
    set_linear(layer, make_pipeline(StandardScaler(), model).fit(means, ratings))
