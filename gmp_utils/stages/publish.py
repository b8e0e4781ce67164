"""Stage 09: publish a trained classifier, calibrated, with further heads and a model card."""

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from huggingface_hub import ModelCard, ModelCardData
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor

from gmp_utils import GmpError
from gmp_utils.data.audio import SAMPLE_RATE
from gmp_utils.data.corpus import RATINGS, Corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.evaluation.collect import SYSTEM, classifiers, corpus_of, lineage, settings_of
from gmp_utils.evaluation.comparison import with_intervals
from gmp_utils.evaluation.metrics import ccc, expected_calibration_error, temperature, uar
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.recognizer import Recognizer, RecognizerConfig, load_recognizer
from gmp_utils.runs import hardware, paths
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import FINETUNE, RECOGNIZE, notebook_of, run_and_fold, run_folder
from gmp_utils.runs.stage import check_and_identify, make_stage
from gmp_utils.training import features
from gmp_utils.training.batching import Utterances

GENDER = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
RATING = RidgeCV(alphas=np.logspace(0, 4, 9))  # the penalty is chosen by leave-one-out
TOLERANCE = 1e-4  # between torch's and onnxruntime's outputs


def fit_head(layer: nn.Linear, estimator, means: np.ndarray, targets: np.ndarray) -> None:
    """Fit a linear model on standardized means, (n, hidden_size), and copy both into a layer."""
    scaler, linear = make_pipeline(StandardScaler(), estimator).fit(means, targets)
    weight = np.atleast_2d(linear.coef_) / scaler.scale_
    bias = np.atleast_1d(linear.intercept_) - weight @ scaler.mean_
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))


def _fit(
    network: EmotionClassifier, corpus: Corpus, parts: dict[str, list[str]]
) -> tuple[Recognizer, dict[str, float]]:
    """Fit a recognizer's temperature (validation) and heads (training), and measure it on the test set."""
    manifest, train, validation = corpus.manifest, parts["train"], parts["validation"]
    ratings = [name for name in RATINGS if name in manifest and manifest[name].notna().all()]
    train_ratings, gender = manifest.loc[train, ratings].to_numpy(float), manifest.gender.loc[train]
    config = RecognizerConfig(
        network=network.config.to_dict() | {"_name_or_path": ""},  # a path on this machine
        has_gender_head=gender.nunique() == 2,
        ratings=ratings,
        rating_ranges=[[column.min(), column.max()] for column in train_ratings.T],
        id2label=dict(enumerate(corpus.emotions)),
        label2id={name: index for index, name in enumerate(corpus.emotions)},
    )
    model = Recognizer(config)
    model.network.load_state_dict(network.state_dict())
    model.eval().to(hardware.device())
    inputs, forward = features.model_inputs(model.network, corpus), model.forward_uncalibrated
    if validation:
        logits = features.outputs(forward, Utterances(inputs, validation), "calibrate")["logits"]
        labels, speakers = corpus.labels(validation, "emotion"), manifest.speaker[validation]
        model.config.temperature = temperature(logits, labels, speakers)
    outputs = features.outputs(forward, Utterances(inputs, train), "fit heads")
    if model.gender_head:
        labeled, female = gender.notna().to_numpy(), (gender == "female").to_numpy()
        fit_head(model.gender_head, GENDER, outputs["layer0_mean"][labeled], female[labeled])
    if model.rating_head:
        fit_head(model.rating_head, RATING, outputs["mean"], train_ratings)
    return model, _test_metrics(model, corpus, parts["test"], inputs)


def _test_metrics(
    model: Recognizer, corpus: Corpus, test: list[str], inputs: Ragged
) -> dict[str, float]:
    """Calibration errors, recalls and concordance on the test utterances."""
    manifest, labels = corpus.manifest.loc[test], corpus.labels(test, "emotion")
    outputs = features.outputs(model.recognize, Utterances(inputs, test), "test")
    metrics = {"temperature": model.config.temperature}
    for name, scale in (("ece_uncalibrated", model.config.temperature), ("ece", 1)):
        probabilities = softmax(scale * outputs["logits"], axis=1)
        correct = probabilities.argmax(axis=1) == labels
        metrics[name] = expected_calibration_error(probabilities.max(axis=1), correct)
    metrics["emotion_uar"] = uar(labels, outputs["logits"].argmax(axis=1))
    labeled = manifest.gender.notna().to_numpy()
    if model.gender_head and labeled.any():
        predicted = np.where(outputs["female"] > 0.5, "female", "male")
        metrics["gender_uar"] = uar(manifest.gender[labeled], predicted[labeled])
    for index, name in enumerate(model.config.ratings):
        metrics[f"{name}_ccc"] = ccc(manifest[name].to_numpy(), outputs["ratings"][:, index])
    return metrics


