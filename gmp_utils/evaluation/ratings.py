"""Predicted ratings of test speakers: calibrated (PLDC), scored by speaker, compared and explained."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from gmp_utils import GmpError
from gmp_utils.data.rated_fold import RatingTask, open_fold
from gmp_utils.data.speakers import nearest_speakers, shift, similarities
from gmp_utils.evaluation.comparison import comparisons, jackknife_interval, speaker_means
from gmp_utils.evaluation.metrics import ccc
from gmp_utils.models.regression import RatingModelConfig
from gmp_utils.runs.files import read_json
from gmp_utils.runs.stage import check_and_identify

VARIANTS = ("mean", "scale", "both")
UNCALIBRATED = "none"
MIN_UTTERANCES = 5  # per speaker: the CCC of fewer is meaningless
REDUCED = 10  # dimensions in which features of speakers are compared
TRANSDUCTIVE_NOTE = (
    "Embeddings of test speakers, PLDC and adaptation use all utterances of a test speaker, without labels. "
    f"A-CCC is over speakers with at least {MIN_UTTERANCES} rated utterances."
)


def calibrate(predicted: np.ndarray, mean: float, std: float, variant: str = "both") -> np.ndarray:
    """Shift and scale all predictions of one speaker: (y − mean(y)) / std(y) · std + mean.

    "mean" only shifts, and "scale" only rescales. PLDC's authors found "scale" best on MSP-Podcast. A single
    prediction is unchanged, and equal predictions are not rescaled.
    """
    if len(predicted) < 2:
        return predicted
    center, spread = predicted.mean(), predicted.std()
    scale = std / spread if variant != "mean" and spread > 0 else 1.0
    return (predicted - center) * scale + (center if variant == "scale" else mean)


def _calibrate_speakers(
    predictions: pd.DataFrame, targets: dict[str, tuple[float, float]], variant: str
) -> pd.Series:
    """Calibrate each speaker to a mean and standard deviation."""
    groups = predictions.predicted.astype(float).groupby(predictions.speaker)
    return groups.transform(lambda y: calibrate(y.to_numpy(), *targets[y.name], variant))


def pldc(
    predictions: pd.DataFrame,
    training: pd.DataFrame,
    *,
    similarity: pd.DataFrame,
    neighbors: int,
    variant: str = "both",
) -> pd.Series:
    """Personalized label distribution calibration (PLDC) of one attribute, arXiv 2309.02418.

    Predictions (`speaker`, `predicted`) get the mean and standard deviation of all labels (`speaker`, `true`)
    of the most similar training speakers. `similarity` has cosines, speakers × training speakers. See also
    `calibrate`.
    """
    targets = {}
    for speaker, is_near in nearest_speakers(similarity, neighbors).iterrows():
        labels = training.true[training.speaker.map(is_near)]
        targets[speaker] = labels.mean(), labels.std(ddof=0)
    return _calibrate_speakers(predictions, targets, variant)


def read_predictions(task: RatingTask, system: str, part: str = "test") -> pd.DataFrame:
    """Predictions of a finished system for a part of its fold, uncalibrated.

    Columns are utterance, speaker, gender, part, attribute, true, predicted, system, fold, seed and
    calibration.
    """
    stage = task.folder / system
    check_and_identify(stage, "params.json", "predictions.parquet", "speakers.parquet")
    table = pd.read_parquet(stage / "predictions.parquet")
    table = table[table.part == part].reset_index(drop=True)
    seed = read_json(stage / "params.json")["training"]["seed"]
    return table.assign(system=system, fold=task.fold, seed=seed, calibration=UNCALIBRATED)


def calibrated(task: RatingTask, system: str, neighbors: int | None = None) -> pd.DataFrame:
    """`read_predictions` of the test speakers, uncalibrated and by each variant of PLDC.

    The default of `neighbors` is the task's.
    """
    test, training = (read_predictions(task, system, part) for part in ("test", "train"))
    means = pd.read_parquet(task.folder / system / "speakers.parquet")
    similarity = similarities(means, sorted(training.speaker.unique()))
    similarity = similarity.loc[sorted(test.speaker.unique())]
    settings = {"similarity": similarity, "neighbors": neighbors or task.neighbors}
    tables = []
    for attribute, predictions in test.groupby("attribute", sort=False):
        labels = training[training.attribute == attribute]
        tables.append(predictions)
        for variant in VARIANTS:
            values = pldc(predictions, labels, variant=variant, **settings)
            tables.append(predictions.assign(calibration=f"PLDC {variant}", predicted=values))
    return pd.concat(tables, ignore_index=True)


def oracle_calibration(table: pd.DataFrame) -> pd.DataFrame:
    """Calibrate the uncalibrated rows by the test speakers' labels, which applications do not have.

    The calibrations are "oracle mean", "oracle scale" and "oracle both".
    """
    tables, plain = [], table[table.calibration == UNCALIBRATED]
    for _, predictions in plain.groupby(["system", "attribute"], sort=False):
        labels = predictions.groupby("speaker").true
        targets = {speaker: (true.mean(), true.std(ddof=0)) for speaker, true in labels}
        for variant in VARIANTS:
            values = _calibrate_speakers(predictions, targets, variant)
            tables.append(predictions.assign(calibration=f"oracle {variant}", predicted=values))
    return pd.concat(tables, ignore_index=True)


def speaker_scores(table: pd.DataFrame) -> pd.DataFrame:
    """`ccc` by system, calibration, attribute, seed, and speaker of at least `MIN_UTTERANCES` utterances."""
    groups = table.groupby(["system", "calibration", "attribute", "seed", "speaker"], sort=False)
    scores = groups[["true", "predicted"]].apply(
        lambda rows: ccc(rows.true, rows.predicted) if len(rows) >= MIN_UTTERANCES else np.nan
    )
    return scores.rename("ccc").dropna().reset_index()


def moments(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Sums over utterances (..., n) from which `ccc_of_sums` computes CCC, (..., 6)."""
    x, y = true, predicted
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1).sum(axis=-2)


