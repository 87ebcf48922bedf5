"""Archives that are none, would escape or explode, or whose labels are not clear; and odd images."""

import zipfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from cases import Case
from PIL import Image

from dinoquant.data.generate import TOP, generate
from dinoquant.data.layout import open_dataset
from dinoquant.data.pack import pack
from dinoquant.data.selection import select
from layouts import write_tar
from samples import encoded, header_only

IMAGE = f"{TOP}train/n90000001/images/n90000001_3.JPEG"
QUERY = "val_2.JPEG"
ANNOTATIONS = f"{TOP}val/val_annotations.txt"
WNIDS = f"{TOP}wnids.txt"
Content = bytes | zipfile.ZipInfo
NOISE = Image.effect_noise((64, 64), 90)


@cache
def good() -> Mapping[str, bytes]:
    """Return the members of a small archive with which nothing is wrong: four classes of six train images."""
    with TemporaryDirectory() as folder:
        generate(Path(folder) / "x.zip", classes=4, train_per_class=6, val_per_class=3, seed=0)
        with zipfile.ZipFile(Path(folder) / "x.zip") as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: Mapping[str, bytes]) -> None:
    """Write an archive; what its members are called is not looked at."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.filename = info.orig_filename = name  # the constructor ends the name at a NUL
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def use(folder: Path, make: Callable[[Path], None], on_corrupt: str = "error", bank: int = 6) -> str:
    """Make an archive and pack all of its images, as the workflow would."""
    path = Path("archive.zip")
    make(folder / path)
    with open_dataset(path) as dataset:
        packed = pack(dataset, select(dataset, bank, 12, 0, seed=0), "images.npy", on_corrupt)
        notes = "".join(f"; {note}" for note in dataset.notes)
    modes = ", ".join(sorted({row["mode"] for row in packed.rows}))
    resized = ", resized" if packed.resized else ""
    return f"accepted: {len(packed.rows)} images ({modes}) became RGB{resized}{notes}"


def case(what: str, words: str, make: Callable[[Path], None], **options: object) -> Case:
    return Case("archive", what, words, lambda folder: use(folder, make, **options))


def changed(what: str, words: str, changes: Mapping[str, bytes | None], **options: object) -> Case:
    """Return a case of the good archive with members added, changed, or left out (None)."""

    def make(path: Path) -> None:
        write(path, {name: content for name, content in (good() | changes).items() if content is not None})

    return case(what, words, make, **options)


def text(content: str) -> bytes:
    return content.encode()


def bytes_changed(what: str, words: str, change: Callable[[bytearray], bytes]) -> Case:
    def make(path: Path) -> None:
        write(path, good())
        path.write_bytes(change(bytearray(path.read_bytes())))

    return case(what, words, make)


def cut(content: bytearray) -> bytes:
    return bytes(content[: len(content) // 2])


def headers(content: bytearray, offset: tuple[int, int], value: bytes) -> bytes:
    """Overwrite a field of the image's local and central header, which lies so far from its name."""
    for place, before in zip((content.find(text(IMAGE)), content.rfind(text(IMAGE))), offset, strict=True):
        content[place - before : place - before + len(value)] = value
    return bytes(content)


def twice(path: Path) -> None:
    write(path, good())
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("another")
        info.filename = IMAGE
        archive.writestr(info, b"another image")


def link(path: Path) -> None:
    write(path, {name: content for name, content in good().items() if name != IMAGE})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(IMAGE)
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")


def renamed_class(path: Path) -> None:
    members = {name.replace("n90000001", "$(touch ran)"): content for name, content in good().items()}
    write(
        path,
        {
            name: content.replace(b"n90000001", b"$(touch ran)") if name.endswith("txt") else content
            for name, content in members.items()
        },
    )


def backslashes(path: Path) -> None:
    write(path, {name.replace("/", "\\"): content for name, content in good().items()})


def tar_cut_short(path: Path) -> None:
    write_tar(path, good())
    path.write_bytes(cut(bytearray(path.read_bytes())))


def flat(path: Path) -> None:
    write(path, {f"photos/{name.split('/')[-1]}": content for name, content in good().items() if "train" in name})


def picture(mode: str, kind: str) -> bytes:
    return encoded(NOISE.convert("RGB").convert(mode), kind)


def sixteen_bits() -> bytes:
    return encoded(Image.new("I;16", (64, 64), 40_000), "PNG")


def oversized(content: bytearray) -> bytes:
    """Let the image's headers declare 512 MB."""
    return headers(content, offset=(8, 22), value=b"\0\0\0\x20")