def same_system(stage: Path) -> pd.DataFrame:
    """Rows of `classifiers` for a network, in all folds and with all seeds."""
    table = classifiers(run_and_fold(stage)[0])
    system = table.loc[table.stage == stage, SYSTEM].iloc[0]
    table = table[(table[SYSTEM] == system).all(axis=1)]
    return table[[settings_of(path) == settings_of(stage) for path in table.stage]]


def _robustness(stage: Path) -> list[Path]:
    """The stage of altered recordings of a network's run, in a list; empty if it is missing or outdated."""
    folder = run_folder(run_and_fold(stage)[0]) / paths.ROBUSTNESS
    with suppress(GmpError):
        check_and_identify(folder)
        return [folder]
    return []


def _conditions(stage: Path, emotions: list[str], temperature: float) -> pd.DataFrame:
    """UAR, accuracy and mean confidence of a network under each condition of `_robustness`."""
    if not (folders := _robustness(stage)):
        return pd.DataFrame()
    network = classifiers(run_and_fold(stage)[0]).set_index("stage").loc[stage]
    system = f"{network.variant}, {network.system}"
    keys = pd.Series({"system": system, "fold": network.fold, "seed": network.seed})
    table = pd.read_parquet(folders[0] / "predictions.parquet")
    table = table[(table[keys.index] == keys).all(axis=1)]
    if table.empty:  # the network is newer than the conditions
        return table
    confidence = softmax(table[emotions].to_numpy() / temperature, axis=1).max(axis=1)
    table = table.assign(confidence=confidence, hit=table.true == table.predicted)
    groups = table.groupby("variant", sort=False)
    recalls = groups[["true", "predicted"]].apply(lambda x: uar(x.true, x.predicted))
    return groups[["hit", "confidence"]].mean().assign(uar=recalls)


def model_card(
    stage: Path, corpus: Corpus, parts: dict[str, list[str]], metrics: dict[str, float]
) -> ModelCard:
    """Fill the template with the records of a network's run."""
    parameters, provenance = (read_json(stage / f"{x}.json") for x in ("params", "provenance"))
    networks = same_system(stage)
    predictions = [pd.read_parquet(path / "predictions.parquet") for path in networks.stage]
    test = pd.concat(predictions).query("part == 'test'")
    speaker, (encoder,) = corpus.manifest.speaker, provenance["inputs"]
    encoder = encoder if "@" in encoder else Path(parameters["encoder"]).name  # the hub's commit
    conditions = _conditions(stage, corpus.emotions, metrics["temperature"])

    def percent(value: float, low: float, high: float) -> str:
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
        none = "(too few speakers for an interval)"
        return f"{100 * value:.1f} {none if np.isnan(low) else interval}"

    return ModelCard.from_template(
        ModelCardData(),  # in the template
        str(Path(__file__).with_name("model_card.md")),
        emotions=", ".join(corpus.emotions),
        encoder=encoder,
        corpus=corpus.name,
        notebooks=", ".join(map(notebook_of, lineage(stage))),
        **{f"n_{part}": len(utterances) for part, utterances in parts.items()},
        n_speakers=speaker.loc[parts["train"]].nunique(),
        fold=parameters["fold"],
        protocol=corpus.protocol.describe(),
        commit=provenance["git_commit"],
        seed=parameters["training"]["seed"],
        system=", ".join(networks[SYSTEM].iloc[0]),
        **{name.lower(): percent(*values) for name, values in with_intervals(test).items()},
        n_folds=networks.fold.nunique(),
        n_all_folds=len(corpus.protocol.folds),
        n_pooled_speakers=test.speaker.nunique(),
        n_test_speakers=speaker.loc[parts["test"]].nunique(),
        metrics=metrics,
        conditions=conditions,
    )


