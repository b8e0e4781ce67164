"""HuBERT and encoders of the same architecture, with any of their hidden states.

Layer `-1` is the encoder's output and `0` what enters its first layer, as in Hugging Face's `hidden_states`.
A frame is a window of 25 ms every 20 ms (320 samples at 16 kHz).

Base models normalize the CNN's output over time (group norm) and were trained without an attention mask, so
padding leaks into their output. Here the norm is over each utterance's frames and every model gets the mask:
an utterance's output does not depend on its batch.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import (
    AutoConfig,
    HubertModel,
    PreTrainedModel,
    UniSpeechModel,
    UniSpeechSatModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMModel,
)

from gmp_utils import GmpError
from gmp_utils.data.audio import FRAME_HOP, FRAME_WINDOW, SAMPLE_RATE
from gmp_utils.runs import hardware

ENCODERS = {
    "hubert": HubertModel,
    "wav2vec2": Wav2Vec2Model,
    "wavlm": WavLMModel,
    "unispeech": UniSpeechModel,
    "unispeech-sat": UniSpeechSatModel,
}


class SpeechModel(PreTrainedModel):
    """A speech encoder, `base_model`. Subclasses add heads."""

    loss_of_batch = False  # whether the loss is not a mean over utterances or frames
    float32_only = False  # whether to run in float32 where bfloat16 is faster, like exported models

    def __init__(self, config):
        encoder = ENCODERS[config.model_type]
        self._supports_sdpa = encoder._supports_sdpa  # WavLM has its own attention
        super().__init__(config)
        self.base_model_prefix = encoder.base_model_prefix  # the name in published weights
        setattr(self, encoder.base_model_prefix, encoder(config))
        self.base_model.encoder.pos_conv_embed.conv._conv_forward = position_convolution
        self.train_cnn = getattr(config, "train_cnn", False)
        self.train_encoder = getattr(config, "train_encoder", True)
        self._build_heads(config)
        self.post_init()

    def _build_heads(self, config) -> None:
        """Add modules on top of the encoder."""

    def train(self, mode: bool = True) -> "SpeechModel":
        """Set the training mode. A frozen encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        if not self.train_encoder:
            self.base_model.eval()
        return self

    def on_step_begin(self, progress: float) -> None:
        """Hook before each optimizer step. `progress` runs from 0 to 1."""

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize heads as torch does, and the encoder as transformers does."""
        heads = (child for child in self.children() if child is not self.base_model)
        if any(module is part for head in heads for part in head.modules()):
            for name in ("reset_parameters", "_reset_parameters"):  # the second is attention's
                getattr(module, name, lambda: None)()
        else:
            super()._init_weights(module)

    @classmethod
    def load(cls, source: str, *, new_heads: bool = False, **settings) -> "SpeechModel":
        """Load weights from a folder or the hub, see `gmp_utils.runs.weights.resolve`.

        Missing heads are initialized at random, and with `new_heads` all heads are. `settings` are kept in
        the model's config.json, where `_build_heads` reads them. See `freeze` for those that choose what is
        trained.
        """
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, StrictDataclassError) as error:
            raise _not_a_model(source, error) from error
        if config.model_type not in ENCODERS:
            expected = ", ".join(ENCODERS)
            raise GmpError(
                f"encoder {source!r}: a {config.model_type}, expected one of {expected}."
            )
        _check_supported(source, config)
        config.layerdrop = 0.0  # a dropped layer would shift hidden_states
        config.mask_time_prob = max(config.mask_time_prob, 0.01)  # at 0 there is no mask vector
        config.update(settings)
        try:
            options = {"output_loading_info": True, "ignore_mismatched_sizes": new_heads}
            model, report = cls.from_pretrained(
                source, config=config, dtype=torch.float32, **options
            )
        except (OSError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
            raise _not_a_model(source, error) from error
        prefix = f"{model.base_model_prefix}."
        absent = report["missing_keys"] | {key for key, *_ in report["mismatched_keys"]}
        missing = sorted(key for key in absent if key.startswith(prefix))
        missing = [key for key in missing if not key.endswith("masked_spec_embed")]
        if missing:
            raise GmpError(f"encoder {source!r}: weights are missing, the first is {missing[0]}.")
        for name, parameter in model.named_parameters():
            # Tensors read from a file are not aligned, which changes the last bit of MKL's results.
            parameter.data = parameter.data.clone()
            if not parameter.isfinite().all():
                raise GmpError(f"encoder {source!r}: weights {name} contain NaN or infinity.")
        for name, head in model.named_children() if new_heads else ():
            read = {key for key in model.state_dict() if key.startswith(f"{name}.")}
            if head is not model.base_model and read - report["missing_keys"]:
                head.apply(model._init_weights)
        model.freeze()
        return model

    def freeze(self) -> None:
        """Freeze the encoder, or parts of it, as the config says.

        Without `train_encoder`, all of it is frozen, and without `train_cnn`, its CNN. With `frozen_layers`,
        only the layers above the lowest `frozen_layers` are trained. With `lora_rank`, only updates of their
        query and value weights are trained.
        """
        encoder, config = self.base_model, self.config
        n_frozen, rank = getattr(config, "frozen_layers", 0), getattr(config, "lora_rank", 0)
        layers = encoder.encoder.layers[n_frozen:]
        if not len(layers):
            expected = f"at most {self.n_layers - 1}; set train_encoder to false to freeze all"
            raise GmpError(f"frozen_layers: found {n_frozen}, expected {expected}.")
        if n_frozen or rank or not self.train_encoder:
            encoder.requires_grad_(False)
        if n_frozen and not rank:
            layers.requires_grad_(True)
        if rank:
            generator = torch.Generator().manual_seed(torch.initial_seed())  # as in any process
            for linear in queries_and_values(layers):
                update = LowRankUpdate(linear.weight, rank, generator)
                parametrize.register_parametrization(linear, "weight", update)
        if not self.train_cnn:
            encoder.feature_extractor._freeze_parameters()

    def merge_updates(self) -> None:
        """Merge LoRA's updates into the weights."""
        for linear in queries_and_values(self.base_model.encoder.layers):
            if parametrize.is_parametrized(linear):
                parametrize.remove_parametrizations(linear, "weight")

    @property
    def n_layers(self) -> int:
        """Number of Transformer layers."""
        return len(self.base_model.encoder.layers)

    def layer_index(self, layer: int) -> int:
        """Non-negative index of a hidden state; 0 is the input of the first layer."""
        if not -self.n_layers - 1 <= layer <= self.n_layers:
            allowed = f"{-self.n_layers - 1} to {self.n_layers}"
            raise GmpError(f"layer {layer}: this encoder has hidden states {allowed}.")
        return layer % (self.n_layers + 1)

    def frame_lengths(self, n_samples: Tensor | int) -> Tensor | int:
        """Number of frames for a number of samples."""
        return self.base_model._get_feat_extract_output_lengths(n_samples)

    def cnn(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """CNN output, (batch, frames, conv_dim), of waveforms, (batch, samples), unaffected by padding.

        On a GPU it runs in bfloat16 only if the CNN is trained, and not for cached output.
        """
        in_bfloat16 = self.train_cnn and inputs.is_cuda and hardware.bfloat16()
        with (
            torch.set_grad_enabled(self.train_cnn and torch.is_grad_enabled()),
            torch.autocast(inputs.device.type, torch.bfloat16, enabled=in_bfloat16),
        ):
            x = inputs.unsqueeze(1).to(self.dtype)
            for layer in self.base_model.feature_extractor.conv_layers:
                norm = getattr(layer, "layer_norm", None)
                if not isinstance(norm, nn.GroupNorm):
                    x = layer(x)
                    continue
                n_steps = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
                loops = not (torch.jit.is_tracing() or x.is_cuda)
                normalize = _norm_each if loops else _norm_masked
                x = layer.activation(normalize(layer.conv(x), n_steps, norm))
            return x.transpose(1, 2).float()

    def hidden_states(
        self,
        inputs: Tensor,
        lengths: Tensor,
        mask: Tensor | None = None,
        *,
        layers: Sequence[int] = (-1,),
        feature_mask: Tensor | None = None,
        **conditions: Tensor | None,
    ) -> tuple[list[Tensor], Tensor]:
        """Run the encoder up to the last of the given layers.

        With float32 weights, it runs in bfloat16 where that is faster, unless it is `float32_only`.

        Parameters
        ----------
        inputs : (batch, samples) or (batch, frames, conv_dim) float32
            Normalized waveforms with zeros after the end, or their CNN output.
        lengths : (batch,) int64
            Samples, or frames, of each utterance.
        mask : (batch, frames) bool, optional
            Frames that are replaced by the mask vector.
        feature_mask : (batch, hidden_size) bool, optional
            Features that are set to zero in every frame.
        **conditions
            Arguments of a subclass's `_embed` and `_run_layers`.

        Returns
        -------
        states : list of (batch, frames, hidden_size), of the weights' dtype
        attention_mask : (batch, frames) bool
        """
        if inputs.dim() == 2:
            inputs, lengths = self.cnn(inputs, lengths), self.frame_lengths(lengths)
        steps = torch.arange(inputs.shape[1], device=lengths.device)
        attention_mask = steps < lengths[:, None]
        indices = [self.layer_index(layer) for layer in layers]
        in_bfloat16 = self.dtype == torch.float32 and hardware.bfloat16() and not self.float32_only
        with (
            torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()),
            torch.autocast(inputs.device.type, torch.bfloat16, enabled=in_bfloat16),
        ):
            x = self._embed(inputs.to(self.dtype), mask, feature_mask, **conditions)
            states = self._run_layers(x, attention_mask, indices, **conditions)
        return [states[index] for index in indices], attention_mask

    def _embed(self, inputs: Tensor, mask: Tensor | None, feature_mask: Tensor | None) -> Tensor:
        """Project the CNN's output to (batch, frames, hidden_size), and apply the masks."""
        x = self.base_model.feature_projection(inputs)
        x = x[0] if isinstance(x, tuple) else x  # wav2vec 2.0 and WavLM return their input too
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), self.base_model.masked_spec_embed.to(x), x)
        return x if feature_mask is None else x.masked_fill(feature_mask.unsqueeze(1), 0.0)

    def _run_layers(
        self, x: Tensor, attention_mask: Tensor, indices: Sequence[int]
    ) -> dict[int, Tensor]:
        """Hidden states (batch, frames, hidden_size) by index, from projected frames."""
        n_layers, encoder = self.n_layers, self.base_model.encoder
        with capture(encoder, set(indices) - {n_layers}, max(1, *indices)) as states:
            last = encoder(x, attention_mask=attention_mask).last_hidden_state
        if n_layers in indices:
            states[n_layers] = last  # after the final norm, if the model has one
        return {index: state.to(self.dtype) for index, state in states.items()}


