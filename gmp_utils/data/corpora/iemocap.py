"""IEMOCAP: 5 sessions of a woman and a man, 10,039 turns; the folder is `IEMOCAP_full_release`.

The last field of a turn's name, F012 in `Ses03M_impro05a_F012`, starts with the talker's gender. The letter
after the session is the gender of the actor who wore the markers.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.audio import find_recordings
from gmp_utils.data.corpora._labels import GENDERS, SUFFIXES, add_unlabeled

RATING = r"\d+(?:\.\d+)?"
TURN = re.compile(
    r"\[[\d.]+ - [\d.]+\]\t(?P<utterance>Ses0(?P<session>[1-5])[FM]_(?:impro\d\d[ab]?|script\d\d_\d[ab]?)"
    r"_(?P<talker>[FM])\d{3})\t(?P<label>\w+)"
    rf"\t\[(?P<valence>{RATING}), (?P<arousal>{RATING}), (?P<dominance>{RATING})\]"
)
TRANSCRIPT = re.compile(r"(Ses\S+) \[[^\]]*\]: ?(.*)")
EMOTIONS = {
    "ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad",
    "fru": "frustrated", "fea": "fearful", "sur": "surprised", "dis": "disgusted", "oth": "other",
    "xxx": "no agreement",
}  # fmt: skip


def _lines(files: Iterable[Path]) -> list[tuple[Path, str]]:
    return [
        (path, line) for path in sorted(files) for line in path.read_text("latin-1").splitlines()
    ]


def _turns(files: Iterable[Path]) -> Iterator[re.Match]:
    for path, line in _lines(files):
        if match := TURN.match(line):
            yield match
        elif line.strip("ï»¿ \t").startswith("["):
            raise GmpError(f"{path}: found {line!r}, expected a turn as in IEMOCAP's release.")


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest."""
    texts = _lines(folder.glob("Session[1-5]/dialog/transcriptions/Ses*.txt"))
    matches = [TRANSCRIPT.match(line) for _, line in texts]
    transcripts = dict(match.groups() for match in matches if match)
    recordings = find_recordings(folder.glob("Session[1-5]/sentences/wav/*/*"), SUFFIXES)
    paths, rows = {path.stem: path for path in recordings}, []
    for match in _turns(folder.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")):
        row = match.groupdict()
        turn, talker, session = row["utterance"], row.pop("talker"), row["session"]
        if turn not in paths:
            dialog = turn.rpartition("_")[0]
            raise GmpError(
                f"{turn}.wav: not there, but {dialog}.txt has its label; add the recording."
            )
        row |= {"path": str(paths[turn]), "text": transcripts.get(turn) or None}
        rows.append(row | {"speaker": f"Ses0{session}{talker}", "gender": GENDERS[talker]})
    if recordings and not rows:
        raise GmpError(f"{folder}: no Session*/dialog/EmoEvaluation/Ses*.txt; add these labels.")
    return add_unlabeled(pd.DataFrame(rows), recordings)
