"""RAVDESS, its audio-only speech: 24 actors, 8 emotions, 1,440 recordings.

Names are seven two-digit fields; `03-01` is audio-only speech. Some files are stereo.
"""

from pathlib import Path

import pandas as pd

from gmp_utils.data.corpora.names import scan

NAME = r"03-01-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)\.wav"
EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgusted",
    "08": "surprised",
}


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest; odd actors are male. See `gmp_utils.data.corpora.load`."""
    return scan(
        folder,
        NAME,
        lambda match: {
            "speaker": match[5],
            "gender": "male" if int(match[5]) % 2 else "female",
            "label": match[1],
            "text": match[3],
        },
    )
