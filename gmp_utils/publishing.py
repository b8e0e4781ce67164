"""A trained classifier made ready for use elsewhere: calibrated, with readouts and a card."""

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from scipy.special import softmax
from torch import Tensor, nn
from transformers import AutoConfig, set_seed

from gmp_utils import evaluation, features, finetuning, hardware, readouts, runs
from gmp_utils.cards import card, same_system
from gmp_utils.classifiers import classifiers, corpus_of
from gmp_utils.confidence import calibration_error, temperature
from gmp_utils.errors import GmpError
from gmp_utils.networks import EmotionClassifier
from gmp_utils.preparation import RATINGS, Corpus
from gmp_utils.ragged import Ragged
from gmp_utils.recognizer import Recognizer, RecognizerConfig, feature_extractor

STAGE = "09_recognize"
TOLERANCE = 1e-4  # between torch and ONNX


def best(run_dir: str) -> Path:
    """The network of a run that did best on its validation utterances; the first where there are none.

    Raises
    ------
    GmpError
        If there is no network of notebook 06.
    """
    found = classifiers(run_dir).stage
    networks = [stage for stage in found if (stage / "model").is_dir()]
    if not networks:
        raise GmpError(f"{run_dir}: no network there, baselines only; run notebook 06 with losses.")

    def score(stage: Path) -> float:
        predictions = pd.read_parquet(stage / "predictions.parquet")
        held_out = predictions[predictions.part == "validation"]
        return 0.0 if held_out.empty else evaluation.uar(held_out.true, held_out.predicted)

    return max(networks, key=score)


def publish(stage: Path, seed: int = 0) -> Path:
    """Make a classifier ready for use elsewhere.

    Its temperature is fitted on the fold's validation utterances, its readouts on the training speakers; what
    they are worth is measured on the test speakers.

    Parameters
    ----------
    stage : Path
        Of `gmp_utils.finetuning.finetune`.
    seed : int
        Of the noises that speech is told from.

    Returns
    -------
    made : Path
        Stage `09_recognize` of the same fold, with metrics.json and model/: weights, configuration, feature
        extractor and model card.
    """
    corpus, told = corpus_of(stage), runs.read_json(stage / "params.json")
    parts = corpus.split(told["fold"])
    fold, (start, loss) = stage.parents[2], stage.parts[-2:]

    def build(folder: Path) -> None:
        set_seed(seed)
        model, metrics = _fitted(EmotionClassifier.load(str(stage / "model")), corpus, parts, seed)
        runs.write_json(folder / "metrics.json", metrics)
        model.save_pretrained(folder / "model")
        feature_extractor().save_pretrained(folder / "model")
        text = card(stage, corpus, parts, metrics, model.config)
        (folder / "model" / "README.md").write_text(text, encoding="utf-8")

    return runs.make_stage(
        fold / STAGE / start / loss,
        build,
        parameters={"fold": told["fold"], "classifier": f"{start}/{loss}", "seed": seed},
        stages=[corpus.stage, *same_system(stage).stage],
        module=__name__,
        protocol=corpus.protocol.to_dict(),
    )


def _fitted(
    network: EmotionClassifier, corpus: Corpus, parts: dict[str, list[str]], seed: int
) -> tuple[Recognizer, dict]:
    """The recognizer of a network, and what it is worth on the fold's test speakers."""
    manifest, train = corpus.manifest, parts["train"]
    rated = [name for name in RATINGS if name in manifest and manifest[name].notna().all()]
    model = Recognizer(
        RecognizerConfig(
            network=network.config.to_dict() | {"_name_or_path": ""},  # it tells of folders here
            knows_gender=manifest.gender.loc[train].nunique() == 2,
            ratings=rated,
            rating_ranges=[
                [float(own.min()), float(own.mean()), float(own.max())]
                for own in (manifest.loc[train, name] for name in rated)
            ],
            id2label=dict(enumerate(corpus.emotions)),
            label2id={name: index for index, name in enumerate(corpus.emotions)},
        )
    )
    model.network.load_state_dict(network.state_dict())
    model.eval().to(hardware.device())
    inputs = features.model_inputs(model.network, corpus)
    _, entering, means = readouts.raw(model, inputs, train)
    if parts["validation"]:
        labels = corpus.labels(parts["validation"], "emotion")
        held_out = readouts.raw(model, inputs, parts["validation"])[0]
        model.config.temperature = temperature(held_out, labels)
    spoken, noises = readouts.heard_as_speech(model, corpus.waveforms, train, seed)
    everything = np.concatenate([entering, spoken, noises])
    is_speech = np.arange(len(everything)) < len(everything) - len(noises)
    readouts.fit_binary(model.speech, everything, is_speech)
    if model.female:
        known = manifest.gender.loc[train].notna().to_numpy()
        women = (manifest.gender.loc[train] == "female").to_numpy()
        readouts.fit_binary(model.female, entering[known], women[known])
    if model.ratings:
        readouts.fit_ratings(model.ratings, means, manifest.loc[train, rated].to_numpy())
    return model, _measured(model, corpus, parts["test"], inputs, seed + 1)


