"""HuBERT, wav2vec 2.0 and WavLM, loaded safely: frames, layers, a CNN with padding kept out.

The three are one architecture but for details. Models with a group norm in the CNN (the base ones) were
trained without an attention mask, and padding leaks into them; here the norm is taken over each
utterance's own frames, so that all get the mask, and an utterance's output does not depend on its batch.

Frames come every 20 ms (320 samples of 16 kHz), each from a window of 25 ms. Layer `-1` is the
encoder's output, `-3` the third from last: Hugging Face's `hidden_states[id]`; `0` is what enters
the first layer.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    HubertModel,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2Model,
    WavLMModel,
)

from gmp_utils import GmpError
from gmp_utils.runs import hardware, weights

# Where a speaker's vector goes: added to the frames that enter the Transformer, before them as one more, or
# added to its last layer's (PAPT, arXiv 2309.02418, its ablation).
SPEAKER_POSITIONS = ("none", "input", "prefix", "output")
ENCODERS = {"hubert": HubertModel, "wav2vec2": Wav2Vec2Model, "wavlm": WavLMModel}


def frame_seconds(frames: np.ndarray) -> np.ndarray:
    """The middle of frames, in seconds; frames count from 0."""
    return frames * 0.02 + 0.0125


def frame_at(seconds: np.ndarray) -> np.ndarray:
    """The frames whose middles these are: the inverse of `frame_seconds`, int64."""
    return ((seconds - 0.0125) / 0.02).round().astype(np.int64)


class SpeakerTable(nn.Module):
    """A vector per speaker, all zero at first.

    Parameters
    ----------
    n_speakers, dim : int
    """

    def __init__(self, n_speakers: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_speakers, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Nobody differs."""
        nn.init.zeros_(self.weight)

    def forward(self, speaker: Tensor) -> Tensor:
        """Vectors, (batch, dim), of weights of speakers, (batch, n_speakers)."""
        return speaker @ self.weight


