"""What stage 08 works on: a fold's rated utterances, and how their speakers sound to the encoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data import speakers
from gmp_utils.data.corpus import RATINGS, Corpus, open_corpus
from gmp_utils.runs.paths import PERSONALIZE, run_folder
from gmp_utils.runs.stage import check_and_identify

SUMMARIES = ("mean", "std", "max")


@dataclass(frozen=True)
class RatingTask:
    """What is to be rated, from what, on which fold.

    Attributes
    ----------
    run_dir : str
    fold : int
    encoder : str
        See `gmp_utils.runs.weights.resolve`.
    attributes : list of str
        Of valence, arousal and dominance.
    neighbours : int
        Training speakers that an unseen one is made up of, and calibrated by.
    train_encoder : bool
        False trains the interpreter alone.
    """

    run_dir: str
    fold: int
    encoder: str
    attributes: list[str]
    neighbours: int = 15
    train_encoder: bool = False

    @property
    def folder(self) -> Path:
        """Of the fold's stages."""
        return run_folder(self.run_dir) / f"fold{self.fold}" / PERSONALIZE


@dataclass(frozen=True)
class RatedFold:
    """A fold's utterances that have ratings, and how their speakers sound to the untouched encoder.

    Attributes
    ----------
    corpus : Corpus
    parts : dict of str to list of str
        Each in order of length.
    summaries : dict of str to DataFrame
        "mean", "std" and "max" over time, a row per utterance.
    alike : DataFrame
        Cosines of mean features, speakers × training speakers.
    frames : Path or None
        Store of the frames that a system reads, the untouched encoder's at first; None where the encoder
        is trained.
    """

    corpus: Corpus
    parts: dict[str, list[str]]
    summaries: dict[str, pd.DataFrame]
    alike: pd.DataFrame
    frames: Path | None

    @property
    def speaker(self) -> pd.Series:
        """Of each utterance."""
        return self.corpus.manifest.speaker

    @property
    def utterances(self) -> list[str]:
        """Of all parts."""
        return [name for own in self.parts.values() for name in own]

    def speaker_weights(self, k: int) -> dict[str, np.ndarray]:
        """For each utterance, how its speaker is made up of training speakers; see `speakers.mixing`."""
        made_of = speakers.speaker_weights(self.alike, k)
        speaker = self.speaker[self.utterances]
        return {name: made_of.loc[who].to_numpy(np.float32) for name, who in speaker.items()}


def open_fold(task: RatingTask) -> RatedFold:
    """What systems are trained on.

    Raises
    ------
    GmpError
        If the corpus lacks an attribute, a part of the fold has no rated utterances, or features are missing.
    """
    corpus = open_corpus(task.run_dir)
    corpus.check_encoder(task.encoder, task.fold)
    manifest = corpus.manifest
    lacking = [
        name for name in task.attributes if name not in manifest or manifest[name].isna().all()
    ]
    if lacking or not task.attributes:
        known = [name for name in RATINGS if name in manifest]
        raise GmpError(
            f"attributes {task.attributes}: expected some of {', '.join(known) or 'none'}, the ratings that "
            f"{corpus.name} has."
        )
    rated = manifest[task.attributes].notna().all(axis=1)
    parts = {
        part: [name for name in own if rated[name]]
        for part, own in corpus.partition(task.fold).items()
    }
    needed = {"train", corpus.protocol.selection_part, "test"}
    empty = [part for part in needed if not parts[part]]
    if empty:
        raise GmpError(f"fold {task.fold}: no rated utterance for {' and '.join(empty)}.")
    stage = run_folder(task.run_dir) / PERSONALIZE / "heard"
    check_and_identify(stage)
    summaries = {
        how: pd.DataFrame(np.load(stage / f"{how}.npy", allow_pickle=False), manifest.index)
        for how in SUMMARIES
    }
    names = [name for own in parts.values() for name in own]
    means = speakers.by_speaker(summaries["mean"].loc[names].to_numpy(), manifest.speaker[names])
    learnt = sorted(manifest.speaker[parts["train"]].unique())
    frames = None if task.train_encoder else stage / "frames"
    return RatedFold(corpus, parts, summaries, speakers.cosines(means, means.loc[learnt]), frames)
