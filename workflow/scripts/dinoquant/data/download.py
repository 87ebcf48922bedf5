"""Download one file over HTTP: resumed where it broke off, checked, and complete or absent."""

import logging
import os
import time
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import requests
from tqdm import tqdm

from dinoquant.data.checksum import Expected, digest, mismatch
from dinoquant.errors import UserError
from dinoquant.files import read_json, write_json

log = logging.getLogger(__name__)

# Bytes. What has arrived of a chunk when the connection breaks is lost, so it is small.
CHUNK = 1 << 14
TEMPORARY_ERRORS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
TEMPORARY_STATUS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class Partial(NamedTuple):
    """A download that is under way: its bytes, and a record of which version of the source they belong to.

    It is not written through `files.atomic`, because it has to outlive the process that was cut off.
    """

    content: Path
    record: Path

    def size(self) -> int:
        return self.content.stat().st_size if self.content.exists() else 0

    def discard(self) -> None:
        self.content.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


def download(
    url: str,
    target: str | Path,
    checksum: str | None,
    expected_bytes: int | None,
    *,
    attempts: int = 5,
    pause: float = 2.0,
    timeout: float = 30.0,
) -> None:
    """Download ``url`` to ``target``; go on from ``target.part`` where an earlier run was cut off.

    Args:
        url: http or https.
        target: appears only when it is complete and its checksum is right.
        checksum: ``md5:HEX`` or ``sha256:HEX``; None: the content is not checked.
        expected_bytes: None: whatever length the server announces.
        attempts: how often a connection is tried before giving up.
        pause: seconds before the second attempt; doubled before each further one.
        timeout: seconds without a byte, or without a connection, after which an attempt has failed.

    Raises:
        UserError: no success within ``attempts``, a refusal (status 4xx), a wrong size or a wrong checksum.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Partial(target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json"))
    log.info("downloading %s to %s", url, target)
    for attempt in range(1, attempts + 1):
        try:
            _fetch(url, part, target, expected_bytes, timeout)
            break
        except requests.RequestException as error:
            log.warning("attempt %d of %d: %s", attempt, attempts, _reason(error))
            if attempt == attempts or not _is_temporary(error):
                raise UserError(_failure(url, target, part, _reason(error))) from error
        time.sleep(pause * 2 ** (attempt - 1))
    if difference := mismatch(digest(part.content), Expected(checksum and checksum.lower(), expected_bytes)):
        part.discard()
        raise UserError(
            f"{url} was downloaded, but is not the expected file: {difference}. It has been removed.\n"
            "Run again; if this comes again, the source has changed: correct its checksum in the config, "
            f"or place the right file at {target}."
        )
    with part.content.open("rb+") as stream:
        os.fsync(stream.fileno())
    part.content.replace(target)
    part.record.unlink(missing_ok=True)


def _fetch(url: str, part: Partial, target: Path, expected_bytes: int | None, timeout: float) -> None:
    """Make one request for what is missing of ``url`` and append it to ``part``.

    Fewer bytes than the server announced are an error of ``iter_content`` (urllib3, since version 2).
    """
    validator, total = _resumable(url, part)
    offset = part.size() if validator else 0
    if offset and offset == total:
        return
    # The offsets count the bytes of the file: it must not be compressed on its way.
    headers = {"Accept-Encoding": "identity"}
    if validator and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            continues = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
            if not continues or _validator(response) not in (None, validator):
                part.discard()
                raise requests.ConnectionError("the partial file does not fit the source any more: starting afresh")
        response.raise_for_status()
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            offset = 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        if expected_bytes is not None and total not in (None, expected_bytes):
            offer = f"the server offers {total:,} bytes, expected {expected_bytes:,}"
            raise UserError(_failure(url, target, part, f"{offer}: the source has changed, or a proxy answers for it"))
        with part.content.open("ab" if offset else "wb") as stream:
            if not offset:
                write_json(part.record, {"url": url, "validator": _validator(response), "bytes": total})
            log.info("%s: %s bytes from byte %d", response.status_code, length or "an unknown number of", offset)
            with tqdm(
                total=total, initial=offset, unit="B", unit_scale=True, desc=target.name, disable=None
            ) as progress:
                for chunk in response.iter_content(CHUNK):
                    stream.write(chunk)
                    progress.update(len(chunk))


def _resumable(url: str, part: Partial) -> tuple[str | None, int | None]:
    """Return the validator and the size (bytes) of the version that ``part`` belongs to; None where not known."""
    if not part.content.exists() or not part.record.exists():
        return None, None
    record = read_json(part.record)
    if record["url"] != url or part.size() > (record["bytes"] or float("inf")):
        return None, None
    return record["validator"], record["bytes"]


def _validator(response: requests.Response) -> str | None:
    """Return what identifies this version in an If-Range header, which takes no weak tag (RFC 9110, 13.1.5)."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _is_temporary(error: requests.RequestException) -> bool:
    if error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in TEMPORARY_STATUS
    return isinstance(error, TEMPORARY_ERRORS)


def _reason(error: requests.RequestException) -> str:
    """Return the cause at the bottom of the chain: the layers above repeat it with addresses of objects."""
    root: BaseException = error
    while root.__context__ is not None:
        root = root.__context__
    return f"{type(error).__name__}: {root}"


def _failure(url: str, target: Path, part: Partial, reason: str) -> str:
    kept = f"\n{part.size():,} bytes are kept: running again goes on from there." if part.size() else ""
    return (
        f"{url} could not be downloaded: {reason}.\n"
        f"Without network: download it elsewhere and place it at {target}, then run again.{kept}"
    )
