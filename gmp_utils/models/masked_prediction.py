"""Masked prediction of pseudo-labels: the network of stage 05."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EvalPrediction

from gmp_utils.models import encoder
from gmp_utils.models.heads import ClusterHeads
from gmp_utils.models.losses import stream_loss, sum_by_utterance


class MaskedPredictionModel(encoder.SpeechModel):
    """HuBERT with span masks, and a projection to the clusters of each scale."""

    def _build_heads(self, config) -> None:
        sizes = config.scales, config.projection_size
        self.streams = ClusterHeads(config.hidden_size, *sizes, config.activation)

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor,
        frame_labels: Tensor,
        mask: Tensor,
        **conditions: Tensor | None,
    ) -> dict[str, Tensor]:
        """Predict pseudo-labels, and compare.

        Parameters
        ----------
        inputs, lengths, **conditions
            See `SpeechModel.hidden_states`.
        frame_labels : (batch, frames, streams) int64
        mask : (batch, frames) bool

        Returns
        -------
        outputs : dict
            `loss`, see `stream_loss`, and `n_frames` (batch,) that it counts; at evaluation, by
            utterance and stream, `ce` (summed cross-entropy) and `correct` (frames).
        """
        (frames,), valid = self.hidden_states(inputs, lengths, mask, **conditions)
        chosen = mask if self.config.loss_on == "masked" else valid
        logits = self.streams(frames[chosen])
        loss = stream_loss(logits, frame_labels, chosen, self.config.combine)
        outputs = {"loss": loss, "n_frames": chosen.sum(dim=1)}
        if self.training:
            return outputs
        pairs = list(zip(logits, frame_labels[chosen].unbind(dim=1)))
        losses = [F.cross_entropy(x.float(), y, reduction="none") for x, y in pairs]
        correct = [(x.argmax(dim=-1) == y).float() for x, y in pairs]
        ce, correct = (
            sum_by_utterance(torch.stack(each, dim=1), chosen) for each in (losses, correct)
        )
        return outputs | {"ce": ce, "correct": correct}


def stream_metrics(scales: list[int], prediction: EvalPrediction) -> dict[str, float]:
    """`masked_loss`, and `accuracy_<K>` of each stream."""
    n_frames, ce, correct = prediction.predictions
    accuracies = correct.sum(axis=0) / n_frames.sum()
    return {
        "masked_loss": float(ce.sum() / n_frames.sum()),
        **{f"accuracy_{k}": float(value) for k, value in zip(scales, accuracies)},
    }
