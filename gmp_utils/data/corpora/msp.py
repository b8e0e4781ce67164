"""MSP-Podcast, with its official splits, and MSP-IMPROV, 8,438 turns in 6 sessions."""

import re
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.audio import find_recordings
from gmp_utils.data.corpora._labels import (
    GENDERS,
    SUFFIXES,
    add_unlabeled,
    locate,
    read_table,
)

PODCAST_EMOTIONS = {
    "A": "angry", "S": "sad", "H": "happy", "U": "surprised", "F": "fearful", "D": "disgusted",
    "C": "contemptuous", "N": "neutral", "O": "other", "X": "no agreement",
}  # fmt: skip
IMPROV_EMOTIONS = {label: PODCAST_EMOTIONS[label] for label in "ASHNOX"}
TEXTS = {"FileName": "path", "EmoClass": "label", "SpkrID": "speaker", "Gender": "gender",
         "Split_Set": "split"}  # fmt: skip
NUMBERS = {"EmoVal": "valence", "EmoAct": "arousal", "EmoDom": "dominance"}
RATING = r"\d+(?:\.\d+)?|NaN"
TURN = re.compile(
    r"UTD-(?P<utterance>IMPROV-S\d\d[A-Z]-(?P<speaker>[FM]\d\d)-[PRST]-[FM][FM]\d\d)\.avi; "
    rf"(?P<label>\w); A:(?P<arousal>{RATING}); V:(?P<valence>{RATING}); D:(?P<dominance>{RATING})"
)


def _first(folder: Path, *names: str) -> Path:
    """The first existing file or folder of those named, as releases spell them differently."""
    existing = [folder / name for name in names if (folder / name).exists()]
    if not existing:
        raise GmpError(f"{folder}: no {names[0]}; give the folder of the release.")
    return existing[0]


def load_podcast(folder: Path) -> pd.DataFrame:
    """Read MSP-Podcast's manifest; "Unknown" speakers and genders are missing values.

    Texts are those of the folder Transcripts, if it is there.
    """
    labels = _first(folder, "Labels/labels_consensus.csv", "Labels/labels_concensus.csv")
    audio = _first(folder, "Audios", "Audio")
    table = read_table(labels, required=(*TEXTS, *NUMBERS), texts=TEXTS, numbers=NUMBERS)
    manifest = table[[*TEXTS, *NUMBERS]].rename(columns=TEXTS | NUMBERS)
    advice = f"expected the name of a file in {audio.name}/"
    manifest["path"] = locate(manifest.path, audio, labels, advice)
    manifest["utterance"] = manifest.path.map(lambda path: Path(path).stem)
    files = folder.glob("Transcripts/[!.]*.txt")
    if texts := {x.stem: x.read_text("utf-8", "replace").strip() or None for x in files}:
        manifest["text"] = manifest.utterance.map(texts)
    manifest["gender"] = manifest.gender.str.lower()
    for name in ("speaker", "gender"):
        unknown = manifest[name].str.lower() == "unknown"
        manifest[name] = manifest[name].astype(object).mask(unknown, None)
    manifest["split"] = manifest.split.str.lower().replace("development", "validation")
    return add_unlabeled(manifest, audio.glob("*"))


def load_improv(folder: Path) -> pd.DataFrame:
    """Read MSP-IMPROV's manifest.

    Activation is inverted, because it runs from 1, very active, to 5, very calm, in the release.
    """
    labels = _first(folder, "Evalution.txt", "Evaluation.txt")
    recordings: dict[str, Path] = {}
    for path in find_recordings(folder.rglob("MSP-IMPROV-*"), SUFFIXES):
        if recordings.setdefault(path.stem, path) != path:
            raise GmpError(f"{path}: also at {recordings[path.stem]}; expected each turn once.")
    rows = []
    for line in labels.read_text("latin-1").splitlines():
        if not line.startswith("UTD-"):  # the rating of one rater
            continue
        match = TURN.match(line)
        if not match:
            raise GmpError(f"{labels}: found {line!r}, expected a turn as in MSP-IMPROV's release.")
        name, speaker = f"MSP-{match['utterance']}", match["speaker"]
        if name not in recordings:
            raise GmpError(f"{name}.wav: not there, but {labels.name} has its label.")
        row = match.groupdict() | {"utterance": name, "path": str(recordings[name])}
        row |= {"gender": GENDERS[speaker[0]], "session": str(int(speaker[1:]))}
        rows.append(row | {"arousal": 6 - float(match["arousal"])})
    return add_unlabeled(pd.DataFrame(rows), recordings.values())
