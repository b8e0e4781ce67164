"""AM-Softmax, the loss of masked prediction, concordance, and how losses of frames are summed."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def am_softmax(cosines: Tensor, labels: Tensor, scale: float = 30.0, margin: float = 0.2) -> Tensor:
    """Cross-entropy of scaled cosines, the true class's lowered by a margin.

    Wang et al., "Additive Margin Softmax for Face Verification", 2018, equation 6; GMP-TL paper,
    equation 2.

    Parameters
    ----------
    cosines : (batch, classes) float32
        Between each utterance's feature and each class vector.
    labels : (batch,) int64
    scale : float > 0
    margin : float
        Zero gives plain cross-entropy of the scaled cosines, as used for validation.

    Returns
    -------
    loss : () float32
        Mean over the batch.
    """
    margins = margin * F.one_hot(labels, cosines.shape[-1])
    return F.cross_entropy(scale * (cosines - margins).float(), labels)


def stream_loss(
    logits: Sequence[Tensor], labels: Tensor, chosen: Tensor, combine: str = "sum"
) -> Tensor:
    """Cross-entropy of every stream, averaged over the chosen frames, streams summed or averaged.

    Parameters
    ----------
    logits : sequence of (n_chosen, K) float32
        One per stream, for the chosen frames only.
    labels : (batch, frames, streams) int64
    chosen : (batch, frames) bool
        The frames that count.
    combine : str
        "sum" over streams, as HuBERT, or their "mean".

    Returns
    -------
    loss : () float32
        Zero where no frame is chosen.
    """
    targets = labels[chosen]  # (n_chosen, streams)
    total = sum(
        F.cross_entropy(stream.float(), targets[:, index], reduction="sum")
        for index, stream in enumerate(logits)
    )
    total = total / max(len(targets), 1)
    return total / len(logits) if combine == "mean" else total


def sum_by_utterance(values: Tensor, chosen: Tensor) -> Tensor:
    """Sum what was computed of chosen frames over each utterance.

    Parameters
    ----------
    values : (n_chosen, n) float32
    chosen : (batch, frames) bool

    Returns
    -------
    sums : (batch, n) float32
    """
    rows = chosen.nonzero()[:, 0]
    return values.new_zeros(len(chosen), values.shape[1]).index_add_(0, rows, values)


def concordance_loss(predicted: Tensor, rated: Tensor, weights: Tensor) -> Tensor:
    """1 − CCC of a batch, averaged over attributes.

    Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility", 1989; population moments.

    Parameters
    ----------
    predicted, rated : (batch, attributes) float32
    weights : (batch,) float32
        How often each utterance counts.

    Returns
    -------
    loss : () float32
        1 where nothing varies.
    """
    x, y, w = predicted.float(), rated.float(), (weights / weights.sum()).float().unsqueeze(1)
    x_mean, y_mean = (w * x).sum(dim=0), (w * y).sum(dim=0)
    covariance = (w * (x - x_mean) * (y - y_mean)).sum(dim=0)
    spread = (w * (x - x_mean) ** 2).sum(dim=0) + (w * (y - y_mean) ** 2).sum(dim=0)
    ccc = 2 * covariance / (spread + (x_mean - y_mean) ** 2).clamp(min=1e-8)
    return (1 - ccc).mean()
