"""Recalls, intervals by speaker, and the tables of results."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from confidence_intervals import evaluate_with_conf_int
from sklearn.metrics import recall_score

from gmp_utils import encoders, runs
from gmp_utils.comparison import MIN_SPEAKERS, comparisons
from gmp_utils.errors import GmpError
from gmp_utils.preparation import Corpus, open_corpus

STAGE = "07_results"
LOSS_NAMES = {"ce": "CE", "ams": "AMS", "ce-then-ams": "CE then AMS"}

# GMP-TL paper (arXiv 2405.02151), Table 3: IEMOCAP, hubert-base-ls960, layer -3, percent.
PAPER_TABLE_3 = pd.DataFrame(
    [
        ("no", "CE", 78.0, 75.8),
        ("no", "AMS", 79.8, 77.6),
        ("yes", "CE", 80.2, 78.4),
        ("yes", "AMS", 82.0, 80.0),
    ],
    columns=["GMPs", "loss", "UAR, paper", "WAR, paper"],
)


def recalls(true: Sequence, predicted: Sequence, classes: Sequence) -> np.ndarray:
    """Recall of each class.

    Parameters
    ----------
    true, predicted : (n_utterances,) sequence
    classes : sequence
        All classes, also those absent here.

    Returns
    -------
    recalls : (n_classes,) float64
        NaN for a class that `true` does not hold.
    """
    return recall_score(true, predicted, labels=classes, average=None, zero_division=np.nan)


def uar(true: Sequence, predicted: Sequence) -> float:
    """Unweighted average recall: mean recall over the classes that occur in `true`."""
    return float(np.mean(recalls(true, predicted, np.unique(true))))


def war(true: Sequence, predicted: Sequence) -> float:
    """Weighted average recall: accuracy."""
    return float(np.mean(np.asarray(true) == np.asarray(predicted)))


def ccc(true: np.ndarray, predicted: np.ndarray) -> float:
    """Concordance correlation coefficient: 1 for equality, lower for any shift, scale or noise.

    Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility", 1989.

    Parameters
    ----------
    true, predicted : (n,) float
    """
    covariance = np.mean((true - np.mean(true)) * (predicted - np.mean(predicted)))
    shift = np.mean(true) - np.mean(predicted)
    return float(2 * covariance / (np.var(true) + np.var(predicted) + shift**2))


def with_interval(
    predictions: pd.DataFrame, metric: Callable, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """A metric and its 95 % interval, from 1000 bootstrap samples of speakers.

    Parameters
    ----------
    predictions : DataFrame
        With `true`, `predicted` and `speaker`.
    metric : callable
        `uar` or `war`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    value : float
    interval : (float, float) or None
        None for fewer than `MIN_SPEAKERS` speakers.
    """
    true, predicted = (predictions[name].to_numpy() for name in ("true", "predicted"))
    if predictions.speaker.nunique() < MIN_SPEAKERS:
        return metric(true, predicted), None
    np.random.seed(seed)  # noqa: NPY002, the package draws from the global state
    value, (low, high) = evaluate_with_conf_int(
        predicted,
        metric,
        labels=true,
        conditions=predictions.speaker.astype("category").cat.codes.to_numpy(),
    )
    return float(value), (float(low), float(high))


def predictions_table(
    manifest: pd.DataFrame, utterances: list[str], scores: np.ndarray, emotions: list[str]
) -> pd.DataFrame:
    """Scores as the table that every classifier leaves.

    Parameters
    ----------
    manifest : DataFrame
        Indexed by utterance.
    utterances : list of str
    scores : (n_utterances, n_classes) float
        The greatest wins.
    emotions : list of str
        Names of the classes.

    Returns
    -------
    predictions : DataFrame
        utterance, speaker, gender, true, predicted, and a column of scores per emotion.
    """
    rows = manifest.loc[utterances, ["utterance", "speaker", "gender"]].reset_index(drop=True)
    rows["true"] = manifest.loc[utterances, "emotion"].to_numpy()
    rows["predicted"] = np.array(emotions)[scores.argmax(axis=1)]
    return pd.concat([rows, pd.DataFrame(scores, columns=emotions)], axis=1)


def classifiers(run_dir: str) -> list[Path]:
    """The finished classifiers of a run: stages of notebook 06.

    Raises
    ------
    GmpError
        If there is none.
    """
    run = runs.run_folder(run_dir)
    found = sorted(path.parent for path in run.glob("fold*/06_finetune/*/*/provenance.json"))
    if not found:
        raise runs.missing(run, "06_finetune")
    return found


def _settings(stage: Path) -> dict:
    """What a classifier was made with: what may not differ within a table."""
    parameters = runs.read_json(stage / "params.json")
    settings = {k: v for k, v in parameters.items() if k not in ("fold", "use_gmps", "loss")}
    if parameters["use_gmps"]:
        for upstream in ("02_train_multitask", "04_generate_gmps", "05_retrain"):
            values = runs.read_json(stage.parents[2] / upstream / "params.json")
            values.pop("fold")
            settings |= {f"{name} of {upstream}": value for name, value in values.items()}
    return settings


def _refuse_differing(name: str, settings: dict, seen: dict) -> None:
    """Compare with what was `seen` (values and whose they were), and add to it."""
    differing = [key for key in settings if key in seen and settings[key] != seen[key][0]]
    if differing:
        raise GmpError(
            f"{name} and {seen[differing[0]][1]} differ in {', '.join(differing)} and cannot be compared; "
            "run one of them again, or remove it."
        )
    seen.update({key: (value, name) for key, value in settings.items()})


def collect(run_dir: str) -> pd.DataFrame:
    """Test predictions of every classifier of a run.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    predictions : DataFrame
        As `predictions_table`, with `fold`, `GMPs` (yes, no) and `loss` (a value of `LOSS_NAMES`).

    Raises
    ------
    GmpError
        If there is no classifier yet, or they differ in more than fold, GMPs and loss: numbers of
        different protocols, corpora or parameters are not to be pooled.
    """
    tables, seen = [], {}
    for stage in classifiers(run_dir):
        runs.identity(stage)
        parameters = runs.read_json(stage / "params.json")
        _refuse_differing(runs.shown(stage), _settings(stage), seen)
        table = pd.read_parquet(stage / "predictions.parquet")
        tables.append(
            table[table.part == "test"].assign(
                fold=parameters["fold"],
                GMPs="yes" if parameters["use_gmps"] else "no",
                loss=LOSS_NAMES[parameters["loss"]],
            )
        )
    return pd.concat(tables, ignore_index=True)


def _scores(predictions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Folds, speakers, and UAR and WAR as text, by GMPs and loss."""
    rows = {}
    for system, group in predictions.groupby(["GMPs", "loss"], sort=False):
        row = {"folds": group.fold.nunique(), "speakers": group.speaker.nunique()}
        for name, metric in (("UAR", uar), ("WAR", war)):
            value, interval = with_interval(group, metric, seed)
            row[name] = f"{100 * value:.1f}"
            if interval:
                row[name] += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
        rows[system] = row
    return pd.DataFrame(rows).T.rename_axis(["GMPs", "loss"])


