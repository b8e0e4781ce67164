"""Where an encoder's weights come from, and what is known of them without loading any."""

import os
import pickle
import shutil
from pathlib import Path

from gmp_utils import runs
from gmp_utils.errors import GmpError
from gmp_utils.integrity import alone, file_digest, storage

CONVERTED = runs.ROOT / "runs" / "encoders"  # safetensors of what came as pickles
EMBEDDED = {  # a HuBERT and a wav2vec 2.0, both small
    name: Path(__file__).parent / name.replace("-", "_")
    for name in ("embedded", "embedded-wav2vec2")
}
HEARD = "heard.txt"  # beside an encoder's weights, a line per recording


def resolve(encoder: str) -> str:
    """Say where an encoder's weights come from.

    Parameters
    ----------
    encoder : str
        "embedded", "embedded-wav2vec2", a local folder as `save_pretrained` writes it (relative ones
        are below the checkout), or a name on the hub.

    Raises
    ------
    GmpError
        If a local folder holds no model.
    """
    if encoder in EMBEDDED:
        return str(EMBEDDED[encoder])
    folder = runs.ROOT / Path(encoder).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise GmpError(f"encoder {encoder!r}: the folder holds no config.json of a model.")
    if not folder.is_dir() and encoder.startswith(("/", ".", "~")):
        raise GmpError(f"encoder {encoder!r}: no such folder.")
    return str(folder) if folder.is_dir() else encoder


def files(encoder: str) -> list[Path]:
    """The files of a local encoder; none for a name on the hub."""
    folder = Path(resolve(encoder))
    patterns = ("config.json", "*.safetensors", "*.bin")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def n_layers(encoder: str) -> int:
    """Layers of a local encoder, so that `-1 - n_layers` is its deepest hidden state.

    Of a name on the hub, where nothing is fetched for a question: hubert-large's 24.
    """
    file = Path(resolve(encoder)) / "config.json"
    return runs.read_json(file)["num_hidden_layers"] if file.is_file() else 24


def own_objective(encoder: str) -> str:
    """What an encoder was pre-trained with: "contrastive" for wav2vec 2.0, "clusters" for HuBERT and WavLM.

    Of a name on the hub, where nothing is fetched for a question, the name tells.
    """
    file = Path(resolve(encoder)) / "config.json"
    kind = runs.read_json(file)["model_type"] if file.is_file() else encoder.lower()
    return "contrastive" if "wav2vec2" in kind else "clusters"


def heard(encoder: str) -> set[str]:
    """Digests of the recordings that an encoder of notebook 00 was pre-trained on.

    Nothing is known of other encoders.
    """
    file = Path(resolve(encoder)) / HEARD
    return set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()


def identity(encoder: str) -> str:
    """Name an encoder by the content of its folder, or by its name on the hub."""
    found = files(encoder)
    return runs.text_digest("".join(map(runs.file_digest, found))) if found else encoder


def as_safetensors(source: str) -> str:
    """The same weights as safetensors.

    Weights that were published as pytorch_model.bin, which is a pickle, are read once, numbers only, and
    written as safetensors below `CONVERTED`, under the name of their content.

    Parameters
    ----------
    source : str
        Of `resolve`.

    Returns
    -------
    source : str
        Itself where it has safetensors, else the folder of the copy.

    Raises
    ------
    GmpError
        If a pickle holds more than numbers; its code is not run.
    """
    import torch
    from huggingface_hub import snapshot_download
    from safetensors.torch import save_file

    folder = Path(source)
    if not folder.is_dir():
        wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
        folder = Path(snapshot_download(source, allow_patterns=wanted))
        if not any(folder.glob("model*.safetensors")):
            wanted = ["config.json", "pytorch_model*.bin"]
            folder = Path(snapshot_download(source, allow_patterns=wanted))
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if any(folder.glob("model*.safetensors")) or not pickles:
        return str(folder)
    digest = runs.text_digest("".join(map(file_digest, pickles)))[:12]
    copy = CONVERTED / f"{Path(source).name}-{digest}"
    if copy.is_dir():
        return str(copy)
    with storage(copy), alone(copy.with_name(f".{copy.name}.lock"), runs.shown(copy)):
        if copy.is_dir():
            return str(copy)
        tensors = {}
        for path in pickles:
            try:
                read = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError) as error:
                raise GmpError(f"{path}: is cut or damaged ({error}); fetch it again.") from error
            except (pickle.UnpicklingError, TypeError) as error:
                raise GmpError(
                    f"{path}: holds more than numbers, and is not read: loading it could run any code. "
                    "Take weights that were published as safetensors."
                ) from error
            if not isinstance(read, dict) or not all(map(torch.is_tensor, read.values())):
                raise GmpError(f"{path}: holds no weights by name; expected a state_dict alone.")
            tensors |= read
        partial = copy.with_name(f".{copy.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        shutil.copy(folder / "config.json", partial)
        own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(own, partial / "model.safetensors", {"format": "pt"})
        os.replace(partial, copy)
    return str(copy)
