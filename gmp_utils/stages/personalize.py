"""Stage 08: regression with speaker information (PAPT and related methods, arXiv 2309.02418).

Each system is trained on a fold's training speakers. Its predictions for the test speakers are calibrated
and compared in `gmp_utils.evaluation.ratings`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import EvalPrediction, set_seed

from gmp_utils import GmpError
from gmp_utils.data import speakers
from gmp_utils.data.corpus import open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.data.rated_fold import STATISTICS, RatedFold, RatingTask, open_fold
from gmp_utils.evaluation.metrics import ccc
from gmp_utils.evaluation.ratings import (
    TRANSDUCTIVE_NOTE,
    compare_calibrations,
    compare_systems,
    display_table,
    results_table,
)
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.masked_prediction import stream_metrics
from gmp_utils.models.regression import AttributeModel, PaptModel, RatingModelConfig
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import GENERATE_GMPS, PERSONALIZE, fold_folder, run_folder
from gmp_utils.runs.stage import check_same_encoder, make_stage
from gmp_utils.training import features
from gmp_utils.training.batching import Masking, Utterances
from gmp_utils.training.trainer import TrainingConfig, train


def summarize_utterances(task: RatingTask) -> Path:
    """Write mean, standard deviation and maximum over time of the pre-trained encoder's last layer.

    mean.npy, std.npy and max.npy are (n_utterances, hidden_size) float32, in the manifest's order. The frames
    are kept unless the encoder will be trained.
    """
    corpus, keep_frames = open_corpus(task.run_dir), not task.train_encoder

    def build(folder: Path) -> None:
        model = SpeechModel.load(weights.resolve(task.encoder))
        inputs, names = features.model_inputs(model, corpus), list(corpus.manifest.index)
        if keep_frames:
            frames = features.layer_frames(model, inputs, names, -1, folder / "frames")
            states = ((name, (frames[name],)) for name in names)
        else:
            states = features.layer_states_by_length(model, inputs, names, [-1])
        rows = {}
        for name, (last_layer,) in states:
            last_layer = last_layer.astype(np.float32)
            rows[name] = [getattr(last_layer, statistic)(axis=0) for statistic in STATISTICS]
        for statistic, values in zip(STATISTICS, zip(*map(rows.get, names))):
            np.save(folder / f"{statistic}.npy", np.stack(values))

    return make_stage(
        task.feature_stage,
        build,
        parameters={"encoder": task.encoder, "keep_frames": keep_frames},
        stages=[corpus.stage],
        inputs=[weights.fingerprint(task.encoder)],
    )


def _make_fold_stage(
    fold: RatedFold, name: str, build: Callable[[Path], None], parameters: dict, *stages: Path
) -> Path:
    task, corpus = fold.task, fold.corpus
    shared = ("fold", "encoder", "attributes", "train_encoder")
    return make_stage(
        task.folder / name,
        build,
        parameters={field: getattr(task, field) for field in shared} | parameters,
        stages=[corpus.stage, task.feature_stage, *stages],
        inputs=[weights.fingerprint(task.encoder)],
    )


def adapt(task: RatingTask, position: str, *, training: TrainingConfig, masking: Masking) -> Path:
    """PAPT: continued masked prediction with an embedding for every training speaker.

    Its targets are the pseudo-labels of stage 04, which must be the pre-trained encoder's. `position` is one
    of `gmp_utils.models.regression.SPEAKER_POSITIONS`. "none" is the same training without embeddings. The
    model of the last step is kept, as in `gmp_utils.stages.retrain` by default.
    """
    fold, clusters = open_fold(task), fold_folder(task.run_dir, task.fold) / GENERATE_GMPS
    labels, scales = features.open_labels(clusters)
    clustered = read_json(clusters / "params.json")["clustered_model"]
    if clustered != "encoder":
        raise GmpError(
            f"PAPT: the pseudo-labels are of clustered_model {clustered!r}, expected 'encoder'; run notebook "
            "04 with it, or make run RECIPE=papt."
        )
    check_same_encoder([clusters], task.encoder)
    n_speakers = 0 if position == "none" else fold.similarity.shape[1]
    settings = {"scales": scales, "stream_hidden_size": 256, "loss_on": "masked"}
    settings |= {"activation": "relu", "speaker_position": position, "n_speakers": n_speakers}

    def build(folder: Path) -> None:
        set_seed(training.seed)
        source, protocol = weights.resolve(task.encoder), fold.corpus.protocol
        trained = {"train_encoder": True, "train_cnn": False}
        model = PaptModel.load(source, new_heads=True, **trained, **settings)
        inputs, mixtures = features.model_inputs(model, fold.corpus), fold.mixtures
        unlabeled = sum((fold.parts[part] for part in protocol.unsupervised_parts), [])
        unlabeled = sorted(unlabeled, key=inputs.lengths.get)
        sets = []
        for names in (unlabeled, fold.parts[protocol.selection_part]):
            targets = {"speaker": mixtures.loc[names].to_numpy()} if n_speakers else None
            sets.append(Utterances(inputs, names, targets, labels, masking, training.seed))
        metrics = partial(stream_metrics, scales)
        scoring = {"compute_metrics": metrics, "selection_metric": "validation_loss"}
        train(model, *sets, folder, training, **scoring, selection="last")
        fold.corpus.write_training_recordings(folder / "model", task.fold, source)

    parameters = {"position": position, "training": vars(training), "masking": vars(masking)}
    parameters["neighbors"] = task.neighbors if n_speakers else None
    return _make_fold_stage(fold, f"papt-{position}", build, parameters, clusters)


def _papt_frames(fold: RatedFold, position: str) -> Path:
    """Frames of the last layer of PAPT's model, without an embedding added to them."""
    source = fold.task.folder / f"papt-{position}"

    def build(folder: Path) -> None:
        model = PaptModel.load(str(source / "model"))
        inputs, speaker = features.model_inputs(model, fold.corpus), None
        if position in ("input", "prefix"):
            mixtures = fold.mixtures
            speaker = dict(zip(mixtures.index, mixtures.to_numpy()))
        features.layer_frames(model, inputs, fold.utterances, -1, folder / "frames", speaker)

    parameters = {"neighbors": None if position == "none" else fold.task.neighbors}
    return _make_fold_stage(fold, f"{source.name}-frames", build, parameters, source)


