"""A trained classifier made ready for use elsewhere: calibrated, with readouts and a card."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torchaudio.functional import lowpass_biquad
from transformers import AutoConfig, PretrainedConfig, set_seed

from gmp_utils import GmpError
from gmp_utils.data.audio import SAMPLE_RATE
from gmp_utils.data.corpus import RATINGS, Corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.collect import SYSTEM, classifiers, corpus_of, lineage, settings_of
from gmp_utils.evaluation.comparison import with_interval
from gmp_utils.evaluation.metrics import calibration_error, ccc, temperature, uar, war
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.recognizer import Recognizer, RecognizerConfig, feature_extractor
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import FINETUNE, RECOGNIZE, ROOT, notebook_of
from gmp_utils.runs.stage import make_stage
from gmp_utils.training import features
from gmp_utils.training.batching import Utterances

NOISES = ("silence", "white", "pink", "brown", "hum", "tone", "clicks")
READOUT_UTTERANCES = (
    400  # utterances that speech is learnt from, as many again that are altered, and as many noises
)
SLOPES = {"white": 0.0, "pink": -0.5, "brown": -1.0}  # of log amplitude over log frequency
TEXT = """---
license: other
license_name: of-the-encoder-and-of-the-corpus
library_name: transformers
pipeline_tag: audio-classification
tags:
- speech-emotion-recognition
- gmp-tl
---

# Emotions in speech: {emotions}

Encoder {encoder}, fine-tuned on {corpus} by the GMP-TL workbench (after arXiv 2405.02151); stages
{stages}. It hears 16 kHz speech and tells how it would be labelled in that corpus; how sure it is was
calibrated on {calibrated}.

```python
import gmp_utils
from transformers import pipeline

gmp_utils.recognize("recording.wav", model="this folder")  # any length, rate and channels
pipeline("audio-classification", model="this folder")({{"raw": waveform, "sampling_rate": 16000}})
```

## Data and protocol

Corpus {corpus}: {n_train} training utterances of {speakers} speakers, fold {fold}, seed {seed}, git
commit {commit}. {protocol}

## Results

{results}

These weights, on the test speakers of fold {fold} ({n_test} utterances of {tested} speakers):

| | |
|---|---|
{metrics}

`calibration_error` is how far confidence is from the share that is right, on average, and
`ece_uncalibrated` the same before temperature and readout of speech: of few validation
speakers calibration does not always help. `speech_recall` is the share of test utterances that are taken for
speech, `noisy_speech_recall` of at most 400 of them with noise 5 to 25 dB below, half of them dulled above
3.4 kHz; `noise_specificity` is the share of noises that are not (silence, white, pink and brown noise, hum,
tones, clicks, as long as utterances, made in the same way as those it was fitted to, by other numbers).
Where no speech is heard, scores go to chance and ratings to their mean. Noises below a second and buzzing
may be taken for speech; music, laughter and several voices at once were not tried. Gender, speech and
ratings are linear readouts.

## Use and limits

For research on, and teaching of, emotion in speech. It guesses how something *sounds* to the annotators
of one corpus, not what a person feels; speakers, languages, ages, rooms and microphones that the corpus
lacks were not measured, and errors are frequent. Not for judging people at work, at school, at a border
or in care, where the law of some countries forbids it (in the European Union, the AI Act, article 5, for
work and school). Recordings are people's voices: ask them first.

## Licence

