"""Weights from a hub: taken from its cache without asking, else fetched, else refused within seconds."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..hubs import CONNECT_SECONDS, first_line, unreachable
from .victim import WeightsError


def hugging_face_file(repo: str, filenames: Sequence[str], instead: str, revision: str | None = None) -> Path:
    """Return the first of a repository's files that it has, from the local cache, else fetched into it.

    Raises:
        WeightsError: none is on disk and none can be fetched; `instead` is what to type.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    for filename in filenames:
        with contextlib.suppress(EntryNotFoundError):
            return Path(huggingface_hub.hf_hub_download(repo, filename, revision=revision, local_files_only=True))
    missing = f"{repo}: {' or '.join(filenames)} is not in {constants.HF_HUB_CACHE} and cannot be fetched"
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f"{missing} (HF_HUB_OFFLINE is set); type {instead}")
    fault = unreachable(constants.ENDPOINT)
    if fault is not None:
        raise WeightsError(f"{missing} ({fault}); type {instead}")
    for filename in filenames:
        try:
            # Asked once: hf_hub_download itself asks five times over half a minute.
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(repo, filename, revision=revision), timeout=CONNECT_SECONDS
            )
            return Path(huggingface_hub.hf_hub_download(repo, filename, revision=revision))
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise WeightsError(f"{missing} ({first_line(error)}); type {instead}") from error
    raise WeightsError(f"{missing} ({constants.ENDPOINT} has no such file); type {instead}")


def torch_hub_file(url: str, instead: str) -> Path:
    """Return the file that torch.hub keeps of a URL, fetched where it is not yet there.

    Raises:
        WeightsError: it is not on disk and cannot be fetched; `instead` is what to type.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    missing = f"weights {path.name} are not in {folder} and cannot be fetched"
    fault = unreachable(url)
    if fault is not None:
        raise WeightsError(f"{missing} ({fault}); type {instead}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _stalls_end():
            torch.hub.download_url_to_file(url, str(path), _hash_prefix(path))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{missing} ({url}: {first_line(error)}); type {instead}") from error
    return path


@contextlib.contextmanager
def _stalls_end() -> Iterator[None]:
    """Let a connection of urllib, which torch.hub gives no timeout, end when nothing comes any more."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _hash_prefix(path: Path) -> str | None:
    """Return the first digits of the SHA-256 that PyTorch's file names end in."""
    digits = path.stem.rpartition("-")[2]
    return digits if len(digits) >= 8 and set(digits) <= set("0123456789abcdef") else None
