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
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from axpo.texts import one_line, shown


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
    except (Exception, SystemExit) as error:  # the module is the user's: anything may happen
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"cannot import {one_line(module_name, 80)}: {reason}") from error
    if not hasattr(module, name):
        raise ValueError(f"{module_name} has no {one_line(name, 80)}")
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
        try:
            return self.validate(value)
        except ValidationError as error:
            raise ValueError(f"{self.concept}: {_first_fault(error)}") from None

    def validate(self, value: Any) -> V:
        """Do as `parse`, but report every fault with its place, for a recipe that holds the value.

        Raises:
            ValidationError: each fault has a location within `value`; pydantic puts the location
                of the recipe's field in front of it.
        """
        if isinstance(value, self.base):
            return value
        options: dict[Any, Any] = {}
        name = value
        place: tuple[str, ...] = ()
        if isinstance(value, Mapping):
            options = dict(value)
            name, place = options.pop(self.key, self.default), (self.key,)
        if name is None:
            raise self._fault("missing", (self.key,), value)
        try:
            variant = self._class_of(name)
        except ValueError as error:
            message = PydanticCustomError("variant", "{error}", {"error": str(error)})
            raise self._fault(message, place, name) from None
        return variant.model_validate(options)

    def described(self) -> list[tuple[str, str]]:
        """Return the name and one line of description of every variant, without older names."""
        return [
            (name, _first_line(variant))
            for name, variant in self._variants.items()
            if name == variant.name
        ]

    def class_of(self, name: Any) -> type[V]:
        """Return the class of the variant `name`, a registered name or an import path.

        Raises:
            ValueError: there is no such variant; one line.
        """
        try:
            return self._class_of(name)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None

    def _class_of(self, name: Any) -> type[V]:
        """Do as `class_of`; the message of the error does not repeat the name."""
        if isinstance(name, str) and name in self._variants:
            return self._variants[name]
        if not isinstance(name, str) or ":" not in name:
            known = ", ".join(self._variants)
            raise ValueError(f"expected one of {known}, or package.module:name")
        if name not in self._own:
            variant = self._as_class(self._find(name), name)
            if variant.name != name:
                # Another process may not have imported the module that registers this class, so
                # only its path finds it everywhere.
                variant = type(variant.__name__, (variant,), {**_origin(variant), "name": name})
            self._own[name] = variant
        return self._own[name]

    def _find(self, path: str) -> Any:
        try:
            return find(path)
        except ValueError as error:
            raise ValueError(f"{error}; expected {self._expected()}") from None

    def _as_class(self, found: Any, name: str) -> type[V]:
        """Return `found` as a subclass of the base, whether it is one or a function."""
        if inspect.isclass(found) and issubclass(found, self.base):
            return self._named(found, name)
        if inspect.isclass(found) or not callable(found):
            raise ValueError(f"expected {self._expected()}")
        self._check_signature(found)
        members = {self.core: staticmethod(found), **_origin(found)}
        title = getattr(found, "__name__", self.core)
        return self._named(type(title, (self.base,), members), name)

    def _named(self, variant: type[V], name: str) -> type[V]:
        if inspect.isabstract(variant):
            missing = ", ".join(sorted(variant.__abstractmethods__))
            raise ValueError(f"has no {missing}; expected {self._expected()}")
        if not vars(variant).get("name"):  # a class keeps the name it was registered with first
            variant.name = name
        return variant

    def _check_signature(self, function: Callable[..., Any]) -> None:
        try:
            signature = inspect.signature(function)
        except ValueError:  # a function written in C may not tell its parameters
            return
        try:
            signature.bind(*self._parameters())
        except TypeError:
            raise ValueError(f"expected {self._expected()}") from None

    def _expected(self) -> str:
        owner = f"{self.base.__module__}.{self.base.__name__}"
        return f"a function of ({', '.join(self._parameters())}) or a subclass of {owner}"

    def _parameters(self) -> list[str]:
        return list(inspect.signature(getattr(self.base, self.core)).parameters)[1:]

    def _fault(
        self, kind: str | PydanticCustomError, place: tuple[str, ...], value: Any
    ) -> ValidationError:
        details = InitErrorDetails(type=kind, loc=place, input=value)
        return ValidationError.from_exception_data(self.concept, [details])


class Registered:
    """Mark a field of a recipe that names a variant.

    For example `objective: Annotated[Objective, Registered()]`.
    """

    def __get_pydantic_core_schema__(
        self, source: type[Variant], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(lambda variant: variant.spec())
        return core_schema.no_info_plain_validator_function(
            source.registry.validate, serialization=written
        )


def _origin(found: Any) -> dict[str, Any]:
    """Return the members of a class made of `found` that say where it comes from."""
    module = getattr(found, "__module__", None) or __name__
    return {"__module__": module, "__doc__": found.__doc__}


def _first_line(variant: type[Variant]) -> str:
    return (inspect.getdoc(variant) or "").partition("\n")[0]


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown option {field!r}"
    if fault["type"] == "missing":
        return f"{field}: required, but not given"
    message = fault["msg"].removeprefix("Value error, ")
    if field:
        return f"{field}={shown(fault['input'])}: {message}"
    # The checks of a variant as a whole name the option themselves.
    return message if fault["type"] == "value_error" else f"{shown(fault['input'])}: {message}"
