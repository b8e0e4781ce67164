"""Speed of recognition and of the encoder alone, start-up time, and time and memory of an hour of audio.

python benchmarks/recognition.py --recordings gmp_utils/data/corpora/emodb [--files 100] [--hour]
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from transformers import HubertConfig

from gmp_utils.data import audio
from gmp_utils.data.ragged import Ragged
from gmp_utils.models.heads import HeadConfig
from gmp_utils.models.recognizer import Recognizer, RecognizerConfig, load_recognizer
from gmp_utils.runs import hardware
from gmp_utils.stages import publish, recognize
from gmp_utils.training import features
from gmp_utils.training.batching import Utterances


def base() -> Recognizer:
    """A recognizer with HuBERT base and random weights."""
    torch.manual_seed(0)
    settings = vars(HeadConfig()) | {"emotions": list("abcd"), "emotion_weights": [], "loss": "ams"}
    network = HubertConfig(**settings, scale=30.0, margin=0.2).to_dict()
    labels = {"id2label": dict(enumerate("abcd")), "label2id": dict(zip("abcd", range(4)))}
    config = RecognizerConfig(network=network, has_gender_head=True, ratings=[], **labels)
    return Recognizer(config).eval().to(hardware.device())


def compare(model: Recognizer, paths: list[str], pairs: int) -> dict:
    """Seconds of audio per second of the encoder on decoded waveforms and of recognition, alternately."""
    waveforms = sorted((audio.decode(path) for path in paths), key=len)
    lengths = list(map(len, waveforms))
    store = Ragged(np.concatenate(waveforms), {str(i): length for i, length in enumerate(lengths)})
    seconds = sum(lengths) / audio.SAMPLE_RATE

    def encoder() -> None:
        encode, names = model.network.hidden_states, store.utterances
        with torch.inference_mode():
            for _ in features.batches(Utterances(store, names), "", encode, features.CNN_SECONDS):
                pass

    def whole() -> None:
        recognize.recognize(paths, model, window=1e4, hop=1e4)

    rows = []
    for _ in range(pairs):
        took = []
        for function in (encoder, whole):
            began = time.perf_counter()
            function()
            took.append(time.perf_counter() - began)
        rows.append(took)
    alone, recognized = seconds / np.array(rows).T
    ratios = recognized / alone
    return {
        "encoder alone, s/s": np.median(alone),
        "recognized, s/s": np.median(recognized),
        "ratio": np.median(ratios),
        "least": ratios.min(),
        "most": ratios.max(),
    }


def hour(model: str, paths: list[str]) -> None:
    """Time and peak memory of the command line for an hour of 48 kHz stereo."""
    with tempfile.TemporaryDirectory() as folder:
        path, samples = Path(folder) / "hour.wav", 0
        with soundfile.SoundFile(path, "w", 48000, 2) as file:
            for recording in itertools.cycle(paths):
                waveform = np.repeat(audio.decode(recording), 3)[: 3600 * 48000 - samples]
                file.write(np.stack([waveform, waveform], axis=1))
                samples += len(waveform)
                if samples == 3600 * 48000:
                    break
        began = time.perf_counter()
        out = str(Path(folder) / "out.csv")
        line = ["recognize", str(path), "--model", model, "--out", out]
        code = f"from gmp_utils.__main__ import main; main({line}); print(open('/proc/self/status').read())"
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, text=True, stdout=subprocess.PIPE
        )
        (peak,) = (line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
        print(f"an hour: {time.perf_counter() - began:.0f} s, {len(pd.read_csv(out))} rows, {peak}")


def main() -> None:
    """Print a table of speeds, and the start-up time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", default="runs/demo")
    parser.add_argument("--hour", action="store_true")
    options = parser.parse_args()
    paths = recognize.expand_folders(options.recordings)[: options.files]
    small = load_recognizer(publish.find_or_publish(options.model))
    models = {options.model: small, "HuBERT base, random weights": base()}
    rows = {name: compare(model, paths, options.pairs) for name, model in models.items()}
    print(pd.DataFrame(rows).T.round(2).to_markdown())
    began = time.perf_counter()
    command = ["recognize", paths[0], "--model", options.model, "--out", "/dev/null"]
    subprocess.run([sys.executable, "-m", "gmp_utils", *command], check=True)
    print(f"one recording, with start-up: {time.perf_counter() - began:.1f} s")
    if options.hour:
        hour(options.model, paths)


if __name__ == "__main__":
    main()
