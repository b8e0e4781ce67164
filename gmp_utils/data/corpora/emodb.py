"""EmoDB, the Berlin Database of Emotional Speech: 10 speakers, 7 emotions, 535 recordings.

Names are `SSTTTEV.wav`: speaker, text, emotion (German initial), version.
"""

from pathlib import Path

import pandas as pd

from gmp_utils.data.corpora.names import scan

NAME = r"(03|08|09|10|11|12|13|14|15|16)([ab]\d\d)([WLEAFTN])([a-z])?\.wav"
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
    """Read the manifest; see `gmp_utils.data.corpora.load`."""
    return scan(
        folder,
        NAME,
        lambda match: {
            "speaker": match[1],
            "gender": "female" if match[1] in FEMALE else "male",
            "label": match[3],
            "text": match[2],
        },
    )
