"""Masked prediction of pseudo-labels, the model of stages 00, 05 and 08."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import EvalPrediction

from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.heads import ClusterHeads
from gmp_utils.models.losses import stream_loss, sum_by_utterance

LOSS_ON = ("masked", "all")  # frames


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
        """Mean `stream_loss` and number of frames in it, (batch,); see `SpeechModel.hidden_states`.

        Frame labels are (batch, frames, streams) int64. At evaluation `ce` (batch, 1) sums over the frames in
        the loss, and `correct` (batch, streams) over the `n_masked` (batch,) masked ones only.
        """
        (frames,), attention_mask = self.hidden_states(inputs, lengths, mask, **conditions)
        loss_mask = mask if self.config.loss_on == "masked" else attention_mask
        logits, labels = self.streams(frames[loss_mask]), frame_labels[loss_mask]
        ce = stream_loss(logits, labels)
        outputs = {"loss": ce.sum() / max(len(ce), 1), "n_frames": loss_mask.sum(dim=1)}
        if self.training:
            return outputs
        correct = torch.stack([x.argmax(dim=-1) for x in logits], dim=1) == labels
        outputs["ce"] = sum_by_utterance(ce.unsqueeze(1), loss_mask)
        outputs["n_masked"] = mask.sum(dim=1)
        return outputs | {"correct": sum_by_utterance(correct[mask[loss_mask]].float(), mask)}


def stream_metrics(scales: Sequence[int], prediction: EvalPrediction) -> dict[str, float]:
    """`validation_loss` over the frames in the loss, and `accuracy_<K>` of each stream at masked frames."""
    n_frames, ce, n_masked, correct = prediction.predictions
    accuracies = zip(scales, (correct.sum(axis=0) / n_masked.sum()).tolist())
    metrics = {"validation_loss": float(ce.sum() / n_frames.sum())}
    return metrics | {f"accuracy_{k}": accuracy for k, accuracy in accuracies}
