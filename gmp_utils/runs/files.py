"""JSON files, digests of files, and locks."""

import errno
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

from gmp_utils import GmpError

NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # on some network file systems
HASHED_BYTES = 16 * 2**20  # smaller files are hashed whenever they are read
_digests: dict[tuple, str] = {}  # by device, inode, size and time: hard links share one


def read_json(path: Path) -> dict:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file atomically. NumPy values become Python's, and paths become text."""

    def plain(value):
        return value.tolist() if hasattr(value, "tolist") else os.fspath(value)

    text = json.dumps(values, indent=1, default=plain, ensure_ascii=False)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text + "\n", encoding="utf-8")
    os.replace(new, path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def describe_files(folder: Path) -> dict[str, dict]:
    """SHA-256, size and mtime of every file below a folder, except hidden ones, by relative path."""
    described = {}
    for path in filter(Path.is_file, sorted(folder.rglob("[!.]*"))):
        state = path.stat()
        record = {"sha256": file_digest(path), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
        described[str(path.relative_to(folder))] = record
    return described


def find_mismatch(
    folder: Path, files: dict[str, dict], read: Iterable[str] | None = None, thorough: bool = False
) -> str | None:
    """Describe the first of the `read` files (default: all) that differs from `describe_files`.

    Large files of the same size and mtime count as equal unless `thorough`. Those of another mtime may be
    copies, and are hashed.
    """
    for name in files if read is None else read:
        path, described = folder / name, files[name]
        try:
            state = path.stat()
            if state.st_size != described["size"]:
                return f"{path}: found {state.st_size} bytes, expected {described['size']}"
            is_old = state.st_mtime_ns == described["mtime_ns"]
            if thorough or state.st_size < HASHED_BYTES or not is_old:
                key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
                digest = _digests[key] = _digests.get(key) or file_digest(path)
                if digest != described["sha256"]:
                    return f"{path}: its SHA-256 differs from the one recorded when it was written"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"
    return None


@contextmanager
def exclusive_lock(lock: Path, what: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock while `what` is made. If another process holds it, wait or raise a GmpError."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(lock, fallback_to_soft=False)
    owner = lock.with_name(f"{lock.name}.owner")
    try:
        try:
            file_lock.acquire(timeout=0)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            # The lease of a killed process ends at once on this machine, and after two minutes on others.
            file_lock = SoftFileLease(f"{lock}.lease", lease_duration=120)
            file_lock.acquire(timeout=1)
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        found = f"{what} is being made by {who}"
        if not wait:
            raise GmpError(f"{found}; wait until it ends, or stop it.") from None
        print(f"{found}: waiting until it ends.", flush=True)
        file_lock.acquire()
    try:
        now = datetime.now().isoformat(" ", "seconds")
        owner.write_text(f"process {os.getpid()} on {platform.node()}, since {now}", "utf-8")
        yield
    finally:
        file_lock.release()
