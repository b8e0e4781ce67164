"""The contrastive objective of wav2vec 2.0.

The model identifies the quantized CNN output of each masked frame among distractors (Baevski et al., "wav2vec
2.0", 2020, equations 2 to 4). The CNN is frozen, so there is no penalty on its output.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EvalPrediction
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from gmp_utils import GmpError
from gmp_utils.models.encoder import SpeechModel
from gmp_utils.models.losses import sum_by_utterance

GUMBEL = 2.0, 0.5  # published temperatures of the first and last step, interpolated geometrically


def draw_negatives(mask: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw `n` distractors for every masked frame, from the other masked frames of its utterance.

    They are drawn with replacement, and returned as indices, (n_masked, n), among all masked frames of the
    batch. The only masked frame of an utterance is its own distractor.
    """
    counts = mask.sum(dim=1)
    positions = torch.arange(int(counts.sum()), device=mask.device)
    count = counts.repeat_interleave(counts)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    uniform = torch.rand((len(positions), n), generator=generator, device=mask.device)
    drawn = (uniform * (count - 1).unsqueeze(1)).long()
    drawn += drawn >= (positions - first).unsqueeze(1)  # skip the frame itself
    return first.unsqueeze(1) + drawn.minimum((count - 1).unsqueeze(1))


class Quantizer(Wav2Vec2GumbelVectorQuantizer):
    """Transformers' quantizer, which can be initialized."""

    def reset_parameters(self) -> None:
        """Initialize as in published models."""
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)
        nn.init.uniform_(self.codevectors)


class ContrastiveModel(SpeechModel):
    """wav2vec 2.0 with the quantizer and projections of its pre-training, as in published weights."""

    def _build_heads(self, config) -> None:
        if config.model_type != "wav2vec2":
            found = f'objective "contrastive" with a {config.model_type} encoder'
            raise GmpError(f'{found}: expected wav2vec 2.0, or objective "clusters".')
        self.quantizer = Quantizer(config)
        self.project_hid = nn.Linear(config.hidden_size, config.proj_codevector_dim)
        self.project_q = nn.Linear(config.codevector_dim, config.proj_codevector_dim)

    def on_step_begin(self, progress: float) -> None:
        """Anneal the Gumbel temperature."""
        first, last = GUMBEL
        self.quantizer.temperature = first * (last / first) ** progress

    def forward(self, inputs: Tensor, lengths: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Loss, and at evaluation sums over each utterance; see `SpeechModel.hidden_states`.

        `loss` is the contrastive loss per masked frame + `diversity_loss_weight` · the share of unused codes.
        Distractors with the target's code do not count. Evaluation always draws the same ones.
        `n_frames` (batch,) counts the masked frames, at evaluation only those with distractors. `ce`,
        `correct` and `chance` (batch, 1) are sums over them. `perplexity` (batch,) is the codevectors'.
        """
        if inputs.dim() == 2:
            inputs, lengths = self.cnn(inputs, lengths), self.frame_lengths(lengths)
        (states,), _ = self.hidden_states(inputs, lengths, mask)
        cnn_features = self.base_model.feature_projection.layer_norm(inputs)[mask]
        codevectors, perplexity = self.quantizer(cnn_features.unsqueeze(0))
        targets = F.normalize(self.project_q(codevectors[0]), dim=-1)  # (n_masked, dim)
        predicted = F.normalize(self.project_hid(states[mask]), dim=-1)
        generator = None if self.training else torch.Generator(mask.device).manual_seed(0)
        negatives = draw_negatives(mask, self.config.num_negatives, generator)
        similarity = (predicted @ targets.T) / self.config.contrastive_logits_temperature
        with torch.no_grad():
            same = (targets @ targets.T).gather(1, negatives) > 1 - 1e-6
        negative = similarity.gather(1, negatives).masked_fill(same, -torch.inf)
        logits = torch.cat([similarity.diagonal().unsqueeze(1), negative], dim=1)
        n = len(logits)
        ce = F.cross_entropy(logits, negatives.new_zeros(n), reduction="none")
        n_codes = self.config.num_codevectors_per_group * self.config.num_codevector_groups
        losses = {"contrastive_loss": ce.mean(), "diversity_loss": (n_codes - perplexity) / n_codes}
        weight = self.config.diversity_loss_weight
        outputs = {"loss": losses["contrastive_loss"] + weight * losses["diversity_loss"]}
        if self.training:
            return outputs | {"n_frames": mask.sum(dim=1)} | losses
        distractors = torch.zeros(n, n, dtype=torch.bool, device=mask.device)
        n_distractors = distractors.scatter_(1, negatives, ~same).sum(dim=1)
        counted, correct = n_distractors > 0, logits.argmax(dim=1) == 0
        values = torch.stack([counted, ce, correct, 1 / (1 + n_distractors)], dim=1).float()
        n_frames, *sums = sum_by_utterance(values * counted.unsqueeze(1), mask).split(1, dim=1)
        outputs |= {"n_frames": n_frames.squeeze(1)} | dict(zip(("ce", "correct", "chance"), sums))
        return outputs | {"perplexity": perplexity.expand(len(mask))}


def contrastive_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`validation_loss`, `accuracy` and `chance` level over masked frames, and codevector `perplexity`.

    If no frame has a distractor (all have the same code), the loss is that of guessing among 101.
    """
    n_frames, ce, correct, chance, perplexity = prediction.predictions
    n = n_frames.sum()
    if not n:
        return {"validation_loss": math.log(101), "accuracy": 0.0, "chance": 0.0, "perplexity": 1.0}
    totals = {"validation_loss": ce, "accuracy": correct, "chance": chance}
    totals["perplexity"] = perplexity * n_frames
    return {name: float(total.sum() / n) for name, total in totals.items()}
