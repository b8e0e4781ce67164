"""Pre-train the embedded encoder: one round of HuBERT on clusters of MFCCs.

    python workflow/pretrain_embedded.py FOLDER_OF_RECORDINGS RUN_FOLDER [UPDATES]

Leaves RUN_FOLDER/embedded and, in 16 bit, the package's embedded encoder. Stopped, it goes on from
its last checkpoint.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchaudio
from transformers import HubertConfig, HubertModel, set_seed

from gmp_utils import audio, runs
from gmp_utils.batching import Masking, Utterances
from gmp_utils.encoders import EMBEDDED
from gmp_utils.masked_prediction import MaskedPredictionModel, stream_metrics
from gmp_utils.pseudo_labels import assign, fit_kmeans
from gmp_utils.ragged import Ragged
from gmp_utils.training import Schedule, train

CLUSTERS = 100
PIECE = 3 * audio.SAMPLE_RATE
CONFIG = dict(
    hidden_size=192,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=768,
    conv_dim=(96,) * 7,
    num_conv_pos_embeddings=64,
    num_conv_pos_embedding_groups=8,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    feat_proj_dropout=0.0,
    layerdrop=0.0,
)


def pieces(waveforms: Ragged) -> Ragged:
    """Cut recordings into pieces of at most three seconds; rests under one second are left out."""
    found = {}
    for name in waveforms.utterances:
        samples = waveforms[name]
        for start in range(0, len(samples), PIECE):
            if len(samples) - start >= audio.SAMPLE_RATE:
                found[f"{name}@{start}"] = samples[start : start + PIECE]
    values = np.concatenate(list(found.values()))
    return Ragged(values, list(found), [len(samples) for samples in found.values()])


def mfcc_frames(samples: np.ndarray) -> np.ndarray:
    """13 MFCCs with deltas and their deltas, on the encoder's frames: (frames, 39) float32."""
    transform = torchaudio.transforms.MFCC(
        audio.SAMPLE_RATE,
        13,
        melkwargs={"n_fft": 400, "hop_length": 320, "n_mels": 40, "center": False},
    )
    mfcc = transform(torch.from_numpy(audio.normalise(samples)))
    delta = torchaudio.functional.compute_deltas(mfcc)
    return torch.cat([mfcc, delta, torchaudio.functional.compute_deltas(delta)]).T.numpy()


def main(recordings: Path, run: Path, updates: int = 1200) -> None:
    """Prepare, cluster, train."""
    formats = {".wav", ".flac", ".ogg", ".mp3"}
    paths = sorted(path for path in recordings.rglob("*") if path.suffix in formats)

    def build_store(folder: Path) -> None:
        names = [str(path.relative_to(recordings)) for path in paths]
        manifest = pd.DataFrame({"utterance": names, "path": list(map(str, paths))})
        audio.write_store(manifest, folder / "waveforms")

    store = runs.make_stage(
        run / "recordings",
        build_store,
        parameters={"recordings": str(recordings)},
        inputs=[str(len(paths))],
        module="gmp_utils.audio",
    )

    def build(folder: Path) -> None:
        set_seed(0)
        waveforms = pieces(Ragged.open(store / "waveforms"))
        frames = [mfcc_frames(waveforms[name]) for name in waveforms.utterances]
        every = np.concatenate(frames)
        centroids = fit_kmeans(every, CLUSTERS)
        labels = Ragged(
            assign(every, centroids)[:, None], waveforms.utterances, [len(rows) for rows in frames]
        )
        HubertModel(HubertConfig(**CONFIG)).save_pretrained(folder / "random")
        model = MaskedPredictionModel.load(
            str(folder / "random"),
            scales=[CLUSTERS],
            projection_size=256,
            loss_on="masked",
            train_cnn=True,
        )
        names = np.random.default_rng(0).permutation(waveforms.utterances)
        held_out = sorted(names[:200], key=waveforms.lengths.get)
        sets = [
            Utterances(waveforms, part, None, labels, Masking(0.8, 10))
            for part in (names[200:], held_out)
        ]
        schedule = Schedule(8e-4, updates=updates, batch_seconds=40)
        train(model, *sets, folder, schedule, stream_metrics([CLUSTERS]), "masked_loss", "last")

    runs.make_stage(
        run / "embedded",
        build,
        parameters={"updates": updates, "config": CONFIG},
        inputs=[runs.identity(store)],
        module="gmp_utils.masked_prediction",
    )
    HubertModel.from_pretrained(run / "embedded" / "model").half().save_pretrained(EMBEDDED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve(), *map(int, sys.argv[3:]))
