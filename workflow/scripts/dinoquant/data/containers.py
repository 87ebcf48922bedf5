"""Read the files of a zip file, a tar file or a folder in place, by one interface; nothing is unpacked by name."""

import bz2
import gzip
import lzma
import shlex
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Protocol

from dinoquant.data import folder as folders
from dinoquant.errors import UserError

# A photograph of 89 million pixels, uncompressed; a member that declares more is broken, or a decompression bomb.
MAX_MEMBER_BYTES = 256 << 20
# What a compressed tar file may unpack to, as images hardly compress: so many times its size, and this in any case.
MAX_RATIO, MIN_UNPACKED_BYTES = 20, 1 << 30
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
TAR_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
COMPRESSIONS: dict[bytes, tuple[str, Callable[[Path], BufferedIOBase]]] = {
    b"\x1f\x8b": ("gzip", gzip.GzipFile),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ": ("xz", lzma.LZMAFile),
}
# First bytes of what people take for an archive, what it is, and what to do with it.
OTHERS = {
    b"Rar!": ("a rar archive", "Unpack it (unrar x {path} FOLDER/), and point dataset.source to the folder."),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it (7z x {path} -oFOLDER), and point dataset.source to the folder."),
    b"\x28\xb5\x2f\xfd": (
        "compressed by zstd",
        "Unpack it (mkdir FOLDER && tar --zstd -xf {path} -C FOLDER), and point dataset.source to the folder.",
    ),
    b"PAR1": (
        "a Parquet table",
        "Save its images as files in a folder for each class, and point dataset.source there.",
    ),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull."),
    b"<": ("a web page", "Fetch the archive itself, not the page that leads to it, in its place."),
}


class UnreadableMemberError(Exception):
    """A member that is damaged, encrypted, too large, or compressed in an unknown way; its text says how."""


class UnusableContainerError(Exception):
    """What is wrong with a whole archive, without its name."""


class Container(Protocol):
    """Files by name, wherever they lie."""

    copies: list[str]
    """Names that occur more than once, of which one is used."""

    @property
    def members(self) -> Mapping[str, object]:
        """Return all regular files by name, relative and with forward slashes."""

    def read(self, member: str) -> bytes:
        """Return a file's content; `UnreadableMemberError` where that cannot be."""


class Folder:
    """A folder of files; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members = {file.name: file.size for file in folders.files(path)}
        self.copies: list[str] = []

    def read(self, member: str) -> bytes:
        _require_size(self.members[member])
        try:
            return Path(self.path, member).read_bytes()
        except OSError as error:
            raise UnreadableMemberError(error.strerror or type(error).__name__) from error


class Zip:
    """An open zip file."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.copies: list[str] = []
        for info in file.infolist():
            # The name as stored: `filename` ends at the first NUL. Windows PowerShell's zips have backslashes.
            name = normal_name(info.orig_filename.replace("\\", "/"))
            if info.is_dir() or not name or info.orig_filename.endswith("\\"):
                continue
            if other := self.members.get(name):
                if (other.CRC, other.file_size) != (info.CRC, info.file_size):
                    raise UnusableContainerError(f"it has two different members named {name!r}.")
                self.copies.append(name)
            self.members[name] = info

    def read(self, member: str) -> bytes:
        info = self.members[member]
        _require_size(info.file_size)
        if info.flag_bits & 1:
            raise UnreadableMemberError("it is encrypted")
        try:
            return self.file.read(info)
        except ZIP_ERRORS as error:
            raise UnreadableMemberError(str(error)) from error


class Tar:
    """An open tar file without compression. A later member of a name replaces an earlier one, as in unpacking."""

    def __init__(self, file: tarfile.TarFile) -> None:
        self.file = file
        self.members: dict[str, tarfile.TarInfo] = {}
        self.copies: list[str] = []
        for info in file:
            name = normal_name(info.name)
            if info.isreg():
                if name in self.members:
                    self.copies.append(name)
                self.members[name] = info

    def read(self, member: str) -> bytes:
        info = self.members[member]
        _require_size(info.size)
        try:
            stream = self.file.extractfile(info)
            return stream.read() if stream else b""
        except TAR_ERRORS as error:
            raise UnreadableMemberError(str(error)) from error


