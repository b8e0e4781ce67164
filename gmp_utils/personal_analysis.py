"""Why stage 08's systems do what they do: neighbours, the personalisation gap, shifts, and cost."""

from collections.abc import Sequence

import pandas as pd
from sklearn.decomposition import PCA

from gmp_utils import runs, speakers
from gmp_utils.personal_data import Task, open_fold
from gmp_utils.personal_results import PLAIN, by_speaker, calibrated, predictions
from gmp_utils.regression import System

REDUCED = 10  # dimensions that speakers' features are compared in


def by_neighbours(
    tasks: Sequence[Task],
    system: str,
    counts: Sequence[int],
    pooled: bool = True,
    gate: float = -1.0,
) -> pd.DataFrame:
    """A-CCC of each variant of PLDC with other numbers of neighbours.

    Returns
    -------
    table : DataFrame
        neighbours, calibration, attribute, A-CCC.
    """
    rows = [
        by_speaker(calibrated(task, system, k, pooled, gate)).assign(neighbours=k)
        for k in counts
        for task in tasks
    ]
    keys = ["neighbours", "calibration", "attribute"]
    means = pd.concat(rows).groupby(keys, sort=False).ccc.mean()
    return means.rename("A-CCC").reset_index()


def gap(task: Task, stages: dict[int, str]) -> pd.DataFrame:
    """How much better known people are rated than unknown ones, by how many people were learnt from.

    Parameters
    ----------
    task : Task
    stages : dict of int to str
        Names of the stages of `gmp_utils.personalization.with_fewer_speakers`, by their speakers.

    Returns
    -------
    table : DataFrame
        `speakers`, `attribute`, A-CCC of `known` people's utterances that were left out, of every other
        utterance of `unknown` people (the test speakers), and the `gap`.
    """
    rows = []
    for n, stage in stages.items():
        tables = {"known": predictions(task, stage, "known"), "unknown": predictions(task, stage)}
        number = tables["unknown"].groupby(["attribute", "speaker"]).cumcount()
        tables["unknown"] = tables["unknown"][number % 2 == 1]
        found = {name: by_speaker(own.assign(calibration=PLAIN)) for name, own in tables.items()}
        means = pd.DataFrame(
            {name: own.groupby("attribute", sort=False).ccc.mean() for name, own in found.items()}
        )
        rows.append(means.assign(speakers=n, gap=means.known - means.unknown).reset_index())
    return pd.concat(rows, ignore_index=True)


def shifts(task: Task, system: str = "none-mlp") -> pd.DataFrame:
    """How far test speakers are from the training speakers, and how well they are rated.

    An analysis that looks at test labels; nothing is chosen by it.

    Parameters
    ----------
    task : Task
    system : str

    Returns
    -------
    table : DataFrame
        attribute, speaker, ccc, and KL divergences from all training speakers together, in nats: `feature`,
        of the untouched encoder's mean features (their ten first principal components), and `label`.
    """
    heard = open_fold(task)
    means = heard.summaries["mean"]
    heard_in_training = means.loc[heard.parts["train"]]
    size = min(REDUCED, *heard_in_training.shape)
    pca = PCA(size, random_state=0).fit(heard_in_training)
    reduced = pd.DataFrame(pca.transform(means), means.index)
    learnt, tested = (heard.parts[part] for part in ("train", "test"))
    scores = by_speaker(predictions(task, system).assign(calibration=PLAIN))
    labels, of = heard.corpus.manifest, heard.speaker[tested]
    rows = []
    for row in scores.itertuples():
        own = of.index[of == row.speaker]
        pairs = {
            "feature": [reduced.loc[names].to_numpy() for names in (own, learnt)],
            "label": [labels.loc[names, [row.attribute]].to_numpy() for names in (own, learnt)],
        }
        found = {name: speakers.shift(*pair) for name, pair in pairs.items()}
        rows.append({"attribute": row.attribute, "speaker": row.speaker, "ccc": row.ccc, **found})
    return pd.DataFrame(rows)


def costs(task: Task, systems: Sequence[System]) -> pd.DataFrame:
    """What the systems cost on a fold.

    Returns
    -------
    table : DataFrame
        By system: `parameters` that its trainings changed, and `seconds` that they took, PAPT's masked
        prediction among them.
    """
    rows = {}
    for system in systems:
        stages = [task.folder / system.name]
        if system.representation == "papt":
            stages.insert(0, task.folder / f"papt-{system.position}")
        metrics = [runs.read_json(stage / "metrics.json") for stage in stages]
        seconds = [runs.read_json(stage / "provenance.json")["wall_seconds"] for stage in stages]
        rows[system.name] = {
            "parameters": max(own["parameters"] for own in metrics),
            "seconds": sum(seconds),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
