"""k-means of frames at several scales, by faiss, or by torch on a GPU."""

from collections.abc import Sequence

import faiss
import numpy as np
import torch
from torch import Tensor

from gmp_utils import GmpError
from gmp_utils.runs import hardware

ITERATIONS = 25  # faiss's default
CHUNK = 2**16  # frames that are converted to float32 at once


def fit_kmeans(frames: np.ndarray, scales: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Fit k-means to frames, (n_frames, dim); returns centroids, (k, dim) float32, for each scale k."""
    if max(scales) > len(frames):
        raise GmpError(f"scale {max(scales)}: more clusters than the {len(frames)} frames.")
    if hardware.device() == "cuda":
        centroids = lloyd(torch.from_numpy(frames), scales, seed, ITERATIONS, "cuda")
        return [array.cpu().numpy() for array in centroids]
    frames, centroids = np.ascontiguousarray(frames, dtype=np.float32), []
    no_sampling = {"min_points_per_centroid": 1, "max_points_per_centroid": len(frames)}
    for k in scales:
        kmeans = faiss.Kmeans(frames.shape[1], k, niter=ITERATIONS, seed=seed, **no_sampling)
        kmeans.train(frames)
        centroids.append(kmeans.centroids)
    return centroids


def lloyd(
    frames: Tensor, scales: Sequence[int], seed: int, iterations: int, device: str
) -> list[Tensor]:
    """`fit_kmeans` on a GPU: faiss's initial centroids, and one pass over the frames for all scales.

    Empty clusters are re-seeded with random frames, whereas faiss splits large ones. GPUs add in any order,
    so the last bits differ from run to run.
    """
    order = np.empty(len(frames), np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), len(order), seed + 1)
    initial = torch.from_numpy(order[: max(scales)]).long()
    if hardware.fits(frames.nbytes):
        frames = frames.to(device)
    rng = torch.Generator().manual_seed(seed)
    centroids = [frames[initial[:k].to(frames.device)].to(device).float() for k in scales]
    for _ in range(iterations):
        sums = [torch.zeros_like(centers) for centers in centroids]
        counts = [torch.zeros(k, dtype=torch.int64, device=device) for k in scales]
        for chunk in frames.split(CHUNK):
            x = chunk.to(device).float()
            for centers, total, count in zip(centroids, sums, counts):
                labels = nearest_centroid(x, centers)
                total.index_add_(0, labels, x)
                count += labels.bincount(minlength=len(centers))
        for centers, total, count in zip(centroids, sums, counts):
            drawn = torch.randint(len(frames), (len(centers),), generator=rng)
            random_frames = frames[drawn.to(frames.device)].to(device).float()
            means = total / count[:, None].clamp(min=1)
            centers.copy_(torch.where(count[:, None] > 0, means, random_frames))
    return centroids


def nearest_centroid(x: Tensor, centroids: Tensor) -> Tensor:
    """Index of the centroid with the smallest squared distance to each frame, constant term dropped."""
    return torch.addmm(-centroids.square().sum(1) / 2, x, centroids.T).argmax(1)


def assign(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid of each frame, (n_frames,) int32. Frames may not fit into memory."""
    labels, device = np.empty(len(frames), np.int32), hardware.device()
    centers = torch.from_numpy(centroids).to(device)
    for start in range(0, len(frames), CHUNK):
        chunk = np.ascontiguousarray(frames[start : start + CHUNK], dtype=np.float32)
        if device == "cuda":
            nearest = nearest_centroid(torch.from_numpy(chunk).to(device), centers).cpu().numpy()
        else:
            nearest = faiss.knn(chunk, centroids, 1)[1][:, 0]
        labels[start : start + CHUNK] = nearest
    return labels
