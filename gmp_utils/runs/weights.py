"""The files of an encoder, and metadata that can be read without loading its weights."""

from pathlib import Path

from gmp_utils import GmpError
from gmp_utils.runs.files import file_digest, read_json, text_digest
from gmp_utils.runs.paths import ROOT

EMBEDDED = Path(__file__).parents[1] / "models" / "embedded"  # a small HuBERT
TRAINING_RECORDINGS = "training_recordings.txt"  # next to a model's weights, one per line


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


def training_recordings(source: str | Path) -> set[tuple[str, str]]:
    """Recordings that a model (`resolve`), and what it started from, was trained or selected on.

    Each is a digest and the part of a fold whose labels were used, "" for audio without labels. Empty for
    models of others.
    """
    folder = Path(source)
    if (folder / TRAINING_RECORDINGS).is_file():
        lines = (folder / TRAINING_RECORDINGS).read_text(encoding="utf-8").splitlines()
        return {(digest, part) for digest, _, part in (line.partition(" ") for line in lines)}
    if (folder / "config.json").is_file() and "train_cnn" in read_json(folder / "config.json"):
        expected = "without it, test speakers cannot be excluded; copy the whole folder"
        raise GmpError(f"{source}: {TRAINING_RECORDINGS} is missing; {expected}.")
    return set()


def write_training_recordings(folder: Path, recordings: set[tuple[str, str]]) -> None:
    """Write digests and parts, as `training_recordings` reads them."""
    lines = sorted(f"{digest} {part}".strip() for digest, part in recordings)
    (folder / TRAINING_RECORDINGS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def fingerprint(encoder: str) -> str:
    """Digest of an encoder's files, or its name on the hub."""
    paths = files(encoder)
    return text_digest("".join(map(file_digest, paths))) if paths else encoder
