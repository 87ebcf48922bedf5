"""Configs that are no config, are meant to explode or to escape, or ask for what there is not."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from cases import Case
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

from dinoquant.config import check_keys, complete

ROOT = Path(__file__).parents[2]
BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])


@cache
def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        load_configfile(ROOT / "config" / "config.yaml"),
        yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text()),
    )


def use(folder: Path, content: bytes) -> str:
    """Read a config file on top of config/config.yaml, as Snakemake and the Snakefile do."""
    path = Path("my.yaml")
    (folder / path).write_bytes(content)
    mine = load_configfile(path)
    default, schema = parts()
    config: dict[str, Any] = {}
    update_config(config, default)
    update_config(config, mine)
    check_keys(path)
    complete(config, schema)
    return "accepted"


def case(what: str, words: str, content: str | bytes) -> Case:
    raw = content if isinstance(content, bytes) else content.encode()
    return Case("config", what, words, lambda folder: use(folder, raw))


def variant(what: str, words: str, name: str) -> Case:
    return case(what, words, yaml.safe_dump({"variants": {name: {"recipe": "bf16"}}}))


CONFIGS = [
    case("empty file", "keys at top level", ""),
    case("a list", "keys at top level", "- a\n- b\n"),
    case("a word", "keys at top level", "seed"),
    case("tabs", "tab", "dataset:\n\tqueries: 3\n"),
    case("a bracket left open", "not valid", "dataset: {queries: 3\n"),
    case("a tag that would run a command", "not valid", 'seed: !!python/object/apply:os.system ["touch ran"]\n'),
    case("a key twice", "line 1 and again in line 3", "seed: 1\ndevices: auto\nseed: 2\n"),
    case(
        "a variant twice",
        "`a` is in line 2 and again in line 3",
        "variants:\n  a: {recipe: bf16}\n  a: {recipe: fp16}\n",
    ),
    case("billion laughs", "aliases", BOMB + "\nseed: *a59\n"),
    case("a list 60 deep", "more than 32 deep", f"seed: {'[' * 60}{']' * 60}\n"),
    case("an unknown key", "did you mean `latency`", "latncy: {}\n"),
    case("an unknown key in a section", "did you mean `bank_per_class`", "dataset: {bank_per_clas: 3}\n"),
    case("a key that is a number", "write it in quotes", "1: 2\n"),
    case("an unknown recipe", "did you mean `int8-dynamic`", "variants: {a: {recipe: int8-dynamc}}\n"),
    case("a recipe that is a path", "variants.a.recipe", "variants: {a: {recipe: ../../evil}}\n"),
    case("no recipe", "missing `recipe`", "variants: {a: {}}\n"),
    case(
        "an option of another recipe",
        "unknown key `observer` of the recipe bf16",
        "variants: {a: {recipe: bf16, observer: minmax}}\n",
    ),
    case(
        "an unknown value of an option",
        "did you mean `Linear`",
        "variants: {a: {recipe: int8-dynamic, modules: [Lnear]}}\n",
    ),
    case("a list of variants", "variants", "variants: [fp32]\n"),
    case("no baseline", "there is none called fp32", "variants: {fp32: null}\n"),
    variant("a variant named `../../escaped`", "cannot be a variant's name", "../../escaped"),
    variant("a variant named `/etc/passwd`", "cannot be a variant's name", "/etc/passwd"),
    variant("a variant named `$(touch ran)`", "cannot be a variant's name", "$(touch ran)"),
    variant("a variant named `a; touch ran`", "cannot be a variant's name", "a; touch ran"),
    variant("a variant named `{wildcards}`", "cannot be a variant's name", "{wildcards}"),
    variant("a variant named `-rf`", "cannot be a variant's name", "-rf"),
    variant("a variant whose name ends with a line feed", "cannot be a variant's name", "a\n"),
    variant("a variant with a name of 300 letters", "up to 64", "a" * 300),
    variant("a variant with an empty name", "cannot be a variant's name", ""),
    case("a variant whose name is a number", "write it in quotes", "variants: {8: {recipe: bf16}}\n"),
    case(
        "a variant whose name YAML takes for true",
        "the key `on` in line 1",
        "variants: {on: {recipe: bf16}}\n",
    ),
    case("a variant whose name is 1.0e+3", "the key `1.0e+3`", "variants: {1.0e+3: {recipe: bf16}}\n"),
    case("a number as 7e-2", "accepted", "latency: {block_seconds: 7e-2}\n"),
    case("text for a number", "dataset.queries", "dataset: {queries: many}\n"),
    case("a list for a number", "dataset.queries", "dataset: {queries: [1, 2]}\n"),
    case("a map for a text", "model.architecture", "model: {architecture: {a: 1}}\n"),
    case("a date for a number", "seed", "seed: 2024-01-01\n"),
    case("a negative number", "minimum of 0", "seed: -1\n"),
    case("0 images per call", "minimum of 1", "latency: {batch_sizes: [0]}\n"),
    case("a huge number", "maximum of 4096", "latency: {batch_sizes: [1000000000000]}\n"),
    case("not a number", "expected a number", "latency: {warmup_seconds: .nan}\n"),
    case("infinite", "expected a number", "latency: {block_seconds: .inf}\n"),
    case(
        "a generated data set of 1e12 images",
        "maximum of 10000",
        "dataset: {generated: {train_per_class: 1000000000000}}\n",
    ),
    case("an unknown device", "`auto` or a list of cpu, cuda", "devices: [gpu]\n"),
    case("no device", "devices", "devices: []\n"),
    case("a device twice", "devices", "devices: [cpu, cpu]\n"),
    case("an architecture that is a path", "model.architecture", "model: {architecture: ../../etc/passwd}\n"),
    case("a checksum that is none", "dataset.checksum", "dataset: {checksum: abc}\n"),
    case("a batch size in the figures that is not measured", "is not measured", "figures: {batch_size: 7}\n"),
    case(
        "more queries than the generated data set has",
        "makes only 200",
        "dataset: {source: generated, queries: 5000}\n",
    ),
]
