"""Evaluation protocols: folds, validation and the selection of an epoch."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gmp_utils import GmpError, check_choice

FOLD_RULES = {
    "session": "by session",
    "speaker": "by speaker",
    "leave-one-speaker-out": "of one speaker each",
    "split": "given by the corpus's official split",
    "cross-corpus": "that trains on one corpus and tests on another",
}
VALIDATIONS = {
    "speakers": "Validation speakers are disjoint from training and test speakers.",
    "share": "VALIDATION SHARES SPEAKERS: it is a random tenth of the training utterances.",
    "none": "THERE IS NO VALIDATION: curves and probes show the test speakers.",
}
SELECTIONS = {
    "validation": "The epoch of supervised training is the best one on validation.",
    "last": "The last epoch is reported.",
    "oracle": "ORACLE: the epoch is the best one on the test speakers.",
}
RULES = {"fold_by": FOLD_RULES, "validation": VALIDATIONS, "selection": SELECTIONS}
PARTS = ("train", "unlabeled", "validation", "test")
UNUSED = "unused"  # in no part of a fold
LEFT_OUT = "left out"  # in no part, and encoders must not be trained on it
SHARE = 0.1  # of the training utterances, if validation is a share of them


@dataclass(frozen=True)
class Protocol:
    """Folds, and rules as in `RULES`; recorded with every result.

    `folds` and `validation_folds` are the test and validation speakers of each fold, the latter only if
    `validation` is "speakers". If `transductive`, clustering, retraining and the encoder's pre-training,
    which need no labels, may use the validation and test speakers. `female_share` is the share of women among
    the training utterances. For any share, there are as many utterances as the smaller gender has; None keeps
    all utterances. A `labeled_share` of them, drawn from each emotion by the seed `label_draw`, keep their
    labels. The others are the part "unlabeled", which only clustering, retraining and self-training use. If
    `disjoint_sentences`, each fold tests on some sentences, which are left out for its other speakers.
    """

    fold_by: str
    folds: list[list[str]]
    validation: str
    validation_folds: list[list[str]]
    selection: str
    transductive: bool
    female_share: float | None
    labeled_share: float
    label_draw: int
    disjoint_sentences: bool = False

    @property
    def selection_part(self) -> str:
        """The part of a fold on which epochs and layers are compared."""
        return "test" if self.selection == "oracle" or self.validation == "none" else "validation"

    @property
    def unsupervised_parts(self) -> tuple[str, ...]:
        """The parts of a fold that clustering and retraining use."""
        return PARTS if self.transductive else ("train", "unlabeled")

    def describe(self) -> str:
        """Describe the protocol in sentences. Departures that may inflate a result are in capitals."""
        n_folds = f"{len(self.folds)} fold{'s' if len(self.folds) > 1 else ''}"
        sentences = [
            f"{n_folds} {FOLD_RULES[self.fold_by]}, test speakers disjoint from training speakers.",
            VALIDATIONS[self.validation],
            "TRANSDUCTIVE: clustering, retraining and pre-training may use all speakers."
            if self.transductive
            else "Clustering and retraining use training speakers only.",
            SELECTIONS[self.selection],
        ]
        if self.disjoint_sentences:
            sentences.append(
                "No test sentence is in training or validation: test speakers' other sentences and other "
                "speakers' test sentences are left out."
            )
        if self.female_share is not None:
            share = f"{100 * self.female_share:g}%"
            sentences.append(f"Women have {share} of the training utterances; the rest is unused.")
        if self.labeled_share < 1:
            share = f"{100 * self.labeled_share:g}%"
            sentences.append(
                f"Only {share} of the training utterances of each emotion have labels (draw "
                f"{self.label_draw}); clustering, retraining and self-training use all. Validation speakers "
                "keep their labels."
            )
        return " ".join(sentences)

    def parts(self, manifest: pd.DataFrame, fold: int) -> pd.Series:
        """Part of a fold (from 1) of each utterance, one of `PARTS`, `UNUSED` or `LEFT_OUT`."""
        if not 1 <= fold <= len(self.folds):
            raise GmpError(f"fold {fold}: this protocol has folds 1 to {len(self.folds)}.")
        parts = pd.Series("train", index=manifest.index)
        parts[manifest.speaker.isin(self.validation_folds[fold - 1])] = "validation"
        parts[manifest.speaker.isin(self.folds[fold - 1])] = "test"
        if self.disjoint_sentences:
            parts[self._conflicting(manifest, parts == "test", fold)] = LEFT_OUT
            if not (parts == "test").any():
                raise GmpError(
                    f"fold {fold}: disjoint_sentences leaves no test utterance; use fewer folds (n_folds)."
                )
        if self.validation == "share":
            training = parts.index[parts == "train"]
            drawn = np.random.default_rng(fold).permutation(len(training))
            parts[training[drawn[: max(round(SHARE * len(training)), 1)]]] = "validation"
        if self.female_share is not None:
            training = manifest[parts == "train"]
            parts[training.index] = UNUSED
            parts[_draw_by_gender(training, self.female_share, fold)] = "train"
        training = manifest[parts == "train"]
        labeled = _draw_labeled(training, self.labeled_share, [self.label_draw, fold])
        parts[training.index.difference(labeled)] = "unlabeled"
        absent = set(manifest.emotion.dropna()) - set(manifest.emotion[parts == "train"])
        if absent:
            raise GmpError(
                f"fold {fold}: no training utterance has emotion {sorted(absent)}; change emotions, fold_by, "
                "n_folds, validation or female_share."
            )
        return parts

    def _conflicting(self, manifest: pd.DataFrame, tested: pd.Series, fold: int) -> pd.Series:
        """Whether to leave each utterance out, so that test and other speakers share no sentence.

        The n-th sentence in alphabetical order is tested in fold n, modulo the number of folds.
        """
        text = _sentences(manifest)
        shared = text.isin(text[tested]) & text.isin(text[~tested])
        in_turn = pd.factorize(text, sort=True)[0] % len(self.folds) == fold - 1
        return shared & (tested != in_turn)


def _sentences(manifest: pd.DataFrame) -> pd.Series:
    """Text or code of each utterance's sentence in lower case, NaN if unknown."""
    return manifest.reindex(columns=["text"]).text.astype("object").str.lower().str.strip()


