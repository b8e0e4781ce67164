"""Stage 03: what each layer knows of emotion, gender and speaker."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gmp_utils import encoders, evaluation, features, masked_prediction, multitask, runs
from gmp_utils.encoders import SpeechModel
from gmp_utils.errors import GmpError
from gmp_utils.preparation import Corpus, open_corpus
from gmp_utils.pseudo_labels import assign, fit_kmeans

STAGE = "03_probe_layers"
FRAMES_EACH = 12  # frames drawn from an utterance, at most, for maps and few clusters
POINTS_PER_CLUSTER = 10  # drawn for clusters, at least, where there are so many frames
MAP_POINTS = 1800  # UMAP is exact, and quick, below 4096


def probe(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """UAR of a linear probe.

    Parameters
    ----------
    train, test : tuple of (n, dim) float and (n,) labels

    Returns
    -------
    uar : float
        Of a logistic regression (L2, C = 0.1) on standardised features.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    classifier.fit(*train)
    return evaluation.uar(test[1], classifier.predict(test[0]))


def _probe_layer(vectors: dict[str, np.ndarray], corpus: Corpus, fold: int) -> dict[str, float]:
    """Emotion and gender across speakers; speakers among the held-out ones, by halves."""
    parts = corpus.split(fold)

    def data(names: list[str], task: str) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([vectors[name] for name in names]), corpus.labels(names, task)

    scores = {
        task: probe(data(parts["train"], task), data(parts["validation"], task))
        for task in ("emotion", "gender")
    }
    held_out = sorted(parts["validation"] + parts["test"])
    scores["speaker"] = probe(data(held_out[::2], "speaker"), data(held_out[1::2], "speaker"))
    return scores