class SpeechModel(PreTrainedModel):
    """An encoder as every stage uses it, `base_model`; stages add heads.

    Loaded with `load`, which leaves no dropped layers, keeps the mask vector and freezes the CNN.

    | tensor | shape |
    |---|---|
    | waveforms | (batch, samples), normalised, zeros after the end |
    | CNN output | (batch, frames, conv_dim) |
    | hidden states | (batch, frames, hidden_size) |
    | valid | (batch, frames), False in padding |
    """

    loss_of_batch = False  # not a mean over utterances, or frames, but one of the whole batch

    def __init__(self, config: PretrainedConfig):
        encoder = ENCODERS[config.model_type]
        self._supports_sdpa = encoder._supports_sdpa  # WavLM brings its own attention
        super().__init__(config)
        self.base_model_prefix = config.model_type  # the encoder is called as in published weights
        setattr(self, config.model_type, encoder(config))
        if getattr(config, "n_speakers", 0):
            self.speakers = SpeakerTable(config.n_speakers, config.hidden_size)
        self.train_cnn = getattr(config, "train_cnn", False)
        self.train_encoder = getattr(config, "train_encoder", True)
        self._build_heads(config)
        self.post_init()

    def _build_heads(self, config: PretrainedConfig) -> None:
        """Add what a stage needs beside the encoder."""

    def train(self, mode: bool = True) -> "SpeechModel":
        """As torch's; an encoder that is not trained has no dropout either."""
        super().train(mode)
        if not self.train_encoder:
            self.base_model.eval()
        return self

    def on_step_begin(self, share: float) -> None:
        """What changes with the share of a training that is behind it, 0 to 1: nothing, here."""

    def _init_weights(self, module: nn.Module) -> None:
        """Heads start as torch starts them, not as parts of a transformer."""
        heads = (child for child in self.children() if child is not self.base_model)
        if any(module is part for head in heads for part in head.modules()):
            for name in (
                "reset_parameters",
                "_reset_parameters",
            ):  # the latter of torch's attention
                getattr(module, name, lambda: None)()
        else:
            super()._init_weights(module)

    @classmethod
    def load(cls, source: str, **settings) -> "SpeechModel":
        """Load published weights or an earlier stage's; heads that they lack start at random.

        Parameters
        ----------
        source : str
            Folder or name, see `gmp_utils.runs.weights.resolve`.
        **settings
            Kept in the model's config.json: what `_build_heads` reads.

        Raises
        ------
        GmpError
            If there is no such model, it is of another kind, its weights are missing, no numbers, or a
            pickle that holds more than weights.
        """
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_a_model(source, error) from error
        if config.model_type not in ENCODERS:
            raise GmpError(
                f"encoder {source!r}: a {config.model_type} model, expected one of {', '.join(ENCODERS)}."
            )
        config.layerdrop = 0.0  # a dropped layer would shift hidden_states
        config.mask_time_prob = max(config.mask_time_prob, 0.01)  # else no mask vector is made
        config.update(settings)
        try:
            model, report = cls.from_pretrained(
                weights.as_safetensors(source),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, SafetensorError) as error:
            raise _not_a_model(source, error) from error
        missing = [key for key in report["missing_keys"] if key.startswith(f"{config.model_type}.")]
        missing = [key for key in missing if not key.endswith("masked_spec_embed")]
        if missing:
            raise GmpError(f"encoder {source!r}: weights are missing, the first is {missing[0]}.")
        for name, parameter in model.named_parameters():
            # Read from a file they lie anywhere, and where they lie decides the last bit of MKL's results.
            parameter.data = parameter.data.clone()
            if not parameter.isfinite().all():
                raise GmpError(
                    f"encoder {source!r}: its weights {name} hold values that are no numbers."
                )
        if not model.train_encoder:
            model.base_model.requires_grad_(False)
        if not model.train_cnn:
            model.base_model.feature_extractor._freeze_parameters()
        return model

    @property
    def n_layers(self) -> int:
        """Transformer layers."""
        return len(self.base_model.encoder.layers)

    def layer_index(self, layer: int) -> int:
        """Count a layer from the encoder's input, 0, on.

        Raises
        ------
        GmpError
            If the encoder does not have it.
        """
        if not -self.n_layers - 1 <= layer <= self.n_layers:
            raise GmpError(
                f"layer {layer}: this encoder has hidden states 0 to {self.n_layers}, or "
                f"{-self.n_layers - 1} to -1."
            )
        return layer % (self.n_layers + 1)

    def frame_lengths(self, n_samples: Tensor | int) -> Tensor | int:
        """Frames that so many samples give."""
        return self.base_model._get_feat_extract_output_lengths(n_samples)

    def cnn(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Run the CNN; an utterance's output does not depend on its padding.

        The first convolution of the base model normalises over time (group norm): its mean and
        variance are taken over the utterance's own frames. It runs in bfloat16 only where it is trained
        on a GPU: output that is kept is exact.

        Parameters
        ----------
        inputs : (batch, samples) float32
            Waveforms.
        lengths : (batch,) int64
            Samples of each, without padding.

        Returns
        -------
        features : (batch, frames, conv_dim) float32
        """
        in_bfloat16 = self.train_cnn and inputs.is_cuda and hardware.bfloat16()
        with (
            torch.set_grad_enabled(self.train_cnn and torch.is_grad_enabled()),
            torch.autocast(inputs.device.type, torch.bfloat16, enabled=in_bfloat16),
        ):
            x = inputs.unsqueeze(1)
            for layer in self.base_model.feature_extractor.conv_layers:
                norm = getattr(layer, "layer_norm", None)
                if isinstance(norm, nn.GroupNorm):
                    x = layer.conv(x)
                    n_valid = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
                    normed = _norm_masked if torch.jit.is_tracing() else _norm_each
                    x = layer.activation(normed(x, n_valid, norm))
                else:
                    x = layer(x)
            return x.transpose(1, 2).float()

    def hidden_states(
        self,
        inputs: Tensor,
        lengths: Tensor,
        mask: Tensor | None = None,
        layers: Sequence[int] = (-1,),
        feature_mask: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Run the encoder, as far up as is asked for; in bfloat16 where that is faster.

        Parameters
        ----------
        inputs : (batch, samples) or (batch, frames, conv_dim) float32
            Normalised waveforms, or the CNN's output for them.
        lengths : (batch,) int64
            Samples, or frames, of each utterance.
        mask : (batch, frames) bool, optional
            Frames whose content is replaced by the mask vector.
        layers : sequence of int
            Which hidden states to return.
        feature_mask : (batch, hidden_size) bool, optional
            Features that are zero in every frame that enters the encoder.
        speaker : (batch, n_speakers) float32, optional
            How much of each speaker's vector, see `SPEAKER_POSITIONS`.

        Returns
        -------
        states : list of (batch, frames, hidden_size) float32
        valid : (batch, frames) bool

        Raises
        ------
        GmpError
            For a layer that the encoder does not have.
        """
        if inputs.dim() == 2:
            inputs, lengths = self.cnn(inputs, lengths), self.frame_lengths(lengths)
        valid = torch.arange(inputs.shape[1], device=lengths.device) < lengths[:, None]
        position = self.config.speaker_position if speaker is not None else "none"
        vector = self.speakers(speaker).unsqueeze(1) if position != "none" else None
        encoder = self.base_model.encoder
        every, wanted = encoder.layers, [self.layer_index(layer) for layer in layers]
        kept: dict[int, Tensor] = {}

        def keep(index: int):
            def hook(_module, args, output):  # WavLM's layers hand on positions, too
                after = output[0] if isinstance(output, tuple) else output
                kept[index] = after if index else args[0]

            return hook

        handles = [
            every[max(index - 1, 0)].register_forward_hook(keep(index))
            for index in set(wanted) - {self.n_layers}
        ]
        with (
            torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()),
            torch.autocast(inputs.device.type, torch.bfloat16, enabled=hardware.bfloat16()),
        ):
            try:
                x = self.base_model.feature_projection(inputs)
                x = x[0] if isinstance(x, tuple) else x  # also what enters it, but for HuBERT
                if mask is not None:
                    x = torch.where(mask.unsqueeze(-1), self.base_model.masked_spec_embed.to(x), x)
                if feature_mask is not None:
                    x = x.masked_fill(feature_mask.unsqueeze(1), 0.0)
                if position == "input":
                    x = x + vector.to(x)
                if position == "prefix":
                    x = torch.cat([vector.to(x), x], dim=1)
                encoder.layers = every[: max(*wanted, 1)]
                attended = F.pad(valid, (x.shape[1] - valid.shape[1], 0), value=True)
                last = encoder(x, attention_mask=attended).last_hidden_state
            finally:
                encoder.layers = every
                for handle in handles:
                    handle.remove()
        kept.setdefault(self.n_layers, last)  # behind its norm, where a model has one there
        states = {index: state[:, -valid.shape[1] :].float() for index, state in kept.items()}
        if position == "output":
            states[self.n_layers] = states[self.n_layers] + vector
        return [states[index] for index in wanted], valid