def queries_and_values(layers: nn.ModuleList) -> Iterator[nn.Linear]:
    """The query and value projections of Transformer layers, which LoRA updates."""
    for layer in layers:
        yield from (layer.attention.q_proj, layer.attention.v_proj)


class LowRankUpdate(nn.Module):
    """A frozen weight plus a trained product of two matrices, initially 0.

    Hu et al., "LoRA", 2022, section 4.1, with α = rank.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        # as in the authors' code
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        return weight + self.up @ self.down


@contextmanager
def capture(encoder: nn.Module, indices: set[int], n_layers: int) -> Iterator[dict[int, Tensor]]:
    """Shorten a Transformer to `n_layers`, and collect hidden states of its layers by index."""
    states, layers, handles = {}, encoder.layers, []

    def keep(index: int, _layer, inputs: tuple, output: Tensor | tuple) -> None:
        output = output[0] if isinstance(output, tuple) else output  # WavLM adds a position bias
        states[index] = output if index else inputs[0]

    for index in indices:
        layer = layers[max(index - 1, 0)]
        handles.append(layer.register_forward_hook(partial(keep, index)))
    encoder.layers = layers[:n_layers]
    try:
        yield states
    finally:
        encoder.layers = layers
        for handle in handles:
            handle.remove()


def position_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The grouped convolution of position embeddings, on a GPU by `fft_convolution`.

    cuDNN computes it without tensor cores, which took 61% of a training step.
    """
    return fft_convolution(x, weight, bias) if x.is_cuda else plain_convolution(x, weight, bias)


