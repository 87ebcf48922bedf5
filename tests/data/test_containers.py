"""Zip files, tar files and folders by one interface; what is none of them, and what would escape or explode."""

import gzip
import os
from pathlib import Path

import pytest

from dinoquant.data import containers
from dinoquant.data.containers import UnreadableMemberError, UnusableContainerError, open_container
from dinoquant.errors import UserError
from layouts import official, write_folder, write_tar, write_zip

FILES = {"a/x": b"some image", "a/y": b""}


@pytest.fixture(params=["zip", "tar", "tar.gz", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    target = tmp_path / "data"
    match request.param:
        case "zip":
            return write_zip(target, FILES)
        case "folder":
            return write_folder(target, FILES)
        case kind:
            return write_tar(target, FILES, "w:gz" if kind == "tar.gz" else "w")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error, open_container(path):
        pass
    assert str(path) in str(error.value)
    assert "elete" not in str(error.value)  # of a user's own file
    return str(error.value)


def test_members_and_contents(path: Path) -> None:
    with open_container(path) as container:
        assert sorted(container.members) == ["a/x", "a/y"]
        assert [container.read(name) for name in ("a/x", "a/y", "a/x")] == [b"some image", b"", b"some image"]


def test_a_member_that_is_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_MEMBER_BYTES", 9)
    with open_container(path) as container, pytest.raises(UnreadableMemberError, match="declares 10 bytes"):
        container.read("a/x")


def test_missing_file_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_container(tmp_path / "x.zip"):
        pass


def test_a_damaged_member_of_a_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", FILES)
    path.write_bytes(path.read_bytes().replace(b"some", b"Some", 1))
    with open_container(path) as container, pytest.raises(UnreadableMemberError, match="CRC"):
        container.read("a/x")


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").symlink_to(tmp_path / "gone")
    with open_container(tmp_path) as container, pytest.raises(UnreadableMemberError, match="No such file"):
        container.read("x.jpg")


def test_what_is_no_regular_file_is_no_member(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with open_container(tmp_path) as container:
        assert not container.members


@pytest.mark.parametrize("name", ["/a", "../a", "a/../../b", "C:/a", "a\0b", "..\\a"])
def test_members_that_would_escape(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UnusableContainerError, match="absolute path, or one that leaves"),
        open_container(write_zip(tmp_path / "x.zip", {name: b""})),
    ):
        pass
    if name.startswith(("/", ".")) and "\\" not in name:
        with pytest.raises(UnusableContainerError), open_container(write_tar(tmp_path / "x.tar", {name: b""})):
            pass


def test_harmless_dots(tmp_path: Path) -> None:
    files = {"a/..x": b"", "a/a..b/x": b"", "./b//x": b""}
    with open_container(write_zip(tmp_path / "x.zip", files)) as container:
        assert list(container.members) == ["a/..x", "a/a..b/x", "b/x"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("contents", "same"), [((b"x", b"x"), True), ((b"x", b"y"), False)])
def test_a_member_twice(contents: tuple[bytes, bytes], same: bool, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": contents[0], "./a": contents[1]})
    if same:
        with open_container(path) as container:
            assert (container.copies, container.read("a")) == (["a"], b"x")
    else:
        with pytest.raises(UnusableContainerError, match="two different members named 'a'"), open_container(path):
            pass
    tar = write_tar(tmp_path / "x.tar", {"a": contents[0], "./a": contents[1]})
    with open_container(tar) as container:  # the later one counts, as in unpacking
        assert (container.copies, container.read("a")) == (["a"], contents[1])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"\n <html>404</html>", "is a web page"),
        (b"Rar!\x1a\x07\x00" + bytes(600), "unrar x"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "7z x"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "tar --zstd -xf"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PAR1" + bytes(600), "Parquet"),
        (b"\x93NUMPY" + bytes(600), "neither a zip nor a tar file"),
    ],
)
def test_what_is_no_archive_is_told_by_its_first_bytes(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(content)
    assert text in refusal(tmp_path / "data.zip")


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("part", [0.7, 0.5, 0.1])
def test_a_part_of_an_archive(mode: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_zip(path, official()) if mode == "zip" else write_tar(path, official(), mode)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert "only a part of one" in refusal(path)


def test_compressed_but_no_tar(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.npy.gz", "w") as stream:
        stream.write(b"\x93NUMPY" + bytes(5000))
    assert "begins like a tar file, but is damaged" in refusal(tmp_path / "x.npy.gz")


def test_a_tar_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MIN_UNPACKED_BYTES", 1 << 20)
    path = write_tar(tmp_path / "bomb.tar.gz", {"x.jpg": bytes(4 << 20)})
    assert "unpacks to more than 1,048,576 bytes" in refusal(path)


def test_nothing_is_left_of_a_decompressed_tar(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with open_container(write_tar(tmp_path / "x.tar.gz", FILES), scratch) as container:
        assert container.read("a/x") == b"some image"
        assert list(scratch.iterdir()) == []