The weights come from the encoder's, and from the corpus's recordings: their licences hold. See them
before you pass this on.
"""
TOLERANCE = 1e-4  # between torch and ONNX


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


def augment(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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


def concatenate(waveforms: Sequence[np.ndarray]) -> Ragged:
    """Waveforms as one store in memory, named by number."""
    names = list(map(str, range(len(waveforms))))
    return Ragged(np.concatenate(waveforms), names, list(map(len, waveforms)))


def _batches(inputs: Ragged, utterances: Sequence[str], function: Callable) -> Iterator:
    """Apply a function batch by batch; of waveforms as much at once as suits the CNN, which needs most."""
    waveforms = inputs.values.ndim == 1
    seconds = features.CNN_SECONDS if waveforms else features.ENCODER_SECONDS
    for _, found in features.batches(Utterances(inputs, utterances), "", function, seconds):
        yield found


def forward_uncalibrated(
    model: Recognizer, inputs: Ragged, utterances: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """See `Recognizer.forward_uncalibrated`; of many utterances."""
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
    chosen = list(rng.permutation(list(utterances))[:READOUT_UTTERANCES])
    spoken = concatenate([augment(waveforms[name], rng) for name in chosen])
    kinds = np.resize(NOISES, len(chosen))
    noises = concatenate(
        [noise(kind, waveforms.lengths[name], rng) for kind, name in zip(kinds, chosen)]
    )
    return forward_uncalibrated(model, spoken, spoken.utterances)[1], forward_uncalibrated(
        model, noises, noises.utterances
    )[1]


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


def _percent(value: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return f"{100 * value:.1f} (too few speakers for an interval)"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * number for number in (value, *interval)))


def same_system(stage: Path) -> pd.DataFrame:
    """Rows of `classifiers` that were made as a network was: its own, and other folds and seeds."""
    found = classifiers(str(stage.parents[3]))
    own = found.loc[found.stage == stage, SYSTEM].iloc[0]
    found = found[(found[SYSTEM] == own).all(axis=1)]
    return found[[settings_of(other) == settings_of(stage) for other in found.stage]]


def _tested(stage: Path) -> pd.DataFrame:
    predictions = pd.read_parquet(stage / "predictions.parquet")
    return predictions[predictions.part == "test"]


def card(
    stage: Path,
    corpus: Corpus,
    parts: dict[str, list[str]],
    metrics: dict[str, float],
    config: PretrainedConfig,
) -> str:
    """Write a model's card from what its run says of itself.

    Parameters
    ----------
    stage : Path
        Of `gmp_utils.stages.finetune.finetune`.
    corpus : Corpus
    parts : dict of str to list of str
        Utterances of the fold's parts.
    metrics : dict of str to float
        Of these weights, on the fold's test speakers.
    config : RecognizerConfig

    Returns
    -------
    card : str
        Markdown.
    """
    speaker, alike = corpus.manifest.speaker, same_system(stage)
    own = pd.concat(map(_tested, alike.stage))
    scores = {
        name: _percent(*with_interval(own, metric, 0))
        for name, metric in (("UAR", uar), ("WAR", war))
    }
    told = read_json(stage / "params.json")
    is_folder = Path(weights.resolve(told["encoder"])).is_dir()
    return TEXT.format(
        emotions=", ".join(config.label2id),
        encoder=Path(told["encoder"]).name if is_folder else told["encoder"],
        corpus=corpus.name,
        stages=", ".join(notebook_of(one) for one in lineage(stage)),
        calibrated=f"{len(parts['validation'])} validation utterances"
        if parts["validation"]
        else "NOTHING",
        n_train=len(parts["train"]),
        speakers=speaker.loc[parts["train"]].nunique(),
        fold=told["fold"],
        protocol=corpus.protocol.describe(),
        commit=read_json(stage / "provenance.json")["git_commit"],
        seed=told["schedule"]["seed"],
        results=(
            f"{', '.join(alike[SYSTEM].iloc[0])}: UAR {scores['UAR']}, WAR {scores['WAR']} percent, pooled "
            f"over {alike.fold.nunique()} of {len(corpus.protocol.folds)} folds, a network for each; "
            f"{own.speaker.nunique()} test speakers, 95 % intervals by speaker."
        ),
        n_test=len(parts["test"]),
        tested=speaker.loc[parts["test"]].nunique(),
        metrics="\n".join(f"| {name} | {value:.3f} |" for name, value in metrics.items()),
    )


def best(run_dir: str) -> Path:
    """The network of a run that did best on its validation utterances; the first where there are none.

    Raises
    ------
    GmpError
        If there is no network of notebook 06.
    """
    found = classifiers(run_dir).stage
    networks = [stage for stage in found if (stage / "model").is_dir()]
    if not networks:
        raise GmpError(f"{run_dir}: no network there, baselines only; run notebook 06 with losses.")

    def score(stage: Path) -> float:
        predictions = pd.read_parquet(stage / "predictions.parquet")
        held_out = predictions[predictions.part == "validation"]
        return 0.0 if held_out.empty else uar(held_out.true, held_out.predicted)

    return max(networks, key=score)


def publish(stage: Path, seed: int = 0) -> Path:
    """Make a classifier ready for use elsewhere.

    Its temperature is fitted on the fold's validation utterances, its readouts on the training speakers; what
    they are worth is measured on the test speakers.

    Parameters
    ----------
    stage : Path
        Of `gmp_utils.stages.finetune.finetune`.
    seed : int
        Of the noises that speech is told from.

    Returns
    -------
    made : Path
        Stage `09_recognize` of the same fold, with metrics.json and model/: weights, configuration, feature
        extractor and model card.
    """
    corpus, told = corpus_of(stage), read_json(stage / "params.json")
    parts = corpus.partition(told["fold"])
    fold, (start, loss) = stage.parents[2], stage.parts[-2:]

    def build(folder: Path) -> None:
        set_seed(seed)
        model, metrics = _fitted(EmotionClassifier.load(str(stage / "model")), corpus, parts, seed)
        write_json(folder / "metrics.json", metrics)
        model.save_pretrained(folder / "model")
        feature_extractor().save_pretrained(folder / "model")
        text = card(stage, corpus, parts, metrics, model.config)
        (folder / "model" / "README.md").write_text(text, encoding="utf-8")

    return make_stage(
        fold / RECOGNIZE / start / loss,
        build,
        parameters={"fold": told["fold"], "classifier": f"{start}/{loss}", "seed": seed},
        stages=[corpus.stage, *same_system(stage).stage],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def _fitted(
    network: EmotionClassifier, corpus: Corpus, parts: dict[str, list[str]], seed: int
) -> tuple[Recognizer, dict]:
    """The recognizer of a network, and what it is worth on the fold's test speakers."""
    manifest, train = corpus.manifest, parts["train"]
    rated = [name for name in RATINGS if name in manifest and manifest[name].notna().all()]
    model = Recognizer(
        RecognizerConfig(
            network=network.config.to_dict() | {"_name_or_path": ""},  # it tells of folders here
            has_gender_head=manifest.gender.loc[train].nunique() == 2,
            ratings=rated,
            rating_ranges=[
                [float(own.min()), float(own.mean()), float(own.max())]
                for own in (manifest.loc[train, name] for name in rated)
            ],
            id2label=dict(enumerate(corpus.emotions)),
            label2id={name: index for index, name in enumerate(corpus.emotions)},
        )
    )
    model.network.load_state_dict(network.state_dict())
    model.eval().to(hardware.device())
    inputs = features.model_inputs(model.network, corpus)
    _, entering, means = forward_uncalibrated(model, inputs, train)
    if parts["validation"]:
        labels = corpus.labels(parts["validation"], "emotion")
        held_out = forward_uncalibrated(model, inputs, parts["validation"])[0]
        model.config.temperature = temperature(held_out, labels)
    spoken, noises = heard_as_speech(model, corpus.waveforms, train, seed)
    everything = np.concatenate([entering, spoken, noises])
    is_speech = np.arange(len(everything)) < len(everything) - len(noises)
    fit_binary(model.speech, everything, is_speech)
    if model.female:
        known = manifest.gender.loc[train].notna().to_numpy()
        women = (manifest.gender.loc[train] == "female").to_numpy()
        fit_binary(model.female, entering[known], women[known])
    if model.ratings:
        fit_ratings(model.ratings, means, manifest.loc[train, rated].to_numpy())
    return model, _measured(model, corpus, parts["test"], inputs, seed + 1)


