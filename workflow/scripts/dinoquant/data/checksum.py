"""Which bytes a source must have, and the receipt that says which bytes were found."""

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple, TypedDict

from tqdm import tqdm

from dinoquant.errors import UserError

log = logging.getLogger(__name__)

CHUNK = 1 << 20


class Expected(NamedTuple):
    """What a file must be: ``checksum`` is ``md5:HEX`` or ``sha256:HEX``; None where it is not known."""

    checksum: str | None
    bytes: int | None


class Digests(NamedTuple):
    """What a file is."""

    bytes: int
    md5: str
    sha256: str


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
    """Return size (bytes), MD5 and SHA-256 of a file, read once."""
    md5 = hashlib.md5(usedforsecurity=False)
    sha256 = hashlib.sha256()
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as stream, tqdm(total=size, unit="B", unit_scale=True, desc="checksum", disable=None) as bar:
        while chunk := stream.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
            bar.update(len(chunk))
    return Digests(size, md5.hexdigest(), sha256.hexdigest())


def mismatch(found: Digests, expected: Expected) -> str | None:
    """Return how ``found`` differs from ``expected``, in words; None where it does not."""
    if expected.checksum is not None:
        algorithm = expected.checksum.partition(":")[0]
        checksum = f"{algorithm}:{found.md5 if algorithm == 'md5' else found.sha256}"
        if checksum != expected.checksum:
            size = "" if expected.bytes is None else f" ({expected.bytes:,} bytes)"
            return f"found {checksum} ({found.bytes:,} bytes), expected {expected.checksum}{size}"
    if expected.bytes not in (None, found.bytes):
        return f"found {found.bytes:,} bytes, expected {expected.bytes:,}"
    return None


def verify(path: str | Path, source: str, checksum: str | None, key: str) -> Receipt:
    """Check the file at ``path``, however it came there, and return its receipt.

    Args:
        path: the file that was downloaded, generated or placed by hand.
        source: where it is said to come from, as the config says it.
        checksum: ``md5:HEX`` or ``sha256:HEX`` from the config; None: only known sources are checked.
        key: the section of the config that names it, ``dataset`` or ``model``, for messages.

    Raises:
        UserError: the file is not what was expected.
    """
    expected = expectation(source, checksum)
    found = digest(path)
    if difference := mismatch(found, expected):
        raise UserError(
            f"{path} is not the expected file of {source}: {difference}.\n"
            f"Delete it and run again; or, if this file is the right one, correct {key}.checksum."
        )
    if expected.checksum is None and source != "generated":
        log.info(
            "no checksum known for %s: it is sha256:%s; put that into %s.checksum to pin it", source, found.sha256, key
        )
    return Receipt(
        source=source,
        file=str(path),
        bytes=found.bytes,
        md5=found.md5,
        sha256=found.sha256,
        checked_against=expected.checksum,
    )
