"""CREMA-D: 91 actors, 6 emotions, 7,442 recordings.

Names are `<actor>_<sentence>_<emotion>_<level>.wav`.
"""

from pathlib import Path

import pandas as pd

from gmp_utils.data.corpora.names import scan

NAME = (
    r"(\d{4})_(IEO|TIE|IOM|IWW|TAI|MTI|IWL|ITH|DFA|ITS|TSI|WSI)_(ANG|DIS|FEA|HAP|NEU|SAD)"
    r"_(LO|MD|HI|XX)\.wav"
)
EMOTIONS = {
    "ANG": "angry",
    "DIS": "disgusted",
    "FEA": "fearful",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
# VideoDemographics.csv; the other 48 of 1001 to 1091 are male.
FEMALE = {
    *(1002, 1003, 1004, 1006, 1007, 1008, 1009, 1010, 1012, 1013, 1018, 1020, 1021, 1024, 1025),
    *(1028, 1029, 1030, 1037, 1043, 1046, 1047, 1049, 1052, 1053, 1054, 1055, 1056, 1058, 1060),
    *(1061, 1063, 1072, 1073, 1074, 1075, 1076, 1078, 1079, 1082, 1084, 1089, 1091),
}


def load(folder: Path) -> pd.DataFrame:
    """Read the manifest; see `gmp_utils.data.corpora.load`."""
    return scan(
        folder,
        NAME,
        lambda match: {
            "speaker": match[1],
            "gender": "female" if int(match[1]) in FEMALE else "male",
            "label": match[3],
            "text": match[2],
        },
    )
