"""wav2vec 2.0's own objective: masked frames are told from others by what the CNN heard of them.

Task-adaptive pre-training (TAPT) goes on with it on a corpus of emotional speech. The objective is that of
Baevski et al., "wav2vec 2.0", 2020, equations 2 to 4, without the penalty on the CNN's output, for the CNN
is frozen.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EvalPrediction
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from gmp_utils import GmpError
from gmp_utils.models import encoder
from gmp_utils.models.losses import sum_by_utterance

GUMBEL = (
    2.0,
    0.5,
)  # temperature at the first and at the last update; geometric between, as published


def draw_negatives(mask: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """For every masked frame others of the same utterance.

    Parameters
    ----------
    mask : (batch, frames) bool
    n : int
        Drawn with replacement, but never the frame itself; of an utterance's only masked frame there is
        no other, and it is its own.
    generator : torch Generator, optional

    Returns
    -------
    negatives : (n_masked, n) int64
        Places among all masked frames of the batch, utterance after utterance.
    """
    counts = mask.sum(dim=1)
    own = torch.arange(int(counts.sum()), device=mask.device)
    count = counts.repeat_interleave(counts)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    shape = len(own), n
    drawn = torch.rand(shape, generator=generator, device=mask.device) * (count - 1).unsqueeze(1)
    drawn = drawn.long()
    drawn += drawn >= (own - first).unsqueeze(1)
    return first.unsqueeze(1) + drawn.minimum((count - 1).unsqueeze(1))


class Quantizer(Wav2Vec2GumbelVectorQuantizer):
    """Transformers' own, that can be started anew."""

    def reset_parameters(self) -> None:
        """As published models began."""
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)
        nn.init.uniform_(self.codevectors)


class ContrastiveModel(encoder.SpeechModel):
    """wav2vec 2.0 with the quantizer and the projections of its pre-training.

    They are called as in published weights, and start at random where an encoder comes without them.
    """

    def _build_heads(self, config) -> None:
        if config.model_type != "wav2vec2":
            raise GmpError(
                f'objective "contrastive" with a {config.model_type} encoder: it is wav2vec 2.0\'s own. '
                'Take objective "clusters" with clustered_model "encoder".'
            )
        self.quantizer = Quantizer(config)
        self.project_hid = nn.Linear(config.hidden_size, config.proj_codevector_dim)
        self.project_q = nn.Linear(config.codevector_dim, config.proj_codevector_dim)

    def on_step_begin(self, share: float) -> None:
        """Choose codes less and less at random."""
        first, last = GUMBEL
        self.quantizer.temperature = first * (last / first) ** share

    def forward(self, inputs: Tensor, lengths: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Tell masked frames from others.

        Parameters
        ----------
        inputs, lengths
            See `SpeechModel.hidden_states`.
        mask : (batch, frames) bool

        Returns
        -------
        outputs : dict
            `loss`, per masked frame: the contrastive loss and a tenth (as configured) of the share of
            codes that go unused; each of them while training. `n_frames` (batch,) that it counts. At
            evaluation these are frames that there is another to tell from; for each utterance, summed
            over them, `ce`, `correct` and `chance` (batch, 1); and `codes` (batch,) in use.
        """
        if inputs.dim() == 2:
            inputs, lengths = self.cnn(inputs, lengths), self.frame_lengths(lengths)
        (states,), _ = self.hidden_states(inputs, lengths, mask)
        heard = self.base_model.feature_projection.layer_norm(inputs)[mask]  # (n_masked, conv_dim)
        codes, used = self.quantizer(heard.unsqueeze(0))
        targets = F.normalize(self.project_q(codes[0]), dim=-1)
        foretold = F.normalize(self.project_hid(states[mask]), dim=-1)
        config, fixed = self.config, None
        if not self.training:
            fixed = torch.Generator(mask.device).manual_seed(0)
        negatives = draw_negatives(mask, config.num_negatives, fixed)
        alike = (foretold @ targets.T) / config.contrastive_logits_temperature
        with torch.no_grad():  # the same code is no negative
            same = (targets @ targets.T).gather(1, negatives) > 1 - 1e-6
        others = alike.gather(1, negatives).masked_fill(same, -torch.inf)
        logits = torch.cat([alike.diagonal().unsqueeze(1), others], dim=1)  # (n_masked, 1 + n)
        each = F.cross_entropy(
            logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="none"
        )
        n_codes = config.num_codevectors_per_group * config.num_codevector_groups
        losses = {"contrastive_loss": each.mean(), "diversity_loss": (n_codes - used) / n_codes}
        loss = losses["contrastive_loss"] + config.diversity_loss_weight * losses["diversity_loss"]
        outputs = {"loss": loss, "n_frames": mask.sum(dim=1)}
        if self.training:
            return outputs | losses
        n = len(logits)
        different = torch.zeros(n, n, dtype=torch.bool, device=mask.device)
        n_others = different.scatter_(1, negatives, ~same).sum(dim=1)
        found = n_others > 0
        correct = logits.argmax(dim=1) == 0
        values = torch.stack([found, each, correct, 1 / (1 + n_others)], dim=1).float()
        sums = sum_by_utterance(values * found.unsqueeze(1), mask)
        outputs["n_frames"] = sums[:, 0]
        kept = dict(zip(("ce", "correct", "chance"), sums[:, 1:].split(1, dim=1)))
        return outputs | kept | {"codes": used.expand(len(mask))}


def contrastive_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`masked_loss` and `accuracy` of telling frames apart, and what `chance` would; `codes` in use.

    Where the CNN's output has become the same code everywhere, nothing can be told apart: the loss is
    that of choosing among a hundred at random, not zero.
    """
    n_frames, ce, correct, chance, codes = prediction.predictions
    n = n_frames.sum()
    if not n:
        return {"masked_loss": math.log(101), "accuracy": 0.0, "chance": 0.0, "codes": 1.0}
    means = {"masked_loss": ce, "accuracy": correct, "chance": chance}
    found = {name: float(values.sum() / n) for name, values in means.items()}
    return found | {"codes": float((codes * n_frames).sum() / n)}
