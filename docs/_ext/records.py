"""`{records}`: the fields of the result records, written at build time from the models that read and write them."""

from __future__ import annotations

import inspect
import typing

from docutils import nodes
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from seepage import schema


class Records(SphinxDirective):
    """A section for every record reachable from the named ones, in the order in which they are met."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        models = reachable([getattr(schema, name) for name in self.arguments[0].split()])
        return self.parse_text_to_nodes("\n\n".join(map(_section, models)), allow_section_headings=True)


def reachable(models: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """Return the models and those that their fields hold, each once."""
    found = list(models)
    for model in found:
        for field in model.model_fields.values():
            found += [inner for inner in _models(field.annotation) if inner not in found]
    return found


def _models(hint: object) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for inner in typing.get_args(hint) for model in _models(inner)]


def _section(model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | `{_type(field.annotation)}` | {_default(field.default, field.default_factory)} |"
        for name, field in model.model_fields.items()
    ]
    table = "\n".join(["| field | type | default |", "|---|---|---|", *rows])
    return f"## {model.__name__}\n\n{inspect.cleandoc(model.__doc__ or '')}\n\n{table}"


def _default(value: object, factory: object) -> str:
    if factory is not None:
        return "empty"
    if value is PydanticUndefined:
        return "required"
    return "empty" if value in ((), "") else f"`{'null' if value is None else value}`"


def _type(hint: object) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is typing.Literal:
        return " or ".join(f'"{option}"' for option in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"object of {_type(arguments[1])}"
    if arguments:
        return " or ".join(_type(option) for option in arguments)
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(hint, hint.__name__)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("records", Records)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
