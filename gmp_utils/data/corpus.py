"""A prepared corpus: its manifest, waveforms and protocol."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data.protocol import PARTS, UNUSED, Protocol
from gmp_utils.data.ragged import Ragged
from gmp_utils.runs import weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import PREPARE_DATA, run_folder
from gmp_utils.runs.stage import check_and_identify

RECORDINGS = "recordings"  # stage of the decoded waveforms
MISSING = {"emotion": "no label", "speaker": "no speaker", "gender": "no gender"}
RATINGS = ("valence", "arousal", "dominance")


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, and its stage of notebook 01 with problems.parquet and leakage.parquet.

    The manifest (see `gmp_utils.data.corpora.check`) is indexed by utterance and has `duration` in seconds.
    Waveforms are int16 at 16 kHz.
    """

    manifest: pd.DataFrame
    waveforms: Ragged
    protocol: Protocol
    stage: Path

    @property
    def name(self) -> str:
        """Name of the corpus, or "training corpus → test corpus"."""
        return " → ".join(self.manifest.corpus.unique())

    @property
    def emotions(self) -> list[str]:
        """The classes, in alphabetical order."""
        return sorted(self.manifest.emotion.dropna().unique())

    def labels(self, utterances: list[str], column: str) -> np.ndarray:
        """Integer labels, (n_utterances,): indices into the sorted values of a column in the corpus."""
        unknown = self.manifest.utterance[self.manifest[column].isna()]
        if len(unknown):
            found = f"{unknown.iloc[0]} has no {column}, which is needed here ({len(unknown)} such)"
            raise GmpError(
                f'{found}; add them, or exclude "{MISSING[column]}" in notebook 01'
                + (", or set alpha to 1." if column == "gender" else ".")
            )
        values = sorted(self.manifest[column].unique())
        return self.manifest[column].loc[utterances].map(values.index).to_numpy(dtype=np.int64)

    def partition(self, fold: int) -> dict[str, list[str]]:
        """Utterances of each of the `PARTS` of a fold, in order of length."""
        parts = self.protocol.parts(self.manifest, fold)
        ordered = self.manifest.duration.sort_values(kind="stable").index
        return {part: [name for name in ordered if parts[name] == part] for part in PARTS}

    def check_encoder(self, encoder: str, fold: int) -> None:
        """Reject an encoder that was trained or selected on recordings that a fold holds out.

        Recordings are matched by a hash of their samples, so re-cut or re-encoded copies are missed.
        Transductive protocols allow training without labels on all parts, and others only on the part
        "unlabeled". A model may have been selected on the part on which the fold selects.
        """
        recordings = weights.training_recordings(weights.resolve(encoder))
        used = pd.DataFrame(sorted(recordings), columns=["digest", "labeled_in"])
        parts = self.protocol.parts(self.manifest, fold)
        used = self.manifest[["utterance", "digest"]].assign(part=parts).merge(used, on="digest")
        selected = (used.part == self.protocol.selection_part) & (used.part == used.labeled_in)
        permitted = used.part.isin(self.protocol.unsupervised_parts) | self.protocol.transductive
        unsupervised = used.labeled_in.eq("") & permitted
        leaked = used[~(used.part.isin(["train", UNUSED]) | selected | unsupervised)]
        if len(leaked):
            parts = " or ".join(sorted(set(leaked.part)))
            raise GmpError(
                f"encoder {encoder!r} was trained or selected on {leaked.utterance.nunique()} {parts} "
                f"recordings of fold {fold}, such as {leaked.utterance.iloc[0]}; use another encoder or fold."
            )

    def write_training_recordings(self, folder: Path, fold: int, source: str) -> None:
        """List next to a fold's model the recordings that it and its initial model were trained on."""
        parts, rules = self.protocol.parts(self.manifest, fold), self.protocol
        labeled = parts.isin(["train", rules.selection_part])
        used = labeled | parts.isin(rules.unsupervised_parts)
        recordings = zip(self.manifest.digest[used], parts.where(labeled, "")[used])
        before = weights.training_recordings(source)
        weights.write_training_recordings(folder, before | set(recordings))


def open_corpus(run_dir: str) -> Corpus:
    """Open the corpus that notebook 01 prepared in a run's folder."""
    stage, recordings = run_folder(run_dir) / PREPARE_DATA, run_folder(run_dir) / RECORDINGS
    check_and_identify(stage)
    check_and_identify(recordings)
    manifest = pd.read_parquet(stage / "manifest.parquet").set_index("utterance", drop=False)
    protocol = Protocol(**read_json(stage / "protocol.json"))
    return Corpus(manifest, Ragged.open(recordings / "waveforms"), protocol, stage)
