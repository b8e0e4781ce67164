"""Stage 01: the manifest, waveform store and protocol of a corpus."""

import os
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from gmp_utils import GmpError, check_choice
from gmp_utils.data import corpora, waveform_store
from gmp_utils.data.corpora import synthetic, synthetic_speakers
from gmp_utils.data.corpus import MISSING, RATINGS, RECORDINGS, Corpus, open_corpus
from gmp_utils.data.protocol import check_leakage, make_protocol
from gmp_utils.runs.files import text_digest, write_json
from gmp_utils.runs.paths import PREPARE_DATA, ROOT, run_folder
from gmp_utils.runs.stage import make_stage

PROBLEMS = (*MISSING.values(), "unreadable", "silent", "clipped", "short", "long")
UNUSABLE = ("no label", "no speaker", "unreadable")  # these have to be excluded
SYNTHETIC = {"synthetic": synthetic, "synthetic_speakers": synthetic_speakers}


def read_manifest(
    run_dir: str,
    corpus: str,
    *,
    corpus_dir: str = "",
    test_corpus: str = "",
    test_corpus_dir: str = "",
    seed: int = 0,
    shifts: str = "voice",
    **options,
) -> pd.DataFrame:
    """Read the manifest of a corpus, or of two: one to train on and one to test on.

    A folder is that of the recordings, the file of a table, or "" for embedded corpora and for synthetic
    ones, which are synthesized into the run (for `seed` and `shifts` see `synthetic_speakers.make`). The
    `options` are those of `gmp_utils.data.corpora.load`.
    """
    if test_corpus_dir and not test_corpus:
        raise GmpError(f"test_corpus_dir {test_corpus_dir!r} without test_corpus: set both.")
    folder = _corpus_folder(run_dir, corpus, corpus_dir, seed, shifts)
    if not test_corpus:
        return corpora.load(corpus, folder, **options)
    test_folder = _corpus_folder(run_dir, test_corpus, test_corpus_dir, seed, shifts)
    return corpora.cross_corpus((corpus, folder), (test_corpus, test_folder), **options)


def _corpus_folder(run_dir: str, corpus: str, corpus_dir: str, seed: int, shifts: str) -> Path:
    """Folder of a corpus; a synthetic one is synthesized first."""
    check_choice("corpus", corpus, corpora.CORPORA)
    if corpus in corpora.EMBEDDED and not corpus_dir:
        return corpora.EMBEDDED[corpus]
    if (corpus in SYNTHETIC) == bool(corpus_dir):
        kind = "the file" if corpus == "table" else "the folder of its recordings"
        expected = "no folder, it is synthesized" if corpus_dir else kind
        raise GmpError(f"corpus {corpus!r}, corpus_dir {corpus_dir!r}: expected {expected}.")
    if corpus_dir:
        return ROOT / Path(corpus_dir).expanduser()
    options = {"seed": seed} | ({} if corpus == "synthetic" else {"shifts": shifts})
    return make_stage(
        run_folder(run_dir) / corpus,
        lambda folder: SYNTHETIC[corpus].make(folder, **options),
        parameters=options,
        module=SYNTHETIC[corpus].__name__,
    )


