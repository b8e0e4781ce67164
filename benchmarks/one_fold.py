"""One fold of GMP-TL at the paper's size: the speed of each stage, and its share of the device's peak.

python benchmarks/one_fold.py

The data are seven hours of noise, and the encoder is a HuBERT base with random weights. Batches and clusters
are the paper's. Each training runs for one epoch or a few steps, from which the time of a whole fold is
extrapolated. Fine-tuning by transformers' Trainer is the reference. k-means and the position embedding are
also measured on their own. On a GPU this takes minutes, and less with `--hours 2`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import soundfile
import torch
import yaml
from stages import collator, training_step
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    HubertModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from gmp_utils.data.corpus import Corpus, open_corpus
from gmp_utils.models import classifiers, masked_prediction
from gmp_utils.models import encoder as encoders
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import hardware
from gmp_utils.runs.notebook import series_parameters
from gmp_utils.runs.paths import GENERATE_GMPS, ROOT
from gmp_utils.stages import finetune, generate_gmps, prepare_data, retrain, train_multitask
from gmp_utils.training import features
from gmp_utils.training.batching import (
    DurationBatchSampler,
    Masking,
    Utterances,
    collate,
    to_gpu_if_it_fits,
)
from gmp_utils.training.kmeans import fit_kmeans
from gmp_utils.training.trainer import TrainingConfig

EMOTIONS = ["angry", "happy", "neutral", "sad"]
SPEAKERS, COPIES = 10, 4  # number of speakers, and of copies of each recording
MEAN = 4.6  # seconds, mean duration in IEMOCAP
STEPS = 20
FOLD = "a fold of the paper, seconds, extrapolated, without evaluations and checkpoints"


def corpus(folder: Path, hours: float) -> Path:
    """A table of repeated noise recordings, with durations like IEMOCAP's."""
    rng, rows = np.random.default_rng(0), []
    for number in range(max(int(hours * 3600 / MEAN / COPIES), 4 * SPEAKERS)):
        seconds = rng.lognormal(np.log(MEAN) - 0.2, 0.63)
        soundfile.write(folder / f"{number}.wav", rng.normal(0, 0.1, int(seconds * 16000)), 16000)
        speaker = number % SPEAKERS
        labels = {"speaker": speaker, "gender": ("female", "male")[speaker % 2]}
        labels |= {"session": speaker // 2, "emotion": EMOTIONS[number // SPEAKERS % 4]}
        rows += [{"path": f"{number}.wav", **labels}] * COPIES
    table = pd.DataFrame(rows)
    table["utterance"] = [f"{index}" for index in range(len(table))]
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def peak() -> float:
    """Operations per second of a product of large matrices, in bfloat16 if this device uses it."""
    size = 8192 if hardware.device() == "cuda" else 2048
    dtype = torch.bfloat16 if hardware.bfloat16() else torch.float32
    a, b = (torch.randn(size, size, device=hardware.device(), dtype=dtype) for _ in range(2))
    return 2 * size**3 / best(lambda: a @ b)


def best(work, repeats: int = 5) -> float:
    """Minimum time of several calls in seconds, after one call to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        wait()
        began = time.monotonic()
        work()
        wait()
        seconds.append(time.monotonic() - began)
    return min(seconds[1:])


def wait() -> None:
    """Wait until the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def steps(
    model: torch.nn.Module, dataset: Utterances, seconds: float, size: int
) -> dict[str, float]:
    """Audio seconds and operations per second of training steps, over up to `STEPS` batches."""
    take = training_step(model)

    def step(chosen: list[int]) -> None:
        take(collate([dataset[index] for index in chosen]))

    batches = list(DurationBatchSampler(dataset, seconds, size))[:STEPS]
    counted_convolution = patch.object(encoders, "fft_convolution", encoders.plain_convolution)
    with FlopCounterMode(display=False) as counter, counted_convolution:
        for chosen in batches[:2]:
            step(chosen)
    counted = sum(dataset.seconds[chosen].sum() for chosen in batches[:2])
    for chosen in batches if torch.cuda.is_available() else []:  # a GPU prepares for each length
        step(chosen)
    wait()
    began = time.monotonic()
    for chosen in batches:
        step(chosen)
    wait()
    speed = sum(dataset.seconds[chosen].sum() for chosen in batches) / (time.monotonic() - began)
    return {"audio s per s": speed, "operations per s": speed * counter.get_total_flops() / counted}


def position_embedding(encoder: str) -> dict[str, float]:
    """Milliseconds, forward and backward, of the position embedding of 64 × 230 frames."""
    model = HubertModel.from_pretrained(encoder, dtype=torch.float32).to(hardware.device())
    convolution, took = model.encoder.pos_conv_embed.conv, {}
    x = torch.randn(64, model.config.hidden_size, 230).to(hardware.device()).requires_grad_()
    for function in (encoders.plain_convolution, encoders.fft_convolution):

        def both(function=function) -> None:
            with torch.autocast(hardware.device(), torch.bfloat16, enabled=hardware.bfloat16()):
                y = function(x, convolution.weight, convolution.bias)
            y.float().square().mean().backward()

        took[function.__name__] = 1000 * best(both)
    return took


def trainer_speed(encoder: str, data: Corpus, names: list[str], size: int) -> float:
    """Audio seconds per second of fine-tuning by Trainer: waveforms in random padded batches."""
    on_cpu, labels = hardware.device() == "cpu", data.labels(names, "emotion")
    options = {"num_labels": len(EMOTIONS), "dtype": torch.float32}
    model = HubertForSequenceClassification.from_pretrained(encoder, **options)
    model.freeze_feature_encoder()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=size, save_strategy="no",
            learning_rate=1e-5, disable_tqdm=True, bf16=not on_cpu, use_cpu=on_cpu,
            report_to="none", remove_unused_columns=False,
        )  # fmt: skip
        examples, of_numbers = list(range(len(names))), collator(data.waveforms, names, labels)
        trainer = Trainer(model, arguments, data_collator=of_numbers, train_dataset=examples)
        trainer.train()  # to warm up
        done = trainer.train()
    return STEPS * size * data.manifest.duration[names].mean() / done.metrics["train_runtime"]


