"""What a person is told about a config that cannot work, and what a good one is completed to."""

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinoquant import runtimes
from dinoquant.config import check_keys, complete, unsupported
from dinoquant.errors import UserError
from dinoquant.recipes import recipes
from dinoquant.recipes.base import load_recipe
from dinoquant.runtimes import RUNTIMES

ROOT = Path(__file__).parents[1]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
GOOD = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in change.items():
        result[key] = merged(result.get(key) or {}, value) if isinstance(value, dict) else value
    return result


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variants": {"x": {"recipe": "int8-dynamc"}}}, ["variants.x.recipe", "did you mean `int8-dynamic`"]),
        ({"variants": {"x": {"recipe": "bf16", "engine": "x86"}}}, ["variants.x", "`engine` of the recipe bf16"]),
        ({"variants": {"x": {"recipe": "int8-dynamic", "weight": "per-tensor"}}}, ["did you mean `weights`"]),
        ({"variants": {"x": {"recipe": "int8-dynamic", "modules": ["Lnear"]}}}, ["did you mean `Linear`"]),
        ({"variants": {"x": {"recipe": "int8-dynamic", "modules": []}}}, ["variants.x.modules"]),
        ({"variants": {"x": {"recipe": "int8-static", "observer": 3}}}, ["variants.x.observer", "minmax"]),
        ({"variants": {"x": {"runtime": "openvno", "recipe": "fp32"}}}, ["x.runtime", "did you mean `openvino`"]),
        ({"variants": {"x": {"runtime": "openvino", "recipe": "int8-ncf"}}}, ["openvino", "did you mean `int8-nncf`"]),
        (
            {"variants": {"x": {"runtime": "openvino", "recipe": "int8-smooth"}}},
            ["the runtime torchscript or inductor has it"],
        ),
        ({"variants": {"x": {"recipe": "int8-nncf"}}}, ["of the runtime torchscript; the runtime openvino has it"]),
        (
            {"variants": {"x": {"runtime": "openvino", "recipe": "int8-nncf", "rest": "fp16"}}},
            ["variants.x.rest: found 'fp16'"],
        ),
        ({"variants": {"x": {"runtime": "inductor", "recipe": "bf16", "rest": "bf16"}}}, ["`rest` of the recipe bf16"]),
        ({"variants": {"fp32": {"runtime": "openvino", "recipe": "fp32"}}}, ["there is none called fp32"]),
        ({"presets": ["fp32", "int8-smoth"]}, ["presets: found 'int8-smoth'", "did you mean `int8-smooth`"]),
        ({"presets": "int8-smooth"}, ["presets", "`all` or a list of names"]),
        ({"presets": ["fp32", 8]}, ["presets", "`all` or a list of names"]),
        ({"presets": ["bf16"]}, ["there is none called fp32"]),
        ({"variants": {"int8-smoth": {"attention": "fp32"}}}, ["missing `recipe`", "the preset `int8-smooth`"]),
        ({"variants": {"fp32": {"recipe": "bf16"}}}, ["there is none called fp32"]),
        ({"latency": {"batch_sizes": ["one"]}}, ["latency.batch_sizes.0", "'integer'"]),
        ({"latency": {"batch_sizes": []}}, ["latency.batch_sizes"]),
        ({"latency": {"threads": "all"}}, ["latency.threads", "`auto` or a whole number"]),
        ({"latency": {"rounds": 5}}, ["latency.rounds", "minimum of 6"]),
        ({"accuracy": {"temperature": 0}}, ["accuracy.temperature"]),
        ({"dataset": {"source": "generated", "queries": 20, "bank_per_class": 60}}, ["only 600"]),
        ({"figures": {"palette": "Colorblind"}}, ["figures.palette: 'Colorblind'", "did you mean `colorblind`"]),
    ],
)
def test_mistake_is_explained(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        complete(merged(GOOD, change), SCHEMA)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("palette", ["muted", "viridis", "ch:s=.25,rot=-.25", "husl"])
def test_every_palette_that_seaborn_takes_is_one(palette: str) -> None:
    assert complete(merged(GOOD, {"figures": {"palette": palette}}), SCHEMA)["figures"]["palette"] == palette


def test_numbers_given_on_the_command_line_are_read() -> None:
    """Snakemake's --config passes those of nested keys on as text."""
    change = {
        "dataset": {"queries": "500"},
        "latency": {"batch_sizes": ["1", "4"], "threads": "2", "block_seconds": "0.5"},
        "model": {"image_size": "null"},
    }
    assert complete(merged(GOOD, change), SCHEMA) == complete(
        merged(
            GOOD,
            {
                "dataset": {"queries": 500},
                "latency": {"batch_sizes": [1, 4], "threads": 2, "block_seconds": 0.5},
                "model": {"image_size": None},
            },
        ),
        SCHEMA,
    )


def test_numbers_are_read_however_they_are_written() -> None:
    """YAML 1.1 takes 7e-2 for text, and so does Snakemake every value of a variant on the command line."""
    config = complete(
        merged(
            GOOD,
            {
                "latency": {"block_seconds": "7e-2", "rounds": "1e2"},
                "variants": {"x": {"recipe": "int8-auto", "cosine": "9.9e-1"}},
            },
        ),
        SCHEMA,
    )
    assert (config["latency"]["block_seconds"], config["latency"]["rounds"]) == (0.07, 100)
    assert config["variants"]["x"]["cosine"] == 0.99
    for word in ("nan", "inf", "1_0", "0x10", "true"):
        with pytest.raises(UserError, match=r"latency.rounds"):
            complete(merged(GOOD, {"latency": {"rounds": word}}), SCHEMA)
    with pytest.raises(UserError, match=r"accuracy.temperature: '1e400'"):  # more than a float holds
        complete(merged(GOOD, {"accuracy": {"temperature": "1e400"}}), SCHEMA)


@pytest.mark.parametrize("key", ["on", "1.0e+3", "8", "2024-01-01", "~", "No"])
def test_a_key_that_yaml_takes_for_something_else_is_named_as_it_was_written(key: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"seed: 1\nvariants:\n  {key}: {{ recipe: bf16 }}\n")
    with pytest.raises(UserError) as error:
        check_keys(tmp_path / "c.yaml")
    assert f"the key `{key}` in line 3 is not text" in str(error.value)


def test_keys_that_look_like_numbers_and_are_text_are_taken(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("variants:\n  1e3: { recipe: bf16 }\n  'on': { recipe: bf16 }\n")
    check_keys(tmp_path / "c.yaml")
    assert "1e3" in complete(merged(GOOD, yaml.safe_load((tmp_path / "c.yaml").read_text())), SCHEMA)["variants"]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        complete(merged(GOOD, {"sed": 1, "latency": {"rounds": 1}}), SCHEMA)
    assert "`sed`" in str(error.value)
    assert "latency.rounds" in str(error.value)


def test_defaults_reach_every_level() -> None:
    minimal = {
        "dataset": {"source": "a.zip"},
        "model": {"architecture": "test_vit", "checkpoint": "seeded"},
        "variants": {"fp32": {"recipe": "fp32"}, "int8": {"recipe": "int8-static"}},
    }
    config = complete(minimal, SCHEMA)
    assert config["dataset"]["bank_per_class"] == 50
    assert config["dataset"]["generated"]["classes"] == 20
    assert config["latency"]["batch_sizes"] == [1, 16]
    assert config["devices"] == "auto"
    assert config["variants"]["int8"] == {
        "runtime": "torchscript",
        "recipe": "int8-static",
        "modules": ["Linear"],
        "weights": "per-channel",
        "observer": "minmax",
        "engine": "auto",
    }
    assert complete(config, SCHEMA) == config
    assert "latency" not in minimal


def test_every_key_has_a_description_and_a_default_or_is_required() -> None:
    def check(schema: dict[str, Any], where: str) -> None:
        for key, entry in schema.get("properties", {}).items():
            resolved = {**SCHEMA["$defs"][entry["$ref"].rsplit("/", 1)[1]], **entry} if "$ref" in entry else entry
            assert resolved.get("description"), f"{where}.{key}"
            assert "default" in resolved or key in schema.get("required", []), f"{where}.{key}"
            check(resolved, f"{where}.{key}")

    check(SCHEMA, "config")
    for entries in (SCHEMA["$defs"]["recipes"], *SCHEMA["$defs"]["runtimes"].values()):
        for name, recipe in entries.items():
            check(recipe, name)


def test_every_recipe_has_a_module_with_the_same_interface() -> None:
    for name in recipes():
        found = inspect.signature(load_recipe(name).quantize, eval_str=True)
        assert list(found.parameters) == ["model", "options", "calibration", "sensitivity"], name


def test_schema_and_registry_know_the_same_runtimes() -> None:
    listed = SCHEMA["properties"]["variants"]["additionalProperties"]["properties"]["runtime"]["enum"]
    assert set(listed) == set(RUNTIMES) == {"torchscript", *SCHEMA["$defs"]["runtimes"]}
    for runtime in RUNTIMES:
        described = SCHEMA["$defs"]["runtimes"].get(runtime, SCHEMA["$defs"]["recipes"])
        assert list(described) == list(recipes(runtime))
        assert {recipe.precision for recipe in recipes(runtime).values()} <= {"int8", "bf16", "fp16", "fp32"}
        for name, recipe in recipes(runtime).items():
            if runtime == "torchscript":
                assert recipe.module
            elif recipe.module:  # one of our own, compiled: the same recipe with the same options
                assert (runtime, recipe.module) == ("inductor", recipes()[name].module)
                assert described[name]["properties"] == SCHEMA["$defs"]["recipes"][name]["properties"]


def chosen(presets: list[str] | str, variants: dict[str, Any]) -> dict[str, Any]:
    return complete({**GOOD, "presets": presets, "variants": variants}, SCHEMA)["variants"]


def test_presets_are_those_that_are_named() -> None:
    assert list(chosen(["fp32", "bf16"], {})) == ["fp32", "bf16"]
    assert list(chosen("all", {})) == list(SCHEMA["$defs"]["presets"])


def test_the_page_lists_every_preset() -> None:
    section = (ROOT / "config/README.md").read_text().split("## presets")[1].split("## variants")[0]
    listed = re.findall(
        "`([^`]+)`", "".join(line.split("|")[2] for line in section.splitlines() if line.startswith("| `"))
    )
    assert sorted(listed) == sorted(SCHEMA["$defs"]["presets"])


def test_variants_add_to_the_presets_change_them_key_by_key_and_leave_them_out() -> None:
    own = {"bf16": None, "int8-static": {"observer": "histogram"}, "int8-mixed": {"precisions": {"head": "bf16"}}}
    variants = chosen(["fp32", "int8-static", "bf16"], {**own, "mine": {"recipe": "bf16"}, "int8-smooth": {}})
    assert list(variants) == ["fp32", "int8-static", "int8-mixed", "mine", "int8-smooth"]
    assert (variants["int8-static"]["observer"], variants["int8-static"]["modules"]) == (
        "histogram",
        ["Linear", "Conv2d"],
    )
    assert variants["int8-mixed"]["precisions"] == {"blocks.*.mlp.fc2": "int8-per-token", "head": "bf16"}
    assert variants["int8-smooth"] == chosen(["fp32", "int8-smooth"], {})["int8-smooth"]


def test_variant_set_to_null_is_left_out() -> None:
    for null in (None, "null"):  # in a file, and on the command line
        assert "bf16" not in complete(merged(GOOD, {"variants": {"bf16": null}}), SCHEMA)["variants"]


def test_unsupported_gives_a_reason_for_the_devices_asked() -> None:
    recipes = {"a": "fp16", "b": "int8-dynamic", "c": "bf16"}
    variants = {name: {"runtime": "torchscript", "recipe": recipe} for name, recipe in recipes.items()}
    assert set(unsupported(variants, ["cpu"])) == {"a"}
    assert "GPU" in unsupported(variants, ["cpu"])["a"]["cpu"]
    assert set(unsupported(variants, ["cuda"])) == {"b"}


def test_what_lacks_its_environment_is_unsupported_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runtimes, "PEERS_PYTHON", tmp_path / "python")
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: None)
    found = unsupported(complete(GOOD, SCHEMA)["variants"], ["cpu"])
    assert (
        found["openvino-fp32"]["cpu"]
        == found["onnxruntime-int8-static"]["cpu"]
        == ("the peers' environment is missing: make peers")
    )
    assert "install g++" in found["inductor-fp32"]["cpu"]
    assert "int8-static" not in found


