"""Linear probes of an encoder's frozen layers, and baselines without an encoder.

    python benchmarks/encoder_probes.py [--emodb FOLDER] [--encoder embedded] [--out FOLDER] [--run FOLDER]
    python benchmarks/encoder_probes.py --picture figures/readme-encoder.png

Corpora: the synthetic one, and EmoDB (7 emotions, ten speakers).

Features of an utterance: mean and standard deviation over time of a layer's frames, of 39 MFCCs, or
eGeMAPS functionals (opensmile). Emotion and gender: leave one speaker out. Speaker: trained on half of
each speaker's utterances, tested on the other half. Classifier: logistic regression on standardized
features, C = 0.03; for eGeMAPS C is tuned on the training speakers. "z by speaker" uses the test
speaker's unlabeled audio.

--run compares the classifiers of a finished run on EmoDB's seven emotions (`presets/seven.yaml`) with
the baselines, by speaker. Its folds test on two speakers each, the baselines on one.

--picture only draws the figure of docs/findings.md: maps of layers on EmoDB next to their probes.

Without --picture it needs the extra `benchmarks` (opensmile's license allows research and private use only).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    LeaveOneGroupOut,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import HubertModel, set_seed

from gmp_utils.data import corpora, waveform_store
from gmp_utils.data.acoustic_features import mfcc_frames
from gmp_utils.data.corpora import synthetic
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation import collect, comparison, geometry
from gmp_utils.evaluation.metrics import uar
from gmp_utils.figures import style
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.runs import weights
from gmp_utils.runs.paths import ROOT
from gmp_utils.stages.baselines import egemaps, z_by_speaker
from gmp_utils.training import features

BY_SPEAKER = ", z by speaker"
MAPPED = (0, 3, 8)  # layers on the maps
GRID = {"logisticregression__C": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]}


def probe(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, tuned: bool) -> np.ndarray:
    """Predict each utterance by a probe trained on the other speakers."""
    predicted = np.empty_like(labels)
    for train, test in LeaveOneGroupOut().split(x, labels, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=3000))
        if tuned:
            inner = list(LeaveOneGroupOut().split(x[train], labels[train], groups[train]))
            model = GridSearchCV(model, GRID, scoring="recall_macro", cv=inner)
        predicted[test] = model.fit(x[train], labels[train]).predict(x[test])
    return predicted


def speaker_uar(x: np.ndarray, speakers: np.ndarray) -> float:
    """UAR of speaker classification, trained on one half of the utterances and tested on the other."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=3000))
    return uar(speakers, cross_val_predict(model, x, speakers, cv=StratifiedKFold(2)))


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, and its 95% interval by Student's t."""
    return values.mean(), *stats.ttest_1samp(values, 0).confidence_interval()


def layers(source: str, waveforms: Ragged) -> np.ndarray:
    """Pooled states, (layers + 1, utterances, 2 · hidden_size)."""
    model = SpeechModel.load(source, train_cnn=True)
    return features.pooled_layers(model, waveforms, waveforms.utterances).swapaxes(0, 1)


def systems(manifest: pd.DataFrame, encoder: str, folder: Path) -> dict[str, np.ndarray]:
    """Features by name of the system: (layers, utterances, dim)."""
    waveforms, report = waveform_store.write_store(manifest, folder / "waveforms")
    waveform_store.check_readable(report)
    frames = [mfcc_frames(waveforms[name]) for name in waveforms.utterances]
    mfcc = np.stack([np.concatenate([x.mean(axis=0), x.std(axis=0)]) for x in frames])
    set_seed(0)
    config = SpeechModel.load(weights.resolve(encoder)).config
    HubertModel(config).save_pretrained(folder / "random")
    by_system = {
        "eGeMAPS": egemaps(waveforms, waveforms.utterances).to_numpy()[None],
        "MFCC": mfcc[None],
        "random encoder": layers(str(folder / "random"), waveforms),
        "encoder": layers(weights.resolve(encoder), waveforms),
    }
    for system in ("eGeMAPS", "encoder"):
        values = by_system[system].swapaxes(0, 1).astype(np.float64)
        by_system[f"{system}{BY_SPEAKER}"] = z_by_speaker(values, manifest.speaker).swapaxes(0, 1)
    return by_system


