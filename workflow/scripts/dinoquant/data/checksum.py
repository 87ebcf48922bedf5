"""Which bytes a source must have, and the receipt that says which bytes it has."""

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

from tqdm import tqdm

from dinoquant.data import folder
from dinoquant.data.folder import CHUNK, Digests
from dinoquant.errors import UserError

log = logging.getLogger(__name__)


class Expected(NamedTuple):
    """What a file must be: ``checksum`` is ``md5:HEX`` or ``sha256:HEX``; None where it is not known."""

    checksum: str | None
    bytes: int | None


class Receipt(TypedDict):
    """What a source turned out to be: the content of ``archive.json`` and ``checkpoint.json``."""

    source: str
    file: str
    bytes: int
    md5: str
    sha256: str
    checked_against: str | None


KNOWN = {
    # The archive of Stanford's course CS231n, as its server offered it.
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip": Expected("md5:90528d7ca1a48142e341f4ef8d21d0de", 248_100_043),
}


def expectation(source: str, checksum: str | None) -> Expected:
    """Return what the file from ``source`` must be: by the config's ``checksum``, else by the known sources."""
    if checksum is not None:
        return Expected(checksum.lower(), None)
    return KNOWN.get(source.replace("https://", "http://", 1), Expected(None, None))


def digest(path: str | Path) -> Digests:
    """Return size (bytes), MD5 and SHA-256 of a file, or of a folder as `folder.digests` does, read once."""
    path = Path(path)
    if path.is_dir():
        return folder.digests(path, partial(tqdm, desc="checksum", unit="file", disable=None))
    md5 = hashlib.md5(usedforsecurity=False)
    sha256 = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as stream, tqdm(total=size, unit="B", unit_scale=True, desc="checksum", disable=None) as bar:
        while chunk := stream.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
            bar.update(len(chunk))
    return Digests(size, md5.hexdigest(), sha256.hexdigest())


def mismatch(actual: Digests, expected: Expected) -> str | None:
    """Return how ``actual`` differs from ``expected``, in words; None where it does not."""
    if expected.checksum is not None:
        algorithm = expected.checksum.partition(":")[0]
        checksum = f"{algorithm}:{actual.md5 if algorithm == 'md5' else actual.sha256}"
        if checksum != expected.checksum:
            size = "" if expected.bytes is None else f" ({expected.bytes:,} bytes)"
            return f"found {checksum} ({actual.bytes:,} bytes), expected {expected.checksum}{size}"
    if expected.bytes not in (None, actual.bytes):
        return f"found {actual.bytes:,} bytes, expected {expected.bytes:,}"
    return None


def verify(path: str | Path, source: str, checksum: str | None, key: str) -> Receipt:
    """Check the file at ``path``, however it came there, and return its receipt.

    Args:
        path: the file that was downloaded, generated or placed by hand, or a folder of images.
        source: where it is said to come from, as the config says it.
        checksum: ``md5:HEX`` or ``sha256:HEX`` from the config; None: only known sources are checked.
        key: the section of the config that names it, ``dataset`` or ``model``, for messages.

    Raises:
        UserError: the file is not what was expected.
    """
    expected = expectation(source, checksum)
    actual = digest(path)
    if difference := mismatch(actual, expected):
        advice = (
            "Delete it and run again" if source.startswith(("http://", "https://")) else f"Point {key} to the right one"
        )
        raise UserError(
            f"{path} is not what was expected of {source}: {difference}.\n"
            f"{advice}; or, if this is the right one, correct {key}.checksum."
        )
    if expected.checksum is None and source != "generated":
        log.info(
            "no checksum known for %s: it is sha256:%s; put that into %s.checksum to pin it", source, actual.sha256, key
        )
    return Receipt(
        source=source,
        file=str(path),
        bytes=actual.bytes,
        md5=actual.md5,
        sha256=actual.sha256,
        checked_against=expected.checksum,
    )
