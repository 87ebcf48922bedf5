"""What a run would take: estimated for every rule, and more for more work."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinoquant.config import complete
from dinoquant.report.estimate import MODELS, Measured, images, stages, wall
from dinoquant.runtimes import RUNTIMES, TORCHSCRIPT

ROOT = Path(__file__).parents[2]
TARGETS = {"all", "download", "models", "figures", "sensitivity"}
MEASURED = Measured({1: 0.05, 4: 0.2}, image=0.07, start=4.0, parameters=22.0, linears=49, peak_gb=1.0)


def config(**changes: dict[str, Any]) -> dict[str, Any]:
    demo = yaml.safe_load((ROOT / "config/demo.yaml").read_text()) | {"variants": {}}
    demo["model"] |= {"architecture": "vit_small_patch16_224.dino"}
    for section, keys in changes.items():
        demo[section] = demo[section] | keys
    return complete(demo, yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text()))


def jobs(variants: list[str]) -> list[tuple[str, dict[str, str]]]:
    return [("generate_dataset", {})] + [
        job
        for variant in variants
        for job in [
            ("extract_features", {"variant": variant}),
            ("measure_latency", {"device": "cpu", "variant": variant, "batch": "4"}),
        ]
    ]


def test_every_rule_is_estimated_and_nothing_else() -> None:
    text = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    rules = set(re.findall(r"^ *rule (\w+):", text, re.MULTILINE)) | set(
        re.findall(r"^ *use rule \w+ as (\w+) with", text, re.MULTILINE)
    )
    converters = {f"convert_{runtime}" for runtime in RUNTIMES if runtime != TORCHSCRIPT}
    assert set(MODELS) == (rules | converters) - TARGETS
    with pytest.raises(KeyError):
        stages([("no_such_rule", {})], config(), MEASURED)


def test_more_images_variants_and_rounds_take_longer() -> None:
    def seconds(found: dict[str, Any], variants: list[str], cores: int = 2) -> tuple[float, float]:
        return wall(stages(jobs(variants), found, MEASURED), cores)

    usual = seconds(config(), ["fp32", "bf16"])
    many = {"classes": 10, "train_per_class": 3, "val_per_class": 400}
    more_queries = config(dataset={"queries": 4000, "generated": many})
    assert images(more_queries) - images(config()) == 3980
    for more in (
        seconds(more_queries, ["fp32", "bf16"]),
        seconds(config(), ["fp32", "bf16", "int8-static"]),
        seconds(config(latency={"block_seconds": 2}), ["fp32", "bf16"]),
        seconds(config(), ["fp32", "bf16"], cores=1),
    ):
        assert all(longer > time for longer, time in zip(more, usual, strict=True))
    assert usual[0] < usual[1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: [Errno 2] No such file or directory"),
        (b"a: [1, 2", "cannot be read: while parsing a flow sequence"),
        (b"\xad\xff", "cannot be read: 'utf-8' codec can't decode"),
        (b"- a", "expected keys with values"),
    ],
)
def test_a_config_file_that_is_none_is_named_in_a_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "my.yaml"
    if content is not None:
        file.write_bytes(content)
    command = [sys.executable, ROOT / "workflow/scripts/estimate.py", "--configfile", file]
    done = subprocess.run(command, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(str(file))
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
