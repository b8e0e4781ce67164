"""Stage 08: continuous emotion with speakers in mind (PAPT and its kin, arXiv 2309.02418).

Each system is trained on a fold's training speakers; what it makes of the test speakers is calibrated in
`gmp_utils.evaluation.ratings` and compared in `gmp_utils.evaluation.ratings`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import EvalPrediction, set_seed

from gmp_utils import GmpError
from gmp_utils.data import speakers
from gmp_utils.data.corpus import open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.data.rated_fold import SUMMARIES, RatedFold, RatingTask, open_fold
from gmp_utils.evaluation.metrics import ccc
from gmp_utils.evaluation.ratings import TRANSDUCTIVE_NOTE, compared, shown
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.masked_prediction import MaskedPredictionModel, stream_metrics
from gmp_utils.models.regression import AttributeModel, RatingModelConfig
from gmp_utils.runs import hardware, weights
from gmp_utils.runs.files import read_json, text_digest
from gmp_utils.runs.paths import GENERATE_GMPS, PERSONALIZE, run_folder
from gmp_utils.runs.stage import check_and_identify, make_stage
from gmp_utils.training import features
from gmp_utils.training.batching import Masking, Utterances
from gmp_utils.training.trainer import TrainingConfig, train

ADAPTATIONS = ("all", "unique", "oversampling", "weighting")


def summarize_utterances(run_dir: str, encoder: str, keep_frames: bool = True) -> Path:
    """Summarise every utterance's last layer over time, by the untouched encoder.

    Returns
    -------
    stage : Path
        With mean.npy, std.npy and max.npy: (n_utterances, hidden_size) float32, in the manifest's order;
        and with the frames, if they are kept.
    """
    corpus = open_corpus(run_dir)

    def build(folder: Path) -> None:
        model = SpeechModel.load(weights.resolve(encoder))
        inputs, names = features.model_inputs(model, corpus), list(corpus.manifest.index)
        found = {}
        if keep_frames:
            frames = features.layer_frames(model, inputs, names, -1, folder / "frames")
            states = ((name, (frames[name],)) for name in names)
        else:
            states = features.layer_states(model, inputs, names, [-1])
        for name, (own,) in states:
            wide = own.astype(np.float32)
            found[name] = [getattr(wide, how)(axis=0) for how in SUMMARIES]
        for how, rows in zip(SUMMARIES, zip(*(found[name] for name in names))):
            np.save(folder / f"{how}.npy", np.stack(rows))

    return make_stage(
        run_folder(run_dir) / PERSONALIZE / "heard",
        build,
        parameters={"encoder": encoder, "keep_frames": keep_frames},
        stages=[corpus.stage],
        inputs=[weights.fingerprint(encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


@dataclass(frozen=True)
class RatingData:
    """Utterances, and what is known of each.

    Attributes
    ----------
    inputs : Ragged
    ratings : dict of str to (attributes,) float32
    speaker : dict of str to (n,) float32, or None
    """

    inputs: Ragged
    ratings: dict[str, np.ndarray]
    speaker: dict[str, np.ndarray] | None

    def dataset(self, names: Sequence[str], weight: Sequence[float] | None = None) -> Utterances:
        """Some utterances; `weight` says how much each counts."""
        known = {"ratings": self.ratings, "speaker": self.speaker}
        targets = {
            task: np.stack([rows[name] for name in names]).astype(np.float32)
            for task, rows in known.items()
            if rows is not None
        }
        if weight is not None:
            targets["weight"] = np.asarray(weight, dtype=np.float32)
        return Utterances(self.inputs, names, targets)


def _rating_metrics(attributes: list[str], prediction: EvalPrediction) -> dict[str, float]:
    """CCC of every attribute, and their mean, `ccc`."""
    labels = prediction.label_ids
    rated = labels[0] if isinstance(labels, tuple) else labels
    found = {
        f"ccc_{name}": ccc(true, predicted)
        for name, true, predicted in zip(attributes, rated.T, prediction.predictions.T)
    }
    return found | {"ccc": float(np.mean(list(found.values())))}


def fit_ratings(
    model: AttributeModel,
    told: RatingData,
    training: list[str],
    held_out: list[str],
    folder: Path,
    schedule: TrainingConfig,
    selection: str,
    weight: Sequence[float] | None = None,
) -> None:
    """Train a model to rate; see `gmp_utils.training.trainer.train`."""
    set_seed(schedule.seed)
    held = None if weight is None else np.ones(len(held_out))
    sets = told.dataset(training, weight), told.dataset(held_out, held)
    metrics = partial(_rating_metrics, model.config.attributes)
    train(model, *sets, folder, schedule, metrics, "ccc", selection)


def predict_ratings(
    model: AttributeModel, told: RatingData, utterances: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rate and represent utterances.

    Returns
    -------
    ratings : (n_utterances, attributes) float32
    vectors : (n_utterances, hidden_size) float32
        See `AttributeModel.rate`.
    """
    dataset = told.dataset(utterances)
    del dataset.targets["ratings"]
    model.eval().to(hardware.device())
    with torch.inference_mode():
        found = [own for _, own in features.batches(dataset, "rate", model.rate)]
    ratings, vectors = (torch.cat(each).float().cpu().numpy() for each in zip(*found))
    return ratings, vectors


