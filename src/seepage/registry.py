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
from contextlib import ExitStack
from pathlib import Path
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
_LISTED = 20
_components: dict[str, dict[str, Any]] = {kind: {} for kind in _PACKAGES}
_discovered: set[str] = set()

T = TypeVar("T")


class UnknownNameError(SeepageError):
    """A name that nothing is registered under; the message suggests the nearest ones."""


class BadParameterError(SeepageError):
    """A component was given a parameter it lacks, or a value of another type."""


class PluginError(SeepageError):
    """An installed plug-in cannot be imported, or takes a name that is taken."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest of `known`, whatever the case of letters, else a list of them."""
    names = sorted(known)
    folded = {item.casefold(): item for item in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(repr(folded[match]) for match in near) + "?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; known: {', '.join(names[:_LISTED])}{more}" if names else ""


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
    return made(kind, text, component, defaults)


def made(kind: str, text: str, component: Any, defaults: Mapping[str, Any] | None = None) -> Any:
    """Build a dataclass, registered or not, as `build` does.

    Raises:
        BadParameterError: no such parameter, or a value that its type does not take.
    """
    name, values = parse(text)
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
    """Return `name:key=value,...` with all parameters, in the order of the fields: the text that builds it again.

    Raises:
        BadParameterError: a value has no text that would give it back.
    """
    name = name_of(kind, component)
    return written(name, component) if dataclasses.is_dataclass(component) else name


def written(name: str, component: Any) -> str:
    """Return the text that builds a dataclass by this name, registered or not, as `spec` does.

    Raises:
        BadParameterError: a value has no text that would give it back.
    """
    hints = typing.get_type_hints(type(component))
    pairs = []
    for field in dataclasses.fields(component):
        if field.init:
            value = getattr(component, field.name)
            text = _text(value)
            back = _convert(f"{name}:{field.name}", text, hints[field.name])
            changed = back != value and value == value  # NaN is no other value for differing from itself
            if changed or "," in text or text != text.strip():
                raise BadParameterError(f"{name}:{field.name} is {value!r}, which cannot be written as text")
            pairs.append(f"{field.name}={text}")
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
    if value is None or isinstance(value, bool):
        return str(value).lower()
    # The shortest text that gives the same float back, and one text for equal values: 1.0 is 1, and -0.0 is 0.
    return repr(value + 0.0).removesuffix(".0") if isinstance(value, float) else str(value)


def _convert(where: str, text: str, hint: Any) -> Any:
    for option in _options(hint):
        try:
            return _READ[option](text) if option in _READ else _literal(text, option)
        except ValueError:
            continue
    raise BadParameterError(f"{where} is {_wanted(hint)}, got {text!r}")


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the types a value may have, in the order they are tried: text takes everything, so it comes last."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        return tuple(sorted(options, key=lambda option: (option is not type(None), option in (str, Path))))
    return (hint,)


def _literal(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is not Literal:
        raise ValueError
    options = {_text(option): option for option in typing.get_args(hint)}
    if text not in options:
        raise ValueError
    return options[text]


def _wanted(hint: Any) -> str:
    words = []
    for option in _options(hint):
        choices = ", ".join(_text(choice) for choice in typing.get_args(option))
        literal = f"one of {choices}" if typing.get_origin(option) is Literal else f"of {option}, which no text gives"
        words.append(_WORDS.get(option, literal))
    return " or ".join(words)


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError


def _bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "1", "on"):
        return True
    if text.lower() in ("false", "no", "0", "off"):
        return False
    raise ValueError


_READ: Mapping[Any, Callable[[str], Any]] = {
    type(None): _none,
    bool: _bool,
    int: int,
    float: float,
    str: str,
    Path: Path,
}
_WORDS = {
    type(None): "none",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


def _identity(component: Any) -> str:
    return f"{component.__module__}.{component.__qualname__}"


def _discover(kind: Kind) -> None:
    """Import the built-in modules of a kind and, once, every plug-in."""
    if kind in _discovered:
        return
    with ExitStack() as on_failure:
        on_failure.callback(_discovered.discard, kind)
        _discovered.add(kind)
        try:
            package = importlib.import_module(_PACKAGES[kind])
        except ModuleNotFoundError as error:
            if error.name != _PACKAGES[kind]:
                raise
        else:
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                importlib.import_module(module.name)
        if _ENTRY_POINTS not in _discovered:
            on_failure.callback(_discovered.discard, _ENTRY_POINTS)
            _discovered.add(_ENTRY_POINTS)
            for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS):
                _load(entry)
        on_failure.pop_all()


def _load(entry: importlib.metadata.EntryPoint) -> None:
    try:
        entry.load()
    except (ImportError, AttributeError, ValueError) as error:
        owner = f" of {entry.dist.name}" if entry.dist else ""
        raise PluginError(f"plug-in {entry.name!r}{owner} ({entry.value}) cannot be loaded: {error}") from error
