"""How a change of a folder's contents is noticed, and what is no change."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from dinoquant.data import folder as folders
from dinoquant.data.checksum import verify
from dinoquant.data.folder import digests, is_system_file, listing, state
from layouts import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", {"b/1.jpg": b"one", "a/2.jpg": b"two", "a/.hidden": b"x", "c d.jpg": b""})


def test_digest_is_that_of_what_sha256sum_prints(folder: Path) -> None:
    names = ["a/2.jpg", "b/1.jpg", "c d.jpg"]
    printed = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    expected = subprocess.run(["sha256sum"], input=printed, capture_output=True, check=True).stdout.split()[0].decode()
    assert digests(folder).sha256 == expected
    receipt = verify(folder, str(folder), f"sha256:{expected}", "dataset")
    assert (receipt["bytes"], receipt["sha256"], receipt["file"]) == (6, expected, str(folder))


def test_state(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, receipt = tmp_path / "listing.json", tmp_path / "archive.json"
    first = state(folder, record, receipt)
    record.write_text(json.dumps({"listing": listing(folder), "state": first}))
    receipt.write_text(json.dumps({"sha256": digests(folder).sha256}))
    with monkeypatch.context() as patch:
        patch.delattr(folders, "digests")  # where nothing has changed, nothing is read
        (folder / "Thumbs.db").write_bytes(b"x")
        assert state(folder, record, receipt) == first
    os.utime(folder / "a/2.jpg", (2e9, 2e9))
    assert listing(folder) != json.loads(record.read_text())["listing"]
    assert state(folder, record, receipt) == first
    with monkeypatch.context() as patch:
        patch.delattr(folders, "digests")  # nor is it again for the times that are known by now
        assert state(folder, record, receipt) == first
    (folder / "a/2.jpg").write_bytes(b"TWO")
    assert state(folder, record, receipt) not in (first, "")


def test_state_of_a_file_goes_by_its_contents(tmp_path: Path) -> None:
    file, record, receipt = (tmp_path / name for name in (".weights.pth", "listing.json", "checkpoint.json"))
    file.write_bytes(b"one")
    first = state(file, record, receipt)
    receipt.write_text(json.dumps({"sha256": verify(file, str(file), None, "model")["sha256"]}))
    record.write_text("{}")  # as of a download
    assert state(file, record, receipt) == first
    record.write_text(json.dumps({"listing": listing(file), "state": first}))
    os.utime(file, (1e9, 1e9))
    assert listing(file) != first
    assert state(file, record, receipt) == first
    file.write_bytes(b"two")
    os.utime(file, (1e9 - 1, 1e9 - 1))
    assert state(file, record, receipt) != first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.jpg", False),
        ("a/.b.jpg", True),
        (".git/x", True),
        ("__MACOSX/a", True),
        ("THUMBS.DB", True),
        ("a..b", False),
    ],
)
def test_system_files(name: str, expected: bool) -> None:
    assert is_system_file(name) is expected
