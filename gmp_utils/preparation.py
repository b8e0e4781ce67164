"""Stage 01: a corpus to a manifest, a waveform store and a protocol."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import corpora, runs, waveform_store, weights
from gmp_utils.corpora import synthetic, synthetic_speakers
from gmp_utils.errors import GmpError
from gmp_utils.protocol import PARTS, Protocol, check_leakage, make_protocol
from gmp_utils.ragged import Ragged

STAGE = "01_prepare_data"
RECORDINGS = "recordings"  # in the run's folder: decoded once, whatever is made of them
MISSING = {"emotion": "no label", "speaker": "no speaker", "gender": "no gender"}
FAULTS = (*MISSING.values(), "unreadable", "silent", "clipped", "short", "long")
SPOKEN = {"synthetic": synthetic, "synthetic_speakers": synthetic_speakers}
UNUSABLE = ("no label", "no speaker", "unreadable")
RATINGS = ("valence", "arousal", "dominance")


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes
    ----------
    manifest : DataFrame
        See `gmp_utils.corpora.check`; indexed by utterance, with `duration` in seconds.
    waveforms : Ragged
        int16 at 16 kHz.
    protocol : Protocol
    stage : Path
        What prepared it; with faults.parquet and leakage.parquet.
    """

    manifest: pd.DataFrame
    waveforms: Ragged
    protocol: Protocol
    stage: Path

    @property
    def name(self) -> str:
        """Of the corpus; of both, trained on → tested on, where there are two."""
        return " → ".join(self.manifest.corpus.unique())

    @property
    def emotions(self) -> list[str]:
        """The classes, in alphabetical order."""
        return sorted(self.manifest.emotion.dropna().unique())

    def labels(self, utterances: list[str], column: str) -> np.ndarray:
        """Index of each utterance's `column` among the sorted values of the whole corpus.

        Parameters
        ----------
        utterances : list of str
        column : str
            "emotion", "gender" or "speaker".

        Returns
        -------
        labels : (n_utterances,) int64

        Raises
        ------
        GmpError
            If an utterance has none.
        """
        unknown = self.manifest.utterance[self.manifest[column].isna()]
        if len(unknown):
            raise GmpError(
                f"{unknown.iloc[0]} has no {column}, which is needed here ({len(unknown)} such); "
                f'complete the corpus, or exclude "{MISSING[column]}" in notebook 01.'
            )
        values = sorted(self.manifest[column].unique())
        return self.manifest[column].loc[utterances].map(values.index).to_numpy(dtype=np.int64)

    def split(self, fold: int) -> dict[str, list[str]]:
        """Utterances of a fold's train, validation and test part, each in order of length."""
        parts = self.protocol.parts(self.manifest, fold)
        ordered = self.manifest.duration.sort_values(kind="stable").index
        return {part: [name for name in ordered if parts[name] == part] for part in PARTS}

    def check_encoder(self, encoder: str, fold: int) -> None:
        """Refuse an encoder that heard a fold's held-out recordings, unless the protocol is transductive.

        Recordings are told by their samples: other cuts or encodings of them are not found.

        Parameters
        ----------
        encoder : str
            See `gmp_utils.weights.heard`.
        fold : int

        Raises
        ------
        GmpError
            Naming one of them.
        """
        parts = self.protocol.parts(self.manifest, fold)
        held_out = self.manifest[parts.isin(["validation", "test"])]
        known = held_out.utterance[held_out.digest.isin(weights.heard(encoder))]
        if len(known) and not self.protocol.transductive:
            raise GmpError(
                f"encoder {encoder!r} was pre-trained on {len(known)} recordings that fold {fold} "
                f"holds out, such as {known.iloc[0]}. Take another encoder, or say so: transductive true."
            )


