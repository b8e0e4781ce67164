"""Each stage against a straightforward implementation with the same libraries: time, ratios and peak memory.

make bench

Reference and ours alternate in one process. They use the same recordings, a HuBERT base with random weights
and the same number of utterances per batch. Without a folder of recordings, noise with EmoDB's durations is
used.
"""

import argparse
import ctypes
import gc
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from sklearn.cluster import MiniBatchKMeans
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchaudio.functional import resample
from transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    HubertModel,
    Trainer,
    TrainingArguments,
    Wav2Vec2FeatureExtractor,
    set_seed,
)

from gmp_utils.data import audio, waveform_store
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import ClusterHeads, HeadConfig
from gmp_utils.models.masked_prediction import MaskedPredictionModel
from gmp_utils.runs import hardware
from gmp_utils.runs.paths import ROOT
from gmp_utils.stages.recognize import expand_folders
from gmp_utils.training import features, kmeans
from gmp_utils.training.batching import (
    DurationBatchSampler,
    Masking,
    Utterances,
    collate,
    to_gpu_if_it_fits,
)
from gmp_utils.training.trainer import TrainingConfig, train

SCALES = [64, 512, 4096]
EMOTIONS = ["anger", "happiness", "neutral", "sadness"]
EPOCHS = 10  # over recordings, decoded once or every time
COPIES = 10  # of each recording, for those epochs
SEEDS = 10  # maximum number of seeds of k-means
PATIENCE = 120  # maximum time of a reference in seconds


class TooLong(Exception):
    """A reference took longer than `PATIENCE` seconds."""


