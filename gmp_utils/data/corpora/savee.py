"""SAVEE: 4 men, 7 emotions, 480 recordings.

Names are `<emotion><number>.wav` in a folder per speaker, or `<speaker>_<emotion><number>.wav`.
"""

from pathlib import Path

import pandas as pd

from gmp_utils.data.corpora.names import scan

SPEAKERS = ("DC", "JE", "JK", "KL")
NAME = r"(?:(DC|JE|JK|KL)_)?(sa|su|a|d|f|h|n)(\d\d)\.wav"
EMOTIONS = {
    "a": "angry",
    "d": "disgusted",
    "f": "fearful",
    "h": "happy",
    "n": "neutral",
    "sa": "sad",
    "su": "surprised",
}


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest; see `gmp_utils.data.corpora.load`."""
    manifest = scan(
        folder,
        NAME,
        lambda match: {"speaker": match[1], "gender": "male", "label": match[2]},
    )
    if manifest.empty:
        return manifest
    folders = manifest.path.map(lambda path: Path(path).parent.name)
    speakers = manifest.speaker.fillna(folders).where(manifest.label.notna())
    known = speakers.isin(SPEAKERS)
    codes = manifest.utterance.str.rpartition("_")[2]
    manifest["utterance"] = (speakers + "_" + codes).where(known, manifest.path)
    manifest["speaker"] = speakers.where(known)
    manifest[["gender", "label"]] = manifest[["gender", "label"]].where(known)
    return manifest