def umap_map(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Two dimensions by UMAP.

    Parameters
    ----------
    vectors : (n, dim) float
    seed : int

    Returns
    -------
    points : (n, 2) float32
    """
    from umap import UMAP

    neighbours = min(15, len(vectors) - 1)
    mapper = UMAP(n_neighbors=neighbours, n_epochs=200, random_state=seed, n_jobs=1)
    return mapper.fit_transform(vectors.astype(np.float32))


def probe_layers(
    run_dir: str,
    fold: int,
    model: str,
    encoder: str,
    scales: list[int],
    map_layers: list[int],
    seed: int = 0,
) -> Path:
    """Probe, cluster and map the layers of a model.

    Emotion and gender probes learn from the training speakers and are scored on the validation
    speakers, so that a layer may be chosen by them. Speaker probes learn to tell the validation and
    test speakers apart from every other utterance, and are scored on the rest. Clusters come from
    training frames and are scored on validation frames.

    Parameters
    ----------
    run_dir : str
    fold : int
    model : str
        "encoder", "multitask" or "retrained".
    encoder : str
        See `gmp_utils.encoders.resolve`.
    scales : list of int
        Numbers of clusters.
    map_layers : list of int
        Layers that get a UMAP of frames and one of utterances.
    seed : int

    Returns
    -------
    stage : Path
        With probes.parquet (layer, task, uar, chance), clusters.parquet (layer, K, known, nmi) and
        maps.parquet (layer, of, x, y, part, emotion, gender, speaker), of the training and the
        validation speakers.

    Raises
    ------
    GmpError
        For another `model`, a layer that it does not have, or if its stage is not there.
    """
    corpus, run = open_corpus(run_dir), runs.run_folder(run_dir)
    sources = {
        "encoder": None,
        "multitask": run / f"fold{fold}" / multitask.STAGE,
        "retrained": run / f"fold{fold}" / masked_prediction.STAGE,
    }
    if model not in sources:
        raise GmpError(f"model {model!r}: expected one of {', '.join(sources)}.")
    stage = sources[model]
    parts = corpus.split(fold)

    def build(folder: Path) -> None:
        network = SpeechModel.load(str(stage / "model") if stage else encoders.resolve(encoder))
        inputs = features.model_inputs(network, corpus)
        layers = list(range(network.n_layers + 1))
        names = corpus.waveforms.utterances
        maps_of = [network.layer_index(layer) for layer in map_layers]
        each = max(FRAMES_EACH, -(-POINTS_PER_CLUSTER * max(scales) // len(parts["train"])))
        rng = np.random.default_rng(seed)
        means, drawn = {}, {}
        for name, states in features.layer_states(network, inputs, names, layers):
            means[name] = states.mean(axis=1, dtype=np.float32)[:, None]
            drawn[name] = states[:, np.sort(rng.permutation(states.shape[1])[:each])]
        probes, clusters, maps = [], [], []
        held_out = corpus.manifest.loc[parts["validation"] + parts["test"]]
        chance = {
            "emotion": 1 / len(corpus.emotions),
            "gender": 1 / 2,
            "speaker": 1 / held_out.speaker.nunique(),
        }
        for layer in layers:
            vectors = {name: mean[layer, 0] for name, mean in means.items()}
            for task, uar in _probe_layer(vectors, corpus, fold).items():
                probes.append({"layer": layer, "task": task, "uar": uar, "chance": chance[task]})
            frames = {part: _rows(drawn, parts[part], layer) for part in ("train", "validation")}
            counts = [drawn[name].shape[1] for name in parts["validation"]]
            for k in scales:
                centroids = fit_kmeans(frames["train"], k, seed)
                labels = assign(frames["validation"], centroids)
                for known in ("emotion", "gender", "speaker"):
                    true = corpus.labels(parts["validation"], known).repeat(counts)
                    nmi = normalized_mutual_info_score(true, labels)
                    clusters.append({"layer": layer, "K": k, "known": known, "nmi": nmi})
        thinned = {name: frames[:, :: -(-each // FRAMES_EACH)] for name, frames in drawn.items()}
        for layer in maps_of:
            maps.append(_map(corpus, parts, means, layer, "utterances", seed))
            maps.append(_map(corpus, parts, thinned, layer, "frames", seed))
        pd.DataFrame(probes).to_parquet(folder / "probes.parquet", index=False)
        pd.DataFrame(clusters).to_parquet(folder / "clusters.parquet", index=False)
        pd.concat(maps).to_parquet(folder / "maps.parquet", index=False)

    return runs.make_stage(
        run / f"fold{fold}" / STAGE / model,
        build,
        parameters={
            "fold": fold,
            "model": model,
            "scales": scales,
            "map_layers": map_layers,
            "seed": seed,
        },
        stages=[corpus.stage, *([stage] if stage else [])],
        inputs=[encoders.identity(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def _rows(values: dict[str, np.ndarray], names: list[str], layer: int) -> np.ndarray:
    return np.concatenate([values[name][layer] for name in names])


def _map(
    corpus: Corpus,
    parts: dict[str, list[str]],
    values: dict[str, np.ndarray],
    layer: int,
    of: str,
    seed: int,
) -> pd.DataFrame:
    """UMAP of utterances or frames at a layer, not of the test speakers'."""
    names = np.random.default_rng(seed).permutation(parts["train"] + parts["validation"])
    counts = np.array([values[name].shape[1] for name in names])
    n_shown = max(int(np.searchsorted(counts.cumsum(), MAP_POINTS, side="right")), 1)
    names, counts = names[:n_shown], counts[:n_shown]
    rows = corpus.manifest.loc[names, ["utterance", "emotion", "gender", "speaker"]]
    rows = rows.assign(part=np.where(np.isin(names, parts["validation"]), "validation", "train"))
    points = umap_map(_rows(values, names, layer), seed)
    rows = rows.loc[np.repeat(names, counts)].reset_index(drop=True)
    return rows.assign(layer=layer, of=of, x=points[:, 0], y=points[:, 1])
