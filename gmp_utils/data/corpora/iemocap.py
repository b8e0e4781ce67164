"""IEMOCAP: 5 sessions of a woman and a man, 10,039 turns; the folder is `IEMOCAP_full_release`.

The last field of a turn's name, as of `Ses03M_impro05a_F012`, begins with the talker's gender. The letter
after the session is that of the actor who wore the markers.
"""

import os
import re
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpora._labels import GENDERS, with_unlabelled

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


def _lines(files: list[Path]) -> list[str]:
    kept = [path for path in sorted(files) if not path.name.startswith("._")]  # of macOS
    return [line for path in kept for line in path.read_text("latin-1").splitlines()]


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest."""
    evaluations = _lines(list(folder.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")))
    texts = _lines(list(folder.glob("Session[1-5]/dialog/transcriptions/Ses*.txt")))
    transcripts = dict(match.groups() for match in map(TRANSCRIPT.match, texts) if match)
    rows = []
    for match in filter(None, map(TURN.match, evaluations)):
        row = match.groupdict()
        turn, talker, session = row["utterance"], row.pop("talker"), row["session"]
        dialog = turn.rpartition("_")[0]
        path = folder / f"Session{session}" / "sentences" / "wav" / dialog / f"{turn}.wav"
        if not os.path.isfile(path):
            raise GmpError(f"{path}: not there, but {dialog}.txt labels it; add it to the corpus.")
        row |= {"path": str(path), "text": transcripts.get(turn)}
        rows.append(row | {"speaker": f"Ses0{session}{talker}", "gender": GENDERS[talker]})
    recordings = folder.glob("Session[1-5]/sentences/wav/*/*.wav")
    return with_unlabelled(pd.DataFrame(rows), recordings)
