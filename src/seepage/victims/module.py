"""Victims of the user's own: a function in a package or a file that returns a network."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import functional as F

from ..own_code import run_file
from ..registry import register, suggest
from ..types import SeepageError
from .preprocess import Preprocessing
from .source import File, Network, Request, Tag
from .victim import UnknownVictimError, WeightsError
from .weights import fit, read_state

_FORMS = "module/package.module:function or module/path/to/file.py:function"


@register("victim", "module")
@dataclass(frozen=True)
class Module:
    """A user's function without arguments that returns a network on RGB in [0, 1]."""

    about: ClassVar[str] = "your own: a function that returns a torch.nn.Module on RGB in [0, 1]"

    def names(self) -> tuple[str, ...]:
        """Return nothing: the names are the user's."""
        return ()

    def examples(self) -> dict[str, str]:
        """Return the two forms of a name."""
        return {
            "module/package.module:function": "what the function of an importable module returns",
            "module/path/to/file.py:function": "what the function of a file returns; an absolute path has two slashes",
        }

    def build(self, request: Request) -> Network:
        """Call the function under the seed; without weights named, the network keeps those it came with."""
        where, _, name = request.name.rpartition(":")
        if not where or not name:
            raise UnknownVictimError(f"expected {_FORMS}, got module/{request.name}")
        if isinstance(request.weights, Tag):
            raise WeightsError(
                f"module/{request.name} has no weights {request.weights.name!r}; type @random[:SEED], "
                "@path/file.safetensors, or nothing for those that the function gives"
            )
        function = _function(where, name)
        with _blamed(f"module/{request.name}"), _path(where):
            model = function()
        if not isinstance(model, nn.Module):
            raise UnknownVictimError(
                f"module/{request.name} returned a {type(model).__name__}; expected a torch.nn.Module"
            )
        if isinstance(request.weights, File):
            fit(model, read_state(request.weights.path), str(request.weights))
        shape = _image_shape(request, function, model)
        return Network(
            name=request.name if request.weights is None else f"{request.name}@{request.weights}",
            model=model,
            preprocessing=Preprocessing(
                _Fitted(*shape[1:]), shape, f"resize and crop centrally (bilinear) to {shape[1]}x{shape[2]}"
            ),
            classes=_classes(model),
            scores=_is_count(getattr(model, "num_classes", None)),
        )


@dataclass(frozen=True)
class _Fitted:
    """The largest central part of a picture that has the input's shape, resized to it."""

    height: int
    width: int

    def __call__(self, image: Image.Image) -> Tensor:
        fitted = ImageOps.fit(image, (self.width, self.height), Image.Resampling.BILINEAR)
        scaled: Tensor = F.convert_image_dtype(F.pil_to_tensor(fitted), torch.float32)
        return scaled


def _function(where: str, name: str) -> Callable[[], Any]:
    module = _from_file(Path(where)) if where.endswith(".py") else _from_package(where)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        found = "no function" if function is None else f"a {type(function).__name__}, no function,"
        raise UnknownVictimError(f"{where} has {found} {name!r}{suggest(name, own)}")
    found_function: Callable[[], Any] = function
    return found_function


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownVictimError(f"no file {path}; expected {_FORMS}, where an absolute path has two slashes")
    with _blamed(str(path)), _path(str(path)):
        return run_file(path)


def _from_package(name: str) -> ModuleType:
    with _blamed(name), _path(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
            raise UnknownVictimError(f"no module is called {error.name!r}; expected {_FORMS}") from None


@contextlib.contextmanager
def _path(where: str) -> Iterator[None]:
    """Let a file import its neighbours, and a name be one of the working folder's, for as long as it takes."""
    folder = str(Path(where).resolve().parent) if where.endswith(".py") else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


@contextlib.contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Turn whatever a user's code raises into one line that names it; the cause stays chained."""
    try:
        yield
    except SeepageError:
        raise
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0]
        raise SeepageError(f"{what} raised {type(error).__name__}: {reason}") from error


def _image_shape(request: Request, function: Callable[[], Any], model: nn.Module) -> tuple[int, int, int]:
    shape: Any = getattr(function, "image_shape", None) or getattr(model, "image_shape", None) or (3, 224, 224)
    try:
        channels, height, width = (int(side) for side in shape)
    except (TypeError, ValueError):
        channels, height, width = 0, 0, 0
    if channels != 3 or min(height, width) < 1:
        raise SeepageError(f"module/{request.name}: image_shape is (3, height, width), got {shape!r}")
    if request.size is not None:
        return 3, request.size, request.size
    return 3, height, width


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _classes(model: nn.Module) -> tuple[str, ...] | None:
    classes = getattr(model, "classes", None)
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if named and classes is not None else None