def _load_model(fold: RatedFold, system: RatingModelConfig, source: str) -> AttributeModel:
    """A system's model with the weights of `source`, and the training labels' mean and standard deviation."""
    labels = fold.corpus.manifest.loc[fold.parts["train"], fold.task.attributes]
    return AttributeModel.load(
        source,
        new_heads=not system.initial_model,
        train_encoder=fold.task.train_encoder,
        train_cnn=False,
        attributes=fold.task.attributes,
        interpreter=system.interpreter,
        fixed_embeddings=system.has_fixed_embeddings,
        n_speakers=fold.similarity.shape[1] if system.learns_embeddings else 0,
        speaker_position=system.position if system.representation == "papt" else "output",
        label_mean=labels.mean().tolist(),
        label_std=labels.std(ddof=0).tolist(),
    )


def _speaker_targets(fold: RatedFold, system: RatingModelConfig) -> dict[str, pd.DataFrame]:
    """`speaker` by utterance: weights of training speakers, or fixed embeddings."""
    if system.learns_embeddings:
        return {"speaker": fold.mixtures}
    if not system.has_fixed_embeddings:
        return {}
    names, statistic = fold.utterances, system.representation
    embeddings = fold.features[statistic].loc[names].groupby(fold.speaker[names]).agg(statistic)
    training = embeddings.loc[fold.similarity.columns]
    embeddings = (embeddings - training.mean()) / training.std().clip(lower=1e-6)
    return {"speaker": embeddings.loc[fold.speaker[names]].set_axis(names)}


def _rating_metrics(attributes: list[str], prediction: EvalPrediction) -> dict[str, float]:
    """CCC of every attribute, and their mean, `ccc`."""
    scores = list(map(ccc, prediction.label_ids[0].T, prediction.predictions.T))
    names = [f"ccc_{name}" for name in attributes]
    return dict(zip(names, scores)) | {"ccc": float(np.mean(scores))}