def measure(function: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds, peak memory above the memory in use before (MB, of the GPU if available), and the result."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise a function reuses the memory of the other one
    on_gpu = hardware.device() == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
    began = time.monotonic()
    result = function()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.monotonic() - began
    peak = torch.cuda.max_memory_allocated() if on_gpu else _status("VmHWM")
    return seconds, (peak - before) / 2**20, result


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def compare(what: str, reference: Callable, ours: Callable, repeats: int) -> dict:
    """Call two functions alternately, and compute the ratio of each pair."""
    rows = []
    stopped = False
    for _ in range(repeats):
        if not stopped:
            try:
                seconds, memory, _ = measure(lambda: patiently(reference))
            except TooLong:
                seconds, memory, stopped = float(PATIENCE), float("nan"), True
        rows.append((seconds, memory, stopped, *measure(ours)[:2]))
    table = pd.DataFrame(
        rows, columns=["seconds", "memory", "stopped", "our_seconds", "our_memory"]
    )
    ratios = table.seconds / table.our_seconds
    row = {  # medians
        "what": what,
        "reference s": table.seconds.median(),
        "ours s": table.our_seconds.median(),
        "times faster": ratios.median(),
        "least": ratios.min(),
        "most": ratios.max(),
        "reference MB": table.memory.median(),
        "ours MB": table.our_memory.median(),
        "stopped": bool(table.stopped.any()),
    }
    print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    return row


def patiently(reference: Callable) -> None:
    """Call the reference, and raise `TooLong` after `PATIENCE` seconds."""

    def stop(*_) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        reference()
    finally:
        signal.alarm(0)


def collator(waveforms: Ragged, names: list[str], labels: np.ndarray) -> Callable:
    """A function from numbers of utterances to a batch, normalized and padded as transformers does."""
    extractor = Wav2Vec2FeatureExtractor()
    options = {"sampling_rate": audio.SAMPLE_RATE, "padding": True, "return_tensors": "pt"}

    def collated(chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        batch = extractor([audio.to_float(waveforms[names[index]]) for index in chosen], **options)
        return {"input_values": batch.input_values, "labels": torch.from_numpy(labels[chosen])}

    return collated


class Recordings:
    """Recordings as files and as a store, a HuBERT base with random weights, and labels."""

    def __init__(self, folder: Path, corpus_dir: str | None, n: int, batch_size: int):
        rng = np.random.default_rng(0)
        self.folder, self.batch_size = folder, batch_size
        paths = expand_folders(corpus_dir) if corpus_dir else _noises(folder, n, rng)
        chosen = rng.choice(len(paths), min(n, len(paths)), replace=False)
        self.paths = [str(paths[index]) for index in chosen]
        self.names = [f"{index}" for index in range(len(self.paths))]
        self.manifest = pd.DataFrame({"utterance": self.names, "path": self.paths})
        self.waveforms, _ = waveform_store.write_store(self.manifest, folder / "waveforms")
        self.seconds = sum(self.waveforms.lengths.values()) / audio.SAMPLE_RATE
        self.emotion = rng.integers(len(EMOTIONS), size=len(self.names))
        self.collate = collator(self.waveforms, self.names, self.emotion)
        set_seed(0)
        self.encoder = str(folder / "encoder")
        HubertModel(HubertConfig(mask_time_prob=0.0)).save_pretrained(self.encoder)

    def random_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Waveforms of utterances in random order, normalized and padded as transformers does."""
        order = np.random.default_rng(0).permutation(len(self.names))
        for start in range(0, len(order), self.batch_size):
            yield self.collate(order[start : start + self.batch_size])

    def cnn_output(self, model: SpeechModel) -> Ragged:
        """The cached CNN output, as from `gmp_utils.training.features.model_inputs`."""
        stem = self.folder / "frames"
        if not stem.with_suffix(".npy").is_file():
            features.write_cnn_output(model, self.waveforms, self.names, stem)
        return Ragged.open(stem)


def _noises(folder: Path, n: int, rng: np.random.Generator) -> list[Path]:
    """Noise with EmoDB's durations: 2.8 s on average."""
    paths = [folder / f"{index}.wav" for index in range(n)]
    for path, seconds in zip(paths, rng.lognormal(0.96, 0.34, n)):
        soundfile.write(path, rng.normal(0, 0.1, int(seconds * 16000)), 16000)
    return paths


def prepare(data: Recordings, repeats: int) -> list[dict]:
    """Ten epochs over recordings, decoded by a DataLoader each time, or once into the store."""
    finer = [str(data.folder / f"{index}-48k.wav") for index in range(len(data.paths))]
    for path, name in zip(finer, data.names):
        wave = torch.from_numpy(audio.to_float(data.waveforms[name]))
        soundfile.write(path, resample(wave, audio.SAMPLE_RATE, 48000).numpy(), 48000)
    model = SpeechModel.load(data.encoder)
    frames, rows = data.cnn_output(model), []
    for rate, paths in (("16 kHz", data.paths * COPIES), ("48 kHz", finer * COPIES)):

        def decode(path: str) -> np.ndarray:
            samples, rate = soundfile.read(path, dtype="float32")
            return resample(torch.from_numpy(samples), rate, audio.SAMPLE_RATE).numpy()

        def reference(paths=paths) -> None:
            extractor = Wav2Vec2FeatureExtractor()
            padded = {"sampling_rate": audio.SAMPLE_RATE, "padding": True, "return_tensors": "pt"}
            for _ in range(EPOCHS):
                loader = DataLoader(
                    paths, data.batch_size, shuffle=True,
                    collate_fn=lambda chosen: extractor(list(map(decode, chosen)), **padded),
                )  # fmt: skip
                for _ in loader:
                    pass

        def waveforms(paths=paths) -> None:
            manifest = pd.DataFrame({"utterance": map(str, range(len(paths))), "path": paths})
            with tempfile.TemporaryDirectory() as folder:
                store, _ = waveform_store.write_store(manifest, Path(folder) / "waveforms")
                go_through(Utterances(store, store.utterances))

        def cnn_output() -> None:
            go_through(Utterances(frames, data.names * COPIES))

        def go_through(dataset: Utterances) -> None:
            for epoch in range(EPOCHS):
                for _ in batches_of(dataset, data.batch_size, epoch):
                    pass

        for what, ours in (("the store", waveforms), ("the CNN's output", cnn_output)):
            rows.append(compare(f"{EPOCHS} epochs, {rate}, {what}", reference, ours, repeats))
    return rows


def extract(data: Recordings, repeats: int) -> list[dict]:
    """Write layer -3 of every utterance."""
    reference_model = HubertModel.from_pretrained(data.encoder).eval().to(hardware.device())
    model = SpeechModel.load(data.encoder).eval()

    def reference() -> None:
        extractor = Wav2Vec2FeatureExtractor()
        on_gpu = hardware.device() == "cuda"
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            for name in data.names:
                wave = audio.to_float(data.waveforms[name])
                batch = extractor(wave, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt")
                values = batch.input_values.to(hardware.device())
                states = reference_model(values, output_hidden_states=True).hidden_states
                np.save(data.folder / f"{name}.npy", states[-3][0].half().cpu().numpy())

    def from_waveforms() -> None:
        (data.folder / "frames.npy").unlink()
        from_cnn_output()

    def from_cnn_output() -> None:
        features.layer_frames(model, data.cnn_output(model), data.names, -3, data.folder / "layer")

    data.cnn_output(model.to(hardware.device()))
    return [
        compare("layer -3, from waveforms", reference, from_waveforms, repeats),
        compare("layer -3, CNN output cached", reference, from_cnn_output, repeats),
    ]


def cluster(n_frames: int, scales: list[int]) -> list[dict]:
    """k-means of frames: HuBERT's recipe, and ours with more seeds until its inertia is no higher."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(300, 768)).astype(np.float32)
    frames = kinds[rng.integers(300, size=n_frames)]
    frames += rng.normal(size=frames.shape).astype(np.float32) * np.linspace(
        2, 0.2, 768, dtype=np.float32
    )

    def inertia(centroids: np.ndarray) -> float:
        return float(np.square(frames - centroids[kmeans.assign(frames, centroids)]).sum())

    rows = []
    for k in scales:
        kept = {}

        def reference(k=k, kept=kept) -> None:
            recipe = MiniBatchKMeans(
                k, init="k-means++", max_iter=100, batch_size=10000, tol=0.0, max_no_improvement=100,
                n_init=20, reassignment_ratio=0.0, compute_labels=False, random_state=0,
            )  # fmt: skip
            kept["centroids"] = recipe.fit(frames).cluster_centers_.astype(np.float32)

        def ours(k=k, kept=kept) -> list[np.ndarray]:
            return [kmeans.fit_kmeans(frames, [k], seed)[0] for seed in range(kept["seeds"])]

        try:
            patiently(reference)
        except TooLong:
            kept["seeds"], note = 1, "reference stopped"
        else:
            target_inertia = inertia(kept["centroids"])
            for kept["seeds"] in range(1, SEEDS + 1):
                inertia_reached = inertia(kmeans.fit_kmeans(frames, [k], kept["seeds"] - 1)[0])
                if inertia_reached <= target_inertia:
                    break
            note = f"{kept['seeds']} seeds, inertia {inertia_reached / target_inertia - 1:+.2%}"
        rows.append(compare(f"k-means, K = {k} ({note})", reference, ours, 1))
    return rows


def batches_of(dataset: Utterances, size: int, epoch: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """Our batches of an epoch."""
    sampler = DurationBatchSampler(dataset, np.inf, size)
    sampler.set_epoch(epoch)
    return (collate([dataset[index] for index in chosen]) for chosen in sampler)


def training_step(model: torch.nn.Module) -> Callable[[dict], None]:
    """A function that takes one step of AdamW on a batch."""
    model.train().to(hardware.device())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-5, fused=True)

    def step(batch: dict[str, torch.Tensor]) -> None:
        model(**{key: value.to(hardware.device()) for key, value in batch.items()})[
            "loss"
        ].backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps(model: torch.nn.Module, batches: Iterable[dict]) -> None:
    """Train on batches."""
    step = training_step(model)
    for batch in batches:
        step(batch)


def in_bfloat16(model: torch.nn.Module) -> torch.nn.Module:
    """Run a reference's forward pass under autocast on a GPU, as our models do."""
    on_gpu = hardware.device() == "cuda"
    model.forward = torch.autocast("cuda", torch.bfloat16, enabled=on_gpu)(model.forward)
    return model


class PlainMaskedPrediction(torch.nn.Module):
    """A straightforward version of our objective: padded waveforms, the loss on all frames."""

    def __init__(self, encoder: str):
        super().__init__()
        self.hubert = HubertModel.from_pretrained(encoder, mask_time_prob=0.05, layerdrop=0.0)
        self.hubert.feature_extractor.requires_grad_(False)
        self.streams = ClusterHeads(768, SCALES)

    def forward(self, input_values, labels, mask):
        """Same as `MaskedPredictionModel`, on waveforms."""
        frames = self.hubert(input_values, mask_time_indices=mask).last_hidden_state
        logits = self.streams(frames.flatten(0, 1))
        targets = labels.flatten(0, 1).T
        return {"loss": sum(F.cross_entropy(x.float(), y) for x, y in zip(logits, targets))}


def retrain(data: Recordings, repeats: int) -> list[dict]:
    """One epoch of masked prediction, and the logits alone, as fairseq and torchaudio compute them."""
    masking, rng = Masking(0.8, 10), np.random.default_rng(0)
    plain = in_bfloat16(PlainMaskedPrediction(data.encoder))
    settings = {"scales": SCALES, "stream_hidden_size": 256, "loss_on": "masked"}
    settings["activation"] = "relu"
    model = MaskedPredictionModel.load(data.encoder, **settings)
    inputs = data.cnn_output(model.eval().to(hardware.device()))
    lengths = list(inputs.lengths.values())
    labels = Ragged(rng.integers(64, size=(sum(lengths), 3)), inputs.lengths)

    def reference() -> None:
        batches = []
        for batch in data.random_batches():
            shape = len(batch["labels"]), int(model.frame_lengths(batch["input_values"].shape[1]))
            mask = torch.from_numpy(
                np.stack([masking.draw(shape[1], rng) for _ in range(shape[0])])
            )
            frame_labels = torch.from_numpy(rng.integers(64, size=(*shape, 3)))
            batches.append(
                {"input_values": batch["input_values"], "labels": frame_labels, "mask": mask}
            )
        steps(plain, batches)

    dataset = Utterances(to_gpu_if_it_fits(inputs), data.names, None, labels, masking)

    def ours() -> None:
        steps(model, batches_of(dataset, data.batch_size))

    rows = [compare("a pass of retraining", reference, ours, repeats)]
    for k in SCALES:
        x = torch.randn(200, 256, device=hardware.device(), requires_grad=True)
        classes = torch.randn(k, 256, device=hardware.device(), requires_grad=True)
        target = torch.randint(k, (200,), device=hardware.device())

        def materialized(x=x, classes=classes, target=target) -> None:
            positive, negatives = classes[target], classes[:, None].expand(-1, len(x), -1)
            same = (positive == negatives).all(-1)
            logits = (
                torch.cosine_similarity(x, torch.cat([positive[None], negatives]), dim=-1) / 0.1
            )
            logits = torch.cat([logits[:1], logits[1:].masked_fill(same, -torch.inf)])
            F.cross_entropy(logits.T, torch.zeros_like(target), reduction="sum").backward()

        def product(x=x, classes=classes, target=target) -> None:
            cosines = F.normalize(x) @ F.normalize(classes).T
            F.cross_entropy(cosines / 0.1, target, reduction="sum").backward()

        rows.append(compare(f"logits of 200 frames, K = {k}", materialized, product, repeats))
    return rows


def finetune(data: Recordings, repeats: int) -> list[dict]:
    """The steps of an epoch; two epochs by Trainer, evaluated and saved; the same including the CNN."""
    validation = data.names[: max(len(data.names) // 8, 2)]

    def their_model() -> torch.nn.Module:
        model = HubertForSequenceClassification.from_pretrained(data.encoder, num_labels=4)
        model.hubert.feature_extractor.requires_grad_(False)
        return model

    def our_model() -> EmotionClassifier:
        settings = {"loss": "ce", "scale": 30.0, "margin": 0.2, **vars(HeadConfig(lstm_size=0))}
        classes = {"emotions": EMOTIONS, "emotion_weights": []}
        return EmotionClassifier.load(data.encoder, **settings, **classes)

    def utterances(names: list[str]) -> Utterances:
        frames = data.cnn_output(SpeechModel.load(data.encoder))
        return Utterances(frames, names, {"emotion": data.emotion[: len(names)]})

    def reference() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, num_train_epochs=2, per_device_train_batch_size=data.batch_size,
                per_device_eval_batch_size=data.batch_size, eval_strategy="epoch",
                save_strategy="epoch", load_best_model_at_end=True, save_total_limit=1,
                learning_rate=1e-5, disable_tqdm=True, bf16=hardware.device() == "cuda",
                use_cpu=hardware.device() == "cpu", report_to="none", remove_unused_columns=False,
            )  # fmt: skip
            examples = list(range(len(data.names)))
            sets = {"train_dataset": examples, "eval_dataset": examples[: len(validation)]}
            Trainer(their_model(), arguments, data_collator=data.collate, **sets).train()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sets = utterances(data.names), utterances(validation)
            config = TrainingConfig(1e-5, 2, 0, 1e9, data.batch_size)
            options = {"compute_metrics": _loss, "selection_metric": "ce_loss"}
            train(our_model(), *sets, Path(folder), config, **options)

    def with_cnn() -> None:
        (data.folder / "frames.npy").unlink()
        ours()

    theirs, our = in_bfloat16(their_model()), our_model()

    def their_steps() -> None:
        steps(theirs, data.random_batches())

    def our_steps() -> None:
        steps(our, batches_of(utterances(data.names), data.batch_size))

    return [
        compare("the steps of an epoch of fine-tuning", their_steps, our_steps, repeats),
        compare("two epochs of it by Trainer, evaluated and saved", reference, ours, repeats),
        compare("the same, CNN output not cached", reference, with_cnn, 1),
    ]


def _loss(prediction) -> dict[str, float]:
    logits, labels = prediction.predictions, torch.from_numpy(prediction.label_ids)
    return {"ce_loss": float(F.cross_entropy(torch.from_numpy(logits), labels))}


def main() -> None:
    """Measure, print a table, and write runs/bench/stages.json and stages.md."""
    on_gpu = hardware.device() == "cuda"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", help="folder of recordings, such as EmoDB's")
    parser.add_argument("--utterances", type=int, default=500 if on_gpu else 24)
    parser.add_argument("--batch-size", type=int, default=32 if on_gpu else 8)
    parser.add_argument("--frames", type=int, default=1_000_000 if on_gpu else 60_000)
    parser.add_argument("--scales", type=int, nargs="+", default=SCALES if on_gpu else SCALES[:2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench")
    options = parser.parse_args()
    hardware.prepare_libraries()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Recordings(Path(folder), options.recordings, options.utterances, options.batch_size)
        rows = []
        for stage in options.only:
            what = (
                (options.frames, options.scales) if stage == "cluster" else (data, options.repeats)
            )
            rows += [{"stage": stage, **row} for row in STAGES[stage](*what)]
    table = pd.DataFrame(rows)
    machine = {
        "device": torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} cores",
        "bfloat16": hardware.bfloat16(),
        "seconds of audio": round(data.seconds, 1),
        "recordings": options.recordings or "noise",
    }
    text = f"{machine}\n\n{table.round(2).to_markdown(index=False)}\n"
    (options.out / "stages.md").write_text(text)
    (options.out / "stages.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1)
    )
    print(text)


STAGES = {
    "prepare": prepare,
    "extract": extract,
    "cluster": cluster,
    "retrain": retrain,
    "finetune": finetune,
}

if __name__ == "__main__":
    main()