def best_network(run_dir: str) -> Path:
    """The network of a run with the highest validation UAR; the first one without validation speakers."""
    networks = [stage for stage in classifiers(run_dir).stage if (stage / "model").is_dir()]
    if not networks:
        raise GmpError(f"{run_dir}: found baselines only; run notebook 06 to train a network.")

    def validation_uar(stage: Path) -> float:
        predictions = pd.read_parquet(stage / "predictions.parquet").query("part == 'validation'")
        return uar(predictions.true, predictions.predicted) if len(predictions) else 0.0

    return max(networks, key=validation_uar)


def publish(stage: Path) -> Path:
    """Calibrate a stage of notebook 06, fit its gender and rating heads, and write it as a stage of 09.

    The stage has metrics.json, and model/ with weights, configuration, feature extractor and model card.
    """
    corpus, (run_dir, fold) = corpus_of(stage), run_and_fold(stage)
    parts, classifier = corpus.partition(fold), "/".join(stage.parts[-2:])

    def build(folder: Path) -> None:
        n, name = sum(map(len, parts.values())), paths.display_path(stage)
        print(f"Publishing {name}, once: it classifies the {n} utterances of its fold.", flush=True)
        model, metrics = _fit(EmotionClassifier.load(str(stage / "model")), corpus, parts)
        write_json(folder / "metrics.json", metrics)
        model.save_pretrained(folder / "model")
        extractor = Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE, return_attention_mask=True)
        extractor.save_pretrained(folder / "model")
        model_card(stage, corpus, parts, metrics).save(folder / "model" / "README.md")
        corpus.write_training_recordings(folder / "model", fold, str(stage / "model"))

    return make_stage(
        paths.fold_folder(run_dir, fold) / RECOGNIZE / classifier,
        build,
        parameters={"fold": fold, "classifier": classifier},
        stages=[corpus.stage, *same_system(stage).stage, *_robustness(stage)],
    )


def find_or_publish(model: str) -> str:
    """The published model of a run or of a stage of notebook 06 or 09, published first if necessary.

    For a run, it is the best network. Other names of models are returned unchanged.
    """
    folder = Path(model).expanduser()
    folder = (folder if folder.is_dir() else run_folder(model)).resolve()
    if not folder.is_dir():
        if not model.startswith(("/", ".", "~", "runs/")):
            return model
        remedy = "train one (make run makes runs/demo)"
        raise GmpError(f"model {model!r}: no such folder; {remedy}.")
    if (folder / "config.json").is_file():
        return str(folder)
    if notebook_of(folder) != RECOGNIZE:
        network = folder if notebook_of(folder) == FINETUNE else best_network(str(folder))
        if not (network / "model").is_dir():
            raise GmpError(f"model {model!r}: no network; give a run, or one loss of notebook 06.")
        folder = publish(network)
    return str(folder / "model")


def export_onnx(model: str, path: str) -> None:
    """Write a model of `find_or_publish` as ONNX, for any batch size and length, and compare it with torch.

    Its outputs are the fields of `RecognizerOutput` that the model has. Needs the extra `onnx`.
    """
    import onnxruntime

    recognizer, partial = load_recognizer(find_or_publish(model)).cpu(), Path(f"{path}.partial")
    inputs, axes = ["input_values", "attention_mask"], {0: "batch", 1: "samples"}

    def batch(*lengths: int) -> tuple[Tensor, Tensor]:
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        return torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)) * mask, mask

    recognizer.network.float32_only = True
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter is deprecated; shapes are compared below
        outputs = list(recognizer(*batch(8000)).keys())
        recognizer.config.return_dict = False  # the outputs are a tuple
        torch.onnx.export(
            recognizer,
            batch(16000, 12000),
            str(partial),
            dynamo=False,  # the newer exporter fixes an LSTM's number of steps
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=dict.fromkeys(inputs, axes) | {name: {0: "batch"} for name in outputs},
        )
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        for lengths in ((16000,), (30000, 8000, 500)):
            tensors = batch(*lengths)
            expected = recognizer(*tensors)
            results = session.run(None, {name: t.numpy() for name, t in zip(inputs, tensors)})
            difference = max(np.abs(a.numpy() - b).max() for a, b in zip(expected, results))
            if not difference <= TOLERANCE:  # or NaN
                partial.unlink()
                raise GmpError(f"{path}: its outputs differ from torch by {difference:.1e}.")
    partial.replace(path)