def results_table(predictions: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The rows of Table 3 that were run: pooled over folds, in percent, beside the paper's.

    Parameters
    ----------
    predictions : DataFrame
        As `collect` returns them.
    seed : int
        Of the bootstrap.

    Returns
    -------
    table : DataFrame
        GMPs, loss, folds, speakers, UAR and WAR as text with interval, UAR and WAR of the paper.
    """
    ours, papers = _scores(predictions, seed), PAPER_TABLE_3.set_index(["GMPs", "loss"])
    table = ours.reindex(papers.index.union(ours.index, sort=False)).join(papers).reset_index()
    table = table.fillna({"folds": 0, "speakers": 0, "UAR": "not run", "WAR": "not run"})
    return table.astype({"folds": int, "speakers": int})


def protocols_table(run_dirs: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """The same systems under several protocols.

    Parameters
    ----------
    run_dirs : sequence of str
        Runs that differ in nothing but the protocol.
    seed : int
        Of the bootstrap.

    Returns
    -------
    table : DataFrame
        protocol (see `Protocol.name`), GMPs, loss, folds, speakers, UAR and WAR as text.

    Raises
    ------
    GmpError
        If runs differ in their utterances, folds, encoder or parameters.
    """
    tables, seen = [], {}
    for run_dir in run_dirs:
        corpus, predictions = open_corpus(run_dir), collect(run_dir)
        settings = {"utterances": list(corpus.manifest.index), "folds": set(predictions.fold)}
        for stage in classifiers(run_dir):
            settings |= _settings(stage)
        _refuse_differing(run_dir, settings, seen)
        table = _scores(predictions, seed).reset_index()
        protocol = f"{corpus.protocol.folding}, {corpus.protocol.name}"
        tables.append(table.assign(protocol=protocol))
    table = pd.concat(tables, ignore_index=True)
    return table[["protocol", *table.columns.drop("protocol")]]


def recall_table(predictions: pd.DataFrame, by: str, emotions: list[str]) -> pd.DataFrame:
    """Recall per emotion, for each value of a column, such as "gender".

    Parameters
    ----------
    predictions : DataFrame
    by : str
    emotions : list of str

    Returns
    -------
    table : DataFrame
        A row per value, a column per emotion and one for their mean, 0 to 1.
    """
    rows = {
        value: recalls(group.true, group.predicted, emotions)
        for value, group in predictions.groupby(by)
    }
    table = pd.DataFrame(rows, index=emotions).T
    return table.assign(UAR=table.mean(axis=1))


def describe(corpus: Corpus, run_dir: str, predictions: pd.DataFrame) -> str:
    """What a run's numbers rest on, in a few sentences."""
    parameters = runs.read_json(classifiers(run_dir)[0] / "params.json")
    folds = sorted(predictions.fold.unique())
    known = encoders.heard(parameters["encoder"])
    heard = "pre-trained on recordings that are not known here"
    if known:
        heard = f"pre-trained on {corpus.manifest.digest.isin(known).sum()} of these recordings"
    return (
        f"Corpus {corpus.name}, {len(corpus.manifest)} utterances, emotions "
        f"{', '.join(corpus.emotions)}. Encoder {parameters['encoder']}, {heard}. Protocol: "
        f"{corpus.protocol.describe()} Folds run: {', '.join(map(str, folds))} of "
        f"{len(corpus.protocol.folds)}, one seed."
    )


def write_results(run_dir: str, corpus: Corpus, predictions: pd.DataFrame, seed: int = 0) -> Path:
    """Keep a run's results as a stage.

    Parameters
    ----------
    run_dir : str
    corpus : Corpus
    predictions : DataFrame
        As `collect` returns them.
    seed : int
        Of the bootstrap.

    Returns
    -------
    stage : Path
        With predictions.parquet, table3.csv, comparisons.csv (of UAR) and summary.md.
    """

    def build(folder: Path) -> None:
        table, compared = results_table(predictions, seed), comparisons(predictions, uar)
        predictions.to_parquet(folder / "predictions.parquet", index=False)
        table.to_csv(folder / "table3.csv", index=False)
        compared.to_csv(folder / "comparisons.csv", index=False)
        findings = [f"- {row.compared}: {row.finding}" for row in compared.itertuples()]
        text = [describe(corpus, run_dir, predictions), "", table.to_markdown(index=False), ""]
        (folder / "summary.md").write_text("\n".join([*text, *findings, ""]), encoding="utf-8")

    return runs.make_stage(
        runs.run_folder(run_dir) / STAGE,
        build,
        parameters={"seed": seed},
        stages=classifiers(run_dir),
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def report(run_dir: str) -> str:
    """A run's results as text, and where its figures and executed notebooks are."""
    run = runs.run_folder(run_dir)
    summary = (run / STAGE / "summary.md").read_text(encoding="utf-8")
    figures = sorted(runs.figures_folder(run_dir).glob("*.html"))
    notebooks = sorted((run / "notebooks").glob("*.ipynb"))
    lines = [summary, "Figures:", *map(runs.shown, figures), "", "Executed notebooks:"]
    return "\n".join([*lines, *map(runs.shown, notebooks)])


def write_predictions(folder: Path, parts: dict[str, pd.DataFrame]) -> None:
    """Keep predictions of several parts of a fold in `folder/predictions.parquet`."""
    tables = [table.assign(part=part) for part, table in parts.items()]
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
