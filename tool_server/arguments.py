"""Arguments of a tool: the JSON schema that the policy reads, and the check of what it wrote."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from tool_server.tool import ToolError

MAX_ECHO = 40
"""Characters of the policy's own text that a message repeats: enough to recognise, too few to flood the context."""


def parameters(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of an argument model. Pydantic's titles and `additionalProperties` cost prompt tokens and tell the policy nothing."""
    schema = model.model_json_schema()
    properties = {name: {k: v for k, v in p.items() if k != "title"} for name, p in schema["properties"].items()}
    return {"type": "object", "properties": properties, "required": schema.get("required", [])}


def parse(model: type[BaseModel], written: Any) -> BaseModel:
    """What the policy wrote as the model; raises ToolError with a one-line message about the first fault."""
    if not isinstance(written, dict):
        raise ToolError("arguments must be an object")
    try:
        return model.model_validate(written)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else "arguments"
    if fault["type"] == "missing":
        raise ToolError(f"{name} is missing")
    if fault["type"] == "extra_forbidden":
        raise ToolError(f"unknown argument {echo(name)}, known: {', '.join(model.model_fields)}")
    raise ToolError(f"{name}: {fault['msg']}")


def echo(text: str) -> str:
    """The policy's own text, quoted and cut to `MAX_ECHO` characters."""
    return repr(text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "...")
