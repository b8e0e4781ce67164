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
from gmp_utils.errors import OPENSMILE, GmpError
from gmp_utils.preparation import Corpus, open_corpus

STAGE = "06_finetune"
BASELINES = ("egemaps", "majority")
GRID = (1e-3, 1e-2, 1e-1, 1.0)  # of the SVM's C
C = 1e-2  # where a protocol does not choose on anything


def functionals(corpus: Corpus) -> Path:
    """88 functionals of every utterance; computed once for a run.

    Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set", 2016; the extended set, version 2.

    Parameters
    ----------
    corpus : Corpus

    Returns
    -------
    stage : Path
        With functionals.parquet, (n_utterances, 88), indexed by utterance.

    Raises
    ------
    GmpError
        Without openSMILE.
    """
    check(["egemaps"])

    def build(folder: Path) -> None:
        import opensmile

        smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
        rows = [
            smile.process_signal(corpus.waveforms[name] / 32767, audio.SAMPLE_RATE).iloc[0]
            for name in tqdm(corpus.manifest.utterance, "eGeMAPS", disable=None)
        ]
        table = pd.DataFrame(rows).set_index(corpus.manifest.index)
        table.to_parquet(folder / "functionals.parquet")

    return runs.make_stage(
        corpus.stage.parent / "egemaps",
        build,
        parameters={},
        stages=[corpus.stage],
        module=__name__,
    )


def _svm(
    corpus: Corpus, parts: dict[str, list[str]], x: pd.DataFrame
) -> tuple[dict[str, np.ndarray], dict]:
    """Scores of the held-out parts by the C that the protocol selects, and what was selected."""
    judged, n = corpus.protocol.compared_on, len(corpus.emotions)
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
    score, c, scores = max(fitted, key=lambda one: one[0])  # of equals the smallest C
    return scores, {"C": c, "emotion_uar": score, "parameters": n * (n - 1) // 2 * (x.shape[1] + 1)}


def _majority(corpus: Corpus, parts: dict[str, list[str]]) -> tuple[dict[str, np.ndarray], dict]:
    labels = corpus.labels(parts["train"], "emotion")
    counts = np.bincount(labels, minlength=len(corpus.emotions)).astype(float)
    found = {
        part: np.tile(counts, (len(names), 1))
        for part, names in parts.items()
        if part != "train" and names
    }
    return found, {"parameters": 0}


def check(baselines: list[str]) -> None:
    """Refuse unknown baselines, and those that cannot be, before any work is done."""
    for name in baselines:
        if name not in BASELINES:
            raise GmpError(f"baseline {name!r}: expected one of {', '.join(BASELINES)}.")
    if "egemaps" in baselines and find_spec("opensmile") is None:
        raise GmpError(OPENSMILE)


def classify(run_dir: str, fold: int, baseline: str, use_gmps: bool = False, seed: int = 0) -> Path:
    """Learn a baseline from a fold's training speakers, and classify its validation and test speakers.

    Parameters
    ----------
    run_dir : str
    fold : int
    baseline : str
        Of `BASELINES`.
    use_gmps : bool
        Which networks it stands beside; like the seed it changes nothing, and is kept for tables.
    seed : int

    Returns
    -------
    stage : Path
        With predictions.parquet (validation and test) and metrics.json.

    Raises
    ------
    GmpError
        For another baseline, for eGeMAPS without openSMILE, or if stage 01 is not there.
    """
    check([baseline])
    corpus = open_corpus(run_dir)
    parts, made_from = corpus.split(fold), [corpus.stage]
    if baseline == "egemaps":
        made_from.append(functionals(corpus))

    def build(folder: Path) -> None:
        if baseline == "egemaps":
            x = pd.read_parquet(made_from[-1] / "functionals.parquet")
            scores, metrics = _svm(corpus, parts, x)
        else:
            scores, metrics = _majority(corpus, parts)
        evaluation.write_predictions(folder, corpus.manifest, parts, scores, corpus.emotions)
        runs.write_json(folder / "metrics.json", metrics)

    return runs.make_stage(
        runs.run_folder(run_dir) / f"fold{fold}" / STAGE / runs.STARTS[use_gmps] / baseline,
        build,
        parameters={"fold": fold, "loss": baseline, "use_gmps": use_gmps, "seed": seed},
        stages=made_from,
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )
