"""What a run offers to look at and hear: points of its maps, and what is known of each."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from gmp_utils import finetuning, probing, pseudo_labels, runs
from gmp_utils.encoders import frame_at
from gmp_utils.errors import GmpError
from gmp_utils.networks import EmotionClassifier
from gmp_utils.preparation import open_corpus
from gmp_utils.timeline import scores_over_time, timeline

TAUGHT = "trained on"  # no prediction: the classifier knows the answer
MOST = 8
KNOWN = ("emotion", "predicted", "gender", "speaker", "part")


def map_model(run_dir: str, fold: int, model: str) -> Path:
    """Map the layers of one more model, with the settings of the one that was mapped last.

    Parameters
    ----------
    run_dir : str
    fold : int
    model : str
        One of `gmp_utils.runs.MODELS`.

    Returns
    -------
    stage : Path
        See `gmp_utils.probing.probe_layers`; one that is there with these settings is left as it is.

    Raises
    ------
    GmpError
        If no model is mapped yet, or the stage of this one is not there.
    """
    folder = runs.run_folder(run_dir) / f"fold{fold}" / probing.STAGE
    mapped = sorted(folder.glob("*/params.json"), key=lambda path: path.stat().st_mtime)
    if not mapped:
        raise runs.missing(folder, probing.STAGE)
    return probing.probe_layers(run_dir, **runs.read_json(mapped[-1]) | {"model": model})


class Explored:
    """What a fold of a run offers to look at.

    Parameters
    ----------
    run_dir : str
    fold : int
    of : str
        "frames" or "utterances".

    Attributes
    ----------
    points : DataFrame
        utterance, seconds (of frames), part, emotion, predicted, gender, speaker, energy (dB), and
        for frames a column "K = …" per scale of pseudo-labels.
    places : dict of str to (layers, n_points, 2) float32
        Maps of each model that notebook 03 has drawn, the same points in the same order.
    scores : dict of str to DataFrame
        UAR of linear probes of each model, layers × tasks.
    """

    def __init__(self, run_dir: str, fold: int, of: str):
        self.fold = runs.run_folder(run_dir) / f"fold{fold}"
        self.corpus = open_corpus(run_dir)
        maps, self.scores = self._read_maps(of)
        first, *others = maps
        for other in others:
            if not maps[other][0].index.equals(maps[first][0].index):
                raise GmpError(
                    f"{runs.shown(self.fold)}: the maps of {first} and {other} hold different points; "
                    f"run notebooks/{probing.STAGE}.ipynb for both with the same settings."
                )
        self.places = {
            model: np.stack([rows[["x", "y"]] for rows in layers]) for model, layers in maps.items()
        }
        points = maps[first][0].drop(columns=["x", "y", "layer", "of"]).reset_index()
        found = sorted(self.fold.glob(f"{finetuning.STAGE}/*/*/predictions.parquet"))
        preferred = self.fold / finetuning.STAGE / "gmps" / "ams" / "predictions.parquet"
        self.classifier = (preferred if preferred in found else found[0]).parent if found else None
        if self.classifier:
            runs.identity(self.classifier)
            predictions = pd.read_parquet(self.classifier / "predictions.parquet")
            predicted = points.utterance.map(predictions.set_index("utterance").predicted)
            points["predicted"] = predicted.fillna(TAUGHT)
        self.labels = None
        if (self.fold / pseudo_labels.STAGE).is_dir():
            self.labels, self.scales = pseudo_labels.open_labels(self.fold / pseudo_labels.STAGE)
            if of == "frames":
                at = zip(points.utterance, frame_at(points.seconds))
                rows = [self.labels[name][frame] for name, frame in at]
                for k, clusters in zip(self.scales, np.stack(rows, axis=1)):
                    points[f"K = {k}"] = pd.Categorical(clusters, categories=range(k))
        named = points.columns.intersection(KNOWN)
        self.points = points.assign(**points[named].fillna("unknown"))

    def _read_maps(self, of: str) -> tuple[dict[str, list[pd.DataFrame]], dict[str, pd.DataFrame]]:
        """Of each model that is mapped: its points per layer, and its probes' scores."""
        maps, scores = {}, {}
        key = ["utterance", "seconds"] if of == "frames" else ["utterance"]
        for model in runs.MODELS:
            stage = self.fold / probing.STAGE / model
            if stage.is_dir():
                runs.identity(stage)
                table = pd.read_parquet(stage / "maps.parquet").query("of == @of")
                maps[model] = [rows.set_index(key) for _, rows in table.groupby("layer")]
                probes = pd.read_parquet(stage / "probes.parquet")
                probes = probes[(probes.of == of) & (probes.metric == "UAR")]
                scores[model] = probes.pivot(index="layer", columns="task", values="score")
                if len(maps[model]) != len(scores[model]):
                    raise GmpError(
                        f"{runs.shown(stage)} maps {len(maps[model])} of {len(scores[model])} layers; "
                        f"run notebooks/{probing.STAGE}.ipynb again."
                    )
        if not maps:
            raise runs.missing(self.fold / probing.STAGE, probing.STAGE)
        return maps, scores

    @cached_property
    def model(self) -> EmotionClassifier:
        """The classifier whose scores are drawn."""
        return EmotionClassifier.load(str(self.classifier / "model"))

    def timeline(self, point: int, around: tuple[float, float] | None):
        """Draw the utterance of a point; see `gmp_utils.timeline.timeline`."""
        row = self.points.loc[point]
        waveform = self.corpus.waveforms[row.utterance]
        about = self.corpus.manifest.loc[row.utterance]
        streams = scores = carries = None
        if self.labels:
            columns = self.labels[row.utterance].T
            streams = {f"K = {k}": column for k, column in zip(self.scales, columns)}
        title = f"{row.utterance}: {row.emotion}"
        if self.classifier:
            seconds, values = scores_over_time(self.model, waveform)
            scores = seconds, values, self.model.config.emotions
            name, taught = "/".join(self.classifier.parts[-2:]), row.predicted == TAUGHT
            title += f", {TAUGHT}" if taught else f", heard as {row.predicted} ({name})"
        if "emotion_start" in about and pd.notna(about.emotion_start):
            carries = about.emotion_start, about.emotion_end
        return timeline(waveform, title, streams, scores, around, carries)


def composition(points: pd.DataFrame, chosen: np.ndarray) -> pd.DataFrame:
    """What some points consist of, beside all.

    Parameters
    ----------
    points : DataFrame
        See `Explored`.
    chosen : (n,) int
        Rows.

    Returns
    -------
    table : DataFrame
        A row per emotion, predicted emotion, gender, speaker and part that occurs among the chosen
        (the `MOST` frequent of each): how many points, their share, the share among all points, and
        the ratio of the two.
    """
    tables = []
    for column in (name for name in KNOWN if name in points):
        found = points[column].iloc[chosen].value_counts().head(MOST)
        table = pd.DataFrame(
            {"of": column, "is": found.index.astype(str), "points": found.to_numpy()}
        )
        table["share"] = table.points / len(chosen)
        table["share of all"] = points[column].value_counts(normalize=True)[found.index].to_numpy()
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(ratio=table["share"] / table["share of all"])
