"""Files that are either complete or absent: everything is written beside its place and renamed."""

import csv
import glob
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
DEFLATE_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)  # weights seldom repeat, code and metadata do


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; rename it into place on success, remove it on failure.

    The file is synced before it is renamed, so that a power cut cannot leave a complete name with missing content.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: matplotlib and pandas choose the format by it.
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(path: str | Path) -> None:
    """Remove what writers of ``path`` that were killed have left beside it; who is alive may still be writing."""
    target = Path(path)
    stem, suffix = target.stem, target.suffix
    for partial in target.parent.glob(f".{glob.escape(stem)}.*.partial{glob.escape(suffix)}"):
        pid = partial.name.removeprefix(f".{stem}.").removesuffix(f".partial{suffix}")
        if pid.isdecimal() and not _alive(int(pid)):
            partial.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """Return whether there is such a process on this machine, whoever it belongs to."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as JSON, atomically; NaN and infinity are errors, because JSON has no word for them."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256(path: str | Path) -> str:
    """Return the digest of a file, read in pieces."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def deflated(content: bytes) -> bytes:
    """Return ``content`` as a member of a zip archive holds it compressed, in the shorter of two ways."""
    found = []
    for strategy in DEFLATE_STRATEGIES:
        compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
        found.append(compressor.compress(content) + compressor.flush())
    return min(found, key=len)


def read_through(path: str | Path) -> None:
    """Read a file once, a chunk at a time, so that it is in the page cache and not in this process."""
    with Path(path).open("rb") as stream:
        while stream.read(CHUNK_BYTES):
            pass


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text by column."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file, atomically: a header, and each row's values as `str` gives them; None and absent are empty.

    Raises ValueError for a row with a key that is no column.
    """
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