def _measured(
    model: Recognizer, corpus: Corpus, test: list[str], inputs: Ragged, seed: int
) -> dict:
    """What a recognizer is worth on test speakers, and on other noises of the kinds it was fitted to."""
    manifest, labels = corpus.manifest.loc[test], corpus.labels(test, "emotion")
    found = readouts.recognized(model, inputs, test)
    spoken, noises = (
        model.speech(torch.from_numpy(own).to(model.device)).detach().cpu().numpy() > 0
        for own in readouts.heard_as_speech(model, corpus.waveforms, test, seed)
    )
    probabilities = found["emotions"]
    correct = probabilities.argmax(axis=1) == labels
    before = softmax(readouts.raw(model, inputs, test)[0], axis=1)
    metrics = {
        "temperature": model.config.temperature,
        "emotion_uar": evaluation.uar(labels, probabilities.argmax(axis=1)),
        "calibration_error_as_trained": calibration_error(before.max(axis=1), correct),
        "calibration_error": calibration_error(probabilities.max(axis=1), correct),
        "speech_heard": float(np.mean(found["speech"] > 0.5)),
        "altered_speech_heard": float(np.mean(spoken)),
        "noise_refused": float(np.mean(~noises)),
    }
    known = manifest.gender.notna().to_numpy()
    if model.female and known.any():
        heard = np.where(found["female"] > 0.5, "female", "male")[known]
        metrics["gender_uar"] = evaluation.uar(manifest.gender[known], heard)
    for name, values in zip(model.config.ratings, found.get("ratings", np.empty((0, 0))).T):
        metrics[f"{name}_ccc"] = evaluation.ccc(manifest[name].to_numpy(), values)
    return metrics


def open_recognizer(model: str) -> Recognizer:
    """Load a model to recognise with.

    Parameters
    ----------
    model : str
        A folder that `publish` made, a stage of notebook 06, a run's folder, whose `best` network is
        taken, or a name on the hub. Folders may be relative to the current or the project's. What is not
        published yet is, once.

    Raises
    ------
    GmpError
        If there is none, or it is none of ours.
    """
    near, source = Path(model).expanduser(), model
    folder = (near if near.is_dir() else runs.ROOT / near).resolve()
    if folder.is_dir() and not (folder / "config.json").is_file():
        above = folder.parent.parent.name
        if above != STAGE:
            folder = publish(folder if above == finetuning.STAGE else best(str(folder)))
        source = str(folder / "model")
    elif folder.is_dir():
        source = str(folder)
    elif model.startswith(("/", ".", "~", "runs/")):
        raise GmpError(
            f"model {model!r}: no such folder; train one (make run makes runs/demo), or give the folder "
            "of a model."
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unreadable(model, error) from error
    if not isinstance(config, RecognizerConfig):
        raise GmpError(
            f"model {model!r}: a {config.model_type} model, expected one that notebook 09 published "
            f"({RecognizerConfig.model_type})."
        )
    try:
        found, report = Recognizer.from_pretrained(
            source, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError, TypeError) as error:
        raise _unreadable(model, error) from error
    absent = [*report["missing_keys"], *report["unexpected_keys"]]
    absent += [name for name, own in found.named_parameters() if not own.isfinite().all()]
    if absent:
        raise GmpError(f"model {model!r}: damaged, its weights {absent[0]}; publish it again.")
    return found.eval().to(hardware.device())


def _unreadable(model: str, error: Exception) -> GmpError:
    return GmpError(f"model {model!r}: cannot be read ({str(error).splitlines()[0]}).")


class _Graph(nn.Module):
    """A recognizer that returns a tuple, as ONNX does, of what it knows."""

    def __init__(self, model: Recognizer):
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return self.model(input_values, attention_mask).to_tuple()


def export_onnx(model: str, path: str) -> None:
    """Write a model as ONNX, for batches and recordings of any size, and compare it with torch's.

    Inputs are `input_values` and `attention_mask`, outputs those of `Recognized` that the model has; see
    `Recognizer.forward`. Needs the extra `onnx`.

    Parameters
    ----------
    model : str
        See `open_recognizer`.
    path : str
        Of the file, such as "model.onnx".

    Raises
    ------
    GmpError
        If onnxruntime's numbers are not torch's, up to 1e-4, onnx is not installed, or there is no such
        folder to write to.
    """
    if not Path(path).absolute().parent.is_dir():
        raise GmpError(f"{path}: its folder does not exist; make it first.")
    try:
        import onnx  # noqa: F401, torch's export needs it
        import onnxruntime
    except ImportError as error:
        raise GmpError(
            f"{error.name} is not installed: .venv/bin/python -m pip install onnx onnxruntime."
        ) from error
    recognizer, made = open_recognizer(model).cpu(), f"{path}.new"
    names, axes = ["input_values", "attention_mask"], {0: "batch", 1: "samples"}

    def batch(*lengths: int) -> tuple[Tensor, Tensor]:
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        return torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)) * mask, mask

    with warnings.catch_warnings(), torch.inference_mode(), hardware.float32():
        warnings.simplefilter(
            "ignore"
        )  # of the exporter's own age, and of sizes that are compared below
        known = list(recognizer(*batch(8000)).keys())
        torch.onnx.export(
            _Graph(recognizer),
            batch(16000, 12000),
            made,
            dynamo=False,  # the newer one does not take LSTMs of any length
            input_names=names,
            output_names=known,
            dynamic_axes=dict.fromkeys(names, axes) | {name: {0: "batch"} for name in known},
        )
        session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
        for lengths in ((16000,), (30000, 8000, 500)):
            given = batch(*lengths)
            expected = recognizer(*given).to_tuple()
            found = session.run(None, {name: own.numpy() for name, own in zip(names, given)})
            off = float(np.max([np.abs(a.numpy() - b).max() for a, b in zip(expected, found)]))
            if not off <= TOLERANCE:  # nor if it is no number
                os.remove(made)
                raise GmpError(
                    f"{path}: differs from torch by {off:.1e}, expected at most {TOLERANCE}."
                )
    os.replace(made, path)