def _fit_and_predict(
    folder: Path,
    fold: RatedFold,
    system: RatingModelConfig,
    source: str,
    training: TrainingConfig,
    sample_weight: pd.Series | None = None,
) -> None:
    """Train a system's model, and write the ratings that it predicts for all utterances.

    `sample_weight` is indexed by training utterances, which may be repeated. The default is 1 for each.
    """
    set_seed(training.seed)
    manifest, protocol, attributes = (
        fold.corpus.manifest,
        fold.corpus.protocol,
        fold.task.attributes,
    )
    model, frozen = _load_model(fold, system, source), not fold.task.train_encoder
    inputs = Ragged.open(fold.frames) if frozen else features.model_inputs(model, fold.corpus)
    targets = {"ratings": manifest[attributes], "sample_weight": pd.Series(1.0, manifest.index)}
    targets |= _speaker_targets(fold, system)

    def dataset(names: Sequence[str]) -> Utterances:
        rows = {key: table.loc[names].to_numpy(np.float32) for key, table in targets.items()}
        return Utterances(inputs, names, rows)

    training_set = dataset(fold.parts["train"] if sample_weight is None else sample_weight.index)
    if sample_weight is not None:
        training_set.targets["sample_weight"] = sample_weight.to_numpy(np.float32)
    sets, metrics = (training_set, dataset(fold.parts[protocol.selection_part])), _rating_metrics
    scoring = {"compute_metrics": partial(metrics, attributes), "selection_metric": "ccc"}
    train(model, *sets, folder, training, **scoring, selection=protocol.selection)
    fold.corpus.write_training_recordings(folder / "model", fold.task.fold, source)
    names, parts = fold.utterances, np.repeat([*fold.parts], [*map(len, fold.parts.values())])
    model.eval().to(hardware.device())
    outputs = features.outputs(model.predict, dataset(names), "predict")
    rows = manifest.loc[names, ["utterance", "speaker", "gender"]].assign(part=parts)
    tables = [
        rows.assign(attribute=name, true=manifest[name], predicted=predicted)
        for name, predicted in zip(attributes, outputs["ratings"].T)
    ]
    predictions = pd.concat(tables, ignore_index=True)
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    means = pd.DataFrame(outputs["features"], names).rename(columns=str)
    means.groupby(fold.speaker[names]).mean().to_parquet(folder / "speakers.parquet")


def train_and_predict(
    task: RatingTask, system: RatingModelConfig, *, training: TrainingConfig
) -> Path:
    """Train a system on a fold's training speakers, and predict the ratings of all its utterances.

    A "papt" system starts from the model of `adapt`. The stage has history.csv, metrics.json, model/,
    predictions.parquet (utterance, speaker, gender, part, attribute, true, predicted) and speakers.parquet
    (each speaker's mean features).
    """
    fold, stages, source = open_fold(task), [], weights.resolve(task.encoder)
    if system.initial_model:
        stages = [task.folder / system.initial_model]
        source = str(stages[0] / "model")
        if not task.train_encoder:
            stages.append(_papt_frames(fold, system.position))
            fold = replace(fold, frames=stages[1] / "frames")
    build = partial(_fit_and_predict, fold=fold, system=system, source=source, training=training)
    parameters = {"system": vars(system), "training": vars(training)}
    parameters["neighbors"] = task.neighbors if system.learns_embeddings else None
    return _make_fold_stage(fold, system.name, build, parameters, *stages)


def adapt_unsupervised(
    task: RatingTask, adaptation: str, *, n_chosen: int, training: TrainingConfig
) -> Path:
    """Sridhar & Busso's personalization: continue training on speakers similar to the test speakers.

    For each test speaker, `n_chosen` training speakers are chosen by `gmp_utils.data.speakers.divergences`.

    | adaptation | training utterances |
    |---|---|
    | unique | those of chosen speakers, once |
    | oversampling | those of chosen speakers, once for every choice |
    | weighting | all, with a weight of one plus the number of choices |
    | all | all, as a control with more training only |

    Training starts from "none-mlp" of `train_and_predict`, whose files the stage has, too.
    """
    system, fold = RatingModelConfig(adaptation=adaptation), open_fold(task)
    source = task.folder / system.initial_model

    def build(folder: Path) -> None:
        utterances, test = fold.parts["train"], fold.parts["test"]
        functionals = [fold.features[name].loc[utterances + test] for name in ("mean", "std")]
        divergences = speakers.divergences(
            pd.DataFrame(np.hstack(functionals), fold.speaker[utterances + test]),
            sorted(fold.speaker[test].unique()),
            fold.similarity.columns,
            seed=training.seed,
        )
        choices = speakers.nearest_speakers(-divergences, n_chosen).sum()  # by training speaker
        n_choices = choices[fold.speaker[utterances]].to_numpy()
        repeats = {"unique": np.minimum(n_choices, 1), "oversampling": n_choices}
        weight = 1.0 + n_choices * (adaptation == "weighting")
        sample_weight = pd.Series(weight, utterances).repeat(repeats.get(adaptation, 1))
        _fit_and_predict(folder, fold, system, str(source / "model"), training, sample_weight)

    parameters = {"system": vars(system), "n_chosen": n_chosen, "training": vars(training)}
    return _make_fold_stage(fold, system.name, build, parameters, source)


