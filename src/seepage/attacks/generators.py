"""A generator of the user's own: a function in a package or a file that returns a network from latents to pictures."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..own_code import run_file
from ..registry import suggest
from ..seeding import state_sha256
from ..types import SeepageError, Shape

FORMS = "module/package.module:function or module/path/to/file.py:function"
_SLACK = 1e-3


class GeneratorError(SeepageError):
    """A generator that cannot be had, or that does not draw RGB in [0, 1]."""


class Generator:
    """A frozen network from latents to pictures of the shape wanted, RGB in [0, 1]."""

    def __init__(self, network: nn.Module, latent: Shape, image_shape: tuple[int, int, int]) -> None:
        self.network = network
        self.latent = latent
        self.image_shape = image_shape

    def draw(self, generator: torch.Generator) -> Float[Tensor, "1 ..."]:
        """Return one standard normal latent, on the network's device."""
        device = next((weight.device for weight in self.network.parameters()), torch.device("cpu"))
        return torch.randn(1, *self.latent, generator=generator).to(device)

    def __call__(self, latents: Float[Tensor, "b ..."]) -> Float[Tensor, "b 3 h w"]:
        """Return pictures, resized where the network draws another size."""
        images: Tensor = self.network(latents)
        size = self.image_shape[1:]
        if tuple(images.shape[2:]) != tuple(size):
            images = nn.functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return images.clamp(0, 1)


@torch.no_grad()
def load(text: str, image_shape: tuple[int, int, int], device: torch.device) -> Generator:
    """Import the function that `text` names, call it, and try the network once. It is the user's code: it is run.

    The network has `latent_shape`, a tuple, or `latent_dim`, a number. Whatever it draws while it is made comes from
    one fixed seed.

    Raises:
        GeneratorError: there is no such function, it fails, or the network is not as described.
    """
    network = _built(text)
    where, _ = _named(text)
    with _blamed(text), _importable(where), torch.random.fork_rng(devices=[]):
        network = network.to(device).eval().requires_grad_(False)
        latent = _latent(network, text)
        images = network(torch.zeros(2, *latent, device=device))
    given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or images.ndim != 4 or tuple(images.shape[:2]) != (2, 3):
        raise GeneratorError(f"{text} maps 2 latents to {given}; expected pictures (2, 3, height, width)")
    if not ((images >= -_SLACK) & (images <= 1 + _SLACK)).all():
        raise GeneratorError(f"{text} draws from {images.min():.3g} to {images.max():.3g}; expected RGB in [0, 1]")
    return Generator(network, latent, image_shape)


def sha256(text: str) -> str:
    """Return the SHA-256 over the weights of the network that `text` names, and the file whose function makes it.

    Raises:
        GeneratorError: there is no such function, it fails, or what it returns is no network.
    """
    network = _built(text)
    where, _ = _named(text)
    with _blamed(text), _importable(where):
        file = where if where.endswith(".py") else importlib.import_module(where).__file__
        code = b"" if file is None else Path(file).read_bytes()
    return hashlib.sha256(code + state_sha256(network).encode()).hexdigest()


def _named(text: str) -> tuple[str, str]:
    """Return where the function lies, and its name."""
    source, _, rest = text.partition("/")
    where, _, name = rest.rpartition(":")
    if source != "module" or not where or not name:
        raise GeneratorError(f"a generator is {FORMS}, got {text!r}")
    return where, name


def _built(text: str) -> nn.Module:
    """Import the function and call it; it draws from one fixed seed."""
    where, name = _named(text)
    with _blamed(text), _importable(where), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = _function(where, name)()
    if not isinstance(network, nn.Module):
        raise GeneratorError(f"{text} returned a {type(network).__name__}; expected a torch.nn.Module")
    return network


def _latent(network: nn.Module, text: str) -> Shape:
    shape: Any = getattr(network, "latent_shape", None)
    if shape is None:
        shape = (getattr(network, "latent_dim", None),)
    sides = tuple(shape) if isinstance(shape, list | tuple) else (shape,)
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise GeneratorError(f"{text}: the network has latent_shape, such as (128,), or latent_dim; got {shape!r}")
    return sides


def _function(where: str, name: str) -> Callable[[], object]:
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise GeneratorError(f"no file {where}; expected {FORMS}, where an absolute path has two slashes")
        module = run_file(Path(where))
    else:
        module = importlib.import_module(where)
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise GeneratorError(f"{where} has no function {name!r}{suggest(name, own)}")
    function: Callable[[], object] = found
    return function


@contextmanager
def _importable(where: str) -> Iterator[None]:
    """Let a file import its neighbours, and a name be one of the working folder's, for as long as it takes."""
    folder = str(Path(where).resolve().parent) if where.endswith(".py") else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Turn whatever a user's code raises into one line that names it; the cause stays chained."""
    try:
        yield
    except SeepageError:
        raise
    except (Exception, SystemExit) as error:
        raise GeneratorError(f"{what} raised {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
