"""ESD: 20 speakers of Mandarin or English, 5 emotions, 35,000 recordings.

Names are `<speaker>_<number>.wav`, 350 numbers per emotion; the folders' names are not read.
"""

from pathlib import Path

import pandas as pd

from gmp_utils.data.corpora.names import scan

NAME = r"(00[01]\d|0020)_(\d{6})\.wav"
BLOCKS = ("neutral", "angry", "happy", "sad", "surprised")  # numbers 1-350, 351-700, …
EMOTIONS = {emotion: emotion for emotion in BLOCKS}
FEMALE = {1, 2, 3, 7, 9, 15, 16, 17, 18, 19}


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest; see `gmp_utils.data.corpora.load`.

    The same sentences are spoken in every emotion and by every speaker of a language: `text` is
    their number.
    """
    return scan(
        folder,
        NAME,
        lambda match: {
            "speaker": match[1],
            "gender": "female" if int(match[1]) in FEMALE else "male",
            "label": BLOCKS[(int(match[2]) - 1) // 350 % 5],
            "text": f"{'mandarin' if int(match[1]) <= 10 else 'english'} {(int(match[2]) - 1) % 350 + 1}",
        },
    )
