"""What stage 08's systems make of the test speakers: calibrated, scored by speaker, compared, explained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import comparison, evaluation, runs, speakers
from gmp_utils.calibration import VARIANTS, calibrate, pldc
from gmp_utils.interpreters import INTERPRETERS
from gmp_utils.personal_data import STAGE, Task
from gmp_utils.preparation import open_corpus
from gmp_utils.regression import System

LEAST = 5  # rated utterances of a speaker; CCC of fewer says nothing
PLAIN = "none"  # no calibration
CALIBRATIONS = (PLAIN, *(f"PLDC {variant}" for variant in VARIANTS))
HEARD_TOGETHER = (
    "Vectors of test speakers, PLDC and adaptations come from all that test speakers say, without labels. "
    f"A-CCC is of speakers with at least {LEAST} rated utterances."
)


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


def by_own_labels(table: pd.DataFrame) -> pd.DataFrame:
    """What calibration by a test speaker's own labels would do, for comparison.

    Parameters
    ----------
    table : DataFrame
        As of `predictions`.

    Returns
    -------
    table : DataFrame
        As of `calibrated`, with the calibrations "own labels' <variant>". Nobody has these labels in use.
    """
    tables = []
    for variant in VARIANTS:
        own = table.astype({"predicted": float})
        for _, rows in table.groupby(["attribute", "speaker"]):
            goal = rows.true.mean(), rows.true.std(ddof=0)
            moved = calibrate(rows.predicted.to_numpy(), *goal, variant)
            own.loc[rows.index, "predicted"] = moved
        tables.append(own.assign(calibration=f"own labels' {variant}"))
    return pd.concat(tables, ignore_index=True)


def by_speaker(table: pd.DataFrame) -> pd.DataFrame:
    """CCC of each speaker with at least `LEAST` utterances.

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
    scores = groups.apply(
        lambda own: evaluation.ccc(own.true, own.predicted) if len(own) >= LEAST else np.nan
    )
    return scores.rename("ccc").dropna().reset_index()


