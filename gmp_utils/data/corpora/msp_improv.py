"""MSP-IMPROV: 6 sessions of a woman and a man, 8,438 turns.

Labels are in a file whose name is misspelt (`Evalution.txt`), of `.avi` names that begin with `UTD`.
Its activation runs from 1, very active, to 5, very calm: it is turned round here.
"""

import re
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpora.labels import number
from gmp_utils.data.corpora.names import with_unlabelled

LINE = re.compile(
    r"UTD-(IMPROV-S\d\d[A-Z]-([FM]\d\d)-[PRST]-[FM][FM]\d\d)\.avi; (\w); A:([\d.]+|NaN); "
    r"V:([\d.]+|NaN); D:([\d.]+|NaN)"
)
EMOTIONS = {
    "A": "angry",
    "S": "sad",
    "H": "happy",
    "N": "neutral",
    "O": "other",
    "X": "no agreement",
}


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest; see `gmp_utils.data.corpora.load`.

    Raises
    ------
    GmpError
        Without the file of labels, if a turn that has a label has no recording or two of them, or a
        rating is no number.
    """
    labels = [folder / name for name in ("Evalution.txt", "Evaluation.txt")]
    labels = [path for path in labels if path.is_file()]
    if not labels:
        raise GmpError(f"{folder}: no Evalution.txt; give the folder that holds it and Audio/.")
    recordings: dict[str, Path] = {}
    for path in sorted(folder.rglob("MSP-IMPROV-*.wav")):
        if recordings.setdefault(path.stem, path) != path:
            raise GmpError(f"{path}: also at {recordings[path.stem]}; expected each turn once.")
    rows = []
    for match in filter(None, map(LINE.match, labels[0].read_text("latin-1").splitlines())):
        name, speaker = f"MSP-{match[1]}", match[2]
        if name not in recordings:
            raise GmpError(f"{name}.wav: not there, but {labels[0].name} labels it.")
        where = f"{labels[0]}, {name}"
        rows.append(
            {
                "utterance": name,
                "path": str(recordings[name]),
                "speaker": speaker,
                "gender": {"F": "female", "M": "male"}[speaker[0]],
                "session": str(int(speaker[1:])),
                "label": match[3],
                "valence": number(match[5], where),
                "arousal": 6 - number(match[4], where),
                "dominance": number(match[6], where),
            }
        )
    return with_unlabelled(pd.DataFrame(rows), recordings.values())