def normal_name(name: str) -> str:
    """Return a member's name without ``.`` and empty parts.

    Raises:
        UnusableContainerError: the name could lead out of a folder that the archive is unpacked to.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or parts[0].endswith(":"):
        raise UnusableContainerError(
            f"its member {name!r} has an absolute path, or one that leaves the archive's folder."
        )
    return "/".join(part for part in parts if part not in ("", "."))


@contextmanager
def open_container(path: str | Path, scratch: str | Path | None = None) -> Iterator[Container]:
    """Open a folder, a zip file, or a tar file of any usual compression.

    Args:
        path: what it is, is told by its content.
        scratch: the folder for the nameless temporary file that a compressed tar file is decompressed to, since it
            cannot be read in another order; the system's own by default.

    Raises:
        UserError: it is none of these, or only a part of one.
        UnusableContainerError: it has members that would leave its folder, or two of one name.
    """
    path = Path(path)
    if path.is_dir():
        yield Folder(path)
        return
    with path.open("rb") as stream:
        start = stream.read(32)
    compression = next((entry for magic, entry in COMPRESSIONS.items() if start.startswith(magic)), None)
    if compression:
        with _decompressed(path, *compression, scratch) as plain, _tar(path, plain) as tar:
            yield tar
    elif zipfile.is_zipfile(path):
        with _zip(path) as file:
            yield Zip(file)
    elif start and not start.startswith(b"PK") and tarfile.is_tarfile(path):
        with path.open("rb") as plain, _tar(path, plain) as tar:
            yield tar
    else:
        raise _not_an_archive(path, start)


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise _incomplete(path, "zip", str(error)) from error


@contextmanager
def _tar(path: Path, plain: IO[bytes]) -> Iterator[Tar]:
    try:
        with tarfile.open(fileobj=plain, mode="r:") as file:
            tar = Tar(file)
            # `tarfile` takes any damage behind the first member for the end, which is a block of zeros.
            plain.seek(file.offset)
            if plain.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise _incomplete(path, "tar", "its end is missing")
            yield tar
    except tarfile.TarError as error:
        raise _incomplete(path, "tar", str(error)) from error


@contextmanager
def _decompressed(
    path: Path, kind: str, opener: Callable[[Path], BufferedIOBase], scratch: str | Path | None
) -> Iterator[IO[bytes]]:
    """Decompress to a temporary file that has no name, and so is gone with this process whatever happens."""
    most = max(MAX_RATIO * path.stat().st_size, MIN_UNPACKED_BYTES)
    with tempfile.TemporaryFile(dir=scratch) as plain, opener(path) as stream:
        while chunk := _chunk(stream, path, kind):
            plain.write(chunk)
            if plain.tell() > most:
                raise UserError(
                    f"{path} unpacks to more than {most:,} bytes, {MAX_RATIO} times its size or more, which "
                    "images never do. If you trust it, unpack it, and point dataset.source to the folder."
                )
        plain.seek(0)
        yield plain


def _chunk(stream: BufferedIOBase, path: Path, kind: str) -> bytes:
    try:
        return stream.read(folders.CHUNK)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise _incomplete(path, kind, str(error)) from error


def _require_size(size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise UnreadableMemberError(f"it declares {size:,} bytes, more than {MAX_MEMBER_BYTES:,}")


def _incomplete(path: Path, kind: str, problem: str) -> UserError:
    return UserError(
        f"{path} begins like a {kind} file, but is damaged, or only a part of one ({problem}).\nCompare its size and "
        f"checksum with those of its source. {_fetch_again(path)}"
    )


def _fetch_again(path: Path) -> str:
    """Return how to replace a file, which only the workflow's own downloads may be for."""
    return "Remove it, and run again to download it." if path.parts[0] == "resources" else "Fetch it again."


def _not_an_archive(path: Path, start: bytes) -> UserError:
    """Return what the file is instead, as far as its first bytes tell, and what helps."""
    if start.startswith(b"PK"):
        return _incomplete(path, "zip", "its list of members, which comes last, is missing")
    description, advice = (
        ("empty", _fetch_again(path))
        if not start
        else next(
            (entry for magic, entry in OTHERS.items() if start.lstrip().startswith(magic)),
            ("neither a zip nor a tar file", "Point dataset.source to one of these, or to a folder of images."),
        )
    )
    return UserError(f"{path} is {description}.\n{advice.format(path=shlex.quote(str(path)))}")
