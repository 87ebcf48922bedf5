"""A folder of files: which it holds; and how changed contents, also of a file, are noticed. Standard library only."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dinoquant.files import sha256, write_json

CHUNK = 1 << 20
# What file managers, archivers and notebooks leave behind, by folder or file name; and all that begins with a dot.
SYSTEM_NAMES = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}


class File(NamedTuple):
    """A file below a folder: its relative name with forward slashes, size in bytes and time of change in ns."""

    name: str
    size: int
    mtime: int


class Digests(NamedTuple):
    """The content of a file, or of a folder's files with their names."""

    bytes: int
    md5: str
    sha256: str


def is_system_file(name: str) -> bool:
    """Return whether a file is hidden or a system's own, and so no part of a data set, by its relative name."""
    return any(part.startswith(".") or part.lower() in SYSTEM_NAMES for part in name.split("/"))


def files(folder: str | Path) -> Iterator[File]:
    """Yield every regular file below ``folder`` in the order of names, through links; a dangling link has no size."""
    status = Path(folder).stat()
    return _files(Path(folder), "", ((status.st_dev, status.st_ino),))


def _files(folder: Path, prefix: str, parents: tuple[tuple[int, int], ...]) -> Iterator[File]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            status = entry.stat()
            identity = (status.st_dev, status.st_ino)
            if identity not in parents:  # a link to a folder that it lies in would never end
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/", (*parents, identity))
        elif entry.is_file():
            status = entry.stat()
            yield File(prefix + entry.name, status.st_size, status.st_mtime_ns)
        elif entry.is_symlink():
            yield File(prefix + entry.name, 0, 0)


def listing(folder: str | Path) -> str:
    """Return a digest of the names, sizes and times of the files that are no system's own: cheap, contents unread.

    Of a file, its size and time.
    """
    if Path(folder).is_file():
        status = Path(folder).stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    digest = hashlib.sha256()
    for file in files(folder):
        if not is_system_file(file.name):
            digest.update(f"{file.size} {file.mtime} {file.name}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def digests(folder: str | Path, progress: Callable[[Iterable[File]], Iterable[File]] = iter) -> Digests:
    """Return the size in bytes of all files that are no system's own, and digests of their names and contents.

    The digests are of the lines that `sha256sum` prints for these files, sorted by folder and name.

    Args:
        folder: read whole, once.
        progress: wraps the iteration over the files.
    """
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    for file in progress([file for file in files(folder) if not is_system_file(file.name)]):
        content = hashlib.sha256()
        path = Path(folder, file.name)
        if path.exists():
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    content.update(chunk)
        line = f"{content.hexdigest()}  {file.name}\n".encode("utf-8", "surrogateescape")
        md5.update(line)
        sha256.update(line)
        size += file.size
    return Digests(size, md5.hexdigest(), sha256.hexdigest())


def state(folder: str | Path, record: str | Path, receipt: str | Path) -> str:
    """Return a text that stays the same as long as the contents of ``folder`` do: its listing when they were new.

    Where names, sizes and times are those of the record, nothing is read. Where they are not, the contents decide, so
    that a touched or copied folder is the same one. The record then gets the new times, if it can be written.

    Args:
        folder: the data set, or a file.
        record: JSON with ``listing`` and ``state`` as they were when the receipt was written; may be absent.
        receipt: JSON with ``sha256``, that of the contents at that time.
    """
    current = listing(folder)
    if not (Path(record).is_file() and Path(receipt).is_file()):
        return current
    recorded: dict[str, str] = json.loads(Path(record).read_text(encoding="utf-8"))
    if not recorded:  # the receipt is of what was downloaded or generated
        return current
    if recorded["listing"] == current:
        return recorded["state"]
    checked: dict[str, str] = json.loads(Path(receipt).read_text(encoding="utf-8"))
    content = digests(folder).sha256 if Path(folder).is_dir() else sha256(folder)
    if content != checked["sha256"]:
        return current
    with suppress(OSError):
        write_json(record, {**recorded, "listing": current})
    return recorded["state"]
