"""Arguments of a tool: the JSON schema that the policy reads, and the check of what it wrote."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from tool_server.tool import Output, Tool, ToolCall, ToolError

MAX_ECHO = 40
"""Characters of the policy's own text that a message repeats.

Enough to recognise the text, too few to flood the context.
"""

MAX_SIZE = 131_072
"""Characters, and values besides text, of one call's arguments.

The parser of a turn stops at 16,384. This limit is for every other way in.
"""

Model = TypeVar("Model", bound=BaseModel)


def define(
    name: str,
    description: str,
    arguments: type[BaseModel],
    run: Callable[[ToolCall], Output | Awaitable[Output]],
    *,
    pure: bool = False,
) -> Tool:
    """Return a tool whose arguments are described by a pydantic model.

    Args:
        name: what the policy calls the tool.
        description: what the policy reads about it.
        arguments: gives both the schema that the policy sees and the checks on what it wrote.
        run: returns the observation of a call (see `Tool.run`).
        pure: equal arguments and images give equal results.
    """

    def parse_arguments(written: Any) -> BaseModel:
        return parse(arguments, written)

    return Tool(name, description, parameters(arguments), parse_arguments, run, pure)


def parameters(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of an argument model, as the policy sees it.

    Pydantic's titles and `additionalProperties` are left out: they cost prompt tokens and tell the
    policy nothing.
    """
    schema = model.model_json_schema()
    for field in schema["properties"].values():
        field.pop("title", None)
    shown = {
        "type": "object",
        "properties": schema["properties"],
        "required": schema.get("required", []),
    }
    # Nested models, which the properties refer to.
    if "$defs" in schema:
        shown["$defs"] = schema["$defs"]
    return shown


def parse(model: type[Model], written: Any) -> Model:
    """Return what the policy wrote as the model.

    Raises:
        ToolError: it does not fit the model. The message is one line about the first fault.
    """
    return _validated(model, written, model.model_validate)


def parse_json(model: type[Model], written: Any) -> Model:
    """Do as `parse`, but read it strictly as the JSON that it was.

    A list fits a tuple and a string fits an enum, but no string fits a number.

    Raises:
        ToolError: it does not fit the model, or is not JSON. The message is one line.
    """

    def validate(arguments: dict[str, Any]) -> Model:
        text = json.dumps(arguments, allow_nan=False)
        return model.model_validate_json(text, strict=True)

    return _validated(model, written, validate)


def _validated(
    model: type[Model], written: Any, validate: Callable[[dict[str, Any]], Model]
) -> Model:
    if not isinstance(written, dict):
        raise ToolError("arguments must be an object")
    try:
        return validate(written)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
    except (TypeError, ValueError, RecursionError):
        # NaN, a value that JSON does not have, or arguments that are nested too deep.
        raise ToolError("arguments are not JSON") from None
    raise ToolError(_explained(model, faults[0]))


def _explained(model: type[BaseModel], fault: ErrorDetails) -> str:
    place = fault["loc"]
    name = str(place[0]) if place else "arguments"
    if fault["type"] == "missing":
        return f"{name} is missing"
    if fault["type"] == "extra_forbidden":
        return f"unknown argument {echo(name)}, known: {', '.join(model.model_fields)}"
    return f"{name}: {fault['msg']}"


def too_large(written: Any) -> bool:
    """Return whether arguments exceed `MAX_SIZE`.

    It looks at no more of them than it takes to know.
    """
    # A list of what is left to see, not recursion: the policy may nest as deep as it likes.
    size = 0
    pending = [written]
    while pending and size <= MAX_SIZE:
        value = pending.pop()
        size += len(value) if isinstance(value, str) else 1
        if isinstance(value, int) and value.bit_length() > MAX_SIZE:
            return True
        if isinstance(value, dict | list | tuple):
            if len(value) > MAX_SIZE:
                return True
            pending += value
        if isinstance(value, dict):
            pending += value.values()
    return size > MAX_SIZE


def echo(text: str) -> str:
    """Return the policy's own text, quoted and cut to `MAX_ECHO` characters."""
    return repr(text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "...")


def integer(least: int, most: float = float("inf")) -> BeforeValidator:
    """Return a check for integers from `least` to `most`.

    1.0 counts as 1, since JSON has one kind of number. Booleans and strings do not count.
    """
    expected = f"expected an integer from {least}"
    if most < float("inf"):
        expected += f" to {most}"

    def check(value: Any) -> int:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # NaN fails the second test, infinity the third.
        if not is_number or not least <= value <= most or value % 1 != 0:
            raise PydanticCustomError("integer", expected)
        return int(value)

    return BeforeValidator(check)
