"""What systems cost: to train, and to use."""

import time

import numpy as np
import pandas as pd

from gmp_utils import finetuning, runs
from gmp_utils.classifiers import SYSTEM, classifiers, corpus_of, lineage


def costs(run_dir: str) -> pd.DataFrame:
    """What each system took to train: all stages of its own, mean over folds and seeds.

    Stages that were stopped and went on count the last session only.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    table : DataFrame
        variant, loss, `seconds`, `peak MB` and `peak GPU MB` of memory, `device`, `audio s per s` of
        fine-tuning (seconds of training audio, as often as it was heard, per second), the `parameters`
        that it trained, and `times` the seconds of plain fine-tuning (of the cheapest system that starts
        from the encoder and trains it; NaN without one).
    """
    rows = []
    for one in classifiers(run_dir).itertuples(index=False):
        made = [runs.read_json(stage / "provenance.json") for stage in lineage(one.stage)]
        corpus = corpus_of(one.stage)
        seconds = corpus.manifest.duration[corpus.split(one.fold)["train"]].sum()
        given = runs.read_json(one.stage / "params.json")
        passes = given["schedule"]["epochs"] if "schedule" in given else np.nan
        rows.append(
            {
                **{key: getattr(one, key) for key in SYSTEM},
                "seconds": sum(stage["wall_seconds"] for stage in made),
                "peak MB": max(stage["peak_memory_mb"] for stage in made),
                "peak GPU MB": max(stage["peak_gpu_memory_mb"] or 0 for stage in made),
                "device": made[0]["device"],
                "parameters": runs.read_json(one.stage / "metrics.json")["parameters"],
                "audio s per s": passes * seconds / made[-1]["wall_seconds"],
                "stages": len(made),
                "trained": given.get("train_encoder", False),
            }
        )
    table = pd.DataFrame(rows).groupby([*SYSTEM, "device"], as_index=False, sort=False).mean()
    plain = table.seconds[(table.pop("stages") == 1) & (table.pop("trained") == 1)].min()
    return table.assign(times=table.seconds / plain)


def inference_speed(run_dir: str) -> float | None:
    """Seconds of audio that a classifier hears per second, from waveforms to scores, on this machine.

    Parameters
    ----------
    run_dir : str
        The test utterances of its first network are classified, a first few unmeasured. Without one,
        baselines aside, the speed is None.
    """
    found = classifiers(run_dir)
    networks = found[[(stage / "model").is_dir() for stage in found.stage]]
    if networks.empty:
        return None
    stage, fold = networks.iloc[0][["stage", "fold"]]
    corpus = corpus_of(stage)
    runs.identity(stage)
    model = finetuning.EmotionClassifier.load(str(stage / "model"))
    tested = corpus.split(fold)["test"]
    finetuning.apply(model, corpus, corpus.waveforms, tested[:2])
    began = time.monotonic()
    finetuning.apply(model, corpus, corpus.waveforms, tested)
    return float(corpus.manifest.duration[tested].sum() / (time.monotonic() - began))