def _measured(
    model: Recognizer, corpus: Corpus, test: list[str], inputs: Ragged, seed: int
) -> dict:
    """What a recognizer is worth on test speakers, and on other noises of the kinds it was fitted to."""
    manifest, labels = corpus.manifest.loc[test], corpus.labels(test, "emotion")
    found = recognized(model, inputs, test)
    spoken, noises = (
        model.speech(torch.from_numpy(own).to(model.device)).detach().cpu().numpy() > 0
        for own in heard_as_speech(model, corpus.waveforms, test, seed)
    )
    probabilities = found["emotions"]
    correct = probabilities.argmax(axis=1) == labels
    before = softmax(forward_uncalibrated(model, inputs, test)[0], axis=1)
    metrics = {
        "temperature": model.config.temperature,
        "emotion_uar": uar(labels, probabilities.argmax(axis=1)),
        "ece_uncalibrated": calibration_error(before.max(axis=1), correct),
        "calibration_error": calibration_error(probabilities.max(axis=1), correct),
        "speech_recall": float(np.mean(found["speech"] > 0.5)),
        "noisy_speech_recall": float(np.mean(spoken)),
        "noise_specificity": float(np.mean(~noises)),
    }
    known = manifest.gender.notna().to_numpy()
    if model.female and known.any():
        heard = np.where(found["female"] > 0.5, "female", "male")[known]
        metrics["gender_uar"] = uar(manifest.gender[known], heard)
    for name, values in zip(model.config.ratings, found.get("ratings", np.empty((0, 0))).T):
        metrics[f"{name}_ccc"] = ccc(manifest[name].to_numpy(), values)
    return metrics