def measure(folder: Path, encoder: str, hours: float, scales: list[int], paper: dict) -> dict:
    """Time all stages once, and steps of fine-tuning and retraining with and without the CNN."""
    run, table = str(folder / "run"), corpus(folder, hours)
    seconds, size = paper["batch_seconds"], paper["finetune_batch_size"]
    took, rows = {}, []

    def timed(name: str, work) -> None:
        began = time.monotonic()
        work()
        wait()
        took[name] = time.monotonic() - began

    manifest = prepare_data.read_manifest(run, "table", corpus_dir=str(table))
    options = {"exclude": [], "min_seconds": 0.1, "max_seconds": 60.0, "fold_by": "session"}
    timed("prepare", lambda: prepare_data.prepare(run, manifest, **options))
    data = open_corpus(run)
    audio_seconds = float(data.manifest.duration.sum())

    def schedule(**lasting) -> TrainingConfig:
        return TrainingConfig(1e-5, batch_seconds=seconds, batch_size=size, **lasting)

    where = (run, 1, encoder)
    settings = {"loss": "ams", "scale": 30.0, "margin": 0.2, **vars(HeadConfig())}
    model = classifiers.EmotionClassifier.load(
        encoder, emotions=EMOTIONS, emotion_weights=[], **settings
    )
    timed("CNN", lambda: features.model_inputs(model, data))
    timed(
        "multitask, one pass", lambda: train_multitask.train_multitask(*where, schedule(epochs=1))
    )
    timed("pseudo-labels", lambda: generate_gmps.generate_gmps(run, 1, scales=scales))
    updating = schedule(max_steps=STEPS)
    timed(f"retraining, {STEPS} updates", lambda: retrain.retrain(*where, updating))
    timed(
        "fine-tuning, one pass",
        lambda: finetune.finetune(*where, "ams", schedule(epochs=1)),
    )

    training, top = data.partition(1)["train"], peak()
    inputs = {"CNN's output": to_gpu_if_it_fits(features.model_inputs(model, data))}
    inputs["waveforms"] = data.waveforms
    labels, _ = features.open_labels(Path(run) / "fold1" / GENERATE_GMPS)
    predictor = masked_prediction.MaskedPredictionModel.load(
        encoder,
        scales=scales,
        stream_hidden_size=256,
        loss_on="masked",
        activation="relu",
    )
    targets = {"emotion": data.labels(training, "emotion")}
    for name, source in inputs.items():
        sets = {
            "fine-tuning": (model, Utterances(source, training, targets)),
            "retraining": (predictor, Utterances(source, training, None, labels, Masking(0.8, 10))),
        }
        for what, (trained, dataset) in sets.items():
            results = steps(trained, dataset, seconds, size)
            results["share of peak"] = results["operations per s"] / top
            rows.append({"training": what, "from": name, **results})
    rates = pd.DataFrame(rows).set_index(["from", "training"])["audio s per s"]["CNN's output"]
    plain = trainer_speed(encoder, data, training, size)
    rows.append({"training": "fine-tuning by Trainer", "from": "waveforms", "audio s per s": plain})
    shape = int(50 * audio_seconds), model.config.hidden_size
    frames = np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)
    timed("k-means alone", lambda: fit_kmeans(frames, scales))
    training_seconds = data.manifest.duration[training].sum()
    every = Utterances(inputs["CNN's output"], training)
    batch = float(np.mean([len(chosen) for chosen in DurationBatchSampler(every, seconds, size)]))
    retrained_on = paper["retrain_steps"] * batch * training_seconds / len(training)
    fold = {
        "prepare": took["prepare"],
        "CNN": took["CNN"],
        "multitask": paper["multitask_epochs"] * training_seconds / rates["fine-tuning"],
        "pseudo-labels": took["pseudo-labels"],
        "retraining": retrained_on / rates["retraining"],
        "fine-tuning": paper["finetune_epochs"] * training_seconds / rates["fine-tuning"],
    }
    pass_seconds = training_seconds / rates["fine-tuning"]
    updates_seconds = STEPS * batch * training_seconds / len(training) / rates["retraining"]
    return {
        "audio hours": audio_seconds / 3600,
        "peak, operations per s": top,
        "stages, seconds": took,
        "stages, times their steps": {
            "fine-tuning": took["fine-tuning, one pass"] / pass_seconds,
            "retraining": took[f"retraining, {STEPS} updates"] / updates_seconds,
        },
        "steps": rows,
        "fine-tuning, times as fast as Trainer": rates["fine-tuning"] / plain,
        "position embedding, ms": position_embedding(encoder),
        FOLD: fold | {"together": sum(fold.values())},
    }


def main() -> None:
    """Measure, print, and write runs/bench/one_fold.json."""
    paper = {}
    for defaults in series_parameters().values():
        paper |= defaults
    paper |= yaml.safe_load((ROOT / "presets" / "paper.yaml").read_text())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=7.0)
    parser.add_argument(
        "--encoder", help="folder of an encoder (default: HuBERT base with random weights)"
    )
    parser.add_argument("--scales", type=int, nargs="+", default=paper["scales"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench" / "one_fold.json")
    arguments = parser.parse_args()
    hardware.prepare_libraries()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        encoder = arguments.encoder
        if not encoder:
            set_seed(0)
            encoder = str(Path(folder) / "encoder")
            HubertModel(HubertConfig()).save_pretrained(encoder)
        results = measure(Path(folder), encoder, arguments.hours, arguments.scales, paper)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    results = {"device": name, "bfloat16": hardware.bfloat16(), **results}
    results["benchmark, seconds"] = time.monotonic() - began
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1, default=float))
    print(json.dumps(results, indent=1, default=float))
    print(pd.DataFrame(results["steps"]).to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    main()