def variants_of(change: dict[str, Any]) -> dict[str, Any]:
    return complete(merged(GOOD, {"variants": change}), SCHEMA)["variants"]


def test_a_sweep_is_a_variant_for_each_combination() -> None:
    sweep = {"recipe": "int8-mixed", "sweep": {"default": ["int8", "bf16"], "attention": ["bf16", "fp32"]}}
    found = {name: options for name, options in variants_of({"m": sweep}).items() if name.startswith("m")}
    assert list(found) == [
        f"m.default-{default}.attention-{attention}" for default in ("int8", "bf16") for attention in ("bf16", "fp32")
    ]
    one = found["m.default-bf16.attention-fp32"]
    assert (one["recipe"], one["default"], one["attention"]) == ("int8-mixed", "bf16", "fp32")
    assert one == variants_of({"x": {"recipe": "int8-mixed", "default": "bf16", "attention": "fp32"}})["x"]


def test_a_sweep_may_have_numbers_and_lists_and_leave_a_point_out() -> None:
    lists = {"recipe": "int8-static", "observer": "minmax", "sweep": {"modules": [["Linear"], ["Linear", "Conv2d"]]}}
    found = variants_of({"s": lists, "a": {"recipe": "int8-auto", "sweep": {"cosine": [0.99, 0.999]}}})
    assert found["s.modules-Linear+Conv2d"]["modules"] == ["Linear", "Conv2d"]
    assert found["a.cosine-0.99"]["cosine"] == 0.99
    assert "s.modules-Linear" not in variants_of({"s": lists, "s.modules-Linear": None})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"s": {"recipe": "int8-smooth", "sweep": {}}}, ["variants.s.sweep"]),
        ({"s": {"recipe": "int8-smooth", "sweep": {"attention": []}}}, ["variants.s.sweep.attention"]),
        ({"s": {"recipe": "int8-smooth", "sweep": {"attention": "bf16"}}}, ["variants.s.sweep.attention", "'array'"]),
        ({"s": {"recipe": "int8-smooth", "sweep": {"recipe": ["bf16"]}}}, ["variants.s.sweep"]),
        ({"s": {"recipe": "int8-smooth", "sweep": {"attention": ["bf17"]}}}, ["variants.s.attention-bf17.attention"]),
        ({"s": {"recipe": "int8-smooth", "sweep": {"atention": ["bf16"]}}}, ["did you mean `attention`"]),
        ({"s": {"recipe": "int8-smooth", "attention": "bf16", "sweep": {"attention": ["fp32"]}}}, ["given twice"]),
        ({"s": {"recipe": "int8-smooth", "sweep": {"attention": ["bf16", "bf16"]}}}, ["two of its variants"]),
        (
            {"s": {"recipe": "int8-smooth", "sweep": {"attention": ["../x"]}}},
            ["variants.s.sweep", "cannot be a variant"],
        ),
        ({"s": {"recipe": "int8-auto", "sweep": {"cosine": list(range(1001))}}}, ["1001 variants; at most 1000"]),
        (
            {
                "s.attention-bf16": {"recipe": "int8-smooth"},
                "s": {"recipe": "int8-smooth", "sweep": {"attention": ["bf16"]}},
            },
            ["two variants called s.attention-bf16"],
        ),
    ],
)
def test_mistake_in_a_sweep_is_explained(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        variants_of(change)
    for word in words:
        assert word in str(error.value)