def _stage(
    task: RatingTask,
    name: str,
    build: Callable[[Path], None],
    parameters: dict,
    stages: Sequence[Path] = (),
    of_speakers: bool = False,
) -> Path:
    """A stage of a fold; `of_speakers` says that it knows unseen speakers by their neighbours."""
    corpus = open_corpus(task.run_dir)
    read = ["fold", "encoder", "attributes", "train_encoder", *(["neighbours"] * of_speakers)]
    return make_stage(
        task.folder / name,
        build,
        parameters={name: getattr(task, name) for name in read} | parameters,
        stages=[corpus.stage, run_folder(task.run_dir) / PERSONALIZE / "heard", *stages],
        inputs=[weights.fingerprint(task.encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def adapt(task: RatingTask, position: str, schedule: TrainingConfig, masking: Masking) -> Path:
    """PAPT: masked prediction goes on, with a vector for every training speaker that is learnt with it.

    Its targets are the pseudo-labels of stage 04, which have to be the untouched encoder's.

    Parameters
    ----------
    task : Task
    position : str
        See `gmp_utils.models.encoder.SPEAKER_POSITIONS`; "none" is the same training without vectors.
    schedule : Schedule
    masking : Masking

    Returns
    -------
    stage : Path
        With history.csv, metrics.json and model/.

    Raises
    ------
    GmpError
        If stage 04 is not there, or clustered another model.
    """
    heard = open_fold(task)
    clusters = task.folder.parent / GENERATE_GMPS
    labels, scales = features.open_labels(clusters)
    clustered = read_json(clusters / "params.json")["clustered_model"]
    if clustered != "encoder":
        raise GmpError(
            f"PAPT: the pseudo-labels are of clustered_model {clustered!r}, expected 'encoder'; run notebook "
            "04 so, or make run RECIPE=papt."
        )
    settings = {"scales": scales, "projection_size": 256, "loss_on": "masked", "combine": "sum"}
    settings |= {"activation": "relu", "speaker_position": position}
    settings["n_speakers"] = 0 if position == "none" else heard.alike.shape[1]

    def build(folder: Path) -> None:
        set_seed(schedule.seed)
        source = weights.resolve(task.encoder)
        model = MaskedPredictionModel.load(source, train_encoder=True, train_cnn=False, **settings)
        inputs = features.model_inputs(model, heard.corpus)
        made_of = heard.speaker_weights(task.neighbours)
        protocol, sets = heard.corpus.protocol, []
        parts = [heard.parts[part] for part in protocol.unsupervised_parts]
        learnt = sorted((name for own in parts for name in own), key=inputs.lengths.get)
        for names in (learnt, heard.parts[protocol.selection_part]):
            told = {"speaker": np.stack([made_of[name] for name in names])}
            told = told if settings["n_speakers"] else None
            sets.append(Utterances(inputs, names, told, labels, masking, schedule.seed))
        metrics = partial(stream_metrics, scales)
        train(model, *sets, folder, schedule, metrics, "masked_loss", protocol.selection)

    given = {"position": position, "schedule": vars(schedule), "masking": vars(masking)}
    return _stage(task, f"papt-{position}", build, given, [clusters], position != "none")


def _papt_frames(task: RatingTask, heard: RatedFold, position: str) -> Path:
    """Frames of the last layer that `adapt` left, without the vector that is added there."""
    source = task.folder / f"papt-{position}"

    def build(folder: Path) -> None:
        model = SpeechModel.load(str(source / "model"))
        made_of = heard.speaker_weights(task.neighbours)
        inside = made_of if position in ("input", "prefix") else None
        inputs = features.model_inputs(model, heard.corpus)
        features.layer_frames(model, inputs, list(made_of), -1, folder / "frames", inside)

    return _stage(task, f"{source.name}-frames", build, {}, [source], position != "none")


def _inputs_and_labels(
    task: RatingTask, heard: RatedFold, system: RatingModelConfig, model: AttributeModel
) -> RatingData:
    """Inputs of a system's model, and what is known of each utterance."""
    names, vectors = heard.utterances, None
    if system.learns_embeddings:
        vectors = heard.speaker_weights(task.neighbours)
    elif system.representation in ("mean", "max"):
        table = heard.summaries[system.representation].loc[names].to_numpy()
        of = speakers.by_speaker(table, heard.speaker[names], system.representation)
        learnt = of.loc[heard.alike.columns]
        of = (of - learnt.mean()) / learnt.std().clip(lower=1e-6)
        vectors = {name: of.loc[heard.speaker[name]].to_numpy(np.float32) for name in names}
    kept = heard.frames
    inputs = Ragged.open(kept) if kept else features.model_inputs(model, heard.corpus)
    rows = heard.corpus.manifest[task.attributes]
    ratings = dict(zip(rows.index, rows.to_numpy(np.float32)))
    return RatingData(inputs, ratings, vectors)


def _fit_and_rate(
    task: RatingTask,
    heard: RatedFold,
    system: RatingModelConfig,
    source: str,
    schedule: TrainingConfig,
    folder: Path,
    training: list[str],
    counted: Sequence[float] | None = None,
) -> None:
    """Train a system's model from a source, and leave what it makes of every utterance."""
    set_seed(schedule.seed)
    corpus = heard.corpus
    rated = corpus.manifest.loc[heard.parts["train"], task.attributes]
    in_position = system.position if system.representation == "papt" else "output"
    settings = {
        "attributes": task.attributes,
        "interpreter": system.interpreter,
        "fixed_vectors": system.representation in ("mean", "max"),
        "n_speakers": heard.alike.shape[1] if system.learns_embeddings else 0,
        "speaker_position": in_position,
        "offset": rated.mean().tolist(),
        "spread": rated.std(ddof=0).tolist(),
    }
    model = AttributeModel.load(
        source, train_encoder=task.train_encoder, train_cnn=False, **settings
    )
    told = _inputs_and_labels(task, heard, system, model)
    held_out = heard.parts[corpus.protocol.selection_part]
    selection = corpus.protocol.selection
    fit_ratings(model, told, training, held_out, folder, schedule, selection, counted)
    tables, vectors = [], []
    for part, names in heard.parts.items():
        if names:
            ratings, own = predict_ratings(model, told, names)
            vectors.append(pd.DataFrame(own, names))
            wide = corpus.manifest.loc[names, ["utterance", "speaker", "gender"]].assign(part=part)
            for attribute, predicted in zip(task.attributes, ratings.T):
                true = corpus.manifest.loc[names, attribute].to_numpy()
                tables.append(wide.assign(attribute=attribute, true=true, predicted=predicted))
    pd.concat(tables, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
    features_of = pd.concat(vectors)
    means = speakers.by_speaker(features_of.to_numpy(), heard.speaker[features_of.index])
    means.columns = means.columns.astype(str)
    means.to_parquet(folder / "speakers.parquet")


def train_and_predict(
    task: RatingTask, system: RatingModelConfig, schedule: TrainingConfig
) -> Path:
    """Train a system on a fold's training speakers, and rate all its utterances.

    Parameters
    ----------
    task : Task
    system : System
        "papt" begins with the model that `adapt` made.
    schedule : Schedule

    Returns
    -------
    stage : Path
        With history.csv, metrics.json, model/, predictions.parquet (utterance, speaker, gender, part,
        attribute, true, predicted) and speakers.parquet (each speaker's mean feature).
    """
    heard, before, source = open_fold(task), [], weights.resolve(task.encoder)
    if system.representation == "papt":
        before = [task.folder / f"papt-{system.position}"]
        source = str(before[0] / "model")
        check_and_identify(before[0])
        if not task.train_encoder:
            before.append(_papt_frames(task, heard, system.position))
            heard = replace(heard, frames=before[-1] / "frames")

    def build(folder: Path) -> None:
        _fit_and_rate(task, heard, system, source, schedule, folder, heard.parts["train"])

    given = {"system": vars(system), "schedule": vars(schedule)}
    return _stage(task, system.name, build, given, before, system.learns_embeddings)


def adapt_unsupervised(task: RatingTask, how: str, chosen: int, schedule: TrainingConfig) -> Path:
    """Sridhar & Busso's personalisation: go on training with speakers who sound like the test speakers.

    Each test speaker chooses training speakers by `speakers.divergences`.

    Parameters
    ----------
    task : Task
    how : str
        "unique" goes on with the utterances of those who are chosen, each once; "oversampling" with each as
        often as its speaker is chosen; "weighting" with all, which count once and once more for every choice;
        "all" with all alike, which is more training and nothing else.
    chosen : int
        Training speakers for each test speaker.
    schedule : Schedule

    Returns
    -------
    stage : Path
        As of `train_and_predict`, whose "none-mlp" it begins with.

    Raises
    ------
    GmpError
        For another `how`.
    """
    if how not in ADAPTATIONS:
        raise GmpError(f"adaptation {how!r}: expected one of {', '.join(ADAPTATIONS)}.")
    heard, system = open_fold(task), RatingModelConfig()
    before = task.folder / system.name
    check_and_identify(before)

    def build(folder: Path) -> None:
        names = heard.parts["train"] + heard.parts["test"]
        functionals = np.hstack([heard.summaries[how].loc[names] for how in ("mean", "std")])
        tested = sorted(heard.speaker[heard.parts["test"]].unique())
        learnt = list(heard.alike.columns)
        apart = speakers.divergences(
            functionals, heard.speaker[names], tested, learnt, schedule.seed
        )
        times = speakers.adaptation_set(-apart, chosen)
        each = times[heard.speaker[heard.parts["train"]]].to_numpy()
        repeated = {"unique": np.minimum(each, 1), "oversampling": each}.get(
            how, np.ones_like(each)
        )
        training = np.repeat(heard.parts["train"], repeated).tolist()
        counted = 1.0 + each if how == "weighting" else None
        begin = str(before / "model")
        _fit_and_rate(task, heard, system, begin, schedule, folder, training, counted)

    given = {"how": how, "chosen": chosen, "schedule": vars(schedule)}
    return _stage(task, f"{system.name}-{how}", build, given, [before])


def with_fewer_speakers(task: RatingTask, n: int, schedule: TrainingConfig) -> Path:
    """Train "none-mlp" on half of the utterances of some training speakers.

    What it makes of the other half is what it makes of people whom it knows: the difference to unseen people
    is the personalisation gap.

    Parameters
    ----------
    task : Task
    n : int
        Training speakers, drawn by the schedule's seed.
    schedule : Schedule
        The same updates for any number of speakers.

    Returns
    -------
    stage : Path
        As of `train_and_predict`; utterances that were left out are of the part "known".
    """
    heard = open_fold(task)
    learnt = heard.alike.columns.to_numpy()
    order = np.random.default_rng(schedule.seed).permutation(len(learnt))
    drawn = set(learnt[order[:n]])
    own = [name for name in heard.parts["train"] if heard.speaker[name] in drawn]
    number = heard.speaker[own].groupby(heard.speaker[own]).cumcount()
    known = [name for name, count in zip(own, number) if count % 2]
    parts = heard.parts | {
        "train": [name for name in own if name not in set(known)],
        "known": known,
    }

    def build(folder: Path) -> None:
        fewer = replace(heard, parts=parts)
        source = weights.resolve(task.encoder)
        _fit_and_rate(task, fewer, RatingModelConfig(), source, schedule, folder, parts["train"])

    given = {"speakers": n, "schedule": vars(schedule)}
    return _stage(task, f"{RatingModelConfig().name}-{n}-speakers", build, given)


def write_results(
    run_dir: str,
    tasks: Sequence[RatingTask],
    systems: Sequence[RatingModelConfig],
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
        text = [said, TRANSDUCTIVE_NOTE, "", markdown, "", *findings, ""]
        (folder / "summary.md").write_text("\n".join(text), encoding="utf-8")

    return make_stage(
        run_folder(run_dir) / PERSONALIZE / "results",
        build,
        parameters={
            "tasks": [vars(task) for task in tasks],
            "systems": [vars(one) for one in systems],
        },
        stages=[task.folder / system.name for task in tasks for system in systems],
        inputs=[text_digest(results.to_csv())],
        module=__name__,
        protocol=protocol.to_dict(),
    )
