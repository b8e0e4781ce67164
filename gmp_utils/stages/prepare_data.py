"""Stage 01: a corpus to a manifest, a waveform store and a protocol."""

from pathlib import Path

import pandas as pd

from gmp_utils import GmpError
from gmp_utils.data import corpora, waveform_store
from gmp_utils.data.corpora import synthetic, synthetic_speakers
from gmp_utils.data.corpus import MISSING, RATINGS, RECORDINGS, Corpus, open_corpus
from gmp_utils.data.protocol import check_leakage, make_protocol
from gmp_utils.runs.files import text_digest, write_json
from gmp_utils.runs.paths import PREPARE_DATA, ROOT, run_folder
from gmp_utils.runs.stage import make_stage

FAULTS = (*MISSING.values(), "unreadable", "silent", "clipped", "short", "long")
SYNTHETIC = {"synthetic": synthetic, "synthetic_speakers": synthetic_speakers}
UNUSABLE = ("no label", "no speaker", "unreadable")


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
        See `gmp_utils.data.corpora.load`.
    test_corpus, test_corpus_dir : str
        See `gmp_utils.data.corpora.cross_corpus`; "" for none.
    seed : int
        Of the synthetic corpora.
    shifts : str
        See `gmp_utils.data.corpora.synthetic_speakers.make`.

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
        if (corpus in SYNTHETIC) == bool(corpus_dir):
            raise GmpError(
                f"corpus_dir {corpus_dir!r} with corpus {corpus!r}: recordings need their folder, and "
                f"{' and '.join(SYNTHETIC)} are spoken here and take none."
            )
        if corpus_dir:
            return ROOT / Path(corpus_dir).expanduser()
        given = {"seed": seed} | ({} if corpus == "synthetic" else {"shifts": shifts})
        return make_stage(
            run_folder(run_dir) / corpus,
            lambda folder: SYNTHETIC[corpus].make(folder, **given),
            parameters=given,
            module=SYNTHETIC[corpus].__name__,
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
        See `gmp_utils.data.waveform_store.write_store`.
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
    female_share: float | None = None,
) -> Corpus:
    """Decode recordings once, leave out what is to be left out, and lay out the folds.

    Parameters
    ----------
    run_dir : str
    manifest : DataFrame
        Of `read_manifest`.
    exclude, min_seconds, max_seconds
        See `find_faults`.
    fold_by, n_folds, validation, selection, transductive, female_share
        See `gmp_utils.data.protocol.make_protocol`.

    Returns
    -------
    corpus : Corpus

    Raises
    ------
    GmpError
        For fewer than two emotions, unless there are ratings; what `find_faults`, `make_protocol` and
        `check_leakage` refuse.
    """
    run = run_folder(run_dir)
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
    recordings = make_stage(
        run / RECORDINGS,
        decode,
        parameters={},
        inputs=[
            text_digest(placed[columns].to_csv()),
            text_digest(repr(list(map(state, manifest.path)))),
        ],
        module="gmp_utils.data.audio",
    )
    report = pd.read_parquet(recordings / "report.parquet")
    faults = find_faults(manifest, report, exclude, min_seconds, max_seconds)
    kept = manifest.assign(duration=report.seconds, digest=report.digest)
    kept = kept[~kept.utterance.isin(faults.utterance[faults.excluded])]
    found = sorted(kept.emotion.dropna().unique())
    if len(found) < 2 and not _rated(kept).any():
        raise GmpError(f"emotions: found {found}, expected two or more that can be told apart.")
    protocol = make_protocol(
        kept, fold_by, n_folds, validation, selection, transductive, female_share
    )
    leakage = check_leakage(kept, protocol)

    def build(folder: Path) -> None:
        kept.to_parquet(folder / "manifest.parquet", index=False)
        faults.to_parquet(folder / "faults.parquet", index=False)
        leakage.to_parquet(folder / "leakage.parquet")
        write_json(folder / "protocol.json", protocol.to_dict())

    make_stage(
        run / PREPARE_DATA,
        build,
        parameters={
            "exclude": exclude,
            "min_seconds": min_seconds,
            "max_seconds": max_seconds,
            "protocol": protocol.to_dict(),
        },
        stages=[recordings],
        inputs=[text_digest(placed.to_csv())],
        module=__name__,
        protocol=protocol.to_dict(),
    )
    return open_corpus(run_dir)
