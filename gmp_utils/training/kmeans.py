"""k-means of frames at several scales, by faiss, or on the GPU where there is one."""

from collections.abc import Sequence

import faiss
import numpy as np
import torch
from torch import Tensor

from gmp_utils import GmpError
from gmp_utils.runs import hardware

CHUNK = 2**16  # frames that are float32 at the same time, beside those that are clustered


def fit_kmeans(
    frames: np.ndarray, scales: Sequence[int], seed: int = 0, iterations: int = 25
) -> list[np.ndarray]:
    """Cluster frames by k-means, on all of them.

    Parameters
    ----------
    frames : (n_frames, dim) float
    scales : sequence of int
        Numbers of clusters, each at most n_frames.
    seed : int
    iterations : int

    Returns
    -------
    centroids : list of (k, dim) float32
        For each scale.

    Raises
    ------
    GmpError
        If there are fewer frames than clusters.
    """
    if max(scales) > len(frames):
        raise GmpError(
            f"scale {max(scales)}: more clusters than the {len(frames)} frames to be clustered."
        )
    if hardware.device() == "cuda":
        found = lloyd(torch.from_numpy(frames), scales, seed, iterations, "cuda")
        return [centroids.cpu().numpy() for centroids in found]
    frames, found = np.ascontiguousarray(frames, dtype=np.float32), []
    for k in scales:
        every = {"min_points_per_centroid": 1, "max_points_per_centroid": len(frames)}
        kmeans = faiss.Kmeans(frames.shape[1], k, niter=iterations, seed=seed, **every)
        kmeans.train(frames)
        found.append(kmeans.centroids)
    return found


def lloyd(
    frames: Tensor, scales: Sequence[int], seed: int, iterations: int, device: str
) -> list[Tensor]:
    """What faiss does, on a GPU: the same first centroids, and one pass over the frames for all scales.

    Clusters that lose all their frames begin again as frames drawn at random; faiss divides large ones.
    GPUs add in any order, so that last bits differ from run to run.

    Parameters
    ----------
    frames : (n_frames, dim) Tensor
        Of any float type; moved to the device whole if they take at most half of its free memory.
    scales, seed, iterations
        See `fit_kmeans`.
    device : str

    Returns
    -------
    centroids : list of (k, dim) float32
    """
    order = np.empty(len(frames), np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), len(order), seed + 1)
    first = torch.from_numpy(order[: max(scales)]).long()
    if hardware.fits(frames.nbytes):
        frames = frames.to(device)
    rng = torch.Generator().manual_seed(seed)
    centroids = [frames[first[:k].to(frames.device)].to(device).float() for k in scales]
    for _ in range(iterations):
        sums = [torch.zeros_like(own) for own in centroids]
        counts = [torch.zeros(k, dtype=torch.int64, device=device) for k in scales]
        for chunk in frames.split(CHUNK):
            x = chunk.to(device).float()
            for own, total, count in zip(centroids, sums, counts):
                labels = nearest_centroid(x, own)
                total.index_add_(0, labels, x)
                count += labels.bincount(minlength=len(own))
        for own, total, count in zip(centroids, sums, counts):
            drawn = torch.randint(len(frames), (len(own),), generator=rng)
            again = frames[drawn.to(frames.device)].to(device).float()
            own.copy_(torch.where(count[:, None] > 0, total / count[:, None].clamp(min=1), again))
    return centroids


def nearest_centroid(x: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid of each frame: ‖x‖² − 2x·c + ‖c‖² without what all centroids share."""
    return torch.addmm(-centroids.square().sum(1) / 2, x, centroids.T).argmax(1)


def assign(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Nearest centroid of each frame.

    Parameters
    ----------
    frames : (n_frames, dim) float
        Read in portions: may be larger than the memory.
    centroids : (k, dim) float32

    Returns
    -------
    labels : (n_frames,) int32
    """
    labels = np.empty(len(frames), np.int32)
    if hardware.device() == "cuda":
        placed = torch.from_numpy(centroids).to("cuda")

        def find(chunk: np.ndarray) -> np.ndarray:
            return nearest_centroid(torch.from_numpy(chunk).to("cuda"), placed).cpu().numpy()

    else:
        index = faiss.IndexFlatL2(centroids.shape[1])
        index.add(centroids)

        def find(chunk: np.ndarray) -> np.ndarray:
            return index.search(chunk, 1)[1][:, 0]

    for start in range(0, len(frames), CHUNK):
        chunk = np.ascontiguousarray(frames[start : start + CHUNK], dtype=np.float32)
        labels[start : start + CHUNK] = find(chunk)
    return labels
