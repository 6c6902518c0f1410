"""Check arguments against a JSON schema: the script behind `tool_server.schemas`.

It runs as a server of `axpo.limited`. Schemas are a stranger's and arguments a policy's: a pattern,
or references that double 27 times, keep a checker busy for ever.
"""

from __future__ import annotations

from typing import Any

from axpo.limited.server import serve

MAX_MESSAGE = 300
"""Characters of a fault that the policy reads."""


def fault(schema: dict[str, Any], arguments: Any) -> str | None:
    """Return what is wrong with the arguments, in one line, or None."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry

    # With an empty registry, a reference in a schema fetches nothing.
    validator = Draft202012Validator(schema, registry=Registry())
    found = best_match(validator.iter_errors(arguments))
    if found is None:
        return None
    place = ".".join(str(part) for part in found.absolute_path)
    return (f"{place}: {found.message}" if place else found.message)[:MAX_MESSAGE]


def fault_of_schema(schema: Any) -> str | None:
    """Return why a schema is none, in one line, or None."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return str(error.message)[:MAX_MESSAGE]
    lost = _lost_reference(schema)
    return None if lost is None else f"it refers to {lost!r}, which is not in it"[:MAX_MESSAGE]


def _lost_reference(schema: Any) -> str | None:
    """Return a reference that leads out of a schema or nowhere; None if there is none."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    pending = [schema]
    while pending:
        part = pending.pop()
        pending += (
            part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        )
        reference = part.get("$ref") if isinstance(part, dict) else None
        if isinstance(reference, str):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                return reference
    return None


def _work(request: Any) -> str | None:
    if "arguments" not in request:
        return fault_of_schema(request["schema"])
    return fault(request["schema"], request["arguments"])


if __name__ == "__main__":
    fault_of_schema({"type": "object"})
    fault({"type": "object"}, [])
    serve(_work)