def _draw_by_gender(training: pd.DataFrame, female_share: float, seed: int) -> pd.Index:
    """Draw as many utterances as the smaller gender has, with a share of women."""
    training = training.sample(frac=1, random_state=seed)
    groups = training.groupby(["gender", "emotion"]).emotion
    order = groups.cumcount() / groups.transform("size")  # keeps the proportions of the emotions
    training = training.loc[order.sort_values(kind="stable").index]
    size = training.gender.value_counts().reindex(["female", "male"], fill_value=0).min()
    n_women = round(female_share * size)
    women, men = (training.index[training.gender == gender] for gender in ("female", "male"))
    return women[:n_women].union(men[: size - n_women])


def _draw_labeled(training: pd.DataFrame, share: float, seed: list[int]) -> pd.Index:
    """Draw a share of the utterances of each emotion, at least one; larger shares include smaller ones."""
    shuffled = training.emotion.iloc[np.random.default_rng(seed).permutation(len(training))]
    groups = shuffled.groupby(shuffled, dropna=False)
    n_labeled = (share * groups.transform("size")).round().clip(lower=1)
    return shuffled.index[groups.cumcount() < n_labeled]


def check_leakage(manifest: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """Reject folds with the same recording (by `digest`) in two parts.

    Returns `sentences`, the share of each fold's test utterances whose `text` occurs in training, or NaN.
    """
    text, shares = _sentences(manifest), {}
    for fold in range(1, len(protocol.folds) + 1):
        parts = protocol.parts(manifest, fold).replace("unlabeled", "train")
        used = manifest[parts.isin(PARTS)].assign(part=parts)
        pairs = used.merge(used, on="digest", suffixes=("", "_other")).query("part < part_other")
        if len(pairs):
            pair = pairs.iloc[0]
            raise GmpError(
                f"fold {fold}: {pair.utterance} (speaker {pair.speaker}) and {pair.utterance_other} (speaker "
                f"{pair.speaker_other}) have the same samples but are in different parts ({len(pairs)} such "
                "pairs). Remove one of each, or correct its speaker."
            )
        training_text = set(text[parts == "train"].dropna())
        shared = text[parts == "test"].isin(training_text)
        shares[fold] = shared.mean() if training_text else np.nan
    return pd.Series(shares, name="sentences").rename_axis("fold").to_frame()


def make_protocol(
    manifest: pd.DataFrame,
    fold_by: str = "auto",
    *,
    n_folds: int = 5,
    validation: str = "speakers",
    selection: str = "validation",
    transductive: bool = False,
    female_share: float | None = None,
    labeled_share: float = 1.0,
    label_draw: int = 0,
    disjoint_sentences: bool = False,
) -> Protocol:
    """Divide a corpus into folds.

    `fold_by`, `validation` and `selection` are among `RULES`. "speaker" tests on `n_folds` groups of
    speakers, balanced by gender. "auto" is "cross-corpus" for two corpora, "session" if every speaker is in
    one session only, else "speaker". Validation speakers are the next fold's test speakers (the first fold's
    for the last one); for "split" and "cross-corpus" the split's, or one in `n_folds` training speakers.
    """
    n_corpora, session = manifest.corpus.nunique(), manifest.reindex(columns=["session"]).session
    sessions = session.groupby(manifest.speaker).nunique()  # of each speaker
    has_sessions = session.notna().all() and sessions.max() == 1
    if fold_by == "auto":
        within = "session" if has_sessions else "speaker"
        fold_by = within if n_corpora == 1 else "cross-corpus"
    rules = {"fold_by": fold_by, "validation": validation, "selection": selection}
    for name, rule in rules.items():
        check_choice(name, rule, RULES[name])
    if not 0 <= (female_share or 0) <= 1:
        raise GmpError(f"female_share {female_share}: expected 0 to 1, or -1 for all utterances.")
    if not 0 < labeled_share <= 1:
        raise GmpError(f"labeled_share {labeled_share}: expected more than 0, up to 1.")
    if disjoint_sentences and _sentences(manifest).isna().any():
        count = f"{_sentences(manifest).isna().sum()} of {len(manifest)} utterances have no text"
        raise GmpError(f"disjoint_sentences: {count}; it needs the sentence of every utterance.")
    if (fold_by == "cross-corpus") != (n_corpora > 1):
        count = "one corpus" if n_corpora == 1 else "two corpora"
        raise GmpError(f'fold_by {fold_by!r} with {count}: "cross-corpus" and "auto" are for two.')
    if validation == "none" and selection == "validation":
        raise GmpError('validation "none": there is no epoch to select; use selection "last".')
    if fold_by == "session" and not has_sessions:
        expected = "expected a session for each utterance, and one for each speaker"
        raise GmpError(f'fold_by "session": {expected}; use "speaker".')
    if fold_by in ("split", "cross-corpus"):
        folds, validating = _official_split(manifest, n_folds if validation == "speakers" else 1)
    else:
        if fold_by == "session":
            folds = manifest.groupby("session").speaker.unique().sort_index().tolist()
        else:
            n_groups = n_folds if fold_by == "speaker" else manifest.speaker.nunique()
            folds = _speaker_groups(manifest, n_groups)
        validating, needed = folds[1:] + folds[:1], 3 if validation == "speakers" else 2
        if len(folds) < needed:
            found = f"{len(folds)} folds: validation {validation!r} needs {needed} or more"
            remedy = 'fold_by "speaker"' if fold_by == "session" else "more folds"
            remedy = f'use validation "share", or {remedy}' if len(folds) == 2 else f"use {remedy}"
            raise GmpError(f"{found}; {remedy}.")
    if validation != "speakers":
        validating = [()] * len(folds)
    folds, validating = ([sorted(speakers) for speakers in part] for part in (folds, validating))
    shares = female_share, labeled_share, label_draw if labeled_share < 1 else 0
    rest = transductive, *shares, disjoint_sentences
    return Protocol(fold_by, folds, validation, validating, selection, *rest)


def _speaker_groups(manifest: pd.DataFrame, n_groups: int) -> list[list[str]]:
    """Groups of speakers, balanced by gender."""
    n_speakers = manifest.speaker.nunique()
    if n_speakers < n_groups:
        remedy = f"use n_folds {n_speakers}" + ' and validation "share"' * (n_speakers == 2)
        raise GmpError(f"n_folds {n_groups}: found {n_speakers} speakers; {remedy}, or add some.")
    ordered = manifest.drop_duplicates("speaker").sort_values(["gender", "speaker"]).speaker
    return [ordered[group::n_groups].tolist() for group in range(n_groups)]


def _official_split(
    manifest: pd.DataFrame, n_folds: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Test and validation speakers of a corpus's official split."""
    if "split" not in manifest or manifest.split.isna().any():
        raise GmpError('fold_by "split": the corpus has utterances without a split; use "speaker".')
    is_test = manifest.split.str.startswith("test")
    parts = manifest.split.mask(is_test, "test")
    if not {"train", "test"} <= set(parts) <= {"train", "validation", "test"}:
        names = ", ".join(sorted(manifest.split.unique()))
        raise GmpError(
            f'fold_by "split": the corpus is split into {names}, expected "train", "test" (or "test1", …) '
            'and optionally "validation".'
        )
    n_parts = parts.groupby(manifest.speaker).nunique()
    if n_parts.max() > 1:
        raise GmpError(
            f'fold_by "split": the corpus has speaker {n_parts.idxmax()} in several parts of its split '
            f'({(n_parts > 1).sum()} such); use "speaker".'
        )
    validating = manifest.speaker[parts == "validation"].unique().tolist()
    if not validating:
        validating = _speaker_groups(manifest[parts == "train"], n_folds)[0]
    return [manifest.speaker[is_test].unique().tolist()], [validating]
