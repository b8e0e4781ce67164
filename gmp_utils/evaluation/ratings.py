"""Ratings of test speakers: calibrated (PLDC), scored by speaker, compared and explained."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from gmp_utils import GmpError
from gmp_utils.data.rated_fold import RatingTask, open_fold
from gmp_utils.data.speakers import cosines, nearest_speakers, shift
from gmp_utils.evaluation import comparison
from gmp_utils.evaluation.metrics import ccc
from gmp_utils.models.regression import INTERPRETERS, RatingModelConfig
from gmp_utils.runs.files import read_json
from gmp_utils.runs.stage import check_and_identify

VARIANTS = ("mean", "scale", "both")
MIN_UTTERANCES = 5  # rated utterances of a speaker; CCC of fewer says nothing
PLAIN = "none"  # no calibration
CALIBRATIONS = (PLAIN, *(f"PLDC {variant}" for variant in VARIANTS))
TRANSDUCTIVE_NOTE = (
    "Vectors of test speakers, PLDC and adaptations come from all that test speakers say, without labels. "
    f"A-CCC is of speakers with at least {MIN_UTTERANCES} rated utterances."
)
REDUCED = 10  # dimensions that speakers' features are compared in


def statistics(
    ratings: pd.Series, speakers: pd.Series, neighbours: list[str], pooled: bool
) -> tuple:
    """Mean and deviation of the labels of some speakers.

    Parameters
    ----------
    ratings, speakers : (n_utterances,) Series
        Of the training speakers.
    neighbours : list of str
    pooled : bool
        Of all their labels together, as the authors' code has it; or, as the paper writes, the means of
        each one's mean and deviation.

    Returns
    -------
    mean, deviation : float
        Population moments.
    """
    own = ratings[speakers.isin(neighbours)]
    if pooled:
        return float(own.mean()), float(own.std(ddof=0))
    each = own.groupby(speakers[own.index])
    return float(each.mean().mean()), float(each.std(ddof=0).mean())


def calibrate(
    predicted: np.ndarray, mean: float, deviation: float, variant: str = "both"
) -> np.ndarray:
    """Move one speaker's predictions, ỹ = (y − μ) / σ · σ̄ + μ̄.

    Parameters
    ----------
    predicted : (n_utterances,) float
        All of the speaker's.
    mean, deviation : float
        μ̄ and σ̄, of similar speakers' labels.
    variant : str
        "mean" leaves the scale as it is, "scale" the mean. The paper writes both; its authors found the scale
        alone best on MSP-Podcast.

    Returns
    -------
    calibrated : (n_utterances,) float
        As predicted where it is a single utterance, which has no distribution; without a new scale where
        all predictions are equal.

    Raises
    ------
    GmpError
        For another variant.
    """
    if variant not in VARIANTS:
        raise GmpError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    if len(predicted) < 2:
        return predicted
    own, spread = predicted.mean(), predicted.std()
    scale = deviation / spread if variant != "mean" and spread > 0 else 1.0
    return (predicted - own) * scale + (own if variant == "scale" else mean)


def pldc(
    predictions: pd.DataFrame,
    training: pd.DataFrame,
    alike: pd.DataFrame,
    neighbours: dict[str, list[str]],
    variant: str = "both",
    pooled: bool = True,
    gate: float = -1.0,
) -> pd.Series:
    """Calibrate the predictions of many speakers.

    Parameters
    ----------
    predictions : DataFrame
        `speaker` and `predicted`; further columns, labels among them, are not looked at.
    training : DataFrame
        `speaker` and `true` of the training speakers' utterances.
    alike : DataFrame
        Cosines, speakers × training speakers.
    neighbours : dict of str to list of str
        See `gmp_utils.data.speakers.nearest_speakers`.
    variant, pooled
        See `calibrate` and `statistics`.
    gate : float
        Speakers whose neighbours are less similar than this, on average, stay as they are.

    Returns
    -------
    calibrated : Series
        In the order of `predictions`.
    """
    found = predictions.predicted.astype(float)
    for speaker, own in predictions.groupby("speaker").predicted:
        near = neighbours[speaker]
        if alike.loc[speaker, near].mean() >= gate:
            goal = statistics(training.true, training.speaker, near, pooled)
            found[own.index] = calibrate(own.to_numpy(), *goal, variant)
    return found


def read_predictions(task: RatingTask, system: str, part: str = "test") -> pd.DataFrame:
    """What a finished system made of a part of its fold.

    Returns
    -------
    table : DataFrame
        utterance, speaker, gender, part, attribute, true, predicted; `system` and `fold`.
    """
    stage = task.folder / system
    check_and_identify(stage, "predictions.parquet")
    table = pd.read_parquet(stage / "predictions.parquet")
    own = table[table.part == part].reset_index(drop=True)
    return own.assign(system=system, fold=task.fold)


def calibrated(
    task: RatingTask,
    system: str,
    neighbours: int | None = None,
    pooled: bool = True,
    gate: float = -1.0,
) -> pd.DataFrame:
    """A system's ratings of the test speakers, as they are and by every variant of PLDC.

    Parameters
    ----------
    task : Task
    system : str
    neighbours : int, optional
        Instead of the task's.
    pooled, gate
        See `gmp_utils.evaluation.ratings.pldc`.

    Returns
    -------
    table : DataFrame
        As of `predictions`, once for each of `CALIBRATIONS`, which is the column `calibration`.
    """
    tested, learnt = (read_predictions(task, system, part) for part in ("test", "train"))
    check_and_identify(task.folder / system, "speakers.parquet")
    means = pd.read_parquet(task.folder / system / "speakers.parquet")
    known = sorted(learnt.speaker.unique())
    alike = cosines(means.loc[sorted(tested.speaker.unique())], means.loc[known])
    near = nearest_speakers(alike, neighbours or task.neighbours)
    tables = []
    for attribute, own in tested.groupby("attribute", sort=False):
        labels = learnt[learnt.attribute == attribute]
        tables.append(own.assign(calibration=PLAIN))
        for name, variant in zip(CALIBRATIONS[1:], VARIANTS):
            moved = pldc(own, labels, alike, near, variant, pooled, gate)
            tables.append(own.assign(calibration=name, predicted=moved))
    return pd.concat(tables, ignore_index=True)


def oracle_calibration(table: pd.DataFrame) -> pd.DataFrame:
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
        lambda own: ccc(own.true, own.predicted) if len(own) >= MIN_UTTERANCES else np.nan
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
        NaN for fewer than `gmp_utils.evaluation.comparison.MIN_SPEAKERS` speakers.
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
                "O-CCC": ccc(own.true, own.predicted),
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
        As of `gmp_utils.evaluation.comparison.comparisons`, in hundredths of CCC, with `attribute`.
    """
    told = table[column].isin([against, *(among if among is not None else table[column].unique())])
    sizes = table[told].groupby([column, "attribute", "speaker"]).utterance.transform("size")
    rows = table[told][sizes >= MIN_UTTERANCES]
    rows = rows.assign(variant=rows[column], loss="CCC", seed=0)
    found = {
        attribute: comparison.comparisons(own, ccc, against)
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


def by_neighbours(
    tasks: Sequence[RatingTask],
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


def gap(task: RatingTask, stages: dict[int, str]) -> pd.DataFrame:
    """How much better known people are rated than unknown ones, by how many people were learnt from.

    Parameters
    ----------
    task : Task
    stages : dict of int to str
        Names of the stages of `gmp_utils.stages.personalize.with_fewer_speakers`, by their speakers.

    Returns
    -------
    table : DataFrame
        `speakers`, `attribute`, A-CCC of `known` people's utterances that were left out, of every other
        utterance of `unknown` people (the test speakers), and the `gap`.
    """
    rows = []
    for n, stage in stages.items():
        tables = {
            "known": read_predictions(task, stage, "known"),
            "unknown": read_predictions(task, stage),
        }
        number = tables["unknown"].groupby(["attribute", "speaker"]).cumcount()
        tables["unknown"] = tables["unknown"][number % 2 == 1]
        found = {name: by_speaker(own.assign(calibration=PLAIN)) for name, own in tables.items()}
        means = pd.DataFrame(
            {name: own.groupby("attribute", sort=False).ccc.mean() for name, own in found.items()}
        )
        rows.append(means.assign(speakers=n, gap=means.known - means.unknown).reset_index())
    return pd.concat(rows, ignore_index=True)


def shifts(task: RatingTask, system: str = "none-mlp") -> pd.DataFrame:
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
    scores = by_speaker(read_predictions(task, system).assign(calibration=PLAIN))
    labels, of = heard.corpus.manifest, heard.speaker[tested]
    rows = []
    for row in scores.itertuples():
        own = of.index[of == row.speaker]
        pairs = {
            "feature": [reduced.loc[names].to_numpy() for names in (own, learnt)],
            "label": [labels.loc[names, [row.attribute]].to_numpy() for names in (own, learnt)],
        }
        found = {name: shift(*pair) for name, pair in pairs.items()}
        rows.append({"attribute": row.attribute, "speaker": row.speaker, "ccc": row.ccc, **found})
    return pd.DataFrame(rows)


def rating_costs(task: RatingTask, systems: Sequence[RatingModelConfig]) -> pd.DataFrame:
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
        metrics = [read_json(stage / "metrics.json") for stage in stages]
        seconds = [read_json(stage / "provenance.json")["wall_seconds"] for stage in stages]
        rows[system.name] = {
            "parameters": max(own["parameters"] for own in metrics),
            "seconds": sum(seconds),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
