"""A synthetic corpus for personalization: sixty speakers whose ratings depend on their voices.

espeak-ng synthesizes one short phrase per utterance. Latent valence, arousal and dominance, with mean 0 and
standard deviation 1 for every speaker, are expressed as pitch, range, rate and level. The ratings depend on
the `height` of the speaker's voice, from −1 (low) to 1 (high):

| rating | value | shift |
|---|---|---|
| valence | 4 + latent + 1.2 · cos(π · `height`) | of the mean |
| arousal | 4 + latent · exp(0.7 · `height`) | of the scale |
| dominance | 4 + latent | none |

With `shifts="chance"`, the heights are permuted among the speakers before the ratings are computed.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import check_choice
from gmp_utils.data.corpora import espeak, synthetic

EMOTIONS = synthetic.EMOTIONS
SHIFTS = ("voice", "chance")
N_SPEAKERS = 60
UTTERANCES = 20  # of each speaker
VOICES = {"female": "en-us+f1", "male": "en-us+m3"}
RATINGS = ("valence", "arousal", "dominance")
NOISE = 0.2  # of ratings, standard deviation
SPEAKERS_PER_PROCESS = 5
_PHRASES = ("after lunch", "I found the letter", "on the way", "she called my name", "so we waited",
            "by the bridge", "as you told me", "we drove back home")  # fmt: skip
# Effect of one standard deviation of valence, arousal and dominance on espeak's pitch and range (0 to 100),
# the logarithm of its rate, and the level in dB.
PROSODY = {"pitch": (7, 5, -3), "range": (14, 6, 0), "rate": (0.0, 0.08, -0.05), "level": (0, 3, 2)}


def speakers(seed: int = 0) -> pd.DataFrame:
    """`gender`, `height` and `speaking_rate` by speaker; the last two are from -1 to 1."""
    rng = np.random.default_rng([seed, 99])
    height, speaking_rate = rng.uniform(-1, 1, (2, N_SPEAKERS))
    names = [f"P{number + 1:02d}" for number in range(N_SPEAKERS)]
    gender = np.resize(list(VOICES), N_SPEAKERS)
    table = {"gender": gender, "height": height, "speaking_rate": speaking_rate}
    return pd.DataFrame(table, index=names)


def rate(latent: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Ratings, (n, 3), of latent values, (n, 3), of speakers with a height, (n,), without noise."""
    zeros, ones = np.zeros_like(height), np.ones_like(height)
    shift = np.stack([1.2 * np.cos(np.pi * height), zeros, zeros], axis=1)
    scale = np.stack([ones, np.exp(0.7 * height), ones], axis=1)
    return 4 + shift + scale * latent


def make(folder: Path, seed: int = 0, *, shifts: str = "voice") -> None:
    """Synthesize the corpus into a folder, `wav/` and `labels.csv`, with one of `SHIFTS`."""
    check_choice("shifts", shifts, SHIFTS)
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    firsts = range(0, N_SPEAKERS, SPEAKERS_PER_PROCESS)
    espeak.in_fresh_processes(_speak, [(str(folder), seed, first) for first in firsts])
    people, rng = speakers(seed), np.random.default_rng([seed, 100])
    height, latent = people.height.to_numpy(), _latent(rng).reshape(-1, 3)
    if shifts == "chance":
        height = rng.permutation(height)
    ratings = rate(latent, np.repeat(height, UTTERANCES)) + rng.normal(0, NOISE, latent.shape)
    names = np.repeat(people.index, UTTERANCES)
    numbers = np.tile(np.arange(UTTERANCES), N_SPEAKERS)
    pleasant, active = latent[:, 0] > 0, latent[:, 1] > 0
    conditions = [pleasant & active, active, ~pleasant]
    emotions = np.select(conditions, ["happy", "angry", "sad"], "neutral")
    labels = {
        "utterance": [_name(speaker, number) for speaker, number in zip(names, numbers)],
        "speaker": names,
        "gender": np.repeat(people.gender.to_numpy(), UTTERANCES),
        "emotion": emotions,
        **dict(zip(RATINGS, ratings.clip(1, 7).round(3).T)),
    }
    pd.DataFrame(labels).to_csv(folder / "labels.csv", index=False)


def _name(speaker: str, number: int) -> str:
    return f"{speaker}_{number:03d}"


def _latent(rng: np.random.Generator) -> np.ndarray:
    """(speakers, utterances, 3) values, standardized for each speaker."""
    latent = rng.normal(size=(N_SPEAKERS, UTTERANCES, 3))
    return (latent - latent.mean(axis=1, keepdims=True)) / latent.std(axis=1, keepdims=True)


def _speak(folder: str, seed: int, first: int) -> None:
    """Write the recordings of some speakers."""
    latent = _latent(np.random.default_rng([seed, 100]))
    people = speakers(seed).iloc[first : first + SPEAKERS_PER_PROCESS]
    for index, (name, person) in enumerate(people.iterrows(), start=first):
        rng = np.random.default_rng([seed, index])
        for number, values in enumerate(latent[index]):
            prosody = {key: float(np.dot(weights, values)) for key, weights in PROSODY.items()}
            speed = 185 * np.exp(0.2 * person.speaking_rate + prosody["rate"])
            pitch, pitch_range = 45 + 22 * person.height + prosody["pitch"], 50 + prosody["range"]
            text, voice = str(rng.choice(_PHRASES)), VOICES[person.gender]
            samples, _ = espeak.speak(text, voice, speed, pitch, pitch_range)
            samples = espeak.set_level(samples, prosody["level"])
            espeak.write_recording(Path(folder, "wav", f"{_name(name, number)}.wav"), samples, rng)