def ccc_of_sums(sums: np.ndarray) -> np.ndarray:
    """CCC of `moments`, (..., 6), summed over any speakers."""
    x, y, xx, yy, xy = np.moveaxis(sums[..., 1:], -1, 0) / sums[..., 0]
    return 2 * (xy - x * y) / (xx - x**2 + yy - y**2 + (x - y) ** 2)


def results_table(table: pd.DataFrame) -> pd.DataFrame:
    """O-CCC over all test utterances, and A-CCC, the mean over test speakers, pooled over seeds.

    There is a row per system, calibration and attribute: `O-CCC` and `A-CCC` with the intervals of
    `jackknife_interval` over speakers, `o_low` to `o_high` and `a_low` to `a_high`, the standard deviation of
    A-CCC over speakers (`std`), and the numbers of `speakers` and `seeds`.
    """
    rows, keys = [], ["system", "calibration", "attribute"]
    for key, predictions in table.groupby(keys, sort=False):
        scores = speaker_scores(predictions).groupby("speaker").ccc.mean()
        row = dict(zip(keys, key)) | {"O-CCC": ccc(predictions.true, predictions.predicted)}
        by_speaker = predictions.groupby("speaker")
        sums = [moments(rows.true.to_numpy(), rows.predicted.to_numpy()) for _, rows in by_speaker]
        row["o_low"], row["o_high"] = jackknife_interval(np.stack(sums), ccc_of_sums, lowest=-1)
        row |= {"A-CCC": scores.mean(), "std": scores.std(ddof=0)}
        sums = scores.to_frame().assign(n=1).to_numpy()[..., None]
        row["a_low"], row["a_high"] = jackknife_interval(sums, lowest=-1)
        rows.append(row | {"speakers": len(scores), "seeds": predictions.seed.nunique()})
    return pd.DataFrame(rows)


def display_table(results: pd.DataFrame) -> pd.DataFrame:
    """The table as text: systems and calibrations × attributes, A-CCC and O-CCC with intervals."""

    def text(value: float, low: float, high: float) -> str:
        return f"{value:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")

    columns = {"A-CCC": ["A-CCC", "a_low", "a_high"], "O-CCC": ["O-CCC", "o_low", "o_high"]}
    cells = {name: list(map(text, *results[columns[name]].to_numpy().T)) for name in columns}
    index = ["system", "calibration"]
    wide = results.assign(**cells).pivot(index=index, columns="attribute", values=list(columns))
    return wide.loc[list(dict.fromkeys(zip(results.system, results.calibration)))]


def _differences(
    table: pd.DataFrame, column: str, pairs: Sequence[tuple[str, str]]
) -> pd.DataFrame:
    """`comparisons` of A-CCC by attribute, in hundredths, between values of a column."""
    scores = speaker_scores(table).rename(columns={"ccc": "total"}).assign(n=1, label="")
    sums = scores.assign(system=scores[column]).set_index(["system", "speaker", "seed", "label"])
    if sums.empty:
        raise GmpError(f"no test speaker has {MIN_UTTERANCES} rated utterances, so none is scored.")
    groups = sums.groupby("attribute", sort=False)[["total", "n"]]
    tables = {attribute: comparisons(rows, pairs) for attribute, rows in groups}
    return pd.concat(tables, names=["attribute"]).reset_index("attribute")


