"""The data of stage 08: a fold's rated utterances, and the similarity of their speakers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data import speakers
from gmp_utils.data.corpus import RATINGS, Corpus, open_corpus
from gmp_utils.runs.paths import PERSONALIZE, fold_folder, run_folder
from gmp_utils.runs.stage import check_and_identify

STATISTICS = ("mean", "std", "max")  # of each utterance's frames


@dataclass(frozen=True)
class RatingTask:
    """The prediction of `attributes`, a subset of `RATINGS`, on one fold.

    `neighbors` is the number of training speakers that represent and calibrate an unseen speaker. Without
    `train_encoder`, only the regression head is trained.
    """

    run_dir: str
    fold: int
    encoder: str
    attributes: list[str]
    neighbors: int = 15
    train_encoder: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the fold's stages."""
        return fold_folder(self.run_dir, self.fold) / PERSONALIZE

    @property
    def feature_stage(self) -> Path:
        """Stage of the utterance features, which all folds share."""
        return run_folder(self.run_dir) / PERSONALIZE / "utterance_features"


@dataclass(frozen=True)
class RatedFold:
    """A fold's utterances that have ratings.

    Attributes
    ----------
    features : dict of str to (n_utterances, hidden_size) DataFrame
        "mean", "std" and "max" over time of the pre-trained encoder's last layer.
    similarity : (n_speakers, n_training_speakers) DataFrame
        Cosines of mean features.
    frames : Path
        Store of the last layer's frames, the models' inputs unless the encoder is trained.
    """

    task: RatingTask
    corpus: Corpus
    parts: dict[str, list[str]]
    features: dict[str, pd.DataFrame]
    similarity: pd.DataFrame
    frames: Path

    @property
    def speaker(self) -> pd.Series:
        """Speaker of each utterance of the corpus."""
        return self.corpus.manifest.speaker

    @property
    def utterances(self) -> list[str]:
        """Utterances of all parts."""
        return sum(self.parts.values(), [])

    @property
    def mixtures(self) -> pd.DataFrame:
        """Weights of training speakers for each utterance's speaker, utterances × training speakers."""
        mixtures = speakers.speaker_weights(self.similarity, self.task.neighbors)
        names = self.utterances
        return mixtures.astype(np.float32).loc[self.speaker[names]].set_axis(names)


def open_fold(task: RatingTask) -> RatedFold:
    """Open a fold. Its utterance features must have been computed."""
    corpus = open_corpus(task.run_dir)
    corpus.check_encoder(task.encoder, task.fold)
    manifest = corpus.manifest
    available = [name for name in RATINGS if name in manifest and manifest[name].notna().any()]
    if not task.attributes or not set(task.attributes) <= set(available):
        names = ", ".join(available) or "none"
        raise GmpError(f"attributes {task.attributes}: {corpus.name} has the ratings {names}.")
    is_rated = manifest[task.attributes].notna().all(axis=1)
    parts = corpus.partition(task.fold).items()
    parts = {part: [name for name in names if is_rated[name]] for part, names in parts}
    empty = {part for part in ("train", corpus.protocol.selection_part, "test") if not parts[part]}
    if empty:
        raise GmpError(f"fold {task.fold}: no rated utterance for {' and '.join(sorted(empty))}.")
    check_and_identify(task.feature_stage)
    features = {
        name: pd.DataFrame(np.load(task.feature_stage / f"{name}.npy"), manifest.index)
        for name in STATISTICS
    }
    names = sum(parts.values(), [])
    means = features["mean"].loc[names].groupby(manifest.speaker[names]).mean()
    training = sorted(manifest.speaker[parts["train"]].unique())
    similarity = speakers.similarities(means, training)
    return RatedFold(task, corpus, parts, features, similarity, task.feature_stage / "frames")
