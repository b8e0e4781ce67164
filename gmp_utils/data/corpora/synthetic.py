"""A corpus of emotional speech, synthesized by espeak-ng, with the structure of IEMOCAP.

It has five sessions of a woman and a man, and four emotions. An emotion changes only the pitch, range, rate
and level of one of an utterance's three phrases, by amounts that differ between speakers. The manifest has
the times of that phrase (`emotion_start`, `emotion_end`), and all phonemes.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils.data.corpora import espeak
from gmp_utils.data.corpora._labels import GENDERS

EMOTIONS = {emotion: emotion for emotion in ("angry", "happy", "neutral", "sad")}
# The female and the male voice of each session. The corpus and the pre-training recordings share no voice.
# Breathy variants (f2, f3, f5, Alicia) are excluded: espeak-ng seeds their noise with the clock.
VOICES = (
    ("en-us+f1", "en-us+m1"), ("en-gb-x-rp+f4", "en-gb-x-rp+m2"), ("en-us+Annie", "en-us+m3"),
    ("en-gb-x-rp+Andrea", "en-gb-x-rp+m4"), ("en-us+steph", "en-us+m7"),
)  # fmt: skip
PRETRAINING_VOICES = (
    ("en-us+anika", "en-us+Alex"), ("en-gb-x-rp+belinda", "en-gb-x-rp+Marco"),
    ("en-us+linda", "en-us+m8"), ("en-gb-x-rp+grandma", "en-gb-x-rp+miguel"),
    ("en-us+shelby", "en-us+travis"),
)  # fmt: skip
# Changes in espeak's pitch and range (0 to 100), factor of the rate, and change in level (dB).
PROSODY = {
    "angry": {"pitch": 6, "range": 10, "rate": 1.12, "level": 8.0},
    "happy": {"pitch": 34, "range": 30, "rate": 1.08, "level": 1.0},
    "neutral": {"pitch": 0, "range": 0, "rate": 1.0, "level": 0.0},
    "sad": {"pitch": -20, "range": -30, "rate": 0.85, "level": -6.0},
}
# Valence, arousal and dominance on IEMOCAP's scale of 1 to 5.
ATTRIBUTES = {"angry": (1.9, 4.0, 4.0), "happy": (4.1, 3.6, 3.3), "neutral": (3.0, 2.7, 3.0),
              "sad": (2.1, 2.1, 2.4)}  # fmt: skip
_PHRASES = (
    ("this morning", "after lunch", "on the way", "when it rained", "before dinner", "last weekend",
     "by the bridge", "around seven"),
    ("I found the letter", "they came back in", "we drove back home", "she called my name",
     "he put it down", "you left early", "I saw them again", "we met the teacher"),
    ("and nobody knew", "so we waited", "because of you", "and then we talked", "but not for me",
     "like the last time", "and it was gone", "as you told me"),
)  # fmt: skip
SPEAKER = ("speaker", "gender", "session")
NUMBERS = ("valence", "arousal", "dominance", "emotion_start", "emotion_end")
_PAUSE = 0.06  # seconds between phrases
_MARGIN = 0.05  # seconds of silence before and after an utterance


def make(
    folder: Path,
    seed: int = 0,
    *,
    utterances_per_speaker: int = 24,
    voices: Sequence[tuple[str, str]] = VOICES,
) -> None:
    """Synthesize the corpus into a folder: `wav/` and `labels.csv`.

    `voices` are espeak-ng's, as in `VOICES`. A speaker's utterances are balanced over the emotions.
    """
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    options = (str(folder), seed, utterances_per_speaker)
    sessions = [(*options, *session) for session in enumerate(voices)]
    tables = espeak.in_fresh_processes(_speak_session, sessions)
    labels = pd.concat(pd.read_csv(io.BytesIO(table)) for table in tables)
    labels.to_csv(folder / "labels.csv", index=False)


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest of a corpus that `make` wrote."""
    manifest = pd.read_csv(folder / "labels.csv", dtype={"session": str})
    manifest["path"] = [str(folder / "wav" / f"{name}.wav") for name in manifest.utterance]
    return manifest.rename(columns={"emotion": "label"})


