"""Check the config before the first job, and complete it with the schema's defaults.

Imported by the Snakefile, so it needs nothing heavier than jsonschema and PyYAML, which Snakemake itself brings.
"""

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from dinoquant.errors import UserError
from dinoquant.explain import NAMES, explain, nearest, preset_like
from dinoquant.runtimes import BASELINE, RUNTIMES, TORCHSCRIPT, missing, recipe_of

# A config has a few hundred values, four deep. YAML's aliases can make billions of a few lines ("billion laughs").
MOST_VALUES = 100_000
DEEPEST = 32
LONGEST_MESSAGE = 500  # characters of one problem, which may repeat a whole list
MOST_POINTS = 1000  # of a sweep: a typing error must not fill the disk
PALETTES = ("deep", "muted", "bright", "pastel", "dark", "colorblind")  # seaborn's own
TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")  # YAML 1.1 takes 7e-2 for text


def complete(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` with every default of ``schema`` filled in, and with all of its variants in ``variants``.

    These are the ``presets`` that it names (of which then none is left to add), and what its own ``variants`` add to
    them and change of them; those set to null are left out.

    Raises UserError listing every problem: the key, what was found, what was expected, and for an unknown name the
    nearest one that exists.
    """
    problems = [f"{where}: {what}" if where else what for where, what in _unusable(config)]
    if problems:
        raise _error(problems)
    result = copy.deepcopy(dict(config))
    if isinstance(result.setdefault("variants", {}), dict):
        # On the command line, `variants={bf16: null}` gives text.
        result["variants"] = {name: None if of == "null" else of for name, of in result["variants"].items()}
        problems = _add_presets(result, schema["$defs"]["presets"])
        result["variants"], wrong = _expanded(result["variants"], schema)
        problems += wrong
    _read_numbers(result, schema)
    problems += [
        explain(error, suffix=preset_like(error, schema)) for error in Draft202012Validator(schema).iter_errors(result)
    ]
    result["presets"] = []
    if not problems:
        for options in result["variants"].values():
            recipes = _recipes(options.get("runtime", TORCHSCRIPT), schema)
            _read_numbers(options, recipes.get(options["recipe"], {}))
        problems = [problem for name in result["variants"] for problem in _variant_problems(name, result, schema)]
    if not problems:
        _fill(result, schema, schema)
        for options in result["variants"].values():
            options.setdefault("runtime", TORCHSCRIPT)
            _fill(options, _recipes(options["runtime"], schema)[options["recipe"]], schema)
        problems = list(_contradictions(result))
    if problems:
        raise _error(problems)
    return result


def check_keys(path: str | Path) -> None:
    """Raise UserError if a map in a config file has a key twice, or one that YAML takes for something else than text.

    YAML forbids the first, and PyYAML takes the last without a word. Of the second (`on`, `1.0`) what was written is
    lost once the file is read. A file that is no YAML is left to whoever reads it.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            first: dict[Any, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.tag not in TEXT_TAGS:
                    raise UserError(
                        f"{path}: the key `{key.value}` in line {line} is not text to YAML, which takes it for a "
                        f"{key.tag.rpartition(':')[2]}; write it in quotes."
                    )
                if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, line) != line:
                    raise UserError(
                        f"{path}: `{key.value}` is in line {first[key.value]} and again in line {line}; one of them "
                        "would count and the other be ignored. Remove or rename one."
                    )
                waiting.append(value)


def _add_presets(config: dict[str, Any], presets: Mapping[str, Any]) -> list[str]:
    """Put the presets that are asked for before the variants, which may change any preset; return what is wrong."""
    chosen, own = config.get("presets", []), config["variants"]
    if chosen == "all":
        chosen = list(presets)
    if not isinstance(chosen, list) or not all(isinstance(name, str) for name in chosen):
        return []  # which the schema explains
    unknown = [name for name in chosen if name not in presets]
    variants = {name: copy.deepcopy(presets[name]) for name in chosen if name in presets}
    for name, options in own.items():
        known = presets.get(name)
        variants[name] = _merged(copy.deepcopy(known), options) if known and isinstance(options, dict) else options
    config["variants"] = variants
    return [f"presets: found {name!r}{nearest(name, list(presets))}" for name in unknown]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` key by key, as Snakemake merges configs."""
    nested = {
        key: _merged(base[key], value)
        for key, value in changes.items()
        if isinstance(base.get(key), Mapping) and isinstance(value, Mapping)
    }
    return {**base, **changes, **nested}


def _expanded(variants: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the variants without those set to null, a variant for each point of a sweep, and what is wrong with it.

    The point of ``NAME: {recipe: R, sweep: {option: [value, ...]}}`` is called ``NAME.option-value``, with an ending
    for each option; where a value is a list, its entries are joined by "+".
    """
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name, options in variants.items():
        points: Mapping[str, Any] = {name: options}
        if isinstance(options, dict) and "sweep" in options:
            points, wrong = _points(str(name), options, schema)
            problems += wrong
        # A point of a sweep that is set to null, by its own name, is left out too.
        points = {
            point: its for point, its in points.items() if its is not None and variants.get(point, its) is not None
        }
        problems += [f"variants.{name}: there are two variants called {point}" for point in points if point in found]
        found |= points
    return found, problems


def _points(
    name: str, options: Mapping[str, Any], schema: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the variants of one sweep by name, and what is wrong with it."""
    sweep = options["sweep"]
    fixed = {key: value for key, value in options.items() if key != "sweep"}
    where = ("variants", name, "sweep")
    problems = [explain(error, where) for error in Draft202012Validator(schema["$defs"]["sweep"]).iter_errors(sweep)]
    if problems:
        return {}, problems
    problems = [f"{'.'.join(where)}.{key}: given twice, in the sweep and beside it" for key in sweep if key in fixed]
    if (points := math.prod(map(len, sweep.values()))) > MOST_POINTS:
        return {}, [*problems, f"{'.'.join(where)}: {points} variants; at most {MOST_POINTS} are possible"]
    found = {}
    for values in itertools.product(*sweep.values()):
        point = ".".join([name, *(f"{key}-{_in_name(value)}" for key, value in zip(sweep, values, strict=True))])
        if point in found:
            problems.append(f"{'.'.join(where)}: two of its variants would be called {point}")
        elif not re.search(schema["properties"]["variants"]["propertyNames"]["pattern"], point):
            problems.append(f"{'.'.join(where)}: `{point}` cannot be a variant's name: {NAMES}")
        else:
            found[point] = copy.deepcopy({**fixed, **dict(zip(sweep, values, strict=True))})
    return found, problems


def _in_name(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def unsupported(variants: Mapping[str, Mapping[str, Any]], devices: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return {variant: {device: reason}} for what cannot run there, or cannot be made on this machine."""
    found = {
        name: {device: recipe_of(options).unsupported.get(device) or missing(options["runtime"]) for device in devices}
        for name, options in variants.items()
    }
    reasons = {name: {device: reason for device, reason in of.items() if reason} for name, of in found.items()}
    return {name: of for name, of in reasons.items() if of}


def _error(problems: Sequence[str]) -> UserError:
    half = LONGEST_MESSAGE // 2
    lines = (p if len(p) <= LONGEST_MESSAGE else f"{p[:half]} [...] {p[-half:]}" for p in problems)
    return UserError("The config has errors:\n" + "\n".join(f"  - {line}" for line in lines))


def _unusable(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (where, what) of what no schema looks for: too much, keys that are not text, numbers that are none."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), config)]
    values = 0
    while waiting:
        path, value = waiting.pop()
        values += 1
        where = ".".join(map(str, path))
        if values > MOST_VALUES or len(path) > DEEPEST:
            yield (
                "",
                f"it has more than {MOST_VALUES:,} values, or maps and lists more than {DEEPEST} deep; expected are a "
                "few hundred. Look for aliases (`&name`, `*name`) that repeat each other",
            )
            return
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    yield where, f"the key {key!r} is not text; write it in quotes"
            waiting += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, place), item) for place, item in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            yield where, f"found {value}, expected a number"


def _variant_problems(name: str, config: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """A runtime's recipes and a recipe's options; kept out of the main schema, whose if/then errors nobody can read."""
    options = dict(config["variants"][name])
    runtime, recipe = options.pop("runtime", TORCHSCRIPT), options.pop("recipe")
    known = _recipes(runtime, schema)
    if recipe not in known:
        elsewhere = [other for other in RUNTIMES if recipe in _recipes(other, schema)]
        hint = f"; the runtime {' or '.join(elsewhere)} has it" if elsewhere else nearest(recipe, list(known))
        yield f"variants.{name}.recipe: found {recipe!r}, which is no recipe of the runtime {runtime}{hint}"
        return
    checks = {**known[recipe], "additionalProperties": False, "$defs": schema["$defs"]}
    for error in Draft202012Validator(checks).iter_errors(options):
        yield explain(error, ("variants", name), f" of the recipe {recipe}")


def _recipes(runtime: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of each of a runtime's recipes."""
    definitions = schema["$defs"]
    recipes: Mapping[str, Any] = definitions["recipes"] if runtime == TORCHSCRIPT else definitions["runtimes"][runtime]
    return recipes


def _contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    """What a schema cannot say: rules between keys."""
    variants = config["variants"]
    baseline = variants.get(BASELINE, {})
    if (baseline.get("runtime"), baseline.get("recipe")) != (TORCHSCRIPT, BASELINE):
        yield (
            f"variants: there is none called {BASELINE} with the recipe {BASELINE}; every variant is compared with it. "
            f"Add the line `{BASELINE}: {{ recipe: {BASELINE} }}`"
        )
    shown = config["figures"]["batch_size"]
    if shown is not None and shown not in config["latency"]["batch_sizes"]:
        yield f"figures.batch_size: {shown} is not measured; latency.batch_sizes has {config['latency']['batch_sizes']}"
    if wrong := _palette_problem(config["figures"]["palette"]):
        yield wrong
    dataset, generated = config["dataset"], config["dataset"]["generated"]
    if dataset["source"] == "generated":
        queries = generated["classes"] * generated["val_per_class"]
        if dataset["queries"] > queries:
            yield f"dataset.queries: {dataset['queries']} asked for, but dataset.generated makes only {queries}"
        train = generated["classes"] * generated["train_per_class"]
        wanted = generated["classes"] * dataset["bank_per_class"] + dataset["calibration_images"]
        if wanted > train:
            yield (
                f"dataset.bank_per_class and dataset.calibration_images: they need {wanted} training images, "
                f"but dataset.generated makes only {train}"
            )
        if config["accuracy"]["k"] > generated["classes"] * dataset["bank_per_class"]:
            yield f"accuracy.k: {config['accuracy']['k']} is more than the images of the bank"


def _palette_problem(name: str) -> str | None:
    """Say what is wrong with a palette; other names than seaborn's own six take a second, and seaborn, to look up."""
    if name in PALETTES:
        return None
    try:
        import seaborn
    except ImportError:
        return None  # on a machine that only submits; the figures' jobs have it
    try:
        seaborn.color_palette(name, 1)
    except Exception as error:
        return f"figures.palette: {error}{nearest(name, PALETTES)}, or what else seaborn.color_palette takes"
    return None


def _read_numbers(instance: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Read what is text and should be a number: `--config "dataset={queries: 500}"` leaves nested values as text."""
    for key, entry in schema.get("properties", {}).items():
        value = instance.get(key)
        if isinstance(value, dict):
            _read_numbers(value, entry)
        elif isinstance(value, list):
            instance[key] = [_number(item, entry.get("items", {})) for item in value]
        elif key in instance:
            instance[key] = _number(value, entry)


def _number(value: Any, entry: Mapping[str, Any]) -> Any:
    types: set[str] = set()
    for option in (entry, *entry.get("anyOf", ())):
        types |= {option["type"]} if isinstance(option.get("type"), str) else set(option.get("type", ()))
    if value == "null" and "null" in types:
        return None
    if isinstance(value, str) and NUMBER.fullmatch(value) and types & {"integer", "number"} and "string" not in types:
        number = float(value) if re.search("[.eE]", value) else int(value)
        value = number if math.isfinite(number) else value
    # JSON Schema takes 50.0 for an integer, and no one else does.
    return int(value) if isinstance(value, float) and value.is_integer() and "integer" in types else value


def _fill(instance: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    """Set absent keys to the defaults of their (possibly referenced) sub-schemas, depth first."""
    for key, entry in schema.get("properties", {}).items():
        resolved = {**root["$defs"][entry["$ref"].rsplit("/", 1)[1]], **entry} if "$ref" in entry else entry
        if key not in instance and "default" in resolved:
            instance[key] = copy.deepcopy(resolved["default"])
        if isinstance(instance.get(key), dict):
            _fill(instance[key], resolved, root)
