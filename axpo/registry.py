"""Find a variant of the method by its name, or by an import path of your own.

Every concept of the method (objective, ranking, fork place, ...) has one base class and one
`Registry`. A variant is one class or one function. Its name, its options and their checks stand
where it is defined:

    @objectives.register("cispo")
    class Cispo(Objective):
        '''Policy gradient weighted by the bounded ratio (arXiv 2506.13585, equation 4).'''

        clip_high: float = Field(0.4, gt=0, description="the ratio is bounded by 1 + clip_high")

        def surrogate(self, logprobs, ratio, advantages): ...

A recipe says which one it wants, and its options if it has any:

    objective: cispo
    objective: {name: cispo, clip_high: 0.3}
    objective: my_package.losses:Mine            # a class of your own, or a function
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema


def find(path: str) -> Any:
    """Return the object at `package.module:name`.

    Raises:
        ValueError: the path is malformed, or the module cannot be imported or has no such name.
            The message is one line.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name.isidentifier()):
        raise ValueError("expected package.module:name")
    # Do as `python -m` would: a console script does not have the working directory on its path.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: anything may happen in it
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot import {module_name}: {type(error).__name__}: {reason}"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"{module_name} has no {name}")
    return getattr(module, name)


class Variant(BaseModel):
    """The base of every concept's base class. Fields are the options that a recipe may set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    registry: ClassVar[Registry[Any]]
    """Set by the `Registry` of the concept."""
    name: ClassVar[str] = ""
    """What a recipe calls this variant: its registered name, or its import path."""

    def spec(self) -> str | dict[str, Any]:
        """Return what a recipe says to get this variant: its name, and its options if any."""
        options = self.model_dump(mode="json")
        return {self.registry.key: self.name, **options} if options else self.name

    def __reduce__(self) -> Any:
        # Another process finds the variant as the recipe did, so a class made of a function need
        # not be importable.
        return _parsed, (self._concept(), self.spec())

    @classmethod
    def _concept(cls) -> type[Variant]:
        return cls.registry.base


V = TypeVar("V", bound=Variant)


def _parsed(base: type[Variant], spec: str | dict[str, Any]) -> Variant:
    found: Variant = base.registry.parse(spec)
    return found


REGISTRIES: dict[str, Registry[Any]] = {}
"""Every concept by its plural; `axpo list` shows them."""


class Registry(Generic[V]):
    """The variants of one concept, by name.

    Attributes:
        concept: what `axpo list` and error messages call it, in the plural: "objectives".
        base: the class that every variant inherits from.
        core: the method of `base` that a plain function stands for.
        default: the variant of a recipe that sets options but no name; None: a name is required.
        key: what a recipe calls the name: "name", or "kind" for tasks.
    """

    def __init__(
        self, concept: str, base: type[V], core: str, default: str | None = None, key: str = "name"
    ) -> None:
        self.concept, self.base, self.core = concept, base, core
        self.default, self.key = default, key
        self._variants: dict[str, type[V]] = {}
        self._own: dict[str, type[V]] = {}
        base.registry = self
        REGISTRIES[concept] = self

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that makes a class or a function known as `name`."""

        def add(variant: Any) -> Any:
            if name in self._variants:
                raise ValueError(f"{self.concept}: {name!r} is registered twice")
            self._variants[name] = self._as_class(variant, name)
            return variant

        return add

    def parse(self, value: Any) -> V:
        """Return the variant that a recipe asks for.

        Args:
            value: a name, an import path, a mapping of options with a `name`, or a variant.

        Raises:
            ValueError: there is no such variant, or it does not take these options; one line.
        """
        if isinstance(value, self.base):
            return value
        options = dict(value) if isinstance(value, Mapping) else {self.key: value}
        name = options.pop(self.key, self.default)
        try:
            return self._class_of(name)(**options)
        except ValidationError as error:
            raise ValueError(f"{name}: {_first_fault(error)}") from None

    def described(self) -> list[tuple[str, str]]:
        """Return the name and one line of description of every registered variant."""
        return [(name, _first_line(variant)) for name, variant in self._variants.items()]

    def _class_of(self, name: Any) -> type[V]:
        if isinstance(name, str) and name in self._variants:
            return self._variants[name]
        if not isinstance(name, str) or ":" not in name:
            known = ", ".join(self._variants)
            raise ValueError(f"expected one of {known}, or package.module:name; got {name!r}")
        if name not in self._own:
            self._own[name] = self._as_class(find(name), name)
        return self._own[name]

    def _as_class(self, found: Any, name: str) -> type[V]:
        """Return `found` as a subclass of the base, whether it is one or a function."""
        if inspect.isclass(found) and issubclass(found, self.base):
            return self._named(found, name)
        if not inspect.isfunction(found):
            raise ValueError(f"{name!r}: expected {self._expected()}")
        self._check_signature(found, name)
        members = {
            self.core: staticmethod(found),
            "__module__": found.__module__,
            "__doc__": found.__doc__,
        }
        return self._named(type(found.__name__, (self.base,), members), name)

    def _named(self, variant: type[V], name: str) -> type[V]:
        if inspect.isabstract(variant):
            missing = ", ".join(sorted(variant.__abstractmethods__))
            raise ValueError(f"{name!r}: has no {missing}; expected {self._expected()}")
        if not vars(variant).get("name"):  # a registered class keeps its name under any path
            variant.name = name
        return variant

    def _check_signature(self, function: Callable[..., Any], name: str) -> None:
        wanted = list(inspect.signature(getattr(self.base, self.core)).parameters)[1:]
        try:
            inspect.signature(function).bind(*wanted)
        except TypeError:
            raise ValueError(f"{name!r}: expected {self._expected()}") from None

    def _expected(self) -> str:
        wanted = list(inspect.signature(getattr(self.base, self.core)).parameters)[1:]
        owner = f"{self.base.__module__}.{self.base.__name__}"
        return f"a function of ({', '.join(wanted)}) or a subclass of {owner}"


class Registered:
    """Mark a field of a recipe that names a variant.

    For example `objective: Annotated[Objective, Registered()]`.
    """

    def __get_pydantic_core_schema__(
        self, source: type[Variant], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(lambda variant: variant.spec())
        return core_schema.no_info_plain_validator_function(
            source.registry.parse, serialization=written
        )


def _first_line(variant: type[Variant]) -> str:
    return (inspect.getdoc(variant) or "").partition("\n")[0]


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown option {field!r}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{field}={fault['input']!r}: {message}" if field else message