def open_recognizer(model: str) -> Recognizer:
    """Load a model to recognise with.

    Parameters
    ----------
    model : str
        A folder that `publish` made, a stage of notebook 06, a run's folder, whose `best` network is
        taken, or a name on the hub. Folders may be relative to the current or the project's. What is not
        published yet is, once.

    Raises
    ------
    GmpError
        If there is none, or it is none of ours.
    """
    near, source = Path(model).expanduser(), model
    folder = (near if near.is_dir() else ROOT / near).resolve()
    if folder.is_dir() and not (folder / "config.json").is_file():
        above = folder.parent.parent.name
        if above != RECOGNIZE:
            folder = publish(folder if above == FINETUNE else best(str(folder)))
        source = str(folder / "model")
    elif folder.is_dir():
        source = str(folder)
    elif model.startswith(("/", ".", "~", "runs/")):
        raise GmpError(
            f"model {model!r}: no such folder; train one (make run makes runs/demo), or give the folder "
            "of a model."
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unreadable(model, error) from error
    if not isinstance(config, RecognizerConfig):
        raise GmpError(
            f"model {model!r}: a {config.model_type} model, expected one that notebook 09 published "
            f"({RecognizerConfig.model_type})."
        )
    try:
        found, report = Recognizer.from_pretrained(
            source, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError, TypeError) as error:
        raise _unreadable(model, error) from error
    absent = [*report["missing_keys"], *report["unexpected_keys"]]
    absent += [name for name, own in found.named_parameters() if not own.isfinite().all()]
    if absent:
        raise GmpError(f"model {model!r}: damaged, its weights {absent[0]}; publish it again.")
    return found.eval().to(hardware.device())


def _unreadable(model: str, error: Exception) -> GmpError:
    return GmpError(f"model {model!r}: cannot be read ({str(error).splitlines()[0]}).")


class _Graph(nn.Module):
    """A recognizer that returns a tuple, as ONNX does, of what it knows."""

    def __init__(self, model: Recognizer):
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return self.model(input_values, attention_mask).to_tuple()


def export_onnx(model: str, path: str) -> None:
    """Write a model as ONNX, for batches and recordings of any size, and compare it with torch's.

    Inputs are `input_values` and `attention_mask`, outputs those of `RecognizerOutput` that it has; see
    `Recognizer.forward`. Needs the extra `onnx`.

    Parameters
    ----------
    model : str
        See `open_recognizer`.
    path : str
        Of the file, such as "model.onnx".

    Raises
    ------
    GmpError
        If onnxruntime's numbers are not torch's, up to 1e-4, onnx is not installed, or there is no such
        folder to write to.
    """
    if not Path(path).absolute().parent.is_dir():
        raise GmpError(f"{path}: its folder does not exist; make it first.")
    try:
        import onnx  # noqa: F401, torch's export needs it
        import onnxruntime
    except ImportError as error:
        raise GmpError(
            f"{error.name} is not installed: .venv/bin/python -m pip install onnx onnxruntime."
        ) from error
    recognizer, made = open_recognizer(model).cpu(), f"{path}.new"
    names, axes = ["input_values", "attention_mask"], {0: "batch", 1: "samples"}

    def batch(*lengths: int) -> tuple[Tensor, Tensor]:
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        return torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)) * mask, mask

    with warnings.catch_warnings(), torch.inference_mode(), hardware.float32():
        warnings.simplefilter(
            "ignore"
        )  # of the exporter's own age, and of sizes that are compared below
        known = list(recognizer(*batch(8000)).keys())
        torch.onnx.export(
            _Graph(recognizer),
            batch(16000, 12000),
            made,
            dynamo=False,  # the newer one does not take LSTMs of any length
            input_names=names,
            output_names=known,
            dynamic_axes=dict.fromkeys(names, axes) | {name: {0: "batch"} for name in known},
        )
        session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
        for lengths in ((16000,), (30000, 8000, 500)):
            given = batch(*lengths)
            expected = recognizer(*given).to_tuple()
            found = session.run(None, {name: own.numpy() for name, own in zip(names, given)})
            off = float(np.max([np.abs(a.numpy() - b).max() for a, b in zip(expected, found)]))
            if not off <= TOLERANCE:  # nor if it is no number
                os.remove(made)
                raise GmpError(
                    f"{path}: differs from torch by {off:.1e}, expected at most {TOLERANCE}."
                )
    os.replace(made, path)
