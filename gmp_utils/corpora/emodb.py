"""EmoDB, the Berlin Database of Emotional Speech: 10 speakers, 7 emotions, 535 recordings.

Names are `SSTTTEV.wav`: speaker, text, emotion (German initial), version.
"""

import re
from pathlib import Path

import pandas as pd

NAME = re.compile(r"^(03|08|09|10|11|12|13|14|15|16)([ab]\d\d)([WLEAFTN])([a-z])?\.wav$")
EMOTIONS = {
    "W": "angry",
    "L": "bored",
    "E": "disgusted",
    "A": "fearful",
    "F": "happy",
    "T": "sad",
    "N": "neutral",
}
FEMALE = {"08", "09", "13", "14", "16"}


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest from the file names.

    Parameters
    ----------
    folder : Path
        The folder of the recordings, or the one above it that holds `wav/`.

    Returns
    -------
    manifest : DataFrame
        A row per utterance, see `gmp_utils.corpora.SCHEMA`.
    """
    folder = folder / "wav" if (folder / "wav").is_dir() else folder
    rows = []
    for path in sorted(folder.iterdir()):
        match = NAME.match(path.name)
        if match:
            speaker, text, emotion, _ = match.groups()
            rows.append(
                {
                    "utterance": path.stem,
                    "path": str(path),
                    "speaker": speaker,
                    "gender": "female" if speaker in FEMALE else "male",
                    "emotion": EMOTIONS[emotion],
                    "text": text,
                }
            )
    return pd.DataFrame(rows)
