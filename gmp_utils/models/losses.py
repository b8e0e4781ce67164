"""Losses: AM-Softmax, masked prediction, and concordance."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

LOSSES = ("ce", "ams", "ce-then-ams", "ce-then-ce")  # of emotion classifiers


def am_softmax(
    cosines: Tensor, labels: Tensor, *, scale: float = 30.0, margin: float = 0.2
) -> Tensor:
    """Cross-entropy of scaled cosines, that of the true class reduced by a margin.

    Wang et al., "Additive Margin Softmax for Face Verification", 2018, equation 6; equation 2 of the GMP-TL
    paper. Cosines are (batch, classes), labels (batch,).
    """
    margins = margin * F.one_hot(labels, cosines.shape[-1])
    return F.cross_entropy(scale * (cosines - margins).float(), labels)


def stream_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of each frame, (n_frames,), summed over streams as in HuBERT.

    Logits of each stream are (n_frames, K), labels (n_frames, streams) int64.
    """
    pairs = zip(logits, labels.unbind(dim=1))
    return sum(F.cross_entropy(x.float(), y, reduction="none") for x, y in pairs)


def sum_by_utterance(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Sums, (batch, n), of values of the frames in `loss_mask`, (n_selected, n), by utterance."""
    rows = loss_mask.nonzero()[:, 0]
    return values.new_zeros(len(loss_mask), values.shape[1]).index_add_(0, rows, values)


def concordance_loss(predicted: Tensor, rated: Tensor, weights: Tensor) -> Tensor:
    """1 − CCC of a batch, averaged over attributes. It is 1 if predictions or ratings are constant.

    Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility", 1989, with population moments.
    Ratings are (batch, attributes), sample weights (batch,).
    """
    x, y, w = predicted.float(), rated.float(), (weights / weights.sum()).float().unsqueeze(1)
    x_mean, y_mean = (w * x).sum(dim=0), (w * y).sum(dim=0)
    covariance = (w * (x - x_mean) * (y - y_mean)).sum(dim=0)
    variances = (w * (x - x_mean) ** 2).sum(dim=0) + (w * (y - y_mean) ** 2).sum(dim=0)
    ccc = 2 * covariance / (variances + (x_mean - y_mean) ** 2).clamp(min=1e-8)
    return (1 - ccc).mean()
