"""Stage 07: the tables of a run's results, what they rest on and what they cost."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gmp_utils import encoders, runs
from gmp_utils.comparison import comparisons, with_interval
from gmp_utils.errors import GmpError
from gmp_utils.evaluation import LOSS_NAMES, recalls, uar, war
from gmp_utils.preparation import Corpus, open_corpus

STAGE = "07_results"
BEFORE = ("02_train_multitask", "04_generate_gmps", "05_retrain")  # what starting from GMPs takes

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
        for upstream in BEFORE:
            values = runs.read_json(stage.parents[2] / upstream / "params.json")
            values.pop("fold")
            settings |= {f"{name} of {upstream}": value for name, value in values.items()}
    return settings


def _system(parameters: dict) -> dict[str, str]:
    """What tables call a classifier: its GMPs and its loss."""
    return {
        "GMPs": "yes" if parameters["use_gmps"] else "no",
        "loss": LOSS_NAMES[parameters["loss"]],
    }


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
        tested = table[table.part == "test"]
        tables.append(tested.assign(fold=parameters["fold"], **_system(parameters)))
    return pd.concat(tables, ignore_index=True)


def _scores(predictions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Folds, speakers, UAR and WAR as text, and the UAR of folds, by GMPs and loss."""
    rows = {}
    for system, group in predictions.groupby(["GMPs", "loss"], sort=False):
        row = {"folds": group.fold.nunique(), "speakers": group.speaker.nunique()}
        for name, metric in (("UAR", uar), ("WAR", war)):
            value, interval = with_interval(group, metric, seed)
            row[name] = f"{100 * value:.1f}"
            if interval:
                row[name] += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
        folds = pd.Series([100 * uar(own.true, own.predicted) for _, own in group.groupby("fold")])
        row["UAR by fold"] = (
            f"{folds.mean():.1f} ± {folds.std():.1f}" if len(folds) > 1 else "one fold"
        )
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
        GMPs, loss, folds, speakers, UAR and WAR as text with interval, mean and deviation of the UAR
        over folds, UAR and WAR of the paper.
    """
    ours, papers = _scores(predictions, seed), PAPER_TABLE_3.set_index(["GMPs", "loss"])
    table = ours.reindex(papers.index.union(ours.index, sort=False)).join(papers).reset_index()
    missing = dict.fromkeys(["UAR", "WAR", "UAR by fold"], "not run")
    table = table.fillna({"folds": 0, "speakers": 0, **missing})
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
        protocol (see `Protocol.name`), GMPs, loss, folds, speakers, UAR and WAR as text, and mean and
        deviation of the UAR over folds.

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


def costs(run_dir: str) -> pd.DataFrame:
    """What each system took to train: all stages of its own, mean over folds.

    Stages that were stopped and went on count the last session only.

    Parameters
    ----------
    run_dir : str

    Returns
    -------
    table : DataFrame
        GMPs, loss, `seconds`, `peak MB` of memory, `device`, and `times` the seconds of plain
        fine-tuning (GMPs no, CE; NaN where it was not run).
    """
    rows = []
    for stage in classifiers(run_dir):
        parameters = runs.read_json(stage / "params.json")
        made = [stage]
        if parameters["use_gmps"]:
            made += [stage.parents[2] / name for name in BEFORE]
        if parameters["loss"] == "ce-then-ams":
            made.append(stage.with_name("ce"))
        told = [runs.read_json(folder / "provenance.json") for folder in made]
        rows.append(
            {
                **_system(parameters),
                "seconds": sum(one["wall_seconds"] for one in told),
                "peak MB": max(one["peak_memory_mb"] for one in told),
                "device": told[0]["device"],
            }
        )
    table = pd.DataFrame(rows).groupby(["GMPs", "loss", "device"], as_index=False).mean()
    plain = table.seconds[(table.GMPs == "no") & (table.loss == "CE")]
    return table.assign(times=table.seconds / (plain.iloc[0] if len(plain) else float("nan")))


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
        With predictions.parquet, table3 as csv, md, tex and html, comparisons.csv (of UAR), costs.csv
        and summary.md.
    """

    def build(folder: Path) -> None:
        table, compared = results_table(predictions, seed), comparisons(predictions, uar)
        predictions.to_parquet(folder / "predictions.parquet", index=False)
        table.to_csv(folder / "table3.csv", index=False)
        markdown = table.to_markdown(index=False)
        (folder / "table3.md").write_text(markdown, encoding="utf-8")
        table.to_latex(folder / "table3.tex", index=False, escape=True)
        table.to_html(folder / "table3.html", index=False)
        compared.to_csv(folder / "comparisons.csv", index=False)
        costs(run_dir).to_csv(folder / "costs.csv", index=False)
        findings = [f"- {row.compared}: {row.finding}" for row in compared.itertuples()]
        text = [describe(corpus, run_dir, predictions), "", markdown, ""]
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
