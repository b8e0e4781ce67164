"""Stage 07: the results of a run or an experiment."""

import time
from pathlib import Path

import pandas as pd

from gmp_utils.evaluation.collect import classifiers, corpus_of, training_costs
from gmp_utils.evaluation.readout import readouts
from gmp_utils.evaluation.tables import describe, readout_comparisons, uar_comparisons
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.runs import experiments
from gmp_utils.runs.paths import RESULTS, run_folder
from gmp_utils.runs.stage import check_and_identify, make_stage
from gmp_utils.training import features


def inference_speed(run_dir: str) -> float | None:
    """Seconds of audio classified per second on this machine, from waveforms to scores.

    It is measured with the first network of the run on its test utterances, after a warm-up. It is None for a
    run that has only baselines.
    """
    finished = classifiers(run_dir)
    networks = finished[[(stage / "model").is_dir() for stage in finished.stage]]
    if networks.empty:
        return None
    stage, fold = networks.iloc[0][["stage", "fold"]]
    corpus = corpus_of(stage)
    check_and_identify(stage)
    model = EmotionClassifier.load(str(stage / "model"))
    test = corpus.partition(fold)["test"]
    features.embed_and_classify(model, corpus.waveforms, test[:2])
    start = time.monotonic()
    features.embed_and_classify(model, corpus.waveforms, test)
    return float(corpus.manifest.duration[test].sum() / (time.monotonic() - start))


def write_results(run_dir: str, predictions: pd.DataFrame, table: pd.DataFrame) -> Path:
    """Write predictions, table (csv, md and tex), comparisons, costs and a summary as a stage.

    `predictions` are those of `gmp_utils.evaluation.collect.collect`, and the table is that of
    `gmp_utils.evaluation.tables.results_table`.
    """
    declaration = experiments.read_declaration(run_dir)

    def build(folder: Path) -> None:
        compared, few_labels = uar_comparisons(predictions, declaration), readouts(run_dir)
        predictions.to_parquet(folder / "predictions.parquet", index=False)
        table.to_csv(folder / "table.csv", index=False)
        markdown = table.to_markdown(index=False, disable_numparse=True)
        (folder / "table.md").write_text(markdown, encoding="utf-8")
        table.to_latex(folder / "table.tex", index=False, escape=True)
        compared.to_csv(folder / "comparisons.csv", index=False)
        training_costs(run_dir).to_csv(folder / "costs.csv", index=False)
        findings = _findings(compared, declaration, "all labels")
        text = [describe(run_dir), "", markdown, "", *findings, ""]
        few_labels_compared = pd.DataFrame({"compared": []})
        if len(few_labels):
            few_labels_compared = readout_comparisons(few_labels, declaration)
            few_labels_compared.to_csv(folder / "comparisons_of_few_labels.csv", index=False)
        if findings := _findings(few_labels_compared, declaration, "few labels"):
            text += ["With 1 to 16 labels per emotion:", "", *findings, ""]
        (folder / "summary.md").write_text("\n".join(text), encoding="utf-8")

    return make_stage(
        run_folder(run_dir) / RESULTS,
        build,
        parameters={"declaration": declaration},
        stages=list(classifiers(run_dir).stage),
    )


def _findings(compared: pd.DataFrame, declaration: dict, labels: str) -> list[str]:
    """Lines of findings with intervals, and of primary outcomes that were not computed."""
    primary = declaration.get("primary", {}).get(labels, [])
    missing = [
        f"- primary: {name}: not run" for name in primary if name not in {*compared.compared}
    ]
    lines = []
    for row in compared.itertuples():
        line = f"- {'primary: ' if row.compared in primary else ''}{row.compared}: {row.finding}"
        if pd.notna(row.difference):
            line += f", interval [{row.low:.1f}, {row.high:.1f}]"
        if pd.notna(row.seed_deviation):
            line += f", standard deviation over seeds {row.seed_deviation:.1f}"
        lines.append(line)
    return missing + lines
