"""Models as transformers saves them, by name: found on disk, else fetched, and read part by part."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...files import printable
from ...hubs import first_line, unreachable
from ...pictures import file_sha256
from ...types import SeepageError

_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
_PICKLED = "pytorch_model.bin"
_KEPT = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_ALL = [*_KEPT, "*.bin"]


class PretrainedError(SeepageError):
    """Pretrained weights that cannot be had or read; the message says where was looked and what to type instead."""


def resolve(name: str, instead: str = "") -> Path:
    """Return the folder of a checkpoint: a local one, else a hub id's in the hub's cache, fetched if it is not there.

    `instead` is what else could be typed.

    Raises:
        PretrainedError: there is no such folder, or nothing gives the hub id's files.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise PretrainedError(f"{printable(folder)} has no config.json: expected a folder as transformers saves it")
        return folder
    hint = f"; type {instead}" if instead else "; type the path of a folder that holds its config.json and weights"
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name.startswith((".", "~")):
        raise PretrainedError(f"{printable(name)} is no folder here and no hub id OWNER/NAME{hint}")
    return _from_hub(name, hint)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's configuration.

    Raises:
        PretrainedError: it is no JSON object.
    """
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{printable(folder / 'config.json')} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise PretrainedError(f"{printable(folder / 'config.json')} holds no settings")
    return found


def read_part(folder: Path, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors under the first of some prefixes that any has, by what follows it; other shards stay closed.

    Raises:
        PretrainedError: there are none, or a file is damaged.
    """
    places = _places(folder)
    prefix = next((one for one in prefixes if any(name.startswith(one) for name in places)), None)
    if prefix is None:
        raise PretrainedError(f"{printable(folder)} has no weights under {' or '.join(prefixes)}")
    wanted = {name: place for name, place in places.items() if name.startswith(prefix)}
    found: dict[str, Tensor] = {}
    for shard in sorted(set(wanted.values())):
        try:
            with safe_open(folder / shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  no mapping
                    if wanted.get(name) == shard:
                        found[name.removeprefix(prefix)] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise PretrainedError(f"{printable(folder / shard)} cannot be read: {error}") from error
    absent = [name for name in wanted if name.removeprefix(prefix) not in found]
    if absent:
        raise PretrainedError(f"{printable(folder)} lacks {len(absent)} tensors of its index, first {absent[0]}")
    return found


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 over names and bytes of a checkpoint's configuration, weights and tokenizer files."""
    digest = hashlib.sha256()
    kept = (
        path
        for path in folder.iterdir()
        if path.is_file() and any(path.match(pattern) for pattern in (*_KEPT, "*.bin"))
    )
    for path in sorted(kept):
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _places(folder: Path) -> dict[str, str]:
    """Return the file that holds each tensor, by its name."""
    if (folder / _INDEX).is_file():
        try:
            places: dict[str, str] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError) as error:
            raise PretrainedError(f"{printable(folder / _INDEX)} is no index: {error}") from error
        return places
    try:
        with safe_open(folder / _WEIGHTS, framework="pt") as file:
            return dict.fromkeys(file.keys(), _WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"{printable(folder)} has no readable {_WEIGHTS} and no {_INDEX}: {error}") from error


def _from_hub(name: str, hint: str) -> Path:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = Path(huggingface_hub.snapshot_download(name, allow_patterns=_KEPT, local_files_only=True))
        if (found / "config.json").is_file() and _whole(found):
            return found
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise PretrainedError(f"{name} is no hub id: {first_line(error)}{hint}") from error
    missing = f"{name} is not in {constants.HF_HUB_CACHE} and cannot be fetched"
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1":
        raise PretrainedError(f"{missing} (HF_HUB_OFFLINE is set){hint}")
    fault = unreachable(constants.ENDPOINT)
    if fault is not None:
        raise PretrainedError(f"{missing} ({fault}){hint}")
    try:
        found = Path(huggingface_hub.snapshot_download(name, allow_patterns=_KEPT))
        # Older repositories have pickles alone; transformers reads them as tensors and nothing else.
        return found if _whole(found) else Path(huggingface_hub.snapshot_download(name, allow_patterns=_ALL))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise PretrainedError(f"{missing} ({first_line(error)}){hint}") from error


def _whole(folder: Path) -> bool:
    """Whether all the weights that a snapshot's index names are there: a fetch may have been cut off."""
    for index in (_INDEX, f"{_PICKLED}.index.json"):
        if (folder / index).is_file():
            shards = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            return all((folder / shard).is_file() for shard in set(shards))
    return (folder / _WEIGHTS).is_file() or (folder / _PICKLED).is_file()
