"""What stage 08's systems make of the test speakers: calibrated, scored by speaker, compared, explained."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from gmp_utils import comparison, evaluation, personalization, runs, speakers
from gmp_utils.calibration import VARIANTS, pldc
from gmp_utils.personalization import Task

PLAIN = "none"  # no calibration
CALIBRATIONS = (PLAIN, *(f"PLDC {variant}" for variant in VARIANTS))
REDUCED = 10  # dimensions that speakers' features are compared in


def predictions(task: Task, system: str, part: str = "test") -> pd.DataFrame:
    """What a finished system made of a part of its fold.

    Returns
    -------
    table : DataFrame
        utterance, speaker, gender, part, attribute, true, predicted; `system` and `fold`.
    """
    stage = task.folder / system
    runs.identity(stage, "predictions.parquet")
    table = pd.read_parquet(stage / "predictions.parquet")
    own = table[table.part == part].reset_index(drop=True)
    return own.assign(system=system, fold=task.fold)


def calibrated(
    task: Task, system: str, neighbours: int | None = None, pooled: bool = True, gate: float = -1.0
) -> pd.DataFrame:
    """A system's ratings of the test speakers, as they are and by every variant of PLDC.

    Parameters
    ----------
    task : Task
    system : str
    neighbours : int, optional
        Instead of the task's.
    pooled, gate
        See `gmp_utils.calibration.pldc`.

    Returns
    -------
    table : DataFrame
        As of `predictions`, once for each of `CALIBRATIONS`, which is the column `calibration`.
    """
    tested, learnt = (predictions(task, system, part) for part in ("test", "train"))
    runs.identity(task.folder / system, "speakers.parquet")
    means = pd.read_parquet(task.folder / system / "speakers.parquet")
    known = sorted(learnt.speaker.unique())
    alike = speakers.cosines(means.loc[sorted(tested.speaker.unique())], means.loc[known])
    near = speakers.nearest(alike, neighbours or task.neighbours)
    tables = []
    for attribute, own in tested.groupby("attribute", sort=False):
        labels = learnt[learnt.attribute == attribute]
        tables.append(own.assign(calibration=PLAIN))
        for name, variant in zip(CALIBRATIONS[1:], VARIANTS):
            moved = pldc(own, labels, alike, near, variant, pooled, gate)
            tables.append(own.assign(calibration=name, predicted=moved))
    return pd.concat(tables, ignore_index=True)


def by_speaker(table: pd.DataFrame) -> pd.DataFrame:
    """CCC of each speaker.

    Parameters
    ----------
    table : DataFrame
        As of `calibrated`.

    Returns
    -------
    scores : DataFrame
        system, calibration, attribute, speaker, ccc.
    """
    keys = ["system", "calibration", "attribute", "speaker"]
    groups = table.groupby(keys, sort=False)[["true", "predicted"]]
    scores = groups.apply(lambda own: evaluation.ccc(own.true, own.predicted))
    return scores.rename("ccc").reset_index()


def results_table(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """O-CCC over all test utterances, and A-CCC, the mean over test speakers.

    Parameters
    ----------
    table : DataFrame
        As of `calibrated`, of any systems and folds.
    seed : int
        Of the bootstrap.

    Returns
    -------
    results : DataFrame
        A row per system, calibration and attribute: `O-CCC` with its interval from bootstrap samples of
        speakers, `o_low` to `o_high`; `A-CCC`, its `deviation` over speakers and interval by Student's t,
        `a_low` to `a_high`; `speakers`. Intervals are NaN for fewer than four speakers.
    """
    rows = []
    for key, own in table.groupby(["system", "calibration", "attribute"], sort=False):
        each = by_speaker(own).ccc
        value, interval = comparison.with_interval(own, evaluation.ccc, seed)
        low, high = (np.nan, np.nan)
        if len(each) >= comparison.MIN_SPEAKERS:
            low, high = comparison.interval(each)
        rows.append(
            {
                **dict(zip(("system", "calibration", "attribute"), key)),
                "O-CCC": value,
                **dict(zip(("o_low", "o_high"), interval or (np.nan, np.nan))),
                "A-CCC": each.mean(),
                "deviation": each.std(ddof=0),
                "a_low": low,
                "a_high": high,
                "speakers": len(each),
            }
        )
    return pd.DataFrame(rows)


def shown(results: pd.DataFrame) -> pd.DataFrame:
    """The table as one reads it: systems and calibrations × attributes, A-CCC and O-CCC with intervals."""

    def words(value: float, low: float, high: float) -> str:
        return f"{value:.3f}" + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")

    named = results.assign(
        **{
            "A-CCC": [words(*row) for row in results[["A-CCC", "a_low", "a_high"]].to_numpy()],
            "O-CCC": [words(*row) for row in results[["O-CCC", "o_low", "o_high"]].to_numpy()],
        }
    )
    wide = named.pivot(
        index=["system", "calibration"], columns="attribute", values=["A-CCC", "O-CCC"]
    )
    order = list(dict.fromkeys(zip(results.system, results.calibration)))
    return wide.loc[order]


def differences(table: pd.DataFrame, column: str, against: str) -> pd.DataFrame:
    """Is a difference more than noise: paired by speaker, an attribute at a time.

    Parameters
    ----------
    table : DataFrame
        As of `calibrated`.
    column : str
        What differs: "system" or "calibration"; the other has one value.
    against : str
        The value that the others are compared with.

    Returns
    -------
    table : DataFrame
        As of `gmp_utils.comparison.comparisons`, in hundredths of CCC, with `attribute`.
    """
    rows = table.assign(variant=table[column], loss="CCC", seed=0)
    found = {
        attribute: comparison.comparisons(own, evaluation.ccc, against)
        for attribute, own in rows.groupby("attribute", sort=False)
    }
    joined = pd.concat(found, names=["attribute"]).reset_index("attribute")
    joined["compared"] = joined.compared.str.replace(", CCC", "")
    return joined.reset_index(drop=True)


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
        `speakers`, `attribute`, A-CCC of `known` people's utterances that were left out, of `unknown`
        people's (the test speakers), and the `gap`.
    """
    rows = []
    for n, stage in stages.items():
        found = {
            name: by_speaker(predictions(task, stage, part).assign(calibration=PLAIN))
            for name, part in (("known", "known"), ("unknown", "test"))
        }
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
        attribute, speaker, ccc, and KL divergences from all training speakers together, in nats: `feature`, of
        the untouched encoder's mean features (their ten first principal components), and `label`.
    """
    heard = personalization.open_fold(task)
    means = heard.summaries["mean"]
    pca = PCA(min(REDUCED, *means.shape), random_state=0).fit(means.loc[heard.parts["train"]])
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


def costs(task: Task, systems: Sequence[personalization.System]) -> pd.DataFrame:
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
