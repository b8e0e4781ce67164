"""What keeps artifacts whole: one writer at a time, hashes, and words for a disk that fails."""

import errno
import fcntl
import hashlib
import os
import platform
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from gmp_utils.errors import GmpError

FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
NOTHING_LEFT = 2**20  # bytes; libraries that report a full disk in other words leave less


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """`file_digest` of every file below a folder, by its name there; hidden ones are systems' own."""
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


_seen: dict[tuple, str] = {}  # digests of this process, by what a file is; hard links are one


def damage(folder: Path, digests: dict[str, str], read: Collection[str] = ()) -> str | None:
    """Say how files differ from what they were; each is read once per process.

    Parameters
    ----------
    folder : Path
    digests : dict of str to str
        As `file_digests` returned them when the files were whole.
    read : collection of str
        Which of them; all if none are named.

    Returns
    -------
    damage : str or None
        Of the first that differs.
    """
    for name in read or digests:
        path = folder / name
        try:
            state = path.stat()
            key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
            found = _seen[key] = _seen.get(key) or file_digest(path)
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror})"
        if found != digests.get(name):
            return f"{path}: is not what it was when it was made (its SHA-256 is {found[:12]}…)"
    return None


@contextmanager
def alone(lock: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Let one process at a time go on; a process that dies lets go.

    Parameters
    ----------
    lock : Path
        File that says who goes on.
    what : str
        What is being made, for messages.
    wait : bool
        Wait, and say for whom; or refuse.

    Raises
    ------
    GmpError
        If another process is at it and `wait` is False.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read() or "another process"
            if not wait:
                raise GmpError(
                    f"{what} is being made by {who}; wait until it has ended, or stop it."
                ) from None
            print(f"{what} is being made by {who}: waiting until it has ended.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        now = datetime.now().isoformat(" ", "seconds")
        file.write(f"process {os.getpid()} on {platform.node()}, since {now}")
        file.flush()
        yield


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Say in words that a disk is full, or may not be written to.

    Raises
    ------
    GmpError
        Saying what is kept and what to do.
    """
    try:
        yield
    except GmpError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        place = Path(getattr(error, "filename", None) or folder)
        there = next(path for path in (place, *place.parents) if os.path.exists(path))
        free = shutil.disk_usage(there).free
        if number in FULL or (number is None and free < NOTHING_LEFT):
            raise GmpError(
                f"{place}: no space left on its disk ({free / 2**20:.0f} MB free). Free some and run "
                "the same again: it goes on where it was, and what was finished is kept."
            ) from error
        if number in REFUSED:
            raise GmpError(
                f"{place}: {error.strerror}. Change its permissions, or, if it is of the run, give another "
                "run_dir; what was finished is kept."
            ) from error
        raise
