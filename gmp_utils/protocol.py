"""Who is trained on, who is tested on, and how an epoch is chosen."""

import hashlib
from dataclasses import asdict, dataclass

import pandas as pd

from gmp_utils.errors import GmpError
from gmp_utils.ragged import Ragged

SELECTIONS = {
    "validation": "the epoch is the best one on validation speakers",
    "last": "the last epoch is reported",
    "oracle": "ORACLE: the epoch is the best one on the test speakers",
}


@dataclass(frozen=True)
class Protocol:
    """Folds and rules; recorded with every result.

    Attributes
    ----------
    fold_by : str
        "session" or "speaker": what a fold holds out.
    folds : tuple of tuple of str
        The speakers that each fold tests on; fold 1 comes first. A fold's validation speakers are
        the next fold's test speakers, the last fold's are the first's.
    selection : str
        One of `SELECTIONS`.
    transductive : bool
        Whether clustering and retraining also hear the held-out speakers' unlabelled audio.
    """

    fold_by: str
    folds: tuple[tuple[str, ...], ...]
    selection: str = "validation"
    transductive: bool = False

    def __post_init__(self):
        if self.selection not in SELECTIONS:
            raise GmpError(f"selection {self.selection!r}: expected one of {list(SELECTIONS)}.")
        object.__setattr__(self, "folds", tuple(tuple(fold) for fold in self.folds))
        if len(self.folds) < 3:
            raise GmpError(
                f"{len(self.folds)} folds: test, validation and training speakers need at least 3."
            )

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def compared_on(self) -> str:
        """The part of a fold that epochs are compared on."""
        return "test" if self.selection == "oracle" else "validation"

    @property
    def unsupervised_parts(self) -> tuple[str, ...]:
        """The parts of a fold that clustering and retraining hear."""
        return ("train", "validation", "test") if self.transductive else ("train",)

    def describe(self) -> str:
        """The protocol in one sentence."""
        heard = (
            "TRANSDUCTIVE: clustering and retraining hear all speakers"
            if self.transductive
            else "clustering and retraining hear training speakers only"
        )
        return (
            f"{len(self.folds)} folds by {self.fold_by}, validation and test speakers disjoint from "
            f"training; {heard}; {SELECTIONS[self.selection]}."
        )

    def parts(self, manifest: pd.DataFrame, fold: int) -> pd.Series:
        """Say of each utterance where it belongs.

        Parameters
        ----------
        manifest : DataFrame
            With `speaker` and `emotion`.
        fold : int
            From 1.

        Returns
        -------
        parts : Series of str
            "train", "validation" or "test", with the manifest's index.

        Raises
        ------
        GmpError
            If the fold does not exist, or a class is absent from its training speakers.
        """
        if not 1 <= fold <= len(self.folds):
            raise GmpError(f"fold {fold}: this protocol has folds 1 to {len(self.folds)}.")
        test, validation = self.folds[fold - 1], self.folds[fold % len(self.folds)]
        parts = pd.Series("train", index=manifest.index)
        parts[manifest.speaker.isin(validation)] = "validation"
        parts[manifest.speaker.isin(test)] = "test"
        for column in ("emotion", "gender"):
            absent = set(manifest[column]) - set(manifest[column][parts == "train"])
            if absent:
                raise GmpError(
                    f"fold {fold}: no training speaker has {column} {sorted(absent)}; leave it out "
                    "(parameter emotions) or fold otherwise (parameter n_folds)."
                )
        return parts


def check_leakage(manifest: pd.DataFrame, waveforms: Ragged) -> None:
    """Refuse a recording that is there twice under different speakers.

    Folds keep speakers apart, so the same samples on both sides of one need two speakers' names.

    Parameters
    ----------
    manifest : DataFrame
        With `utterance` and `speaker`.
    waveforms : Ragged

    Raises
    ------
    GmpError
        Naming both utterances.
    """
    seen: dict[str, tuple[str, str]] = {}
    for utterance, speaker in zip(manifest.utterance, manifest.speaker):
        digest = hashlib.sha256(waveforms[utterance].tobytes()).hexdigest()
        other, other_speaker = seen.setdefault(digest, (utterance, speaker))
        if other_speaker != speaker:
            raise GmpError(
                f"{other} (speaker {other_speaker}) and {utterance} (speaker {speaker}) hold the same "
                "samples: one recording would be trained on and tested on. Remove one, or mend its "
                "speaker."
            )


def shared_sentences(manifest: pd.DataFrame, parts: pd.Series) -> float | None:
    """Share of the test utterances whose sentence training speakers say too.

    Parameters
    ----------
    manifest : DataFrame
        With `text` where the corpus has it.
    parts : Series of str
        See `Protocol.parts`.

    Returns
    -------
    share : float or None
        0 to 1; None without transcripts.
    """
    if "text" not in manifest or manifest.text.isna().all():
        return None
    said = manifest.text.str.lower().str.strip()
    return float(said[parts == "test"].isin(said[parts == "train"].dropna()).mean())


def make_protocol(
    manifest: pd.DataFrame,
    fold_by: str = "auto",
    n_folds: int = 5,
    selection: str = "validation",
    transductive: bool = False,
) -> Protocol:
    """Lay out the folds of a corpus.

    Parameters
    ----------
    manifest : DataFrame
        With `speaker`, `gender` and, where the corpus has them, `session`.
    fold_by : str
        "session" holds out one session, "speaker" one of `n_folds` groups of speakers with women
        and men dealt out evenly; "auto" takes sessions where there are any.
    n_folds : int
        Groups of speakers; sessions are as many as there are.
    selection, transductive
        See `Protocol`.

    Raises
    ------
    GmpError
        If the corpus has no sessions or too few speakers for it.
    """
    has_sessions = "session" in manifest and manifest.session.notna().all()
    if fold_by == "auto":
        fold_by = "session" if has_sessions else "speaker"
    if fold_by == "session":
        if not has_sessions:
            raise GmpError('fold_by "session": the corpus names no sessions; use "speaker".')
        groups = manifest.groupby("session").speaker.unique().sort_index()
        folds = [sorted(speakers) for speakers in groups]
    elif fold_by == "speaker":
        speakers = manifest.groupby("speaker").gender.first().sort_index()
        if len(speakers) < n_folds:
            raise GmpError(f"n_folds {n_folds}: the corpus has {len(speakers)} speakers.")
        women_then_men = speakers.sort_values(kind="stable").index
        folds = [sorted(women_then_men[fold::n_folds]) for fold in range(n_folds)]
    else:
        raise GmpError(f'fold_by {fold_by!r}: expected "auto", "session" or "speaker".')
    return Protocol(fold_by, tuple(map(tuple, folds)), selection, transductive)