ARCHIVES = [
    case("empty file", "is empty", lambda path: path.write_bytes(b"")),
    case("an error page instead of the archive", "is a web page", lambda path: path.write_text("<html>404</html>")),
    case(
        "a Git LFS pointer", "git lfs pull", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1")
    ),
    case("a rar archive", "unrar x", lambda path: path.write_bytes(b"Rar!\x1a\x07\0" + bytes(600))),
    case("some other file", "neither a zip nor a tar", lambda path: path.write_bytes(b"\x93NUMPY" + bytes(600))),
    bytes_changed("cut short", "only a part of one", cut),
    case("a tar.gz, cut short", "only a part of one", tar_cut_short),
    case("no images at all", "no images", lambda path: write(path, {WNIDS: b"n1\n", ANNOTATIONS: b""})),
    case("a zip file without members", "no images", lambda path: write(path, {})),
    case("photographs in a format that Pillow does not read", ".heic", lambda path: write(path, {"a/1.HEIC": b"x"})),
    case("a flat folder of photographs, without labels", "accepted", flat),
    changed("no annotations of the validation images", "no member", {ANNOTATIONS: None}),
    changed("annotations that are not text", "cannot be read", {ANNOTATIONS: b"\xff\xfe\x00"}),
    changed("annotations without a class", "expected are file and class", {ANNOTATIONS: text(f"{QUERY}\n")}),
    changed("annotations of other images only", "names none of", {ANNOTATIONS: text("x.JPEG\tn90000001\n")}),
    changed("annotation of an image that is missing", "only 11 labelled", {f"{TOP}val/images/{QUERY}": None}),
    changed("an image annotated with two classes", "twice", {ANNOTATIONS: text(f"{QUERY}\tn90000001\n{QUERY}\tn9\n")}),
    changed(
        "annotations that contradict a folder",
        "lies in the folder",
        {f"{TOP}val/n90000001/{name}.JPEG": b"x" for name in ("val_0", "val_1", "val_2")},
    ),
    changed("two lists of classes", "2 members named wnids.txt", {"other/wnids.txt": b"n1\n"}),
    changed("a list of classes without classes", "names no class", {WNIDS: b"\n\n"}),
    changed("a class listed twice", "accepted", {WNIDS: b"".join(good()[WNIDS] for _ in "ab")}),
    changed("a class that has no images", "accepted", {WNIDS: good()[WNIDS] + b"n90000009\n"}),
    changed("a class named like a path", "accepted", {WNIDS: good()[WNIDS] + b"../../etc\n"}),
    changed("a list of other classes", "have no train images", {WNIDS: b"n1\nn2\n"}),
    case("a class named like a command", "accepted", renamed_class),
    changed("Thumbs.db among the images", "accepted", {f"{TOP}train/n90000001/images/Thumbs.db": b"x"}),
    case("backslashes in the names", "accepted", backslashes),
    case("a member that is there twice", "two different members", twice),
    changed("member `../escaped`", "leaves the archive's folder", {"../escaped": b"x"}),
    changed("member `/tmp/escaped`", "absolute path", {"/tmp/escaped": b"x"}),
    changed("member `a/../../escaped`", "leaves the archive's folder", {f"{TOP}a/../../../escaped": b"x"}),
    changed("member `..\\escaped`", "leaves the archive's folder", {"..\\escaped": b"x"}),
    changed("member `C:/escaped`", "absolute path", {"C:/escaped": b"x"}),
    changed("member with a NUL in its name", "absolute path", {f"{TOP}a\0.JPEG": b"x"}),
    case("an image that is a symbolic link to /etc/passwd", "not an image", link),
    bytes_changed("zip bomb: an image that would unpack to 512 MB", "declares 536,870,912 bytes", oversized),
    bytes_changed(
        "zip bomb: a member that hides its size", "Bad CRC", partial(headers, offset=(8, 22), value=b"\x0a\0\0\0")
    ),
    bytes_changed("an encrypted image", "encrypted", partial(headers, offset=(24, 38), value=b"\x01")),
    bytes_changed("an unknown compression", "compression", partial(headers, offset=(22, 36), value=b"\x63")),
    changed("an image that is a text", "not an image", {IMAGE: b"not an image"}),
    changed("an empty image", "not an image", {IMAGE: b""}),
    changed("an SVG with a script", "not an image", {IMAGE: b"<svg><script>alert(1)</script></svg>"}),
    changed("half a JPEG", "truncated", {IMAGE: encoded(NOISE)[:900]}),
    changed("a PNG without pixels", "truncated", {IMAGE: header_only(64, 64)}),
    changed("20,000 pixels a side", "400000000 pixels", {IMAGE: header_only(20_000, 20_000)}),
    changed("decompression bomb: 60,000 pixels a side", "3600000000 pixels", {IMAGE: header_only(60_000, 60_000)}),
    changed("an image of another size", "accepted", {IMAGE: encoded(Image.new("RGB", (48, 32)))}),
    changed("a 16-bit PNG", "I;16", {IMAGE: sixteen_bits()}),
    *(
        changed(f"a file named .JPEG that is {article} {kind}", "accepted", {IMAGE: picture("RGB", kind)})
        for article, kind in (("a", "GIF"), ("a", "WEBP"), ("a", "BMP"), ("a", "TIFF"))
    ),
    changed("CMYK", "accepted", {IMAGE: picture("CMYK", "JPEG")}),
    changed("with alpha", "accepted", {IMAGE: picture("RGBA", "PNG")}),
    changed("with a palette", "accepted", {IMAGE: picture("P", "PNG")}),
    changed("one bit a pixel", "accepted", {IMAGE: picture("1", "PNG")}),
    changed("text for an image, and on_corrupt: skip", "accepted", {IMAGE: b"not an image"}, on_corrupt="skip", bank=5),
    changed("fewer images than dataset.bank_per_class", "dataset.bank_per_class is 7", {}, bank=7),
]