def score(corpus: str, manifest: pd.DataFrame, encoder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of every system and layer, and UAR of emotion by speaker."""
    rows, speakers = [], []
    groups = manifest.speaker.to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        by_system = systems(manifest, encoder, Path(folder))
    for system, values in by_system.items():
        for layer, x in enumerate(values):
            emotion = probe(x, manifest.emotion.to_numpy(), groups, system.startswith("eGeMAPS"))
            scores = {"emotion": uar(manifest.emotion, emotion)}
            if BY_SPEAKER not in system:
                gender = probe(x, manifest.gender.to_numpy(), groups, False)
                scores["gender"] = uar(manifest.gender, gender)
                scores["speaker"] = speaker_uar(x, groups)
            rows.append({"corpus": corpus, "system": system, "layer": layer, **scores})
            predictions = manifest.assign(true=manifest.emotion, predicted=emotion, seed=0)
            recalls = comparison.speaker_scores(predictions, uar) / 100
            recalls = recalls.rename("uar").reset_index()
            speakers.append(recalls.assign(corpus=corpus, system=system, layer=layer))
            print(corpus, system, layer, {task: round(value, 3) for task, value in scores.items()})
    return pd.DataFrame(rows), pd.concat(speakers)


def compare(scores: pd.DataFrame, speakers: pd.DataFrame) -> pd.DataFrame:
    """Paired differences between the encoder's layers and each baseline, by speaker.

    p is corrected by Holm's method over the layers.
    """
    wide = speakers.pivot(index="speaker", columns=["system", "layer"], values="uar")
    random = scores[scores.system == "random encoder"].set_index("layer").emotion.idxmax()
    rows = []
    for system, *baseline in (
        ("encoder", "random encoder", random),
        ("encoder", "MFCC", 0),
        ("encoder", "eGeMAPS", 0),
        ("encoder", f"eGeMAPS{BY_SPEAKER}", 0),
        (f"encoder{BY_SPEAKER}", f"eGeMAPS{BY_SPEAKER}", 0),
    ):
        gains = wide[system].sub(wide[tuple(baseline)], axis=0)
        p = comparison.holm(stats.ttest_1samp(gains, 0).pvalue)
        for (layer, values), p_of_layer in zip(gains.items(), p):
            mean, low, high = interval(values.to_numpy())
            row = {"system": system, "layer": layer, "baseline": baseline[0]}
            rows.append(row | {"difference": mean, "low": low, "high": high, "p": p_of_layer})
    return pd.DataFrame(rows).round(3)


def compare_run(run: str, speakers: pd.DataFrame) -> pd.DataFrame:
    """Paired differences between the classifiers of a run and each baseline, by speaker."""
    baselines = speakers[speakers.system.str.startswith(("MFCC", "eGeMAPS"))]
    rows = []
    for (variant, system), predictions in collect.collect(run).groupby(collect.SYSTEM):
        recalls = comparison.speaker_scores(predictions, uar) / 100
        for baseline, scores in baselines.groupby("system"):
            gains = (recalls - scores.set_index("speaker").uar).dropna().to_numpy()
            mean, low, high = interval(gains)
            row = {
                "system": f"{variant}, {system}",
                "UAR": uar(predictions.true, predictions.predicted),
            }
            row |= {"baseline": baseline, "speakers": len(gains), "difference": mean}
            rows.append(row | {"low": low, "high": high, "p": stats.ttest_1samp(gains, 0).pvalue})
    return pd.DataFrame(rows).round(3)


def picture(scores: pd.DataFrame):
    """Emotion, gender and speaker over layers; systems without layers are horizontal lines."""
    flat = scores.system.str.startswith(("MFCC", "eGeMAPS"))
    layered = scores[~flat & (scores.system != f"encoder{BY_SPEAKER}")]
    level = scores[flat].drop(columns="layer")
    level = level.merge(pd.DataFrame({"layer": scores.layer.unique()}), how="cross")
    table = pd.concat([layered, level]).melt(
        ["corpus", "system", "layer"], var_name="task", value_name="UAR"
    )
    dashes = dict.fromkeys(layered.system, "solid") | dict.fromkeys(level.system, "dot")
    figure = px.line(
        table, x="layer", y="UAR", color="system", facet_col="task", facet_row="corpus",
        line_dash="system", line_dash_map=dashes, range_y=[0, 1],
        category_orders={"system": ["encoder", "random encoder"]},
    )  # fmt: skip
    figure.for_each_annotation(lambda note: note.update(text=note.text.split("=")[-1]))
    best = scores[scores.corpus == "EmoDB"].groupby("system").emotion.max()
    title = ", ".join(
        f"{name} {best[name]:.2f}" for name in ("encoder", "random encoder", "eGeMAPS")
    )
    return figure.update_layout(
        template=style.TEMPLATE, height=600, title=f"Emotion on EmoDB, best layer: {title}"
    )


def maps_and_probes(manifest: pd.DataFrame, encoder: str) -> go.Figure:
    """UMAP of utterances (mean and standard deviation of some layers), and the probes of all layers."""
    with tempfile.TemporaryDirectory() as folder:
        waveforms, _ = waveform_store.write_store(manifest, Path(folder) / "waveforms")
        values = layers(weights.resolve(encoder), waveforms)
    emotions, speakers = manifest.emotion.to_numpy(), manifest.speaker.to_numpy()
    recalls = []
    for x in values:
        rows = manifest.assign(true=emotions, predicted=probe(x, emotions, speakers, False))
        recalls.append([100 * value for value in comparison.with_intervals(rows)["UAR"]])
    mean, low, high = np.array(recalls).T
    mapped = [layer for layer in MAPPED if layer < len(values)]
    titles = [f"layer {layer}" for layer in mapped] + ["UAR of linear probes (%)"]
    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.03)
    colors = style.colors(sorted(set(emotions)))
    for column, layer in enumerate(mapped, start=1):
        points = geometry.umap_map(StandardScaler().fit_transform(values[layer]), seed=0)
        for name, color in colors.items():
            x, y = points[emotions == name].T
            marker = {"color": color, "size": 4}
            options = {"mode": "markers", "name": name, "marker": marker}
            trace = go.Scatter(x=x, y=y, showlegend=column == 1, **options)
            figure.add_trace(trace, 1, column)
        figure.update_xaxes(showticklabels=False, row=1, col=column)
        figure.update_yaxes(showticklabels=False, row=1, col=column)
    error = {"type": "data", "array": high - mean, "arrayminus": mean - low}
    curve = go.Scatter(y=mean, error_y=error, showlegend=False, line={"color": "#333333"})
    figure.add_trace(curve, 1, len(titles))
    figure.update_xaxes(title="layer", dtick=1, row=1, col=len(titles))
    title = (
        f"The untouched encoder's layers give {min(mean):.0f} to {max(mean):.0f}% UAR on seven emotions of "
        "speakers that the probe was not trained on (chance: 14%)"
    )
    return figure.update_layout(template=style.TEMPLATE, height=380, title=title)


def main() -> None:
    """Print the scores; write scores.csv, speakers.csv, probes.html and, with a Chromium, probes.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emodb", default=corpora.EMBEDDED["emodb"], help="folder of EmoDB")
    parser.add_argument("--encoder", default="embedded")
    parser.add_argument("--run", help="a run whose classifiers are compared with the baselines")
    parser.add_argument("--picture", help="only draw maps and probes into this PNG file")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "encoder_probes")
    arguments = parser.parse_args()
    emodb = corpora.load("emodb", arguments.emodb)
    if arguments.picture:
        figure = maps_and_probes(emodb, arguments.encoder)
        figure.write_image(arguments.picture, width=1300, height=380)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        synthetic.make(Path(folder))
        spoken = score("synthetic", corpora.load("synthetic", folder), arguments.encoder)
    recorded = score("EmoDB", emodb, arguments.encoder)
    scores = pd.concat([spoken[0], recorded[0]])
    scores.to_csv(arguments.out / "scores.csv", index=False)
    pd.concat([spoken[1], recorded[1]]).to_csv(arguments.out / "speakers.csv", index=False)
    figure = picture(scores)
    figure.write_html(arguments.out / "probes.html", include_plotlyjs="directory")
    if style.browser():
        figure.write_image(arguments.out / "probes.png", width=1000, height=600)
    print(scores.round(3).to_markdown(index=False))
    print(f"\nEmoDB, layers minus each baseline:\n{compare(*recorded).to_markdown(index=False)}")
    if arguments.run:
        print(
            f"\n{arguments.run}:\n{compare_run(arguments.run, recorded[1]).to_markdown(index=False)}"
        )


if __name__ == "__main__":
    main()