def compare_calibrations(table: pd.DataFrame) -> pd.DataFrame:
    """`comparisons` of one system's calibrations with its uncalibrated predictions, by attribute.

    Points are hundredths of CCC.
    """
    names = [name for name in table.calibration.unique() if name != UNCALIBRATED]
    pairs = [(UNCALIBRATED, name) for name in names]
    return _differences(table, "calibration", pairs)


def compare_systems(table: pd.DataFrame, systems: Sequence[RatingModelConfig]) -> pd.DataFrame:
    """`comparisons` of uncalibrated systems with their references, by attribute and reference.

    Points are hundredths of CCC.
    """
    tables, plain = [], table[table.calibration == UNCALIBRATED]
    for name in (reference.name for reference in systems):
        pairs = [(name, system.name) for system in systems if name in system.references]
        if pairs:
            tables.append(_differences(plain, "system", pairs))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def by_neighbors(tasks: Sequence[RatingTask], system: str, counts: Sequence[int]) -> pd.DataFrame:
    """A-CCC by number of neighbors, calibration and attribute."""
    scores = [
        speaker_scores(calibrated(task, system, neighbors=k)).assign(neighbors=k)
        for k in counts
        for task in tasks
    ]
    groups = pd.concat(scores).groupby(["neighbors", "calibration", "attribute"], sort=False)
    return groups.ccc.mean().rename("A-CCC").reset_index()


def personalization_gap(task: RatingTask, stages: dict[int, str]) -> pd.DataFrame:
    """A-CCC of seen and of unseen speakers, by the number of training speakers.

    `stages` are those of `gmp_utils.stages.personalize.train_on_fewer_speakers` by number of training
    speakers. Seen speakers are scored on their left-out utterances, unseen (test) speakers on every other
    one. Columns are `attribute`, `training speakers`, `test on`, `A-CCC`, and those of `speaker_means`.
    """
    rows = []
    for n_speakers, stage in stages.items():
        unseen = read_predictions(task, stage)
        number = unseen.groupby(["attribute", "speaker"]).cumcount()
        tables = {"seen": read_predictions(task, stage, "seen"), "unseen": unseen[number % 2 == 1]}
        for name, table in tables.items():
            scored = speaker_scores(table)
            if scored.empty:
                found = f"fewer than {MIN_UTTERANCES} utterances of each {name} speaker to compare"
                raise GmpError(f"gap_speakers: {found}; set it to [].")
            means = speaker_means(scored.groupby("attribute", sort=False).ccc)
            means = means.rename(columns={"ccc": "A-CCC"})
            labels = {"training speakers": n_speakers, "test on": f"{name} speakers"}
            rows.append(means.reset_index().assign(**labels))
    return pd.concat(rows, ignore_index=True)


def shifts(task: RatingTask, system: str) -> pd.DataFrame:
    """CCC of test speakers by attribute, and their distance from the training speakers.

    The distances are KL divergences from all training speakers together, in nats: `feature`, of the first ten
    principal components of the pre-trained encoder's mean features, and `label`, of the test labels. Nothing
    is selected by them.
    """
    fold = open_fold(task)
    means, labels = fold.features["mean"], fold.corpus.manifest
    training, speaker = fold.parts["train"], fold.speaker[fold.parts["test"]]
    pca = PCA(min(REDUCED, *means.loc[training].shape), random_state=0).fit(means.loc[training])
    reduced = pd.DataFrame(pca.transform(means), means.index)

    def distance(values: pd.DataFrame, name: str) -> float:
        return shift(values.loc[speaker.index[speaker == name]], values.loc[training])

    table = speaker_scores(read_predictions(task, system)).drop(
        columns=["system", "calibration", "seed"]
    )
    return table.assign(
        feature=[distance(reduced, name) for name in table.speaker],
        label=[distance(labels[[row.attribute]], row.speaker) for row in table.itertuples()],
    )


def rating_costs(task: RatingTask, systems: Sequence[RatingModelConfig]) -> pd.DataFrame:
    """Trained `parameters` and training `seconds` by system, PAPT's masked prediction included."""
    rows = {}
    for system in systems:
        stages = [task.folder / name for name in (system.initial_model, system.name) if name]
        parameters = [read_json(stage / "metrics.json")["parameters"] for stage in stages]
        seconds = [read_json(stage / "provenance.json")["wall_seconds"] for stage in stages]
        rows[system.name] = {"parameters": max(parameters), "seconds": sum(seconds)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
