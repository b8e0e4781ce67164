"""The files of an encoder, and metadata that can be read without loading its weights."""

import re
from functools import cache
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache

from gmp_utils import GmpError
from gmp_utils.runs.files import file_digest, read_json, text_digest
from gmp_utils.runs.paths import ROOT

EMBEDDED = Path(__file__).parents[1] / "models" / "embedded"  # a small HuBERT
HUB_NAME = r"\w[\w.-]*(/[\w.-]+)?(@.+)?"  # with an optional branch, tag or commit
TRAINING_RECORDINGS = "training_recordings.txt"  # next to a model's weights, one per line


def _local(encoder: str) -> Path | None:
    """Folder of an encoder on this machine; None for a name on the hub."""
    if encoder == "embedded":
        return EMBEDDED
    folder = ROOT / Path(encoder).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir() or not re.fullmatch(HUB_NAME, encoder):
        raise GmpError(f"encoder {encoder!r}: no such folder, or no config.json in it.")
    return None


def resolve(encoder: str) -> str:
    """Folder of an encoder's weights.

    `encoder` is "embedded", a folder written by `save_pretrained` (relative to the checkout), or `name` or
    `name@revision` on the hub, from which files are downloaded unless they are in its cache.
    """
    return str(_local(encoder) or _download(encoder))


@cache  # one commit per process
def _download(encoder: str) -> str:
    """Folder of a hub model's commit; without a connection, of the last one downloaded."""
    name, _, revision = encoder.partition("@")
    try:
        for pattern in ("model*.safetensors", "pytorch_model*.bin"):
            patterns = ["*.json", "*.txt", "*.model", pattern]
            folder = snapshot_download(name, revision=revision or None, allow_patterns=patterns)
            if any(Path(folder).glob(pattern)):
                break
    except (OSError, ValueError) as error:
        cause = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        expected = 'expected "embedded", a folder, or name[@revision] on the hub'
        raise GmpError(f"encoder {encoder!r}: not available ({cause}); {expected}.") from error
    return folder


def files(encoder: str) -> list[Path]:
    """Files of a local encoder; empty for a name on the hub."""
    folder = _local(encoder)
    patterns = ("config.json", "*.safetensors", "*.bin")
    return sorted(path for pattern in patterns for path in folder.glob(pattern)) if folder else []


def cached(encoder: str) -> Path | None:
    """Folder of an encoder without downloading it; None for one that is not in the hub's cache."""
    name, _, revision = encoder.partition("@")
    folder = _local(encoder)
    if not folder:
        file = try_to_load_from_cache(name, "config.json", revision=revision or None)
        folder = Path(file).parent if isinstance(file, str) else None
    return folder


def source_of(stage: Path) -> str:
    """Folder of the encoder that a stage was made with; of the same commit if it is on the hub."""
    encoder, inputs = (read_json(stage / f"{name}.json") for name in ("params", "provenance"))
    return resolve(encoder["encoder"] if _local(encoder["encoder"]) else inputs["inputs"][0])


def n_layers(encoder: str) -> int:
    """Number of Transformer layers; hubert-large's 24 for a name on the hub that is not `cached`."""
    folder = cached(encoder)
    return read_json(folder / "config.json")["num_hidden_layers"] if folder else 24


def pretraining_objective(encoder: str) -> str:
    """Pre-training objective: "contrastive" for wav2vec 2.0, "clusters" for others.

    It is that of the config.json, or a guess by the name on the hub of an encoder that is not `cached`.
    """
    folder = cached(encoder)
    architecture = read_json(folder / "config.json")["model_type"] if folder else encoder.lower()
    return "contrastive" if "wav2vec2" in architecture else "clusters"


def training_recordings(source: str | Path) -> set[tuple[str, str]]:
    """Recordings that a model (a folder, see `resolve`) and its initial models were trained or selected on.

    Each is a digest and the part of a fold whose labels were used, "" for audio without labels. The set is
    empty for models from elsewhere.
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
    """Digest of an encoder's files, or `name@commit` on the hub."""
    if paths := files(encoder):
        return text_digest("".join(map(file_digest, paths)))
    return f"{encoder.partition('@')[0]}@{Path(resolve(encoder)).name}"