def _not_a_model(source: str, error: Exception) -> GmpError:
    return GmpError(
        f"encoder {source!r}: no model could be read there ({str(error).splitlines()[0]}). Expected "
        '"embedded", a folder with config.json and weights, or a name on the Hugging Face hub and a '
        "network to reach it."
    )


def _norm_each(x: Tensor, n_valid: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group norm over the first `n_valid` steps of each utterance; zeros after them."""
    lengths = n_valid.tolist()
    if min(lengths) == x.shape[-1]:
        return norm(x)
    rows = zip(x.split(1), lengths)
    return torch.cat([F.pad(norm(row[..., :n]), (0, x.shape[-1] - n)) for row, n in rows])


def _norm_masked(x: Tensor, n_valid: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The same without looking at lengths, as a graph has it; a group is a channel in these encoders."""
    valid = (torch.arange(x.shape[-1], device=x.device) < n_valid[:, None]).unsqueeze(1).to(x)
    steps = n_valid[:, None, None]
    centred = (x - (x * valid).sum(dim=-1, keepdim=True) / steps) * valid
    deviation = ((centred**2).sum(dim=-1, keepdim=True) / steps + norm.eps).sqrt()
    return (centred / deviation * norm.weight[:, None] + norm.bias[:, None]) * valid


def cnn_digest(model: SpeechModel) -> str:
    """Name the CNN's weights: models with the same ones share cached outputs."""
    digest = hashlib.sha256()
    for tensor in model.base_model.feature_extractor.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
