"""The files of an encoder, and metadata that can be read without loading its weights."""

from pathlib import Path

from gmp_utils import GmpError
from gmp_utils.runs.files import file_digest, read_json, text_digest
from gmp_utils.runs.paths import ROOT

EMBEDDED = Path(__file__).parents[1] / "models" / "embedded"  # a small HuBERT
PRETRAINING_RECORDINGS = "pretraining_recordings.txt"  # next to an encoder's weights, one per line


def resolve(encoder: str) -> str:
    """Folder of an encoder's weights, or its name on the hub.

    `encoder` is "embedded", a folder written by `save_pretrained` (relative to the checkout), or a name
    on the hub.
    """
    if encoder == "embedded":
        return str(EMBEDDED)
    folder = ROOT / Path(encoder).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.is_dir() or encoder.startswith(("/", ".", "~")):
        raise GmpError(f"encoder {encoder!r}: no such folder, or none with a model's config.json.")
    return encoder


def files(encoder: str) -> list[Path]:
    """Files of a local encoder; empty for a name on the hub."""
    folder = Path(resolve(encoder))
    patterns = ("config.json", "*.safetensors", "*.bin")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def n_layers(encoder: str) -> int:
    """Number of Transformer layers of a local encoder; hubert-large's 24 for a name on the hub."""
    file = Path(resolve(encoder)) / "config.json"
    return read_json(file)["num_hidden_layers"] if file.is_file() else 24


def pretraining_objective(encoder: str) -> str:
    """Pre-training objective: "contrastive" for wav2vec 2.0, "clusters" for HuBERT and WavLM."""
    file = Path(resolve(encoder)) / "config.json"
    architecture = read_json(file)["model_type"] if file.is_file() else encoder.lower()
    return "contrastive" if "wav2vec2" in architecture else "clusters"


def pretraining_digests(encoder: str) -> set[str]:
    """Digests of an encoder's pre-training recordings; empty unless notebook 00 trained it."""
    file = Path(resolve(encoder)) / PRETRAINING_RECORDINGS
    return set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()


def fingerprint(encoder: str) -> str:
    """Digest of an encoder's files, or its name on the hub."""
    paths = files(encoder)
    return text_digest("".join(map(file_digest, paths))) if paths else encoder
