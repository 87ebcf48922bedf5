"""What a file is that is no checkpoint, told by its first bytes, and what to do about it."""

import re
import zipfile
from pathlib import Path

HEAD_BYTES = 1024
COMPRESSED = "Unpack it and give the path of the file of weights in it."
FETCH_THE_FILE = "Get the file itself: on a page with a download button, copy the address of that button."
# What each begins with, what it is, and what to do.
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which stands for the weights in a checkout that has not fetched them",
        "Run `git lfs pull` in that checkout, or download the file itself (on huggingface.co: /resolve/ in place of "
        "/blob/ or /raw/ in the address).",
    ),
    (b"\x1f\x8b", "compressed with gzip", COMPRESSED),
    (b"BZh", "compressed with bzip2", COMPRESSED),
    (b"\xfd7zXZ\0", "compressed with xz", COMPRESSED),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", COMPRESSED),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", COMPRESSED),
    (b"Rar!", "a RAR archive", COMPRESSED),
    (
        b"\x89HDF\r\n",
        "an HDF5 file, which Keras and TensorFlow write",
        "Expected are PyTorch's weights; many models are published in both forms.",
    ),
    (
        b"GGUF",
        "a GGUF file, whose weights are quantized already",
        "Expected are the float weights that it was made from (safetensors or .pth).",
    ),
    (
        b"\x93NUMPY",
        "a single NumPy array",
        "Expected is a file of all weights by name, such as .pth, .safetensors or JAX's .npz.",
    ),
    (
        b"%PDF",
        "a PDF document",
        FETCH_THE_FILE,
    ),
)
TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")


def stranger(path: Path, head: bytes) -> str | None:
    """Return in two sentences what this file is and what to do, or None if it may be a checkpoint.

    :param head: its first bytes, HEAD_BYTES of them if it has as many.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "It is empty (0 bytes). The copy or download that made it has failed: make it again."
    for signature, name, remedy in SIGNATURES:
        if head.startswith(signature):
            return f"It is {name}. {remedy}"
    if head[257:262] == b"ustar":
        return f"It is a tar archive. {COMPRESSED}"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return (
            "It is a web page (HTML or XML), such as an error page or the page about the weights. "
            f"{FETCH_THE_FILE} On huggingface.co and github.com it has /resolve/ or /raw/ in place of /blob/."
        )
    if head.startswith(b"PK"):
        return _archive(path)
    # A protocol buffer whose first field is a small number, the version of ONNX, and its second a text.
    if path.suffix == ".onnx" or re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a\x42](?!.{5}\{)", head, re.DOTALL):
        return (
            "It is an ONNX model, a finished program. Expected are the weights that it was exported from; "
            "this workflow makes its own ONNX file of them where a variant asks for it."
        )
    if text.startswith(b"{") and TEXT.fullmatch(head):
        return (
            "It is a JSON text, such as the config.json of a model. The weights lie beside it, in model.safetensors or "
            "pytorch_model.bin: give the path of that file."
        )
    if TEXT.fullmatch(head):
        first = head.splitlines()[0][:80].decode("utf-8", "replace")
        return f"It is a text that begins with {first!r}. Expected is a file of weights (.pth, .safetensors or .npz)."
    return None


def is_archive_of_arrays(path: Path, head: bytes) -> bool:
    """Return whether this is what `numpy.savez` writes, as JAX's checkpoints are."""
    if not head.startswith(b"PK") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def is_safetensors(path: Path, head: bytes) -> bool:
    """Return whether this begins like safetensors: the length of a JSON text, in 8 bytes, and the text."""
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:9] == b"{" and length < path.stat().st_size)


def _archive(path: Path) -> str | None:
    """Look into a zip file, which is what `torch.save`, `torch.jit.save`, `torch.export.save` and NumPy write, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return (
            f"It begins like a file of torch.save or another zip archive, but is cut short: {path.stat().st_size:,} "
            "bytes without the end. Copy or download it again."
        )
    if any(name.endswith("/constants.pkl") for name in names):
        beside = path.with_name("state_dict.pt")
        return "It is a TorchScript program and not a file of weights. " + (
            f"Its weights lie beside it: set model.checkpoint to {beside}."
            if beside.is_file()
            else "Expected are the weights that it was made from. If this workflow made it, they are state_dict.pt in "
            "results/models/fp32; of another's program, save them in Python: import torch; "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if any(name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names):
        return (
            "It is a program of torch.export and not a file of weights. Save them in Python: import torch; "
            "torch.save(torch.export.load(FILE).state_dict, NEW_FILE)"
        )
    if any(name.endswith("data.pkl") for name in names) or (names and all(name.endswith(".npy") for name in names)):
        return None
    if not names:
        return "It is an empty zip archive. The copy or download that made it has failed: make it again."
    inside = ", ".join(names[:3])
    return f"It is a zip archive that holds {inside}{' and more' if len(names) > 3 else ''}. {COMPRESSED}"
