"""Stage 08: continuous emotion with speakers in mind (PAPT and its kin, arXiv 2309.02418).

Each system is trained on a fold's training speakers; what it makes of the test speakers is calibrated in
`gmp_utils.calibration` and compared in `gmp_utils.personal_results`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import set_seed

from gmp_utils import features, pseudo_labels, regression, runs, speakers, weights
from gmp_utils.batching import Masking, Utterances
from gmp_utils.encoders import SpeechModel
from gmp_utils.errors import GmpError
from gmp_utils.masked_prediction import MaskedPredictionModel, stream_metrics
from gmp_utils.personal_data import STAGE, Heard, Task, open_fold
from gmp_utils.preparation import open_corpus
from gmp_utils.ragged import Ragged
from gmp_utils.regression import AttributeModel, System, Told
from gmp_utils.training import Schedule, train

ADAPTATIONS = ("all", "unique", "oversampling", "weighting")


def _stage(
    task: Task,
    name: str,
    build: Callable[[Path], None],
    parameters: dict,
    stages: Sequence[Path] = (),
    of_speakers: bool = False,
) -> Path:
    """A stage of a fold; `of_speakers` says that it knows unseen speakers by their neighbours."""
    corpus = open_corpus(task.run_dir)
    read = ["fold", "encoder", "attributes", "train_encoder", *(["neighbours"] * of_speakers)]
    return runs.make_stage(
        task.folder / name,
        build,
        parameters={name: getattr(task, name) for name in read} | parameters,
        stages=[corpus.stage, runs.run_folder(task.run_dir) / STAGE / "heard", *stages],
        inputs=[weights.identity(task.encoder)],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def adapt(task: Task, position: str, schedule: Schedule, masking: Masking) -> Path:
    """PAPT: masked prediction goes on, with a vector for every training speaker that is learnt with it.

    Its targets are the pseudo-labels of stage 04, which have to be the untouched encoder's.

    Parameters
    ----------
    task : Task
    position : str
        See `gmp_utils.encoders.SPEAKER_POSITIONS`; "none" is the same training without vectors.
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
    clusters = task.folder.parent / pseudo_labels.STAGE
    labels, scales = pseudo_labels.open_labels(clusters)
    clustered = runs.read_json(clusters / "params.json")["clustered_model"]
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
        made_of = heard.mixtures(task.neighbours)
        protocol, sets = heard.corpus.protocol, []
        parts = [heard.parts[part] for part in protocol.unsupervised_parts]
        learnt = sorted((name for own in parts for name in own), key=inputs.lengths.get)
        for names in (learnt, heard.parts[protocol.compared_on]):
            told = {"speaker": np.stack([made_of[name] for name in names])}
            told = told if settings["n_speakers"] else None
            sets.append(Utterances(inputs, names, told, labels, masking, schedule.seed))
        metrics = partial(stream_metrics, scales)
        train(model, *sets, folder, schedule, metrics, "masked_loss", protocol.selection)

    given = {"position": position, "schedule": vars(schedule), "masking": vars(masking)}
    return _stage(task, f"papt-{position}", build, given, [clusters], position != "none")


def _papt_frames(task: Task, heard: Heard, position: str) -> Path:
    """Frames of the last layer that `adapt` left, without the vector that is added there."""
    source = task.folder / f"papt-{position}"

    def build(folder: Path) -> None:
        model = SpeechModel.load(str(source / "model"))
        made_of = heard.mixtures(task.neighbours)
        inside = made_of if position in ("input", "prefix") else None
        inputs = features.model_inputs(model, heard.corpus)
        features.layer_frames(model, inputs, list(made_of), -1, folder / "frames", inside)

    return _stage(task, f"{source.name}-frames", build, {}, [source], position != "none")


def _told(task: Task, heard: Heard, system: System, model: AttributeModel) -> Told:
    """Inputs of a system's model, and what is known of each utterance."""
    names, vectors = heard.utterances, None
    if system.learns_vectors:
        vectors = heard.mixtures(task.neighbours)
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
    return Told(inputs, ratings, vectors)


def _fit_and_rate(
    task: Task,
    heard: Heard,
    system: System,
    source: str,
    schedule: Schedule,
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
        "n_speakers": heard.alike.shape[1] if system.learns_vectors else 0,
        "speaker_position": in_position,
        "offset": rated.mean().tolist(),
        "spread": rated.std(ddof=0).tolist(),
    }
    model = AttributeModel.load(
        source, train_encoder=task.train_encoder, train_cnn=False, **settings
    )
    told = _told(task, heard, system, model)
    held_out = heard.parts[corpus.protocol.compared_on]
    selection = corpus.protocol.selection
    regression.fit(model, told, training, held_out, folder, schedule, selection, counted)
    tables, vectors = [], []
    for part, names in heard.parts.items():
        if names:
            ratings, own = regression.apply(model, told, names)
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


def rate(task: Task, system: System, schedule: Schedule) -> Path:
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
        runs.identity(before[0])
        if not task.train_encoder:
            before.append(_papt_frames(task, heard, system.position))
            heard = replace(heard, frames=before[-1] / "frames")

    def build(folder: Path) -> None:
        _fit_and_rate(task, heard, system, source, schedule, folder, heard.parts["train"])

    given = {"system": vars(system), "schedule": vars(schedule)}
    return _stage(task, system.name, build, given, before, system.learns_vectors)


def adapt_unsupervised(task: Task, how: str, chosen: int, schedule: Schedule) -> Path:
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
        As of `rate`, whose "none-mlp" it begins with.

    Raises
    ------
    GmpError
        For another `how`.
    """
    if how not in ADAPTATIONS:
        raise GmpError(f"adaptation {how!r}: expected one of {', '.join(ADAPTATIONS)}.")
    heard, system = open_fold(task), System()
    before = task.folder / system.name
    runs.identity(before)

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


def with_fewer_speakers(task: Task, n: int, schedule: Schedule) -> Path:
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
        As of `rate`; utterances that were left out are of the part "known".
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
        _fit_and_rate(task, fewer, System(), source, schedule, folder, parts["train"])

    given = {"speakers": n, "schedule": vars(schedule)}
    return _stage(task, f"{System().name}-{n}-speakers", build, given)
