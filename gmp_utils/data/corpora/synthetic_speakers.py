"""A synthetic corpus for personalisation: sixty speakers with voices, and with labels, of their own.

espeak-ng speaks one short phrase per utterance. What is felt is drawn for each utterance: valence, arousal
and dominance with mean 0 and deviation 1 for every speaker, heard as pitch, range, rate and loudness. How it
is *rated* differs from speaker to speaker by a known rule of how high the voice is, `height` in −1 to 1:

| rating | of a speaker with this voice |
|---|---|
| valence | 4 + felt + 1.2 · cos(π · `height`): shifted in its mean, up for voices in the middle |
| arousal | 4 + felt · exp(0.7 · `height`): shifted in its scale |
| dominance | 4 + felt: not shifted |

With `shifts="chance"` the same heights are dealt out among the speakers before they are rated, so that the
shift has nothing to do with the voice.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpora import synthetic

EMOTIONS = synthetic.EMOTIONS
SHIFTS = ("voice", "chance")
N_SPEAKERS = 60
UTTERANCES = 20  # of each speaker
VOICES = {"female": "en-us+f1", "male": "en-us+m3"}
RATINGS = ("valence", "arousal", "dominance")
NOISE = 0.2  # of ratings, standard deviation
SPEAKERS_PER_PROCESS = 5  # speakers that one process speaks
_PHRASES = ("after lunch", "I found the letter", "on the way", "she called my name", "so we waited",
            "by the bridge", "as you told me", "we drove back home")  # fmt: skip
# What one deviation of valence, arousal and dominance adds to espeak's pitch and range (0 to 100), to the
# logarithm of its rate, and to the level in dB.
PROSODY = {"pitch": (7, 5, -3), "range": (14, 6, 0), "rate": (0.0, 0.08, -0.05), "level": (0, 3, 2)}


def speakers(seed: int = 0) -> pd.DataFrame:
    """The speakers' voices.

    Parameters
    ----------
    seed : int

    Returns
    -------
    speakers : DataFrame
        By speaker: `gender`; `height` and, which is heard and not rated, `pace`, both -1 to 1.
    """
    rng = np.random.default_rng([seed, 99])
    height, pace = rng.uniform(-1, 1, (2, N_SPEAKERS))
    names = [f"P{number + 1:02d}" for number in range(N_SPEAKERS)]
    gender = np.resize(list(VOICES), N_SPEAKERS)
    return pd.DataFrame({"gender": gender, "height": height, "pace": pace}, index=names)


def rate(felt: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Ratings of what is felt, without noise; see the module.

    Parameters
    ----------
    felt : (n, 3) float
    height : (n,) float

    Returns
    -------
    ratings : (n, 3) float
    """
    none, same = np.zeros_like(height), np.ones_like(height)
    shift = np.stack([1.2 * np.cos(np.pi * height), none, none], axis=1)
    scale = np.stack([same, np.exp(0.7 * height), same], axis=1)
    return 4 + shift + scale * felt


def make(folder: Path, seed: int = 0, shifts: str = "voice") -> None:
    """Speak the corpus into a folder: `wav/` and `labels.csv`.

    Parameters
    ----------
    folder : Path
    seed : int
    shifts : str
        Of labels: by "voice", or by "chance".

    Raises
    ------
    GmpError
        For other shifts.
    """
    if shifts not in SHIFTS:
        raise GmpError(f"shifts {shifts!r}: expected one of {', '.join(SHIFTS)}.")
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    people = speakers(seed)
    rng = np.random.default_rng([seed, 100])
    felt = rng.normal(size=(N_SPEAKERS, UTTERANCES, 3))
    felt = (felt - felt.mean(axis=1, keepdims=True)) / felt.std(axis=1, keepdims=True)
    np.save(folder / "felt.npy", felt)

    def speak(first: int) -> None:
        command = [sys.executable, "-m", __name__, str(folder), str(seed), str(first)]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(speak, range(0, N_SPEAKERS, SPEAKERS_PER_PROCESS)))
    (folder / "felt.npy").unlink()
    height, flat = people.height.to_numpy(), felt.reshape(-1, 3)
    if shifts == "chance":
        height = rng.permutation(height)
    ratings = rate(flat, np.repeat(height, UTTERANCES)) + rng.normal(0, NOISE, flat.shape)
    names = np.repeat(people.index, UTTERANCES)
    numbers = np.tile(np.arange(UTTERANCES), N_SPEAKERS)
    valence, arousal = flat[:, 0] > 0, flat[:, 1] > 0
    table = pd.DataFrame(
        {
            "utterance": [_name(*one) for one in zip(names, numbers)],
            "speaker": names,
            "gender": np.repeat(people.gender.to_numpy(), UTTERANCES),
            "emotion": np.select(
                [valence & arousal, arousal, ~valence], ["happy", "angry", "sad"], "neutral"
            ),
            **dict(zip(RATINGS, ratings.clip(1, 7).round(3).T)),
        }
    )
    table.to_csv(folder / "labels.csv", index=False)


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest of a corpus that `make` spoke; see `gmp_utils.data.corpora.synthetic.load`."""
    return synthetic.load(
        folder, texts=("utterance", "speaker", "gender", "emotion"), numbers=RATINGS
    )


def _name(speaker: str, number: int) -> str:
    return f"{speaker}_{number:03d}"


def _speak(folder: Path, seed: int, first: int) -> None:
    """Write the recordings of some speakers."""
    import soundfile

    from gmp_utils.data.corpora.espeak import SAMPLE_RATE, speak

    felt = np.load(folder / "felt.npy", allow_pickle=False)
    people = speakers(seed).iloc[first : first + SPEAKERS_PER_PROCESS]
    for place, (name, person) in enumerate(people.iterrows(), start=first):
        rng = np.random.default_rng([seed, place])
        for number, latent in enumerate(felt[place]):
            heard = {key: float(np.dot(weights, latent)) for key, weights in PROSODY.items()}
            samples = speak(
                str(rng.choice(_PHRASES)),
                VOICES[person.gender],
                int(np.clip(185 * np.exp(0.2 * person.pace + heard["rate"]), 80, 450)),
                int(np.clip(45 + 22 * person.height + heard["pitch"], 0, 99)),
                int(np.clip(50 + heard["range"], 0, 99)),
            )
            rms = np.sqrt(np.mean(samples**2))
            samples = samples * (0.05 / rms) * 10 ** (heard["level"] / 20)
            samples = samples + rng.normal(0, 0.001, len(samples))
            path = folder / "wav" / f"{_name(name, number)}.wav"
            soundfile.write(path, samples.clip(-1, 1), SAMPLE_RATE, subtype="PCM_16")


if __name__ == "__main__":
    _speak(Path(sys.argv[1]), *map(int, sys.argv[2:]))
