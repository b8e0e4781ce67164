"""Baselines of stage 06 that need no encoder: eGeMAPS functionals with an SVM, and the majority."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tqdm import tqdm

from gmp_utils import audio, evaluation, runs
from gmp_utils.errors import GmpError
from gmp_utils.preparation import Corpus, open_corpus

STAGE = "06_finetune"
BASELINES = ("egemaps", "majority")
GRID = (1e-3, 1e-2, 1e-1, 1.0)  # of the SVM's C
C = 1e-2  # where a protocol does not choose on anything


def functionals(corpus: Corpus) -> pd.DataFrame:
    """88 functionals of every utterance; computed once for a run.

    Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set", 2016; the extended set, version 2.

    Parameters
    ----------
    corpus : Corpus

    Returns
    -------
    found : (n_utterances, 88) DataFrame
        Indexed by utterance.

    Raises
    ------
    GmpError
        Without openSMILE.
    """
    if find_spec("opensmile") is None:
        raise GmpError(
            "eGeMAPS needs openSMILE, whose licence allows research and private use only: run "
            "`.venv/bin/python -m pip install opensmile`, or leave egemaps out of baselines."
        )

    def build(folder: Path) -> None:
        import opensmile

        smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
        rows = [
            smile.process_signal(corpus.waveforms[name] / 32767, audio.SAMPLE_RATE).iloc[0]
            for name in tqdm(corpus.manifest.utterance, "eGeMAPS", disable=None)
        ]
        table = pd.DataFrame(rows).set_index(corpus.manifest.index)
        table.to_parquet(folder / "functionals.parquet")

    stage = runs.make_stage(
        corpus.stage.parent / "egemaps",
        build,
        parameters={},
        stages=[corpus.stage],
        module=__name__,
    )
    return pd.read_parquet(stage / "functionals.parquet")


def _svm(corpus: Corpus, parts: dict[str, list[str]]) -> tuple[dict[str, np.ndarray], dict]:
    """Scores of the held-out parts by the C that the protocol selects, and what was selected."""
    x, judged = functionals(corpus), corpus.protocol.compared_on
    y = {part: corpus.labels(names, "emotion") for part, names in parts.items()}
    grid = (C,) if corpus.protocol.selection == "last" else GRID
    fitted = []
    for c in grid:
        model = make_pipeline(StandardScaler(), SVC(C=c, kernel="linear", class_weight="balanced"))
        model.fit(x.loc[parts["train"]], y["train"])
        scores = {}
        for part, names in parts.items():
            if part != "train" and names:
                own = model.decision_function(x.loc[names])
                scores[part] = own if own.ndim == 2 else np.stack([-own, own], axis=1)
        fitted.append((evaluation.uar(y[judged], scores[judged].argmax(axis=1)), c, scores))
    uar, c, scores = max(fitted, key=lambda one: one[0])  # of equals the smallest C
    return scores, {"C": c, "emotion_uar": uar, "parameters": x.shape[1] * len(corpus.emotions)}


def _majority(corpus: Corpus, parts: dict[str, list[str]]) -> tuple[dict[str, np.ndarray], dict]:
    labels = corpus.labels(parts["train"], "emotion")
    counts = np.bincount(labels, minlength=len(corpus.emotions)).astype(float)
    found = {
        part: np.tile(counts, (len(names), 1))
        for part, names in parts.items()
        if part != "train" and names
    }
    return found, {"parameters": 0}


def classify(run_dir: str, fold: int, baseline: str, seed: int = 0) -> Path:
    """Learn a baseline from a fold's training speakers, and classify its validation and test speakers.

    Parameters
    ----------
    run_dir : str
    fold : int
    baseline : str
        Of `BASELINES`.
    seed : int
        Changes nothing; kept, so that tables can tell runs apart.

    Returns
    -------
    stage : Path
        With predictions.parquet (validation and test) and metrics.json.

    Raises
    ------
    GmpError
        For another baseline, for eGeMAPS without openSMILE, or if stage 01 is not there.
    """
    if baseline not in BASELINES:
        raise GmpError(f"baseline {baseline!r}: expected one of {', '.join(BASELINES)}.")
    corpus = open_corpus(run_dir)
    parts = corpus.split(fold)

    def build(folder: Path) -> None:
        scores, metrics = (_svm if baseline == "egemaps" else _majority)(corpus, parts)
        tables = {
            part: evaluation.predictions_table(corpus.manifest, parts[part], own, corpus.emotions)
            for part, own in scores.items()
        }
        evaluation.write_predictions(folder, tables)
        runs.write_json(folder / "metrics.json", metrics)

    return runs.make_stage(
        runs.run_folder(run_dir) / f"fold{fold}" / STAGE / "no-gmps" / baseline,
        build,
        parameters={"fold": fold, "loss": baseline, "use_gmps": False, "seed": seed},
        stages=[corpus.stage],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
