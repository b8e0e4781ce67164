"""Robustness: the trained classifiers on altered recordings of their test speakers."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from scipy import signal

from gmp_utils import GmpError
from gmp_utils.data.audio import SAMPLE_RATE, to_float, to_int16
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.collect import CLASSIFIER, classifiers, corpus_of, lineage
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import ROBUSTNESS, run_folder
from gmp_utils.runs.stage import make_stage
from gmp_utils.stages.baselines import Fold, train_probe
from gmp_utils.training import features

RT60 = 0.5  # seconds in which reverberation decays by 60 dB
TELEPHONE = 300, 3400  # Hz
MP3_COMPRESSION = 0.9  # of libsndfile, from 0 to 1: 24 kbit/s at 16 kHz
MP3_DELAY = 576 + 529  # samples, of encoder and decoder


def noise(waveform: np.ndarray, rng: np.random.Generator, snr: float) -> np.ndarray:
    """Add white noise at a signal-to-noise ratio in dB."""
    added = rng.normal(size=len(waveform))
    level = np.sqrt(np.mean(waveform**2) / np.mean(added**2)) * 10 ** (-snr / 20)
    return waveform + level * added


def reverberation(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add exponentially decaying noise as the echo, with as much energy as the direct sound."""
    seconds = np.arange(1, int(RT60 * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.normal(size=len(seconds)) * 10 ** (-3 * seconds / RT60)
    response = np.concatenate([[1.0], echo / np.linalg.norm(echo)])
    return signal.fftconvolve(waveform, response)[: len(waveform)]


def telephone(waveform: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """Keep only the band of a telephone."""
    band = signal.butter(8, TELEPHONE, "bandpass", fs=SAMPLE_RATE, output="sos")
    return signal.sosfilt(band, waveform)


def gain(waveform: np.ndarray, _rng: np.random.Generator, decibels: float) -> np.ndarray:
    """Change the level, with the clipping and rounding of 16 bits."""
    return to_float(to_int16(waveform * 10 ** (decibels / 20)))


def mp3(waveform: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    """Encode and decode as MP3."""
    file = io.BytesIO()
    rate = {"bitrate_mode": "CONSTANT", "compression_level": MP3_COMPRESSION}
    padded = np.pad(waveform, (0, 2 * MP3_DELAY))
    soundfile.write(file, padded, SAMPLE_RATE, format="MP3", **rate)
    file.seek(0)
    return soundfile.read(file)[0][MP3_DELAY:][: len(waveform)]


CONDITIONS = {
    "clean": lambda waveform, _rng: waveform,
    "noise, 20 dB": partial(noise, snr=20),
    "noise, 10 dB": partial(noise, snr=10),
    "noise, 5 dB": partial(noise, snr=5),
    "reverberation": reverberation,
    "telephone": telephone,
    "20 dB louder": partial(gain, decibels=20),
    "20 dB quieter": partial(gain, decibels=-20),
    "MP3": mp3,
}


def altered(waveforms: Ragged, names: list[str], condition: str) -> Ragged:
    """Utterances under one of `CONDITIONS`, as float32 waveforms of the same lengths."""
    arrays = [
        CONDITIONS[condition](to_float(waveforms[name]), np.random.default_rng([0, index]))
        for index, name in enumerate(names)
    ]
    values = np.concatenate(arrays).astype(np.float32)
    return Ragged(values, dict(zip(names, map(len, arrays))))


def _scorer(stage: Path, fold: int) -> Callable[[Ragged], np.ndarray] | None:
    """A network's or "probe"'s function from waveforms to scores, (n_utterances, emotions), else None."""
    corpus = corpus_of(stage)
    if (stage / "model").is_dir():
        network = EmotionClassifier.load(str(stage / "model"))
        return lambda waves: features.embed_and_classify(network, waves, waves.utterances)[1]
    if stage.name != "probe":
        return None
    statistics, layer = lineage(stage)[0], read_json(stage / "metrics.json")["layer"]
    probe = train_probe(Fold(corpus, fold), np.load(statistics / "statistics.npy")[:, layer])
    model = SpeechModel.load(weights.source_of(statistics))
    return lambda waves: probe.predict_log_proba(
        features.pooled_layers(model, waves, waves.utterances)[:, layer]
    )


def classify_altered(run_dir: str) -> Path:
    """Classify the test utterances under `CONDITIONS`, by the networks and the baseline "probe" of a run.

    Returns the stage with predictions.parquet, in which `variant` is the condition and `system` names both
    variant and system, so that `gmp_utils.evaluation.tables.scores` has a row for each condition. It also has
    the uncalibrated score of each emotion.
    """
    finished = classifiers(run_dir)

    def build(folder: Path) -> None:
        tables = []
        for row in finished.itertuples(index=False):
            corpus, scorer = corpus_of(row.stage), _scorer(row.stage, row.fold)
            if scorer is None:
                continue
            table = pd.read_parquet(row.stage / "predictions.parquet").query("part == 'test'")
            table = table[["utterance", "speaker", "gender", "true"]]
            labels = {key: getattr(row, key) for key in CLASSIFIER}
            labels["system"] = f"{row.variant}, {row.system}"
            for condition in CONDITIONS:
                waves = altered(corpus.waveforms, table.utterance.tolist(), condition)
                scores = pd.DataFrame(scorer(waves), table.index, corpus.emotions)
                named = labels | {"variant": condition, "predicted": scores.idxmax(axis=1)}
                tables.append(table.assign(**named, **scores))
        if not tables:
            raise GmpError("robustness: found no network and no probe; set it to false.")
        pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet")

    return make_stage(
        run_folder(run_dir) / ROBUSTNESS,
        build,
        parameters={"systems": (finished.variant + ", " + finished.system).tolist()},
        stages=list(finished.stage),
    )
