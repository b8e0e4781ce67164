"""A synthetic emotional corpus, spoken by espeak-ng and shaped like IEMOCAP.

Five sessions of a woman and a man, four emotions. Emotion is prosody and nothing else: pitch, range,
rate and loudness of one phrase out of three, in each speaker's own measure and with each speaker's
own habits. Which phrase it is stays known (`emotion_start`, `emotion_end`).
"""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils.data.corpora.labels import locate, read_table
from gmp_utils.data.corpora.names import with_unlabelled

EMOTIONS = {emotion: emotion for emotion in ("angry", "happy", "neutral", "sad")}
# Session by session, a woman and a man: the corpus's voices, and those that encoders are pre-trained
# on, which it does not have. Breathy variants (f2, f3, f5, Alicia) are left out: espeak-ng draws their
# noise from the clock.
VOICES = (
    ("en-us+f1", "en-us+m1"),
    ("en-gb-x-rp+f4", "en-gb-x-rp+m2"),
    ("en-us+Annie", "en-us+m3"),
    ("en-gb-x-rp+Andrea", "en-gb-x-rp+m4"),
    ("en-us+steph", "en-us+m7"),
)
PRETRAINING_VOICES = (
    ("en-us+anika", "en-us+Alex"),
    ("en-gb-x-rp+belinda", "en-gb-x-rp+Marco"),
    ("en-us+linda", "en-us+m8"),
    ("en-gb-x-rp+grandma", "en-gb-x-rp+miguel"),
    ("en-us+shelby", "en-us+travis"),
)
# Steps of espeak's pitch (0 to 100) and range, factor on the rate, dB.
PROSODY = {
    "angry": {"pitch": 6, "range": 10, "rate": 1.12, "level": 8.0},
    "happy": {"pitch": 34, "range": 30, "rate": 1.08, "level": 1.0},
    "neutral": {"pitch": 0, "range": 0, "rate": 1.0, "level": 0.0},
    "sad": {"pitch": -20, "range": -30, "rate": 0.85, "level": -6.0},
}
# Valence, arousal, dominance on IEMOCAP's scale of 1 to 5.
ATTRIBUTES = {
    "angry": (1.9, 4.0, 4.0),
    "happy": (4.1, 3.6, 3.3),
    "neutral": (3.0, 2.7, 3.0),
    "sad": (2.1, 2.1, 2.4),
}
_PHRASES = (
    ("this morning", "after lunch", "on the way", "when it rained", "before dinner", "last weekend",
     "by the bridge", "around seven"),
    ("I found the letter", "they came back in", "we drove back home", "she called my name",
     "he put it down", "you left early", "I saw them again", "we met the teacher"),
    ("and nobody knew", "so we waited", "because of you", "and then we talked", "but not for me",
     "like the last time", "and it was gone", "as you told me"),
)  # fmt: skip
TEXTS = ("utterance", "speaker", "gender", "session", "emotion", "text")
NUMBERS = ("valence", "arousal", "dominance", "emotion_start", "emotion_end")
_PAUSE = 0.06  # seconds between phrases
_SECONDS_AROUND = 0.05  # silence before and after


def make(
    folder: Path,
    seed: int = 0,
    utterances_per_speaker: int = 24,
    voices: Sequence[tuple[str, str]] = VOICES,
) -> None:
    """Speak the corpus into a folder: `wav/` and `labels.csv`.

    A process of its own speaks each session: espeak-ng carries state from one call to the next, and
    only from a fresh start does the same seed give the same samples.

    Parameters
    ----------
    folder : Path
    seed : int
    utterances_per_speaker : int
        Balanced over the emotions.
    voices : sequence of (str, str)
        Of each session's woman and man.
    """
    (folder / "wav").mkdir(parents=True, exist_ok=True)

    def speak_session(session: int) -> pd.DataFrame:
        given = [folder, session, seed, utterances_per_speaker, *voices[session]]
        command = [sys.executable, "-m", __name__, *map(str, given)]
        rows = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        return pd.read_csv(io.BytesIO(rows.stdout))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tables = list(pool.map(speak_session, range(len(voices))))
    pd.concat(tables).to_csv(folder / "labels.csv", index=False)


def load(
    folder: Path, texts: Sequence[str] = TEXTS, numbers: Sequence[str] = NUMBERS
) -> pd.DataFrame:
    """Read the manifest of a corpus that `make` spoke.

    Parameters
    ----------
    folder : Path
    texts, numbers : sequence of str
        Columns of labels.csv.

    Returns
    -------
    manifest : DataFrame
        A row per utterance, see `gmp_utils.data.corpora.check`.

    Raises
    ------
    GmpError
        If the labels cannot be read, or name a recording elsewhere.
    """
    labels, recordings = folder / "labels.csv", folder / "wav"
    manifest = read_table(labels, (*texts, *numbers), texts, numbers)
    advice = "expected the name of a file in wav/"
    manifest["path"] = locate(manifest.utterance + ".wav", recordings, labels, advice)
    return with_unlabelled(manifest.rename(columns={"emotion": "label"}), recordings.glob("*.wav"))


