"""Downloads against a server that cuts, stalls, refuses and changes; checksums and receipts."""

import errno
import hashlib
import io
import logging
import sys
import time
from pathlib import Path

import pytest

from dinoquant.data import checksum, download
from dinoquant.data.checksum import Expected, verify
from dinoquant.errors import UserError
from httpserver import Behaviour, serve, unused_url

CONTENT = bytes(range(256)) * 1000
# Whole chunks, so that nothing of what was sent is lost.
CUT = 6 * download.CHUNK
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "datasets" / "data.zip"


def fetch(url: str, target: Path, checksum: str | None = SHA256, expected_bytes: int | None = None) -> None:
    download.download(url, target, checksum, expected_bytes, attempts=3, pause=0.01, timeout=0.3)


def interrupt(server: Behaviour, target: Path, after: int) -> None:
    """Leave behind what a download that was cut off after so many bytes leaves behind."""
    server.cuts += [after]
    with pytest.raises(UserError):
        download.download(server.url, target, SHA256, None, attempts=1, timeout=0.3)
    server.requests.clear()


def files(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


@pytest.mark.parametrize("expected", [MD5, SHA256, SHA256.upper().replace("SHA256", "sha256"), None])
def test_complete_file_and_nothing_else(target: Path, expected: str | None) -> None:
    with serve(CONTENT) as server:
        fetch(server.url, target, expected, len(CONTENT))
    assert target.read_bytes() == CONTENT
    assert files(target) == ["data.zip"]
    assert len(server.requests) == 1


def test_cut_connection_is_resumed_not_repeated(target: Path) -> None:
    with serve(CONTENT, cuts=[CUT, CUT]) as server:
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in server.requests] == [
        None,
        f"bytes={CUT}-",
        f"bytes={2 * CUT}-",
    ]
    assert [request.headers.get("If-Range") for request in server.requests] == [None, '"1"', '"1"']
    assert sum(request.sent for request in server.requests) == len(CONTENT)


@pytest.mark.parametrize(
    ("etag", "modified"),
    [('"1"', None), ('W/"1"', "Mon, 01 Jan 2024 00:00:00 GMT"), (None, "Mon, 01 Jan 2024 00:00:00 GMT")],
)
def test_next_run_goes_on_from_there(target: Path, etag: str | None, modified: str | None) -> None:
    with serve(CONTENT, etag=etag, last_modified=modified) as server:
        interrupt(server, target, CUT)
        assert files(target) == ["data.zip.part", "data.zip.part.json"]
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT
    assert [request.sent for request in server.requests] == [len(CONTENT) - CUT]


def test_source_without_a_version_is_restarted(target: Path) -> None:
    with serve(CONTENT, etag=None) as server:
        interrupt(server, target, CUT)
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT
    assert "Range" not in server.requests[0].headers


@pytest.mark.parametrize("if_range", [True, False])
def test_source_that_changed_is_restarted(target: Path, if_range: bool) -> None:
    old = CONTENT[::-1]
    with serve(old, if_range=if_range) as server:
        interrupt(server, target, CUT)
        server.content, server.etag = CONTENT, '"2"'
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT


def test_partial_file_of_another_url_is_not_continued(target: Path) -> None:
    with serve(CONTENT[::-1]) as other:
        interrupt(other, target, CUT)
    with serve(CONTENT) as server:
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT
    assert "Range" not in server.requests[0].headers


def test_partial_file_without_record_is_not_continued(target: Path) -> None:
    target.parent.mkdir()
    target.with_name("data.zip.part").write_bytes(b"what is this?")
    with serve(CONTENT) as server:
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 10])
def test_partial_file_that_is_complete_or_too_long(target: Path, size: int) -> None:
    """Complete: the process was killed before the rename, and no byte is fetched again."""
    with serve(CONTENT) as server:
        interrupt(server, target, CUT)
        target.with_name("data.zip.part").write_bytes((CONTENT + CONTENT)[:size])
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == (0 if size == len(CONTENT) else 1)


def test_source_that_became_shorter_is_restarted(target: Path) -> None:
    """The server answers 416, because it heeds Range but not If-Range."""
    with serve(CONTENT + CONTENT, if_range=False) as server:
        interrupt(server, target, 3 * CUT)
        server.content, server.etag = CONTENT, '"2"'
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT


def test_server_that_ignores_range_is_restarted(target: Path) -> None:
    with serve(CONTENT, ranges=False, cuts=[CUT]) as server:
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT
    assert [request.sent for request in server.requests] == [CUT, len(CONTENT)]


def test_stalled_server_times_out_and_is_resumed(target: Path) -> None:
    with serve(CONTENT, stalls=[CUT]) as server:
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT
    assert [request.sent for request in server.requests] == [CUT, len(CONTENT) - CUT]


def test_server_that_stays_silent_is_given_up(target: Path) -> None:
    begin = time.monotonic()
    with serve(CONTENT, stalls=[0, 0, 0]) as server, pytest.raises(UserError, match="timed out"):
        fetch(server.url, target)
    assert len(server.requests) == 3
    assert time.monotonic() - begin < 5


def test_length_that_is_not_announced(target: Path) -> None:
    with serve(CONTENT, length=False) as server:
        fetch(server.url, target, SHA256, len(CONTENT))
        assert target.read_bytes() == CONTENT
        with pytest.raises(UserError, match="found 256,000 bytes, expected 1"):
            fetch(server.url, target, None, 1)