def plain_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Grouped convolution, padded by half of the kernel, as `fft_convolution`."""
    groups, padding = x.shape[1] // weight.shape[1], weight.shape[2] // 2
    return F.conv1d(x, weight, bias, padding=padding, groups=groups)


def fft_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Grouped convolution, padded by half of the kernel, as a product of Fourier transforms in float32.

    Parameters
    ----------
    x : (batch, channels, frames)
    weight : (channels, channels / groups, kernel)
    bias : (channels,)
    """
    (batch, channels, frames), (_, width, kernel) = x.shape, weight.shape
    padded = frames + 2 * (kernel // 2)
    n = next_fast_len(padded, real=True)
    with torch.autocast(x.device.type, enabled=False):
        spectra = torch.fft.rfft(F.pad(x.float(), (kernel // 2, kernel // 2)), n)
        filters = torch.fft.rfft(weight.float(), n).conj()  # conjugate: a correlation
        spectra = spectra.view(batch, -1, width, spectra.shape[-1])
        filters = filters.view(spectra.shape[1], width, width, filters.shape[-1])
        products = torch.einsum("bgif,goif->bgof", spectra, filters).reshape(batch, channels, -1)
        y = torch.fft.irfft(products, n)[..., : padded - kernel + 1] + bias.float()[:, None]
    return y.to(x.dtype)


def _not_a_model(source: str, error: Exception) -> GmpError:
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    expected = 'expected "embedded", a folder with config.json and weights, or a name on the hub'
    return GmpError(f"encoder {source!r}: no model could be read there ({cause}); {expected}.")


def _check_supported(source: str, config) -> None:
    """Reject an encoder whose frames or hidden states would not be those of its training."""
    window, hop = 1, 1  # samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride):
        window, hop = window + (kernel - 1) * hop, hop * stride
    extractor = Wav2Vec2FeatureExtractor()
    with suppress(OSError):  # not every encoder has a preprocessor_config.json
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(source)
    found = extractor.to_dict() | config.to_dict()
    normalized = found["do_normalize"] or config.feat_extract_norm == "group"  # over time as well
    supported = {
        "conv_pos_batch_norm": (not found.get("conv_pos_batch_norm"), "false"),
        "add_adapter": (not found.get("add_adapter"), "false"),
        "conv_stride": (hop == FRAME_HOP, f"strides with a product of {FRAME_HOP} samples (20 ms)"),
        "conv_kernel": (window == FRAME_WINDOW, f"windows of {FRAME_WINDOW} samples (25 ms)"),
        "sampling_rate": (found["sampling_rate"] == SAMPLE_RATE, str(SAMPLE_RATE)),
        "do_normalize": (normalized, "true"),
    }
    for key, (right, expected) in supported.items():
        if not right:
            raise GmpError(
                f"encoder {source!r}: {key} is {found[key]}, expected {expected}; use another encoder."
            )


def _norm_each(x: Tensor, n_steps: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group norm over the first `n_steps` of each utterance, and zeros after them."""
    lengths = n_steps.tolist()
    if min(lengths) == x.shape[-1]:
        return norm(x)
    rows = zip(x.split(1), lengths)
    return torch.cat([F.pad(norm(row[..., :n]), (0, x.shape[-1] - n)) for row, n in rows])


def _norm_masked(x: Tensor, n_steps: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`_norm_each` without a loop, for GPUs and the ONNX graph. A group is one channel in these encoders."""
    mask = (torch.arange(x.shape[-1], device=x.device) < n_steps[:, None]).unsqueeze(1)
    y, steps = x.float() * mask, n_steps[:, None, None]
    centered = (y - y.sum(dim=-1, keepdim=True) / steps) * mask
    std = (centered.square().sum(dim=-1, keepdim=True) / steps + norm.eps).sqrt()
    return ((centered / std * norm.weight[:, None] + norm.bias[:, None]) * mask).to(x)


def cnn_digest(model: SpeechModel) -> str:
    """Digest of the CNN's weights. Models with the same CNN share its cached output."""
    tensors = model.base_model.feature_extractor.state_dict().values()
    weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(weights).hexdigest()[:12]
