"""Components by name: register, build from a string, discover built-in modules and plug-ins."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from .types import SeepageError

Kind = Literal["attack", "defense", "metric", "victim", "dataset", "inverse"]

_PACKAGES: Mapping[str, str] = {
    "attack": "seepage.attacks",
    "defense": "seepage.defenses",
    "metric": "seepage.metrics",
    "victim": "seepage.victims",
    "dataset": "seepage.data",
    "inverse": "seepage.inverses",
}
_ENTRY_POINTS = "seepage.plugins"
_components: dict[str, dict[str, Any]] = {kind: {} for kind in _PACKAGES}
_discovered: set[str] = set()

T = TypeVar("T")


class UnknownNameError(SeepageError):
    """A name that nothing is registered under; the message suggests the nearest ones."""


class BadParameterError(SeepageError):
    """A component was given a parameter it lacks, or a value of another type."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest of `known`, else the list of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(repr(match) for match in near) + "?"
    return f"; known: {', '.join(names)}" if names else ""


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Register a class or function as `name`.

    Raises:
        ValueError: the name is taken by another component.
    """

    def add(component: T) -> T:
        taken = _components[kind].get(name)
        if taken is not None and _identity(taken) != _identity(component):
            raise ValueError(f"{kind} {name!r} is registered twice: by {_identity(taken)} and {_identity(component)}")
        _components[kind][name] = component
        return component

    return add


def names(kind: Kind) -> tuple[str, ...]:
    """Return the registered names of a kind, sorted."""
    _discover(kind)
    return tuple(sorted(_components[kind]))


def get(kind: Kind, name: str) -> Any:
    """Return what is registered as `name`.

    Raises:
        UnknownNameError: nothing is; the message names the nearest.
    """
    _discover(kind)
    try:
        return _components[kind][name]
    except KeyError:
        raise UnknownNameError(f"no {kind} is called {name!r}{suggest(name, _components[kind])}") from None


def name_of(kind: Kind, component: Any) -> str:
    """Return the name an instance's class is registered under."""
    _discover(kind)
    for name, registered in _components[kind].items():
        if registered is type(component):
            return name
    raise UnknownNameError(f"{type(component).__name__} is not a registered {kind}")


def build(kind: Kind, text: str, defaults: Mapping[str, Any] | None = None) -> Any:
    """Build a component from `name` or `name:key=value,...`; `defaults` yields to what the text sets.

    Values are read by the types of the dataclass fields.

    Raises:
        UnknownNameError: no such component.
        BadParameterError: no such parameter, or a value that its type does not take.
    """
    name, values = parse(text)
    component = get(kind, name)
    if not dataclasses.is_dataclass(component):
        if values:
            raise BadParameterError(f"{kind} {name!r} takes no parameters, got {', '.join(values)}")
        return component() if isinstance(component, type) else component
    fields = {field.name: field for field in dataclasses.fields(component) if field.init}
    hints = typing.get_type_hints(component)
    arguments = dict(defaults or {})
    for key, value in values.items():
        if key not in fields:
            raise BadParameterError(f"{kind} {name!r} has no parameter {key!r}{suggest(key, fields)}")
        arguments[key] = _convert(f"{name}:{key}", value, hints[key])
    try:
        return typing.cast(Callable[..., Any], component)(**arguments)
    except (TypeError, ValueError) as error:
        raise BadParameterError(f"{kind} {text!r}: {error}") from error


def spec(kind: Kind, component: Any) -> str:
    """Return `name:key=value,...` with all parameters, in the order of the fields: the text that builds it again."""
    name = name_of(kind, component)
    if not dataclasses.is_dataclass(component):
        return name
    pairs = [
        f"{field.name}={_text(getattr(component, field.name))}" for field in dataclasses.fields(component) if field.init
    ]
    return f"{name}:{','.join(pairs)}" if pairs else name


def parse(text: str) -> tuple[str, dict[str, str]]:
    """Split `name:key=value,...` into the name and the raw values.

    Raises:
        BadParameterError: a part is no `key=value`, or a key stands twice.
    """
    name, _, tail = text.partition(":")
    values: dict[str, str] = {}
    for part in filter(None, (item.strip() for item in tail.split(","))):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise BadParameterError(f"{text!r}: expected name:key=value,..., got {part!r}")
        if key in values:
            raise BadParameterError(f"{text!r}: {key!r} is set twice")
        values[key] = value.strip()
    return name.strip(), values


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(value, "g") if isinstance(value, float) else str(value)


def _convert(where: str, text: str, hint: Any) -> Any:
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Literal:
        for option in options:
            if str(option) == text:
                return option
        raise BadParameterError(f"{where} is one of {', '.join(map(str, options))}, got {text!r}")
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in options:
            return None
        return _convert(where, text, next(option for option in options if option is not type(None)))
    if hint is bool:
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise BadParameterError(f"{where} is true or false, got {text!r}")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            wanted = "a whole number" if hint is int else "a number"
            raise BadParameterError(f"{where} is {wanted}, got {text!r}") from None
    return text


def _identity(component: Any) -> str:
    return f"{component.__module__}.{component.__qualname__}"


def _discover(kind: Kind) -> None:
    """Import the built-in modules of a kind and, once, every plug-in."""
    if kind in _discovered:
        return
    _discovered.add(kind)
    try:
        package = importlib.import_module(_PACKAGES[kind])
    except ModuleNotFoundError as error:
        if error.name != _PACKAGES[kind]:
            raise
    else:
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    if "plug-ins" not in _discovered:
        _discovered.add("plug-ins")
        for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS):
            entry.load()
