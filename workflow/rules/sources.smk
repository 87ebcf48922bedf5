"""Where the data set and the checkpoint lie, and what stands in for them."""

import hashlib
import json
import os
import re
from urllib.parse import parse_qsl, unquote, urlencode, urlparse

from dinoquant.data import folder as folders

# What stands in for real images and trained weights; whatever shows an accuracy says so.
SUBSTITUTES = ["generated data set"] * (config["dataset"]["source"] == "generated")
SUBSTITUTES += ["seeded weights"] * (config["model"]["checkpoint"] == "seeded")

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")
# The defaults keep the names that they are published under, by which many have them already.
PUBLISHED = (
    "dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    "cs231n.stanford.edu/tiny-imagenet-200.zip",
)


def is_url(source):
    return "://" in source and not source.startswith("file://")


def local_path(source):
    """Return the path of a source that is no URL of a server; `~` and file:// are understood."""
    if source.startswith("file://"):
        source = unquote(urlparse(source).path)
    return os.path.expanduser(source)


def source_path(section, key, folder, substitute):
    """Return where the file of a source lies: downloads and generated files in `folder`, what is local where it is."""
    source = config[section][key]
    if source == substitute:
        return None
    if not is_url(source):
        source = local_path(source)
        if unsafe := sorted(set(re.findall(r"[$`\\{}\x00-\x1f]", source))):
            raise WorkflowError(
                f"{section}.{key}: {source!r} has {' '.join(map(repr, unsafe))} in its name, which means something else to "
                "Snakemake or to a shell on the way to a cluster's node. Rename the file, or link to it by another name."
            )
        if section == "model" and Path(source).is_dir():
            inside = sorted(path.name for path in Path(source).iterdir() if path.suffix in WEIGHTS)
            raise WorkflowError(
                f"{section}.{key}: {source} is a folder. Give the path of the file of weights in it"
                + (
                    f", one of: {', '.join(inside[:5])}."
                    if inside
                    else f"; it has none that ends in {' '.join(WEIGHTS)}."
                )
            )
        folder_too = section == "dataset"
        if not (Path(source).is_file() or folder_too and Path(source).is_dir()):
            raise WorkflowError(
                f"{section}.{key}: there is no file {'or folder ' * folder_too}{source}. Expected an http(s) URL, the path "
                f"of an existing file {'or folder ' * folder_too}(relative to {os.getcwd()}), or `{substitute}`."
            )
        return source
    url = urlparse(source)
    if url.scheme not in ("http", "https") or not Path(url.path).name.strip("."):
        raise WorkflowError(f"{section}.{key}: {source} is not an http(s) URL that ends in a file's name.")
    return f"{folder}/{file_name(url)}"


def file_name(url):
    """Return a name for what is downloaded: its own, and a digest of the URL.

    Most models on Hugging Face's hub are called model.safetensors, and many data sets train.zip.
    """
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", Path(url.path).name)
    if f"{url.netloc}{url.path}" in PUBLISHED:
        return name
    # `?download=true` is about the browser; any other query may say which file is meant.
    query = urlencode([(key, value) for key, value in parse_qsl(url.query) if key != "download"])
    digest = hashlib.sha256(url._replace(query=query, fragment="").geturl().encode()).hexdigest()[:8]
    stem, suffix = re.fullmatch(r"(.+?)((?:\.tar)?\.[^.]*|)", name).groups()
    return f"{stem}-{digest}{suffix}"


def local_state(path, record, receipt):
    """Return a parameter that changes with the contents of a local source; none of other sources, whose path is None.

    Times do not tell: that of a folder says nothing of the files in it, and what a file was replaced with may be older.
    """
    return {"state": folders.state(path, record, receipt)} if path else {}


def untracked_checksum(section, source, receipt):
    """Return the expected digest as a parameter that triggers no rerun: pinning what was used must cost nothing.

    Snakemake does not track parameters that name `output`. So that a digest that does not fit is noticed all the same,
    it is compared with the receipt of the file in use.
    """
    checksum = config[section]["checksum"]
    used = json.loads(Path(receipt).read_text()) if Path(receipt).is_file() else {}
    if checksum and used.get("source") == source:
        kind, digest = checksum.split(":")
        if used[kind] != digest:
            advice = f", or delete {used['file']} to get it again" if is_url(source) else ""
            raise WorkflowError(
                f"{section}.checksum: expected {checksum}, but {used['file']}, which is in use, has {kind}:{used[kind]}. "
                f"Correct the checksum{advice}."
            )
    return lambda wildcards, output: checksum
