"""How much memory a stage is going to need, said before it begins; and what to do when it is too much."""

from collections.abc import Callable, Iterator, Sequence

import psutil
import torch
from torch import Tensor

from gmp_utils import hardware
from gmp_utils.batching import FRAMES_PER_SECOND
from gmp_utils.encoders import SpeechModel
from gmp_utils.errors import GmpError


def training_bytes(model: SpeechModel, seconds: float) -> int:
    """Estimate what training needs: parameters, their gradients, Adam's moments, activations.

    A layer of a Transformer keeps 34 bytes per frame and hidden unit in 16 bits (Korthikanti et al.,
    "Reducing Activation Recomputation in Large Transformer Models", 2022, equation 1, without the
    attention matrix, which is not kept today), twice that in 32 bits. A CNN that is trained keeps
    three values per step and channel of each convolution.

    Parameters
    ----------
    model : SpeechModel
    seconds : float
        Padded audio per batch.

    Returns
    -------
    needed : int
        Bytes.
    """
    config, in_16_bits = model.config, hardware.bfloat16()
    held = sum(
        parameter.numel() * (16 if parameter.requires_grad else 4)
        for parameter in model.parameters()
    )
    per_frame = 34 * (1 if in_16_bits else 2) * config.hidden_size * config.num_hidden_layers
    activations = seconds * FRAMES_PER_SECOND * per_frame * model.train_encoder
    if model.train_cnn:
        rate, steps = 16000.0, 0.0
        for stride, channels in zip(config.conv_stride, config.conv_dim):
            rate /= stride
            steps += rate * channels
        activations += seconds * steps * 3 * (2 if in_16_bits else 4)
    return int(held + activations)


def free_bytes() -> int:
    """What is free on the GPU, or of the machine's memory where there is none."""
    if hardware.device() == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def estimate(what: str, needed: int, free: int, remedy: str) -> None:
    """Print what is going to be needed, and a warning where that is more than there is.

    Parameters
    ----------
    what : str
    needed, free : int
        Bytes.
    remedy : str
        What to do about it.
    """
    needs, has = (f"{n / 1e9:.1f} GB" if n > 1e8 else f"{n / 1e6:.1f} MB" for n in (needed, free))
    print(f"{what}: about {needs}, {has} are free")
    if needed > free:
        print(f"WARNING: this may not fit. {remedy}")


def too_small(batch_seconds: float) -> GmpError:
    """The error for a GPU on which a batch does not fit, however it is divided."""
    return GmpError(
        f"the GPU's memory does not suffice for batches of {batch_seconds} s; lower batch_seconds, or "
        "leave out long recordings (max_seconds of notebook 01)."
    )


def in_halves(
    function: Callable, names: Sequence[str], batch: dict[str, Tensor]
) -> Iterator[tuple[Sequence[str], object]]:
    """Apply a function to a batch, and to its halves where the GPU's memory does not suffice.

    Parameters
    ----------
    function : callable
        Of the batch's tensors by name.
    names : sequence of str
        Of the batch's utterances.
    batch : dict of (batch, ...) Tensor

    Yields
    ------
    names : sequence of str
        Of those that were computed together.
    found : object
        What the function made of them.

    Raises
    ------
    GmpError
        If the memory does not suffice for a single utterance.
    """
    try:
        found = function(**batch)
    except torch.OutOfMemoryError:
        if len(names) == 1:
            raise GmpError(
                f"the GPU's memory does not suffice for {names[0]} alone; leave it out (max_seconds of "
                "notebook 01)."
            ) from None
    else:
        yield names, found
        return
    torch.cuda.empty_cache()
    half = len(names) // 2
    for rows in (slice(None, half), slice(half, None)):
        piece = {name: values[rows] for name, values in batch.items()}
        yield from in_halves(function, names[rows], piece)
