"""Who is trained on, who is tested on, and how an epoch is chosen."""

from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd

from gmp_utils import GmpError

FOLD_RULES = {
    "session": "by session",
    "speaker": "by speaker",
    "leave-one-speaker-out": "of one speaker each",
    "split": "as the corpus's official split",
    "cross-corpus": "with one corpus trained on and another tested on",
}
VALIDATIONS = {
    "speakers": "validation speakers are disjoint from both",
    "share": "VALIDATION SHARES SPEAKERS: it is a random tenth of the training utterances",
    "none": "THERE IS NO VALIDATION: curves and probes show the test speakers",
}
SELECTIONS = {
    "validation": "the epoch is the best one on validation",
    "last": "the last epoch is reported",
    "oracle": "ORACLE: the epoch is the best one on the test speakers",
}
PARTS = ("train", "validation", "test")
UNUSED = "unused"  # in no part of a fold
SHARE = 0.1  # of the training utterances, where validation is a share of them


@dataclass(frozen=True)
class Protocol:
    """Folds and rules; recorded with every result.

    Attributes
    ----------
    fold_by : str
        What a fold holds out, one of `FOLD_RULES`.
    folds : tuple of tuple of str
        The speakers that each fold tests on; fold 1 comes first.
    validation : str
        Where epochs are compared, one of `VALIDATIONS`.
    validation_folds : tuple of tuple of str
        The speakers that each fold validates on; none unless `validation` is "speakers".
    selection : str
        How the epoch is chosen, one of `SELECTIONS`.
    transductive : bool
        Whether what needs no labels may hear the held-out speakers: clustering, retraining, and the
        encoder's own pre-training.
    female_share : float or None
        Share of women among the training utterances: every share is drawn from as many utterances as
        the smaller gender has. None takes all training utterances.
    """

    fold_by: str
    folds: tuple[tuple[str, ...], ...]
    validation: str
    validation_folds: tuple[tuple[str, ...], ...]
    selection: str
    transductive: bool
    female_share: float | None

    def __post_init__(self):
        for name in ("folds", "validation_folds"):
            object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Protocol":
        """The reverse of `to_dict`.

        Raises
        ------
        GmpError
            If it is an older version's.
        """
        expected = [field.name for field in fields(cls)]
        if sorted(values) != sorted(expected):
            raise GmpError(
                f"a protocol with {', '.join(values)}, expected {', '.join(expected)}; run "
                "notebooks/01_prepare_data.ipynb again."
            )
        return cls(**values)

    @property
    def selection_part(self) -> str:
        """The part of a fold that epochs and layers are compared on."""
        return "test" if self.selection == "oracle" or self.validation == "none" else "validation"

    @property
    def unsupervised_parts(self) -> tuple[str, ...]:
        """The parts of a fold that clustering and retraining hear."""
        return PARTS if self.transductive else ("train",)

    @property
    def describe_folds(self) -> str:
        """Its folds in a few words."""
        folds = "1 fold" if len(self.folds) == 1 else f"{len(self.folds)} folds"
        return f"{folds} {FOLD_RULES[self.fold_by]}"

    def describe(self) -> str:
        """The protocol in one sentence."""
        heard = (
            "TRANSDUCTIVE: clustering, retraining and the encoder may have heard all speakers"
            if self.transductive
            else "clustering and retraining hear training speakers only"
        )
        if self.female_share is not None:
            heard += (
                f"; {self.female_share:.0%} of the training utterances are women's, the rest unused"
            )
        return (
            f"{self.describe_folds}, test speakers disjoint from training; "
            f"{VALIDATIONS[self.validation]}; {heard}; {SELECTIONS[self.selection]}."
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
            "train", "validation", "test", or `UNUSED`, with the manifest's index.

        Raises
        ------
        GmpError
            If the fold does not exist, or a class is absent from its training speakers.
        """
        if not 1 <= fold <= len(self.folds):
            raise GmpError(f"fold {fold}: this protocol has folds 1 to {len(self.folds)}.")
        parts = pd.Series("train", index=manifest.index)
        parts[manifest.speaker.isin(self.validation_folds[fold - 1])] = "validation"
        parts[manifest.speaker.isin(self.folds[fold - 1])] = "test"
        if self.validation == "share":
            training = parts.index[parts == "train"]
            chosen = np.random.default_rng(fold).permutation(len(training))
            parts[training[chosen[: max(round(SHARE * len(training)), 1)]]] = "validation"
        if self.female_share is not None:
            training = manifest[parts == "train"].sample(frac=1, random_state=fold)
            alike = training.groupby(["gender", "emotion"]).emotion
            turn = alike.cumcount() / alike.transform(
                "size"
            )  # so that every emotion keeps its share
            training = training.loc[turn.sort_values(kind="stable").index]
            size = training.gender.value_counts().reindex(["female", "male"], fill_value=0).min()
            n_women = round(self.female_share * size)
            women, men = (training.index[training.gender == name] for name in ("female", "male"))
            parts[training.index] = UNUSED
            parts[women[:n_women].union(men[: size - n_women])] = "train"
        absent = set(manifest.emotion.dropna()) - set(manifest.emotion[parts == "train"])
        if absent:
            raise GmpError(
                f"fold {fold}: no training speaker has emotion {sorted(absent)}; leave it out (parameter "
                "emotions) or fold otherwise (parameters fold_by, n_folds)."
            )
        return parts


def check_leakage(manifest: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """Refuse folds whose test part was trained on; count what cannot be refused.

    Parameters
    ----------
    manifest : DataFrame
        With `utterance`, `speaker`, `digest` of the decoded samples and, where the corpus has it,
        `text`.
    protocol : Protocol

    Returns
    -------
    report : DataFrame
        By fold: `speakers` and `recordings` on both sides, and `sentences`, the share of test
        utterances whose sentence training speakers say too; missing without transcripts.

    Raises
    ------
    GmpError
        Naming two recordings with the same samples, of which one is held out.
    """
    said = pd.Series(np.nan, manifest.index)
    if "text" in manifest and manifest.text.notna().any():
        said = manifest.text.str.lower().str.strip()
    rows = {}
    for fold in range(1, len(protocol.folds) + 1):
        parts = protocol.parts(manifest, fold)
        train, validation, test = (manifest[parts == part] for part in PARTS)
        _refuse_recordings(fold, test, pd.concat([train, validation]))
        _refuse_recordings(fold, validation, train)
        trained = set(said[parts == "train"].dropna())
        rows[fold] = {
            "speakers": len(set(test.speaker) & {*train.speaker, *validation.speaker}),
            "recordings": len(set(test.digest) & {*train.digest, *validation.digest}),
            "sentences": said[parts == "test"].isin(trained).mean() if trained else np.nan,
        }
    return pd.DataFrame(rows).T.rename_axis("fold").astype({"speakers": int, "recordings": int})


def _refuse_recordings(fold: int, held_out: pd.DataFrame, trained: pd.DataFrame) -> None:
    pairs = held_out.merge(trained, on="digest", suffixes=("", "_trained"))
    if len(pairs):
        one = pairs.iloc[0]
        raise GmpError(
            f"fold {fold}: {one.utterance} (speaker {one.speaker}, held out) and "
            f"{one.utterance_trained} (speaker {one.speaker_trained}) hold the same samples "
            f"({len(pairs)} such pairs). Remove one of each, or mend its speaker."
        )


def make_protocol(
    manifest: pd.DataFrame,
    fold_by: str = "auto",
    n_folds: int = 5,
    validation: str = "speakers",
    selection: str = "validation",
    transductive: bool = False,
    female_share: float | None = None,
) -> Protocol:
    """Lay out the folds of a corpus.

    Parameters
    ----------
    manifest : DataFrame
        With `corpus`, `speaker`, `gender` and, where they are known, `session` and `split`.
    fold_by : str
        "session" holds out one session after the other, "speaker" one of `n_folds` groups with women
        and men dealt out evenly, "leave-one-speaker-out" one speaker, "split" those that the corpus
        names "test", "cross-corpus" the other corpus; "auto" takes that where there are two, sessions
        where there are any, else speakers.
    n_folds : int
        Groups of speakers, for "speaker", and for "split" where it names no validation.
    validation : str
        One of `VALIDATIONS`. Validation speakers are the next fold's test speakers (the last fold's
        are the first's); those of a split are its own, or one in `n_folds` of its training speakers.
    selection, transductive, female_share
        See `Protocol`.

    Raises
    ------
    GmpError
        For an unknown rule, a share outside 0 to 1, or a rule that the corpus's sessions, splits or
        speakers do not allow.
    """
    has_sessions = "session" in manifest and manifest.session.notna().all()
    recurring = pd.Series(dtype=object)
    if has_sessions:
        recurring = _in_several_parts(manifest.speaker, manifest.session)
    n_corpora = manifest.corpus.nunique()
    if fold_by == "auto" and n_corpora > 1:
        fold_by = "cross-corpus"
    elif fold_by == "auto":
        fold_by = "session" if has_sessions and recurring.empty else "speaker"
    rules = {"fold_by": FOLD_RULES, "validation": VALIDATIONS, "selection": SELECTIONS}
    given = {"fold_by": fold_by, "validation": validation, "selection": selection}
    for name, known in rules.items():
        if given[name] not in known:
            raise GmpError(f"{name} {given[name]!r}: expected one of {', '.join(known)}.")
    if female_share is not None and not 0 <= female_share <= 1:
        raise GmpError(
            f"female_share: found {female_share}, expected 0 to 1, or -1 for all there are."
        )
    if (fold_by == "cross-corpus") != (n_corpora > 1):
        raise GmpError(
            f'fold_by {fold_by!r} with {n_corpora} corpora: "cross-corpus" takes two, as "auto" does.'
        )
    if validation == "none" and selection == "validation":
        raise GmpError('validation "none" leaves nothing to choose an epoch on: selection "last".')
    if fold_by in ("split", "cross-corpus"):
        folds, validating = _official_split(manifest, n_folds if validation == "speakers" else 1)
    elif fold_by == "session":
        if not has_sessions:
            raise GmpError('fold_by "session": the corpus names no sessions; use "speaker".')
        if len(recurring):
            raise GmpError(
                f'fold_by "session": speaker {recurring.index[0]} is in the sessions '
                f'{" and ".join(recurring.iloc[0])} ({len(recurring)} such); use "speaker".'
            )
        folds = manifest.groupby("session").speaker.unique().sort_index().tolist()
    else:
        folds = _speaker_groups(
            manifest, n_folds if fold_by == "speaker" else manifest.speaker.nunique()
        )
    if fold_by not in ("split", "cross-corpus"):
        validating = folds[1:] + folds[:1]
        needed = 3 if validation == "speakers" else 2
        if len(folds) < needed:
            raise GmpError(
                f"{len(folds)} folds: training, test and validation by {validation} need {needed}."
            )
    if validation != "speakers":
        validating = [() for _ in folds]
    ordered = [[sorted(speakers) for speakers in part] for part in (folds, validating)]
    return Protocol(
        fold_by, ordered[0], validation, ordered[1], selection, transductive, female_share
    )


def _in_several_parts(speakers: pd.Series, places: pd.Series) -> pd.Series:
    """Speakers who are in more than one place, with their places."""
    found = places.groupby(speakers).unique()
    return found[found.map(len) > 1]


def _speaker_groups(manifest: pd.DataFrame, n_groups: int) -> list[list[str]]:
    """Groups of speakers, women and men dealt out evenly."""
    if manifest.speaker.nunique() < n_groups:
        raise GmpError(f"n_folds {n_groups}: there are {manifest.speaker.nunique()} speakers.")
    ordered = manifest.drop_duplicates("speaker").sort_values(["gender", "speaker"]).speaker
    return [ordered[group::n_groups].tolist() for group in range(n_groups)]


def _official_split(
    manifest: pd.DataFrame, n_folds: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Test and validation speakers of a corpus's own split."""
    split = (
        manifest.split if "split" in manifest else pd.Series(np.nan, manifest.index, dtype=object)
    )
    split = split.fillna("nothing")
    tested = split.str.startswith("test")
    parts = split.mask(tested, "test")
    if not {"train", "test"} <= set(parts) <= set(PARTS):
        raise GmpError(
            f'fold_by "split": the corpus\'s utterances are in {", ".join(sorted(split.unique()))}, '
            'expected "train" and "test" (or "test1", …), and "validation" if there is one.'
        )
    torn = _in_several_parts(manifest.speaker, parts)
    if len(torn):
        raise GmpError(
            f'fold_by "split": speaker {torn.index[0]} is in the parts {" and ".join(torn.iloc[0])} of '
            f"the corpus's split ({len(torn)} such); fold by speaker instead."
        )
    validating = manifest.speaker[split == "validation"].unique().tolist()
    if not validating:
        validating = _speaker_groups(manifest[split == "train"], n_folds)[0]
    return [manifest.speaker[tested].unique().tolist()], [validating]
