"""TESS, the Toronto emotional speech set: 2 women, 7 emotions, 2,800 recordings.

Names are `<speaker>_<word>_<emotion>.wav`; the folders' names are not read.
"""

from pathlib import Path

import pandas as pd

from gmp_utils.data.corpora.names import scan

NAME = r"(OAF|YAF)_([a-z]+)_(angry|disgust|fear|happy|neutral|ps|sad)\.wav"
EMOTIONS = {
    "angry": "angry",
    "disgust": "disgusted",
    "fear": "fearful",
    "happy": "happy",
    "neutral": "neutral",
    "ps": "surprised",  # pleasant surprise
    "sad": "sad",
}


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest; see `gmp_utils.data.corpora.load`."""
    return scan(
        folder,
        NAME,
        lambda match: {
            "speaker": match[1],
            "gender": "female",
            "label": match[3],
            "text": match[2],
        },
    )