def o_ccc_interval(table: pd.DataFrame, seed: int = 0) -> tuple[float, float]:
    """95 % interval of CCC over all utterances, from 1000 bootstrap samples of speakers.

    Each speaker enters by sums, so that no utterance is touched again.

    Parameters
    ----------
    table : DataFrame
        speaker, true, predicted.
    seed : int

    Returns
    -------
    low, high : float
        NaN for fewer than `gmp_utils.comparison.MIN_SPEAKERS` speakers.
    """
    x, y = table.true, table.predicted
    terms = {"n": 1.0 + 0 * x, "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
    sums = pd.DataFrame(terms).groupby(table.speaker).sum().to_numpy()
    if len(sums) < comparison.MIN_SPEAKERS:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(sums), size=(1000, len(sums)))
    n, *moments = sums[drawn].sum(axis=1).T
    x, y, xx, yy, xy = (moment / n for moment in moments)
    scores = 2 * (xy - x * y) / (xx - x**2 + yy - y**2 + (x - y) ** 2)
    return tuple(np.percentile(scores, [2.5, 97.5]))


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
        low, high = (np.nan, np.nan)
        if len(each) >= comparison.MIN_SPEAKERS:
            low, high = comparison.interval(each)
        rows.append(
            {
                **dict(zip(("system", "calibration", "attribute"), key)),
                "O-CCC": evaluation.ccc(own.true, own.predicted),
                **dict(zip(("o_low", "o_high"), o_ccc_interval(own, seed))),
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


def differences(
    table: pd.DataFrame, column: str, against: str, among: Sequence[str] | None = None
) -> pd.DataFrame:
    """Is a difference more than noise: paired by speaker, an attribute at a time.

    Parameters
    ----------
    table : DataFrame
        As of `calibrated`.
    column : str
        What differs: "system" or "calibration"; the other has one value.
    against : str
        The value that the others are compared with.
    among : sequence of str, optional
        The others; all if none are given.

    Returns
    -------
    table : DataFrame
        As of `gmp_utils.comparison.comparisons`, in hundredths of CCC, with `attribute`.
    """
    told = table[column].isin([against, *(among if among is not None else table[column].unique())])
    sizes = table[told].groupby([column, "attribute", "speaker"]).utterance.transform("size")
    rows = table[told][sizes >= LEAST]
    rows = rows.assign(variant=rows[column], loss="CCC", seed=0)
    found = {
        attribute: comparison.comparisons(own, evaluation.ccc, against)
        for attribute, own in rows.groupby("attribute", sort=False)
    }
    joined = pd.concat(found, names=["attribute"]).reset_index("attribute")
    joined["compared"] = joined.compared.str.replace(", CCC", "")
    return joined.reset_index(drop=True)


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Systems by what they differ from in one thing: no vector, PAPT without one, or only more training.

    Parameters
    ----------
    names : sequence of str
        Of systems.

    Returns
    -------
    groups : dict of str to list of str
        Those that each of some systems is compared with.
    """
    told = [name for name in names if not name.startswith("papt-none")]
    papt = [name for name in names if name.startswith("papt-") and name.endswith("-mlp")]
    adapted = [name for name in names if name.startswith("none-mlp-")]
    found = {
        f"none-{kind}": [name for name in told if name.endswith(kind)] for kind in INTERPRETERS
    }
    found |= {"papt-none-mlp": papt, "none-mlp-all": adapted}
    return {
        reference: [name for name in own if name != reference]
        for reference, own in found.items()
        if reference in names and set(own) - {reference}
    }


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Differences of uncalibrated systems within each of `groups`.

    Parameters
    ----------
    table : DataFrame
        As of `calibrated`.

    Returns
    -------
    table : DataFrame
        As of `differences`; p is corrected within attribute and group.
    """
    plain = table[table.calibration == PLAIN]
    each = groups(list(plain.system.unique())).items()
    found = [differences(plain, "system", reference, own) for reference, own in each]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def write_results(
    run_dir: str,
    tasks: Sequence[Task],
    systems: Sequence[System],
    table: pd.DataFrame,
    results: pd.DataFrame,
) -> Path:
    """Keep the results of a run as a stage.

    Parameters
    ----------
    run_dir : str
    tasks : sequence of Task
        A fold each.
    systems : sequence of System
    table, results : DataFrame
        As `calibrated` and `results_table` return them.

    Returns
    -------
    stage : Path
        With ratings.parquet, table.csv, differences.csv (of systems, uncalibrated) and summary.md.
    """
    corpus = open_corpus(run_dir)
    protocol = corpus.protocol

    def build(folder: Path) -> None:
        table.to_parquet(folder / "ratings.parquet", index=False)
        results.to_csv(folder / "table.csv", index=False)
        found = compared(table)
        found.to_csv(folder / "differences.csv", index=False)
        heard = f"folds {', '.join(str(task.fold) for task in tasks)} of {len(protocol.folds)}"
        said = f"{corpus.name}, encoder {tasks[0].encoder}, {heard}. {protocol.describe()}"
        words = shown(results).reset_index()
        words.columns = [" ".join(filter(None, column)) for column in words.columns]
        markdown = words.to_markdown(index=False, disable_numparse=True)
        findings = [
            f"- {row.attribute}: {row.compared}: {row.finding}" for row in found.itertuples()
        ]
        text = [said, HEARD_TOGETHER, "", markdown, "", *findings, ""]
        (folder / "summary.md").write_text("\n".join(text), encoding="utf-8")

    return runs.make_stage(
        runs.run_folder(run_dir) / STAGE / "results",
        build,
        parameters={
            "tasks": [vars(task) for task in tasks],
            "systems": [vars(one) for one in systems],
        },
        stages=[task.folder / system.name for task in tasks for system in systems],
        inputs=[runs.text_digest(results.to_csv())],
        module=__name__,
        protocol=protocol.to_dict(),
    )