def prepare(
    run_dir: str,
    manifest: pd.DataFrame,
    *,
    exclude: list[str],
    min_seconds: float,
    max_seconds: float,
    **rules,
) -> Corpus:
    """Decode the recordings of a manifest, exclude those with problems, and assign the rest to folds.

    Utterances with one of the `PROBLEMS` in `exclude` are excluded. A recording of less than `min_seconds` is
    "short", one of more than `max_seconds` "long". The `rules` are those of
    `gmp_utils.data.protocol.make_protocol`.
    """
    run = run_folder(run_dir)
    # Relative paths: synthetic and embedded corpora do not depend on the place of the run or the checkout.
    paths = manifest.path.str.removeprefix(f"{run}/").str.removeprefix(f"{ROOT}/")
    relative = manifest.assign(path=paths)
    recordings = _decode(run, manifest, relative)
    report = pd.read_parquet(recordings / "report.parquet")
    of_recordings = waveform_store.find_problems(report, min_seconds, max_seconds)
    problems = _find_problems(manifest, of_recordings, exclude)
    kept = manifest.assign(duration=report.seconds, digest=report.digest)
    kept = kept[~kept.utterance.isin(problems.utterance[problems.excluded])]
    emotions = sorted(kept.emotion.dropna().unique())
    if len(emotions) < 2 and not _is_rated(kept).any():
        raise GmpError(f"emotions {emotions}: expected two or more, or ratings.")
    protocol = make_protocol(kept, **rules)
    leakage, chosen = check_leakage(kept, protocol), asdict(protocol)

    def build(folder: Path) -> None:
        kept.to_parquet(folder / "manifest.parquet", index=False)
        problems.to_parquet(folder / "problems.parquet", index=False)
        leakage.to_parquet(folder / "leakage.parquet")
        write_json(folder / "protocol.json", chosen)

    limits = {"min_seconds": min_seconds, "max_seconds": max_seconds}
    make_stage(
        run / PREPARE_DATA,
        build,
        parameters={"exclude": exclude, **limits, "protocol": chosen},
        stages=[recordings],
        inputs=[text_digest(relative.to_csv())],
        protocol=chosen,
    )
    return open_corpus(run_dir)


def _decode(run: Path, manifest: pd.DataFrame, relative: pd.DataFrame) -> Path:
    """Make the stage of the decoded recordings, which depends on their paths, sizes and dates."""

    def build(folder: Path) -> None:
        _, report = waveform_store.write_store(manifest, folder / "waveforms")
        report.to_parquet(folder / "report.parquet")

    # A missing file is reported as unreadable.
    files = [os.stat(path) if os.path.isfile(path) else None for path in manifest.path]
    states = repr([file and (file.st_size, file.st_mtime) for file in files])
    columns = relative.columns.intersection(["utterance", "path", "start", "end"])
    return make_stage(
        run / RECORDINGS,
        build,
        parameters={},
        inputs=[text_digest(relative[columns].to_csv()), text_digest(states)],
        module=waveform_store.__name__,
    )


def _find_problems(
    manifest: pd.DataFrame, of_recordings: pd.DataFrame, exclude: list[str]
) -> pd.DataFrame:
    """Problems of labels and recordings: `utterance`, `problem`, `detail`, and whether it is `excluded`."""
    for problem in exclude:
        check_choice("exclude", problem, PROBLEMS)
    missing = [
        pd.DataFrame({"utterance": manifest.utterance[manifest[column].isna()], "problem": problem})
        for column, problem in MISSING.items()
    ]
    problems = pd.concat([*missing, of_recordings], ignore_index=True)
    problems["excluded"] = problems.problem.isin(exclude)
    excluded = set(problems.utterance[problems.excluded])
    rated = problems.utterance.isin(manifest.utterance[_is_rated(manifest)])
    usable = ~problems.problem.isin(UNUSABLE) | (rated & (problems.problem == "no label"))
    fatal = problems[~usable & ~problems.utterance.isin(excluded)]
    if len(fatal):
        first = fatal.iloc[0]
        detail = first.detail if pd.notna(first.detail) else first.utterance
        found = f"{first.problem}: {detail} ({fatal.utterance.nunique()} such)"
        raise GmpError(f'{found}; correct the corpus, or add "{first.problem}" to exclude.')
    if len(excluded) == len(manifest):
        first = problems[problems.excluded].iloc[0]
        reason = first.detail if pd.notna(first.detail) else f"{first.utterance}, {first.problem}"
        raise GmpError(
            f"exclude {exclude}: excludes all {len(manifest)} utterances, the first: {reason}"
        )
    return problems


def _is_rated(manifest: pd.DataFrame) -> pd.Series:
    """Whether each utterance has a rating, and so can be used without an emotion."""
    return manifest.reindex(columns=RATINGS).notna().any(axis=1)