def read_manifest(
    run_dir: str,
    corpus: str,
    corpus_dir: str,
    test_corpus: str,
    test_corpus_dir: str,
    emotions: list[str],
    label_map: dict[str, str],
    seed: int,
    outside: bool = False,
    shifts: str = "voice",
) -> pd.DataFrame:
    """Read a corpus, or two to train on one and test on the other.

    Parameters
    ----------
    run_dir : str
        The synthetic corpora are spoken here; they need no folder.
    corpus, corpus_dir, emotions, label_map, outside
        See `gmp_utils.corpora.load`.
    test_corpus, test_corpus_dir : str
        See `gmp_utils.corpora.cross_corpus`; "" for none.
    seed : int
        Of the synthetic corpora.
    shifts : str
        See `gmp_utils.corpora.synthetic_speakers.make`.

    Returns
    -------
    manifest : DataFrame

    Raises
    ------
    GmpError
        If a folder is given for a synthetic corpus, or none for another; what the readers of the
        corpora refuse.
    """

    def folder_of(corpus: str, corpus_dir: str) -> Path:
        if (corpus in SPOKEN) == bool(corpus_dir):
            raise GmpError(
                f"corpus_dir {corpus_dir!r} with corpus {corpus!r}: recordings need their folder, and "
                f"{' and '.join(SPOKEN)} are spoken here and take none."
            )
        if corpus_dir:
            return runs.ROOT / Path(corpus_dir).expanduser()
        given = {"seed": seed} | ({} if corpus == "synthetic" else {"shifts": shifts})
        return runs.make_stage(
            runs.run_folder(run_dir) / corpus,
            lambda folder: SPOKEN[corpus].make(folder, **given),
            parameters=given,
            module=SPOKEN[corpus].__name__,
        )

    folder = folder_of(corpus, corpus_dir)
    if test_corpus_dir and not test_corpus:
        raise GmpError(
            f"test_corpus_dir {test_corpus_dir!r} without a test_corpus: name both or none."
        )
    if not test_corpus:
        return corpora.load(corpus, folder, emotions, label_map, outside)
    tested = (test_corpus, folder_of(test_corpus, test_corpus_dir))
    return corpora.cross_corpus((corpus, folder), tested, emotions, label_map, outside)


def find_faults(
    manifest: pd.DataFrame,
    report: pd.DataFrame,
    exclude: list[str],
    min_seconds: float,
    max_seconds: float,
) -> pd.DataFrame:
    """List what is wrong with a corpus, and what is excluded for it.

    Parameters
    ----------
    manifest : DataFrame
    report : DataFrame
        See `gmp_utils.waveform_store.write_store`.
    exclude : list of str
        Of `FAULTS`: utterances with these are left out.
    min_seconds, max_seconds : float
        Shorter is "short", longer is "long".

    Returns
    -------
    faults : DataFrame
        `utterance`, `fault`, what was `found`, and whether it is `excluded`; an utterance may be there
        several times.

    Raises
    ------
    GmpError
        For an unknown fault, one that cannot be lived with and is not excluded, or if nothing is left.
    """
    unknown = sorted(set(exclude) - set(FAULTS))
    if unknown:
        raise GmpError(f"exclude {unknown}: expected some of {', '.join(FAULTS)}.")
    missing = [
        pd.DataFrame({"utterance": manifest.utterance[manifest[column].isna()], "fault": fault})
        for column, fault in MISSING.items()
    ]
    found = pd.concat(
        [*missing, waveform_store.faults(report, min_seconds, max_seconds)], ignore_index=True
    )
    found["excluded"] = found.fault.isin(exclude)
    gone = set(found.utterance[found.excluded])
    spared = (found.fault == "no label") & found.utterance.isin(
        manifest.utterance[_rated(manifest)]
    )
    fatal = found[found.fault.isin(UNUSABLE) & ~spared & ~found.utterance.isin(gone)]
    if len(fatal):
        one = fatal.iloc[0]
        said = one.found if pd.notna(one.found) else one.utterance
        raise GmpError(
            f"{one.fault}: {said} ({fatal.utterance.nunique()} such). Mend the corpus, or leave such "
            f'out: add "{one.fault}" to the parameter exclude.'
        )
    if len(gone) == len(manifest):
        raise GmpError(f"exclude {exclude}: nothing is left of {len(manifest)} utterances.")
    return found


