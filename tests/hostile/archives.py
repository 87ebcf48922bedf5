"""Archives that are no archive, would escape or explode, or are not in Tiny ImageNet's layout; and odd images."""

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
    modes = ", ".join(sorted({row["mode"] for row in packed.rows}))
    return f"accepted: {len(packed.rows)} images ({modes}) became RGB"


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


def flat(path: Path) -> None:
    write(path, {f"photos/{name.split('/')[-1]}": content for name, content in good().items() if "train" in name})


def picture(mode: str, kind: str) -> bytes:
    return encoded(NOISE.convert("RGB").convert(mode), kind)


def sixteen_bits() -> bytes:
    return encoded(Image.new("I;16", (64, 64), 40_000), "PNG")


def alpha_of_all(mode: str, kind: str) -> Mapping[str, bytes]:
    return {name: picture(mode, kind) for name in good() if name.endswith("JPEG")}


ARCHIVES = [
    case("empty file", "not a zip file", lambda path: path.write_bytes(b"")),
    case("an error page instead of the archive", "not a zip file", lambda path: path.write_text("<html>404</html>")),
    bytes_changed("cut short", "only a part of one", cut),
    case("no images at all", "no train images", lambda path: write(path, {WNIDS: b"n1\n", ANNOTATIONS: b""})),
    case("a zip file without members", "no members named wnids.txt", lambda path: write(path, {})),
    case("a flat folder of photographs", "no members named wnids.txt", flat),
    changed("no annotations of the validation images", "no member", {ANNOTATIONS: None}),
    changed("annotations that are not text", "cannot be read", {ANNOTATIONS: b"\xff\xfe\x00"}),
    changed("annotations with spaces for tabs", "gives", {ANNOTATIONS: text(f"{QUERY} n90000001 0 0 9 9\n")}),
    changed("annotation of an image that is missing", "there is no", {f"{TOP}val/images/{QUERY}": None}),
    changed(
        "annotation with a class that is not listed",
        "wnids.txt does not name",
        {ANNOTATIONS: text(f"{QUERY}\tn1\t0\t0\t9\t9\n")},
    ),
    changed("an image annotated twice", "twice", {ANNOTATIONS: text(f"{QUERY}\tn90000001\n" * 2)}),
    changed("two lists of classes", "2 members named wnids.txt", {"other/wnids.txt": b"n1\n"}),
    changed("a list of classes without classes", "names no class", {WNIDS: b"\n\n"}),
    changed("a class listed twice", "twice", {WNIDS: b"n90000000\nn90000000\n"}),
    changed("a class that has no images", "have no train images", {WNIDS: b"n90000000\nn90000009\n"}),
    changed("a class named like a path", "have no train images", {WNIDS: b"n90000000\n../../etc\n"}),
    case("a class named like a command", "accepted", renamed_class),
    case("a member that is there twice", "two members named", twice),
    changed("member `../escaped`", "leaves the archive's folder", {"../escaped": b"x"}),
    changed("member `/tmp/escaped`", "absolute path", {"/tmp/escaped": b"x"}),
    changed("member `a/../../escaped`", "leaves the archive's folder", {f"{TOP}a/../../../escaped": b"x"}),
    changed("member `..\\escaped`", "leaves the archive's folder", {"..\\escaped": b"x"}),
    changed("member `C:/escaped`", "absolute path", {"C:/escaped": b"x"}),
    changed("member with a NUL in its name", "absolute path", {f"{TOP}a\0.JPEG": b"x"}),
    case("an image that is a symbolic link to /etc/passwd", "neither a JPEG nor a PNG", link),
    changed("zip bomb: an image that unpacks to 80 MB", "declares 80,000,000 bytes", {IMAGE: bytes(80_000_000)}),
    changed("zip bomb: a list of classes of 80 MB", "declares 80,000,000 bytes", {WNIDS: b"\n" * 80_000_000}),
    bytes_changed(
        "zip bomb: a member that hides its size", "Bad CRC", partial(headers, offset=(8, 22), value=b"\x0a\0\0\0")
    ),
    bytes_changed("an encrypted image", "encrypted", partial(headers, offset=(24, 38), value=b"\x01")),
    bytes_changed("an unknown compression", "compression", partial(headers, offset=(22, 36), value=b"\x63")),
    changed("an image that is a text", "neither a JPEG nor a PNG", {IMAGE: b"not an image"}),
    changed("an empty image", "neither a JPEG nor a PNG", {IMAGE: b""}),
    changed("a GIF", "neither a JPEG nor a PNG", {IMAGE: picture("P", "GIF")}),
    changed("an SVG with a script", "neither a JPEG nor a PNG", {IMAGE: b"<svg><script>alert(1)</script></svg>"}),
    changed("half a JPEG", "truncated", {IMAGE: encoded(NOISE)[:900]}),
    changed("a PNG without pixels", "truncated", {IMAGE: header_only(64, 64)}),
    changed("20,000 pixels a side", "400000000 pixels", {IMAGE: header_only(20_000, 20_000)}, on_corrupt="skip"),
    changed(
        "decompression bomb: 60,000 pixels a side",
        "at most 4096 on a side",
        {IMAGE: header_only(60_000, 60_000)},
        on_corrupt="skip",
    ),
    changed("an image of another size", "must all have one size", {IMAGE: encoded(Image.new("RGB", (48, 32)))}),
    changed("a 16-bit PNG", "I;16", {IMAGE: sixteen_bits()}),
    changed("CMYK", "accepted", {IMAGE: picture("CMYK", "JPEG")}),
    changed("with alpha", "accepted", {IMAGE: picture("RGBA", "PNG")}),
    changed("with a palette", "accepted", {IMAGE: picture("P", "PNG")}),
    changed("one bit a pixel", "accepted", {IMAGE: picture("1", "PNG")}),
    changed("text for an image, and on_corrupt: skip", "accepted", {IMAGE: b"not an image"}, on_corrupt="skip", bank=5),
    changed("fewer images than dataset.bank_per_class", "dataset.bank_per_class is 7", {}, bank=7),
]