def _speaker(session: int, gender: str, voice: str, rng: np.random.Generator) -> dict:
    """Draw a speaker's voice and habits."""
    return {
        "speaker": f"S{session + 1}{gender}",
        "gender": {"F": "female", "M": "male"}[gender],
        "session": str(session + 1),
        "voice": voice,
        "pitch": rng.uniform(38, 48),
        "range": rng.uniform(40, 60),
        "rate": rng.uniform(175, 215),
        "level": rng.normal(0, 1.5),
        "expressiveness": rng.uniform(0.85, 1.15),
        "habits": {
            emotion: {"pitch": rng.normal(0, 3), "level": rng.normal(0, 1)} for emotion in EMOTIONS
        },
    }


def _speak_phrase(
    text: str, speaker: dict, emotion: str, strength: float, rng: np.random.Generator
) -> np.ndarray:
    from gmp_utils.data.corpora.espeak import speak

    target, habit = PROSODY[emotion], speaker["habits"][emotion]
    pitch = speaker["pitch"] + strength * target["pitch"] + habit["pitch"] + rng.normal(0, 3)
    pitch_range = speaker["range"] + strength * target["range"] + rng.normal(0, 5)
    rate = speaker["rate"] * target["rate"] ** strength * rng.lognormal(0, 0.04)
    level = speaker["level"] + strength * target["level"] + habit["level"] + rng.normal(0, 1.2)
    samples = speak(
        text,
        speaker["voice"],
        int(np.clip(rate, 80, 450)),
        int(np.clip(pitch, 0, 99)),
        int(np.clip(pitch_range, 0, 99)),
    )
    rms = np.sqrt(np.mean(samples**2))
    return samples * (0.05 / rms) * 10 ** (level / 20)


def _speak_utterance(speaker: dict, emotion: str, rng: np.random.Generator) -> tuple:
    """Three phrases, one of them emotional; samples, text, start and end of it in seconds."""
    from gmp_utils.data.corpora.espeak import SAMPLE_RATE

    texts = [str(rng.choice(choices)) for choices in _PHRASES]
    carrier = int(rng.integers(len(texts)))
    strength = speaker["expressiveness"] * rng.uniform(0.85, 1.15)
    pieces, start, end = [np.zeros(int(_SECONDS_AROUND * SAMPLE_RATE))], 0.0, 0.0
    for position, text in enumerate(texts):
        phrase = emotion if position == carrier else "neutral"
        if position == carrier:
            start = sum(map(len, pieces)) / SAMPLE_RATE
        pieces.append(_speak_phrase(text, speaker, phrase, strength, rng))
        if position == carrier:
            end = sum(map(len, pieces)) / SAMPLE_RATE
        pieces.append(np.zeros(int(_PAUSE * SAMPLE_RATE)))
    pieces.append(np.zeros(int(_SECONDS_AROUND * SAMPLE_RATE)))
    samples = np.concatenate(pieces)
    samples = samples + rng.normal(0, 0.001, len(samples))
    return samples, " ".join(texts), start, end


def _speak_session(
    folder: Path, session: int, seed: int, utterances_per_speaker: int, voices: list[str]
) -> None:
    """Write the session's recordings, and its rows of the manifest to standard output."""
    import soundfile

    from gmp_utils.data.corpora.espeak import SAMPLE_RATE

    rng = np.random.default_rng([seed, session])
    rows = []
    for gender, voice in zip("FM", voices):
        speaker = _speaker(session, gender, voice, rng)
        emotions = rng.permutation(np.resize(list(EMOTIONS), utterances_per_speaker))
        for number, emotion in enumerate(map(str, emotions), start=1):
            samples, text, start, end = _speak_utterance(speaker, emotion, rng)
            name = f"{speaker['speaker']}_{number:03d}"
            path = folder / "wav" / f"{name}.wav"
            soundfile.write(path, samples.clip(-1, 1), SAMPLE_RATE, subtype="PCM_16")
            attributes = np.array(ATTRIBUTES[emotion]) + rng.normal(0, 0.3, 3)
            rows.append(
                {
                    "utterance": name,
                    **{key: speaker[key] for key in ("speaker", "gender", "session")},
                    "emotion": emotion,
                    **dict(
                        zip(("valence", "arousal", "dominance"), attributes.clip(1, 5).round(2))
                    ),
                    "text": text,
                    "emotion_start": round(start, 3),
                    "emotion_end": round(end, 3),
                }
            )
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    _speak_session(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5:])
