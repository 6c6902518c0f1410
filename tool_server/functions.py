"""Offer a user's Python function as a tool.

The schema comes from its type hints, the descriptions from its docstring.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from axpo.registry import find
from tool_server.arguments import parameters, parse_json
from tool_server.tool import Output, Pixels, Tool, ToolCall


@dataclass(frozen=True)
class UserFunction:
    """A function that was found and understood.

    Attributes:
        function: the user's.
        description: the first paragraph of its docstring.
        arguments: a model of its parameters.
        call_parameter: the parameter that gets the ToolCall (images and earlier calls), if any.
    """

    function: Callable[..., Any]
    description: str
    arguments: type[BaseModel]
    call_parameter: str | None


def load(path: str) -> UserFunction:
    """Return the function at `package.module:name`.

    Raises:
        ValueError: it cannot be found, is no function, or cannot be offered; one line.
    """
    function = find(path)
    if not inspect.isfunction(function):
        raise ValueError(f"{path} is no function")
    return understand(function)


def understand(function: Callable[..., Any]) -> UserFunction:
    """Derive the schema and the descriptions of a function.

    Raises:
        ValueError: something that the policy needs to know is missing; one line.
    """
    from docstring_parser import parse

    docstring = parse(inspect.getdoc(function) or "")
    description = _one_line(docstring.short_description)
    if not description:
        raise ValueError("needs a docstring: its first paragraph is what the policy reads")
    described = {param.arg_name: _one_line(param.description) for param in docstring.params}
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ValueError(f"a type hint cannot be resolved: {error}") from error
    call_parameter = None
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        _check_parameter(name, parameter, hints)
        if hints[name] is ToolCall:
            call_parameter = name
            continue
        # `...` is pydantic's word for a required field.
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], Field(default, description=described.get(name) or None))
    arguments = _model(f"{function.__name__}_arguments", fields)
    return UserFunction(function, description, arguments, call_parameter)


def _check_parameter(name: str, parameter: inspect.Parameter, hints: dict[str, Any]) -> None:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise ValueError(f"parameter {name!r}: only named parameters can be offered")
    if name not in hints:
        raise ValueError(f"parameter {name!r} has no type hint")


def _model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    # No protected namespaces: a parameter may be called `model_name`.
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    try:
        arguments: type[BaseModel] = create_model(name, __config__=config, **fields)
        # Some types give a model, but no JSON schema.
        parameters(arguments)
    except (PydanticSchemaGenerationError, PydanticUserError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"its type hints give no JSON schema: {reason}") from error
    return arguments


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def open_function(name: str, path: str, *, pure: bool = False) -> Tool:
    """Return the function at `path` as a tool, offered as `name`.

    Args:
        name: what the policy calls the tool.
        path: the function, as `package.module:name`.
        pure: equal arguments and images give equal results.

    Raises:
        ValueError: see `load`.
    """
    user = load(path)

    def parse_arguments(written: Any) -> BaseModel:
        return parse_json(user.arguments, written)

    def keywords(call: ToolCall) -> dict[str, Any]:
        given = {field: getattr(call.arguments, field) for field in user.arguments.model_fields}
        if user.call_parameter is not None:
            given[user.call_parameter] = call
        return given

    def plain(call: ToolCall) -> Output:
        return observation(user.function(**keywords(call)))

    async def coroutine(call: ToolCall) -> Output:
        return observation(await user.function(**keywords(call)))

    run = coroutine if inspect.iscoroutinefunction(user.function) else plain
    schema = parameters(user.arguments)
    return Tool(name, user.description, schema, parse_arguments, run, pure)


def observation(returned: Any) -> Output:
    """Return what a user's function returned, as text and images.

    A string is the text. A uint8 array [h, w, 3] is an image. A pair (text, images) is both.
    Anything else is written as JSON.

    Raises:
        TypeError: an array is no image.
        PydanticSerializationError: the value cannot be written as JSON.
    """
    if isinstance(returned, str):
        return returned, ()
    if isinstance(returned, np.ndarray):
        return "", (_image(returned),)
    match returned:
        case (str(text), list() | tuple() as images) if _all_arrays(images):
            return text, tuple(_image(image) for image in images)
    try:
        return to_json(returned).decode(), ()
    except PydanticSerializationError:
        # Half a surrogate pair in a text: as JSON spells it, so that nothing is lost.
        return json.dumps(to_jsonable_python(returned)), ()


def checked(output: Any) -> Output:
    """Return the output of a tool of any kind if it is one.

    Raises:
        TypeError: it is no pair of a text and images. That is the tool's fault, not the policy's.
    """
    match output:
        case (str(text), list() | tuple() as images) if _all_arrays(images):
            return text, tuple(_image(image) for image in images)
    raise TypeError(f"a tool returns (text, images), this is {type(output).__name__}")


def _all_arrays(values: list[Any] | tuple[Any, ...]) -> bool:
    return all(isinstance(value, np.ndarray) for value in values)


def _image(array: np.ndarray) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise TypeError(
            f"an image is a uint8 array [h, w, 3], this is {array.dtype} {list(array.shape)}"
        )
    return array
