"""Read a recipe from YAML and `--set`, and word its errors: one line for each bad field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from axpo import shipped
from axpo.config.moved import moved_keys
from axpo.config.recipe import Recipe
from axpo.config.suggest import suggestion
from axpo.errors import AxpoError
from axpo.strict_yaml import MAX_BYTES, read_yaml
from axpo.texts import closest, one_line, shown

# The field that a message begins with, for example in "total_steps=0: ...".
_FIELD = re.compile(r"([a-z_][\w.-]*)[=:]")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: the file, or the name of a recipe that comes along.
        overrides: `key.sub=value`, to change single fields; values are YAML, too.

    Raises:
        AxpoError: one line for each bad field, with the file, the field, its value and what was
            expected.
    """
    file = _file_of(Path(path))
    try:
        data = read_yaml(_text_of(file))
    except (OSError, ValueError) as error:
        raise AxpoError(f"recipe {path}: {one_line(str(error))}") from None
    if not isinstance(data, dict):
        raise AxpoError(f"recipe {path}: expected a mapping of fields, found {type(data).__name__}")
    return parse_recipe(data, overrides, str(path))


def _file_of(path: Path) -> Path:
    """Return the file of a recipe that is named by its path, or by its name if it comes along."""
    if path.is_file():
        return path
    file = shipped.recipe_file(str(path))
    if file is not None:
        return file
    if (path / "recipe.yaml").is_file():
        raise AxpoError(
            f"recipe {path}: is a run directory: continue it with --resume {path}, or give "
            f"{path}/recipe.yaml for a new run"
        )
    if path.is_dir():
        raise AxpoError(f"recipe {path}: is a folder; expected a YAML file")
    near = closest(path.name.removesuffix(".yaml"), shipped.recipe_names())
    meant = f"; did you mean {near}?" if near else ""
    raise AxpoError(f"recipe {path}: no such file, and none of `axpo recipes`{meant}")


def parse_recipe(
    data: dict[str, Any], overrides: Sequence[str] = (), source: str = "recipe"
) -> Recipe:
    """Check a recipe's fields; see `load_recipe`. `source` is what messages call the recipe."""
    for override in overrides:
        _set(data, override)
    # Before anything else: "unknown key" would not help the user of an older recipe.
    moved = moved_keys(data)
    if moved:
        raise AxpoError("\n".join(f"{source}: {message}" for message in moved))
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [f"{source}: {_one_line(fault, data)}" for fault in error.errors()]
        raise AxpoError("\n".join(lines)) from None


def _set(data: dict[str, Any], override: str) -> None:
    """Change one field of a recipe, in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise AxpoError(
            f"--set {one_line(override, 80)}: expected key=value, for example learner.lr=1e-5"
        )
    *parents, last = key.split(".")
    for parent in parents:
        # A section that the file leaves out can be set, too.
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise AxpoError(f"--set {one_line(key, 80)}: {parent} is a value, not a section")
        data = child
    try:
        data[last] = read_yaml(text)
    except ValueError as error:
        raise AxpoError(f"--set {one_line(key, 80)}: {one_line(str(error))}") from None


def _text_of(file: Path) -> str:
    """Return the text of a recipe, without a byte order mark; raise ValueError if it is none."""
    with file.open("rb") as content:
        raw = content.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None


def _one_line(fault: ErrorDetails, data: Mapping[str, Any]) -> str:
    """Return the place of a fault, what was given, and what was expected."""
    place = ".".join(one_line(str(part), 80) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{place}: unknown key{suggestion(fault['loc'], data)}"
    if fault["type"] == "missing":
        return f"{place}: required, but not given"
    # Pydantic marks what a validator of ours raised.
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return _placed(place, fault["input"], message)
    return f"{place or 'recipe'}={shown(fault['input'])}: {message}"


def _placed(place: str, given: Any, message: str) -> str:
    """Return the message of a room's own check with the place in the recipe in front of it.

    The check of a whole section may begin with the name of a field: within the section
    ("total_steps=0: ..."), or with all its sections ("learner.total_steps=0: ...").
    """
    if not place or message.startswith((f"{place}.", f"{place}=", f"{place}:")):
        return message
    if not isinstance(given, Mapping):
        return f"{place}={shown(given)}: {message}"
    named = _FIELD.match(message)
    if named is None:
        return f"{place}: {message}"
    field = named[1]
    # One entry of a list whose check names the list only.
    if place.startswith(f"{field}."):
        return f"{place}{message.removeprefix(field)}"
    return f"{place}.{message}"
