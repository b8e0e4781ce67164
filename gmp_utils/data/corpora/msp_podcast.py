"""MSP-Podcast: labelled turns of podcasts, in the splits of its release.

Labels are in `Labels/labels_consensus.csv`, which older releases misspell; a turn's name may have a
third number. Speakers and genders may be "Unknown", which is no value here.
"""

from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.corpora.labels import locate, read_table
from gmp_utils.data.corpora.names import with_unlabelled

EMOTIONS = {
    "A": "angry",
    "S": "sad",
    "H": "happy",
    "U": "surprised",
    "F": "fearful",
    "D": "disgusted",
    "C": "contemptuous",
    "N": "neutral",
    "O": "other",
    "X": "no agreement",
}
TEXTS = ("FileName", "EmoClass", "SpkrID", "Gender", "Split_Set")
NUMBERS = ("EmoVal", "EmoAct", "EmoDom")


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest; see `gmp_utils.data.corpora.load`.

    Raises
    ------
    GmpError
        Without labels or recordings, or if a turn that has a label has no recording, or one elsewhere.
    """
    labels = [folder / "Labels" / f"labels_{word}.csv" for word in ("consensus", "concensus")]
    audio = [folder / name for name in ("Audios", "Audio")]
    try:
        labels = next(path for path in labels if path.is_file())
        audio = next(path for path in audio if path.is_dir())
    except StopIteration:
        raise GmpError(
            f"{folder}: expected Labels/labels_consensus.csv and Audios/; give the release's folder."
        ) from None
    table = read_table(labels, (*TEXTS, *NUMBERS), TEXTS, NUMBERS)
    paths = locate(table.FileName, audio, labels, f"expected the name of a file in {audio.name}/")
    table[["SpkrID", "Gender"]] = table[["SpkrID", "Gender"]].replace({"Unknown": None})
    manifest = pd.DataFrame(
        {
            "utterance": [Path(path).stem for path in paths],
            "path": paths,
            "speaker": table.SpkrID,
            "gender": table.Gender.str.lower(),
            "label": table.EmoClass,
            "valence": table.EmoVal,
            "arousal": table.EmoAct,
            "dominance": table.EmoDom,
            "split": table.Split_Set.replace({"Development": "Validation"}).str.lower(),
        }
    )
    return with_unlabelled(manifest, audio.glob("*.wav"))
