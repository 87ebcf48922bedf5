"""Say in one line what is wrong with a value of the config, and what would be right."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema.exceptions import ValidationError

NAMES = "it becomes a folder; use up to 64 letters, digits, and `_ . + -`, beginning with a letter or digit"


def explain(error: ValidationError, prefix: tuple[str, ...] = (), suffix: str = "") -> str:
    """Say in one line where a value is wrong and what would be right."""
    where = ".".join(map(str, (*prefix, *error.absolute_path)))
    label = f"{where}: " if where else ""
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    expected: Any = error.validator_value
    found: Any = error.instance
    match error.validator:
        case "additionalProperties" if isinstance(found, Mapping):
            known = list(schema.get("properties", {}))
            unknown = [key for key in found if key not in known]
            return "; ".join(f"{label}unknown key `{key}`{suffix}{nearest(str(key), known)}" for key in unknown)
        case "required":
            absent = [key for key in expected if key not in found]
            return f"{label}missing {', '.join(f'`{key}`' for key in absent)}{suffix}"
        case "enum":
            return f"{label}found {found!r}{nearest(str(found), expected)}"
        case "anyOf":
            return f"{label}found {found!r}, expected {_alternatives(expected)}"
        case "pattern" if "propertyNames" in error.absolute_schema_path:
            return f"{label}`{found}` cannot be a variant's name: {NAMES}"
        case "pattern" if "description" in schema:
            return f"{label}found {found!r}, which does not fit. {schema['description']}"
        case _:
            return f"{label}{error.message}" + (f" ({schema['description']})" if "description" in schema else "")


def nearest(word: str, known: Sequence[Any]) -> str:
    """Return the end of a message about an unknown word: the name that it is nearest to, and all that are known."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    guess = f"; did you mean `{close[0]}`?" if close else ""
    return f"{guess} (known: {', '.join(names)})" if names else f"{guess} (there are none)"


def preset_like(error: ValidationError, schema: Mapping[str, Any]) -> str:
    """Name the preset that a variant without a recipe may have been meant to change, if one is called alike."""
    where = list(error.absolute_path)
    if error.validator != "required" or where[:1] != ["variants"]:
        return ""
    close = difflib.get_close_matches(str(where[1]), schema["$defs"]["presets"], n=1)
    return f"; did you mean the preset `{close[0]}`?" if close else ""


def _alternatives(options: Sequence[Mapping[str, Any]]) -> str:
    """Name the alternatives of an `anyOf`, each of which is a constant or a type in this schema."""
    words = {"array": "a list of ", "integer": "a whole number", "string": "names"}
    items = (option.get("items", {}) for option in options)
    return " or ".join(
        f"`{option['const']}`"
        if "const" in option
        else words[option["type"]] + (", ".join(item.get("enum", [])) or words.get(item.get("type", ""), ""))
        for option, item in zip(options, items, strict=True)
    )