def _rated(manifest: pd.DataFrame) -> pd.Series:
    """Which utterances have a rating, and are of use without an emotion."""
    return manifest.reindex(columns=RATINGS).notna().any(axis=1)


def prepare(
    run_dir: str,
    manifest: pd.DataFrame,
    exclude: list[str],
    min_seconds: float,
    max_seconds: float,
    fold_by: str,
    n_folds: int,
    validation: str,
    selection: str,
    transductive: bool,
    women_share: float | None = None,
) -> Corpus:
    """Decode recordings once, leave out what is to be left out, and lay out the folds.

    Parameters
    ----------
    run_dir : str
    manifest : DataFrame
        Of `read_manifest`.
    exclude, min_seconds, max_seconds
        See `find_faults`.
    fold_by, n_folds, validation, selection, transductive, women_share
        See `gmp_utils.protocol.make_protocol`.

    Returns
    -------
    corpus : Corpus

    Raises
    ------
    GmpError
        For fewer than two emotions, unless there are ratings; what `find_faults`, `make_protocol` and
        `check_leakage` refuse.
    """
    run = runs.run_folder(run_dir)
    columns = [name for name in ("utterance", "path", "start", "end") if name in manifest]

    def decode(folder: Path) -> None:
        waveform_store.write_store(manifest, folder / "waveforms")[1].to_parquet(
            folder / "report.parquet"
        )

    def state(path: str) -> tuple[int, float] | None:
        try:
            stat = Path(path).stat()
        except OSError:  # it went after it was listed, and is reported as unreadable
            return None
        return stat.st_size, stat.st_mtime

    # Runs speak the same synthetic corpus, each in its own folder.
    placed = manifest.assign(path=manifest.path.str.removeprefix(f"{run}/"))
    recordings = runs.make_stage(
        run / RECORDINGS,
        decode,
        parameters={},
        inputs=[
            runs.text_digest(placed[columns].to_csv()),
            runs.text_digest(repr(list(map(state, manifest.path)))),
        ],
        module="gmp_utils.audio",
    )
    report = pd.read_parquet(recordings / "report.parquet")
    faults = find_faults(manifest, report, exclude, min_seconds, max_seconds)
    kept = manifest.assign(duration=report.seconds, digest=report.digest)
    kept = kept[~kept.utterance.isin(faults.utterance[faults.excluded])]
    found = sorted(kept.emotion.dropna().unique())
    if len(found) < 2 and not _rated(kept).any():
        raise GmpError(f"emotions: found {found}, expected two or more that can be told apart.")
    protocol = make_protocol(
        kept, fold_by, n_folds, validation, selection, transductive, women_share
    )
    leakage = check_leakage(kept, protocol)

    def build(folder: Path) -> None:
        kept.to_parquet(folder / "manifest.parquet", index=False)
        faults.to_parquet(folder / "faults.parquet", index=False)
        leakage.to_parquet(folder / "leakage.parquet")
        runs.write_json(folder / "protocol.json", protocol.to_dict())

    runs.make_stage(
        run / STAGE,
        build,
        parameters={
            "exclude": exclude,
            "min_seconds": min_seconds,
            "max_seconds": max_seconds,
            "protocol": protocol.to_dict(),
        },
        stages=[recordings],
        inputs=[runs.text_digest(placed.to_csv())],
        module=__name__,
        protocol=protocol.to_dict(),
    )
    return open_corpus(run_dir)


def open_corpus(run_dir: str) -> Corpus:
    """Open what `prepare` made.

    Raises
    ------
    GmpError
        If it is not there; says which notebook makes it.
    """
    folder = runs.run_folder(run_dir) / STAGE
    runs.identity(folder)
    runs.identity(folder.parent / RECORDINGS)
    return Corpus(
        manifest=pd.read_parquet(folder / "manifest.parquet").set_index("utterance", drop=False),
        waveforms=Ragged.open(folder.parent / RECORDINGS / "waveforms"),
        protocol=Protocol.from_dict(runs.read_json(folder / "protocol.json")),
        stage=folder,
    )