def _speaker(session: int, gender: str, voice: str, rng: np.random.Generator) -> dict:
    """Draw a speaker's voice and habits."""
    name, number = f"S{session + 1}{gender}", str(session + 1)
    speaker = {"speaker": name, "gender": GENDERS[gender], "session": number, "voice": voice}
    speaker |= {"pitch": rng.uniform(38, 48), "range": rng.uniform(40, 60)}
    speaker |= {"rate": rng.uniform(175, 215), "level": rng.normal(0, 1.5)}
    speaker["expressiveness"] = rng.uniform(0.85, 1.15)
    habits = [{"pitch": rng.normal(0, 3), "level": rng.normal(0, 1)} for _ in EMOTIONS]
    return speaker | {"habits": dict(zip(EMOTIONS, habits))}


def _speak_phrase(
    text: str, speaker: dict, emotion: str, strength: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Synthesize a phrase with the prosody of an emotion; see `espeak.speak`."""
    target, habit = PROSODY[emotion], speaker["habits"][emotion]
    pitch = speaker["pitch"] + strength * target["pitch"] + habit["pitch"] + rng.normal(0, 3)
    pitch_range = speaker["range"] + strength * target["range"] + rng.normal(0, 5)
    rate = speaker["rate"] * target["rate"] ** strength * rng.lognormal(0, 0.04)
    level = speaker["level"] + strength * target["level"] + habit["level"] + rng.normal(0, 1.2)
    samples, phonemes = espeak.speak(text, speaker["voice"], rate, pitch, pitch_range)
    return espeak.set_level(samples, level), phonemes


def _speak_utterance(
    speaker: dict, emotion: str, rng: np.random.Generator
) -> tuple[np.ndarray, dict]:
    """Samples of three phrases; their text, phonemes, and start and end (seconds) of the emotional one."""
    texts = [str(rng.choice(choices)) for choices in _PHRASES]
    carrier = int(rng.integers(len(texts)))
    strength = speaker["expressiveness"] * rng.uniform(0.85, 1.15)
    margin, pause = (np.zeros(int(x * espeak.SAMPLE_RATE)) for x in (_MARGIN, _PAUSE))
    pieces, phonemes = [margin], []
    for position, text in enumerate(texts):
        prosody = emotion if position == carrier else "neutral"
        begin = sum(map(len, pieces)) / espeak.SAMPLE_RATE
        samples, spoken = _speak_phrase(text, speaker, prosody, strength, rng)
        phonemes += [f"{begin + seconds:.3f} {name}" for seconds, name in spoken]
        pieces += [samples, pause]
    ends = (np.cumsum(list(map(len, pieces))) / espeak.SAMPLE_RATE).tolist()
    start, end = ends[2 * carrier : 2 * carrier + 2]
    times = {"emotion_start": round(start, 3), "emotion_end": round(end, 3)}
    columns = {"text": " ".join(texts), "phonemes": " ".join(phonemes)} | times
    return np.concatenate([*pieces, margin]), columns


def _speak_session(
    folder: str, seed: int, utterances_per_speaker: int, session: int, voices: tuple[str, str]
) -> None:
    """Write a session's recordings, and print its rows of the labels."""
    rng, rows = np.random.default_rng([seed, session]), []
    for gender, voice in zip("FM", voices):
        speaker = _speaker(session, gender, voice, rng)
        emotions = rng.permutation(np.resize(list(EMOTIONS), utterances_per_speaker))
        for number, emotion in enumerate(map(str, emotions), start=1):
            samples, columns = _speak_utterance(speaker, emotion, rng)
            name = f"{speaker['speaker']}_{number:03d}"
            espeak.write_recording(Path(folder, "wav", f"{name}.wav"), samples, rng)
            ratings = np.array(ATTRIBUTES[emotion]) + rng.normal(0, 0.3, 3)
            row = {"utterance": name, **{column: speaker[column] for column in SPEAKER}}
            row |= {"emotion": emotion, **dict(zip(NUMBERS, ratings.clip(1, 5).round(2)))}
            rows.append(row | columns)
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)