def train_on_fewer_speakers(task: RatingTask, n: int, *, training: TrainingConfig) -> Path:
    """Train "none-mlp" on half of the utterances of n training speakers, drawn by the training's seed.

    The other half is the part "seen" of its predictions, for the personalization gap: its CCC minus that of
    the unseen test speakers. The stage has the same files as that of `train_and_predict`.
    """
    fold, system = open_fold(task), RatingModelConfig()
    order = np.random.default_rng(training.seed).permutation(fold.similarity.columns)
    speaker = fold.speaker[fold.parts["train"]]
    speaker = speaker[speaker.isin(order[:n])]
    odd = speaker.groupby(speaker).cumcount() % 2 == 1
    halves = {"train": speaker.index[~odd].tolist(), "seen": speaker.index[odd].tolist()}
    fold, source = replace(fold, parts=fold.parts | halves), weights.resolve(task.encoder)
    build = partial(_fit_and_predict, fold=fold, system=system, source=source, training=training)
    parameters = {"speakers": n, "training": vars(training)}
    return _make_fold_stage(fold, f"{system.name}-{n}-speakers", build, parameters)


def combine_seeds(stages: Sequence[Path]) -> Path:
    """Combine the results (stages) of runs that differ in their seeds into a stage next to the runs."""
    settings = read_json(stages[0] / "params.json")
    tasks = [RatingTask(**task) for task in settings["tasks"]]
    systems = [RatingModelConfig(**system) for system in settings["systems"]]
    table = pd.concat([pd.read_parquet(stage / "ratings.parquet") for stage in stages])
    return write_results(tasks, systems, table, seeds=stages)


def write_results(
    tasks: Sequence[RatingTask],
    systems: Sequence[RatingModelConfig],
    table: pd.DataFrame,
    *,
    seeds: Sequence[Path] = (),
) -> Path:
    """Write the results of a run: ratings.parquet, table.csv, differences.csv and summary.md.

    There is a task per fold. `table` is that of `gmp_utils.evaluation.ratings.calibrated`. `seeds` are the
    results of several runs, for `combine_seeds`.
    """
    run = run_folder(tasks[0].run_dir)
    trained = [task.folder / system.name for task in tasks for system in systems]
    corpus = open_corpus(tasks[0].run_dir)
    protocol = corpus.protocol

    def build(folder: Path) -> None:
        results, differences = results_table(table), compare_systems(table, systems)
        calibrations = compare_calibrations(table[table.system == systems[0].name])
        table.to_parquet(folder / "ratings.parquet", index=False)
        results.to_csv(folder / "table.csv", index=False)
        pd.concat([differences, calibrations]).to_csv(folder / "differences.csv", index=False)
        folds = f"folds {', '.join(str(task.fold) for task in tasks)} of {len(protocol.folds)}"
        numbers = ", ".join(map(str, sorted(table.seed.unique())))
        setting = f"{corpus.name}, encoder {tasks[0].encoder}, {folds}, seeds {numbers}."
        scores = display_table(results).reset_index()
        scores.columns = [" ".join(filter(None, column)) for column in scores.columns]
        markdown = scores.to_markdown(index=False, disable_numparse=True)
        text = [f"{setting} {protocol.describe()}", TRANSDUCTIVE_NOTE, "", markdown]
        headings = "Systems, uncalibrated:", f"Calibrations of {systems[0].name}:"
        for heading, rows in zip(headings, (differences, calibrations)):
            findings = [
                f"- {row.attribute}: {row.compared}: {row.finding}" for row in rows.itertuples()
            ]
            text += ["", heading, "", *findings]
        (folder / "summary.md").write_text("\n".join([*text, ""]), encoding="utf-8")

    return make_stage(
        (run.parent if seeds else run) / PERSONALIZE / "results",
        build,
        parameters={"tasks": list(map(vars, tasks)), "systems": list(map(vars, systems))},
        stages=seeds or trained,
        module="gmp_utils.evaluation.ratings",
    )