def test_unexpected_length_ends_before_the_download(target: Path) -> None:
    with serve(CONTENT) as server, pytest.raises(UserError, match="offers 256,000 bytes, expected 12"):
        fetch(server.url, target, None, 12)
    assert len(server.requests) == 1
    assert files(target) == []


def test_wrong_checksum_leaves_nothing(target: Path) -> None:
    expected = "md5:" + "0" * 32
    with serve(CONTENT) as server, pytest.raises(UserError) as error:
        fetch(server.url, target, expected)
    assert MD5 in str(error.value)
    assert expected in str(error.value)
    assert files(target) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 3), (503, 3), (429, 3)])
def test_refusals_are_final_and_failures_are_not(target: Path, status: int, requests: int) -> None:
    with serve(CONTENT, status=[status] * 9) as server, pytest.raises(UserError, match=str(status)) as error:
        fetch(server.url, target)
    assert len(server.requests) == requests
    assert server.url in str(error.value)
    assert f"place it at {target}, then run again" in str(error.value)


def test_failure_that_passes(target: Path) -> None:
    with serve(CONTENT, status=[503, 500]) as server:
        fetch(server.url, target)
    assert target.read_bytes() == CONTENT


def test_pauses_double(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with serve(CONTENT, status=[503] * 9) as server, pytest.raises(UserError):
        download.download(server.url, target, None, None, attempts=4, pause=2, timeout=1)
    assert pauses == [2, 4, 8]


def test_no_server(target: Path) -> None:
    url = unused_url()
    with pytest.raises(UserError) as error:
        fetch(url, target)
    assert f"{url} could not be downloaded: ConnectionError: [Errno" in str(error.value)
    assert "refused" in str(error.value)
    assert f"place it at {target}, then run again" in str(error.value)


def test_failure_says_what_is_kept(target: Path) -> None:
    with serve(CONTENT, cuts=[CUT, CUT, 7]) as server, pytest.raises(UserError, match=f"{2 * CUT:,} bytes are kept"):
        fetch(server.url, target)
    assert not target.exists()


@pytest.mark.parametrize("url", ["ftp://example.org/data.zip", "http://", "example.org/data.zip"])
def test_url_that_is_none(target: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("retried"))
    with pytest.raises(UserError, match="could not be downloaded"):
        fetch(url, target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_is_passed_on(target: Path) -> None:
    target.parent.mkdir()
    target.with_name("data.zip.part").symlink_to("/dev/full")
    with serve(CONTENT) as server, pytest.raises(OSError, match="No space left") as error:
        fetch(server.url, target)
    assert error.value.errno == errno.ENOSPC
    assert len(server.requests) == 1
    assert not target.exists()


def test_progress_is_shown_on_a_terminal_only(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with serve(CONTENT, cuts=[CUT]) as server:
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        fetch(server.url, target)
        monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
        fetch(server.url, target)
    # 256 kB, of which 98 kB had arrived when the second request began.
    assert "data.zip: 100%" in terminal.getvalue()
    assert "256k/256k" in terminal.getvalue()
    assert "38%" in terminal.getvalue()
    assert pipe.getvalue() == ""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.zip"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("expected", [MD5, SHA256])
def test_receipt(file: Path, expected: str) -> None:
    assert verify(file, "https://example.org/x.zip", expected, "dataset") == {
        "source": "https://example.org/x.zip",
        "file": str(file),
        "bytes": 256_000,
        "md5": MD5.removeprefix("md5:"),
        "sha256": SHA256.removeprefix("sha256:"),
        "checked_against": expected,
    }


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_mismatch_says_what_to_do(file: Path, algorithm: str) -> None:
    expected = f"{algorithm}:00"
    with pytest.raises(UserError) as error:
        verify(file, "https://example.org/x.zip", expected, "model")
    for text in (str(file), {"md5": MD5, "sha256": SHA256}[algorithm], expected, "Delete it", "correct model.checksum"):
        assert text in str(error.value)


def test_unknown_source_is_recorded_and_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        receipt = verify(file, "https://example.org/x.zip", None, "dataset")
    assert receipt["checked_against"] is None
    assert f"it is {SHA256}; put that into dataset.checksum" in caplog.text


def test_generated_data_set_is_not_to_be_pinned(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        verify(file, "generated", None, "dataset")
    assert not caplog.text


@pytest.mark.parametrize("source", ["http://cs231n.stanford.edu/x.zip", "https://cs231n.stanford.edu/x.zip"])
def test_known_source_is_checked_without_checksum(file: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = "http://cs231n.stanford.edu/x.zip"
    monkeypatch.setattr(checksum, "KNOWN", {known: Expected(MD5, len(CONTENT))})
    assert verify(file, source, None, "dataset")["checked_against"] == MD5
    assert verify(file, source, SHA256, "dataset")["checked_against"] == SHA256
    assert verify(file, source, "sha256:" + SHA256[7:].upper(), "dataset")["checked_against"] == SHA256
    file.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=r"255,999 bytes.*256,000 bytes"):
        verify(file, source, None, "dataset")


def test_tiny_imagenet_is_known() -> None:
    expected = checksum.expectation("http://cs231n.stanford.edu/tiny-imagenet-200.zip", None)
    assert expected == ("md5:90528d7ca1a48142e341f4ef8d21d0de", 248100043)
