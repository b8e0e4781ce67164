"""Masked prediction of pseudo-labels, the model of stages 00, 05 and 08."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EvalPrediction

from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import ClusterHeads
from gmp_utils.models.losses import stream_loss, sum_by_utterance


class MaskedPredictionModel(SpeechModel):
    """An encoder with span masks, and a projection to the clusters of each stream of pseudo-labels."""

    def _build_heads(self, config) -> None:
        sizes = config.scales, config.stream_hidden_size
        self.streams = ClusterHeads(config.hidden_size, *sizes, config.activation)

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor,
        frame_labels: Tensor,
        mask: Tensor,
        **conditions: Tensor | None,
    ) -> dict[str, Tensor]:
        """`stream_loss` and number of frames in it, (batch,); see `SpeechModel.hidden_states`.

        Frame labels are (batch, frames, streams) int64. At evaluation `ce` and `correct` (batch, streams)
        are sums over these frames.
        """
        (frames,), attention_mask = self.hidden_states(inputs, lengths, mask, **conditions)
        loss_mask = mask if self.config.loss_on == "masked" else attention_mask
        logits = self.streams(frames[loss_mask])
        loss = stream_loss(logits, frame_labels, loss_mask, self.config.combine)
        outputs = {"loss": loss, "n_frames": loss_mask.sum(dim=1)}
        if self.training:
            return outputs
        pairs = list(zip(logits, frame_labels[loss_mask].unbind(dim=1)))
        ce = [F.cross_entropy(x.float(), y, reduction="none") for x, y in pairs]
        correct = [(x.argmax(dim=-1) == y).float() for x, y in pairs]
        sums = {"ce": torch.stack(ce, dim=1), "correct": torch.stack(correct, dim=1)}
        return outputs | {name: sum_by_utterance(x, loss_mask) for name, x in sums.items()}


def stream_metrics(scales: Sequence[int], prediction: EvalPrediction) -> dict[str, float]:
    """`masked_loss`, and `accuracy_<K>` of each stream."""
    n_frames, ce, correct = prediction.predictions
    accuracies = zip(scales, (correct.sum(axis=0) / n_frames.sum()).tolist())
    metrics = {"masked_loss": float(ce.sum() / n_frames.sum())}
    return metrics | {f"accuracy_{k}": accuracy for k, accuracy in accuracies}
