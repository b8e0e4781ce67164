"""Stage 01: a corpus to a manifest, a waveform store and a protocol."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import audio, corpora, runs
from gmp_utils.corpora import synthetic
from gmp_utils.errors import GmpError
from gmp_utils.protocol import Protocol, check_leakage, make_protocol
from gmp_utils.ragged import Ragged

STAGE = "01_prepare_data"


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
    name : str
    stage : Path
        What prepared it.
    """

    manifest: pd.DataFrame
    waveforms: Ragged
    protocol: Protocol
    name: str
    stage: Path

    @property
    def emotions(self) -> list[str]:
        """The classes, in alphabetical order."""
        return sorted(self.manifest.emotion.unique())

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
        """
        values = sorted(self.manifest[column].unique())
        return self.manifest[column].loc[utterances].map(values.index).to_numpy(dtype=np.int64)

    def split(self, fold: int) -> dict[str, list[str]]:
        """Utterances of a fold's train, validation and test part, each in order of length."""
        parts = self.protocol.parts(self.manifest, fold)
        ordered = self.manifest.duration.sort_values(kind="stable").index
        return {
            part: [name for name in ordered if parts[name] == part]
            for part in ("train", "validation", "test")
        }


def prepare(
    run_dir: str,
    corpus: str,
    corpus_dir: str,
    emotions: list[str],
    label_map: dict[str, str],
    fold_by: str,
    n_folds: int,
    selection: str,
    transductive: bool,
    seed: int,
) -> Corpus:
    """Read a corpus, decode it once and lay out its folds.

    Parameters
    ----------
    run_dir : str
    corpus, corpus_dir, emotions, label_map
        See `gmp_utils.corpora.load`; the synthetic corpus needs no folder and is spoken here.
    fold_by, n_folds, selection, transductive
        See `gmp_utils.protocol.make_protocol`.
    seed : int
        Of the synthetic corpus.

    Returns
    -------
    corpus : Corpus

    Raises
    ------
    GmpError
        If a folder is given for the synthetic corpus, or none for another; what `check_leakage` and
        the readers of the corpus refuse.
    """
    run = runs.run_folder(run_dir)
    recordings = runs.ROOT / Path(corpus_dir).expanduser()
    if (corpus == "synthetic") == bool(corpus_dir):
        raise GmpError(
            f"corpus_dir {corpus_dir!r} with corpus {corpus!r}: recordings need their folder, and the "
            "synthetic corpus is spoken here and takes none."
        )
    if corpus == "synthetic":
        recordings = runs.make_stage(
            run / "synthetic",
            lambda folder: synthetic.make(folder, seed),
            parameters={"seed": seed},
            module="gmp_utils.corpora.synthetic",
        )
    manifest = corpora.load(corpus, recordings, emotions, label_map)
    protocol = make_protocol(manifest, fold_by, n_folds, selection, transductive)
    for fold in range(1, len(protocol.folds) + 1):
        protocol.parts(manifest, fold)

    def build(folder: Path) -> None:
        waveforms = audio.write_store(manifest, folder / "waveforms")
        check_leakage(manifest, waveforms)
        duration = manifest.utterance.map(waveforms.lengths) / audio.SAMPLE_RATE
        manifest.assign(duration=duration).to_parquet(folder / "manifest.parquet", index=False)
        runs.write_json(folder / "protocol.json", protocol.to_dict())

    files = [(row.utterance, Path(row.path).stat()) for row in manifest.itertuples()]
    runs.make_stage(
        run / STAGE,
        build,
        parameters={
            "corpus": corpus,
            "corpus_dir": str(recordings),
            "emotions": emotions,
            "label_map": label_map,
            "protocol": protocol.to_dict(),
        },
        inputs=[
            runs.text_digest(manifest.to_csv()),
            runs.text_digest(repr([(name, stat.st_size, stat.st_mtime) for name, stat in files])),
        ],
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
    return Corpus(
        manifest=pd.read_parquet(folder / "manifest.parquet").set_index("utterance", drop=False),
        waveforms=Ragged.open(folder / "waveforms"),
        protocol=Protocol(**runs.read_json(folder / "protocol.json")),
        name=runs.read_json(folder / "params.json")["corpus"],
        stage=folder,
    )
