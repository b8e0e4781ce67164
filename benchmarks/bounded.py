"""Time and memory for data larger than memory: a corpus of 100 hours, and the frames of seven hours.

python benchmarks/bounded.py --recordings <folder of recordings>
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from stages import measure

from gmp_utils.data import waveform_store
from gmp_utils.data.ragged import Ragged
from gmp_utils.stages.recognize import expand_folders
from gmp_utils.training import kmeans


def prepare(recordings: Path, hours: float, folder: Path) -> None:
    """Decode recordings repeatedly into one store."""
    paths = expand_folders(recordings)
    seconds = [soundfile.info(path).duration for path in paths]
    copies = int(np.ceil(hours * 3600 / sum(seconds)))
    chosen = list(itertools.chain.from_iterable([paths] * copies))
    manifest = pd.DataFrame({"utterance": map(str, range(len(chosen))), "path": chosen})
    took, peak, _ = measure(lambda: waveform_store.write_store(manifest, folder / "waveforms"))
    prepared = copies * sum(seconds) / 3600
    print(
        f"{prepared:.0f} h, {len(chosen)} recordings: {took:.0f} s, {peak:.0f} MB above the "
        f"memory in use before, store of {prepared * 3600 * 32000 / 2**30:.1f} GiB"
    )


def cluster(n_frames: int, sample: int, k: int, folder: Path) -> None:
    """Fit k-means to a sample of frames on disk, and assign every frame to its nearest centroid."""
    rng = np.random.default_rng(0)
    lengths = {"a": n_frames // 2, "b": n_frames - n_frames // 2}
    frames = Ragged.create(folder / "frames", lengths, np.float16, shape=(768,))
    for start in range(0, n_frames, 10000):
        part = frames.values[start : start + 10000]
        part[:] = rng.normal(size=part.shape)
    frames.flush()

    def work() -> tuple[float, float]:
        began = time.monotonic()
        (centroids,) = kmeans.fit_kmeans(frames.sample(frames.utterances, sample, 0), [k])
        learned = time.monotonic()
        kmeans.assign(frames.values, centroids)
        return learned - began, time.monotonic() - learned

    _, peak, (learning, assigning) = measure(work)
    print(
        f"K = {k} from {sample} of {n_frames} frames of 768: {learning:.0f} s, nearest centroid of all "
        f"{assigning:.0f} s, {peak:.0f} MB above the memory in use before"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=100.0)
    parser.add_argument("--frames", type=int, default=1_260_000)
    parser.add_argument("--sample", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, default=4096)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(arguments.recordings, arguments.hours, Path(folder))
        cluster(arguments.frames, arguments.sample, arguments.clusters, Path(folder))
