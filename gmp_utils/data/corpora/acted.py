"""Acted corpora whose file names contain all labels; add an entry to `ACTED` for another one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.audio import find_recordings
from gmp_utils.data.corpora._labels import SUFFIXES, add_unlabeled


@dataclass(frozen=True)
class ActedCorpus:
    """How one corpus names its recordings.

    Attributes
    ----------
    pattern : str
        Regular expression for the end of a path without suffix, starting at a file or folder name, with the
        groups `speaker`, `label` and, if the sentence is known, `text`.
    emotions : dict of str to str
        Emotions by label.
    female : str
        Female speakers, separated by spaces; all others are male.
    fields : callable
        Maps a match to further columns, which replace groups of the pattern.
    """

    pattern: str
    emotions: dict[str, str]
    female: str
    fields: Callable[[re.Match], dict[str, str]] = lambda match: {}

    def load(self, folder: Path) -> pd.DataFrame:
        """Read the manifest. Case is ignored, and recordings that do not match come last, without labels."""
        pattern = re.compile(rf"(?s:.*/)?{self.pattern}", re.IGNORECASE)
        paths = find_recordings(folder.rglob("*"), SUFFIXES)
        rows = [
            {"utterance": path.stem, "path": str(path)} | match.groupdict() | self.fields(match)
            for path in paths
            if (match := pattern.fullmatch(str(path.with_suffix(""))))
        ]
        manifest = pd.DataFrame(
            rows, columns=None if rows else ["utterance", "path", "speaker", "label"]
        )
        for _, copies in manifest[manifest.utterance.duplicated(keep=False)].groupby("utterance"):
            raise GmpError(f"{copies.path.iloc[1]}: also at {copies.path.iloc[0]}; use one folder.")
        labels = {label.lower(): label for label in self.emotions}
        manifest["label"] = manifest.label.str.lower().map(labels)
        manifest["speaker"] = manifest.speaker.str.upper()
        is_female = manifest.speaker.isin(self.female.split())
        manifest["gender"] = is_female.map({True: "female", False: "male"})
        return add_unlabeled(manifest, paths)


def _esd_fields(match: re.Match) -> dict[str, str]:
    """Label and sentence by number: 350 sentences per emotion, the same for all speakers of a language."""
    index = int(match[2]) - 1
    language = "mandarin" if int(match["speaker"]) <= 10 else "english"
    label = ("neutral", "angry", "happy", "sad", "surprised")[index // 350 % 5]
    return {"label": label, "group": language, "text": f"{language} {index % 350 + 1}"}


ACTED = {
    # CREMA-D: 91 actors, 7,442 recordings, <actor>_<sentence>_<emotion>_<level>.wav
    "crema_d": ActedCorpus(
        r"(?P<speaker>10(?:0[1-9]|[1-8]\d|9[01]))_(?P<text>IEO|TIE|IOM|IWW|TAI|MTI|IWL|ITH|DFA|ITS|TSI|WSI)"
        r"_(?P<label>ANG|DIS|FEA|HAP|NEU|SAD)_(?:LO|MD|HI|XX|X)",  # one file has a single X
        {"ANG": "angry", "DIS": "disgusted", "FEA": "fearful", "HAP": "happy", "NEU": "neutral",
         "SAD": "sad"},
        # VideoDemographics.csv; the other 48 of 1001 to 1091 are male
        "1002 1003 1004 1006 1007 1008 1009 1010 1012 1013 1018 1020 1021 1024 1025 1028 1029 1030 "
        "1037 1043 1046 1047 1049 1052 1053 1054 1055 1056 1058 1060 1061 1063 1072 1073 1074 1075 "
        "1076 1078 1079 1082 1084 1089 1091",
    ),
    # RAVDESS, audio-only speech (03-01): 24 actors, 1,440 recordings, seven two-digit fields
    "ravdess": ActedCorpus(
        r"03-01-(?P<label>0[1-8])-0[12]-(?P<text>0[12])-0[12]-(?P<speaker>0[1-9]|1\d|2[0-4])",
        {"01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fearful",
         "07": "disgusted", "08": "surprised"},
        "02 04 06 08 10 12 14 16 18 20 22 24",
    ),
    # EmoDB: 10 speakers, 535 recordings, SSTTTEV.wav: speaker, text, German initial, version
    "emodb": ActedCorpus(
        r"(?P<speaker>03|08|09|10|11|12|13|14|15|16)(?P<text>[ab]\d\d)(?P<label>[WLEAFTN])[a-z]?",
        {"W": "angry", "L": "bored", "E": "disgusted", "A": "fearful", "F": "happy", "T": "sad",
         "N": "neutral"},
        "08 09 13 14 16",
    ),
    # SAVEE: 4 men, 480 recordings, <speaker>/<emotion><number>.wav or <speaker>_<emotion><number>.wav
    "savee": ActedCorpus(
        r"(?P<speaker>DC|JE|JK|KL)[/_](?P<label>sa|su|a|d|f|h|n)(\d\d)",
        {"a": "angry", "d": "disgusted", "f": "fearful", "h": "happy", "n": "neutral", "sa": "sad",
         "su": "surprised"},
        "",
        lambda match: {"utterance": f"{match['speaker']}_{match['label']}{match[3]}"},
    ),
    # TESS: 2 women, 2,800 recordings, <speaker>_<word>_<emotion>.wav; ps is a pleasant surprise
    "tess": ActedCorpus(
        # one file lacks the F
        r"(?P<speaker>OAF?|YAF)_(?P<text>[a-z]+)_(?P<label>angry|disgust|fear|happy|neutral|ps|sad)",
        {"angry": "angry", "disgust": "disgusted", "fear": "fearful", "happy": "happy",
         "neutral": "neutral", "ps": "surprised", "sad": "sad"},
        "OAF YAF",
        lambda match: {"speaker": {"OA": "OAF"}.get(match["speaker"], match["speaker"])},
    ),
    # ESD: 20 speakers of Mandarin or English, 35,000 recordings, <speaker>_<number>.wav
    "esd": ActedCorpus(
        r"(?P<speaker>00(?:0[1-9]|1\d|20))_(?!0{6})(000\d{3}|001[0-6]\d\d|0017[0-4]\d|001750)",
        {name: name for name in ("neutral", "angry", "happy", "sad", "surprised")},
        "0001 0002 0003 0007 0009 0015 0016 0017 0018 0019",
        _esd_fields,
    ),
    # EMOVO, Italian: 6 actors, 588 recordings, <emotion>-<speaker>-<sentence>.wav
    "emovo": ActedCorpus(
        r"(?P<label>dis|gio|neu|pau|rab|sor|tri)-(?P<speaker>[fm][1-3])"
        r"-(?P<text>b[1-3]|d[12]|l[1-4]|n[1-5])",
        {"dis": "disgusted", "gio": "happy", "neu": "neutral", "pau": "fearful", "rab": "angry",
         "sor": "surprised", "tri": "sad"},
        "F1 F2 F3",
    ),
    # CaFE, Canadian French: 12 actors, 936 recordings, <speaker>-<emotion>-<intensity>-<sentence>.wav
    "cafe": ActedCorpus(
        # neutral recordings at 192 kHz have no intensity
        r"(?P<speaker>0[1-9]|1[0-2])-(?P<label>[CDJNPST])-(?:[12]-)?(?P<text>[1-6])",
        {"C": "angry", "D": "disgusted", "J": "happy", "N": "neutral", "P": "fearful",
         "S": "surprised", "T": "sad"},
        "02 04 06 08 10 12",
        lambda match: {"text": f"sentence {match['text']}"},
    ),
    # JL-Corpus, New Zealand English: 4 speakers, 2,400 recordings; numbers of sentences depend on the emotion
    "jl_corpus": ActedCorpus(
        r"(?P<speaker>(?:fe)?male[12])_(?P<label>angry|anxious|apologetic|assertive|concerned"
        r"|encouraging|excited|happy|neutral|sad)_(?:[1-9]|1[0-5])[ab]_[12]",
        {name: name for name in ("angry", "anxious", "apologetic", "assertive", "concerned",
                                 "encouraging", "excited", "happy", "neutral", "sad")},
        "FEMALE1 FEMALE2",
    ),
    # ShEMO, Persian radio plays: 87 speakers, 3,000 recordings, 162 of which shemo.json names differently
    "shemo": ActedCorpus(
        r"(?P<speaker>F(?:0[1-9]|[12]\d|3[01])|M(?:0[1-9]|[1-4]\d|5[0-6]))(?P<label>[AFHNSW])\d\d",
        {"A": "angry", "F": "fearful", "H": "happy", "N": "neutral", "S": "sad", "W": "surprised"},
        " ".join(f"F{number:02}" for number in range(1, 32)),
    ),
    # EmoV-DB, English: 4 speakers, 6,893 recordings, in folders such as bea/Amused or bea_Amused
    "emov_db": ActedCorpus(
        r"(?P<speaker>bea|jenie|josh|sam)[/_](?:amused|angry|disgusted|neutral|sleepy)"
        # some ranges of sentences have _ instead of -
        r"/((?P<label>amused|anger|disgust|neutral|sleepiness)_\d+[-_]\d+_(?P<text>\d{4}))",
        {"amused": "amused", "anger": "angry", "disgust": "disgusted", "neutral": "neutral",
         "sleepiness": "sleepy"},
        "BEA JENIE",
        lambda match: {"utterance": f"{match['speaker']}_{match[2]}"},
    ),
}  # fmt: skip
