"""GGUF files as models that transformers reads, dequantised once."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import struct
import tempfile
from pathlib import Path

import torch

from ...assets import home
from ...files import OutputError, printable, require_writable
from ...hubs import quiet_transformers
from ...types import SeepageError

_DONE = "config.json"


class GgufError(SeepageError):
    """A GGUF file that cannot be read as a causal language model."""


def dequantised(path: Path, sha256: str) -> Path:
    """Return the folder in the cache that holds a GGUF file's model and tokenizer as transformers saves them, in fp16.

    It is made on the first call, which takes half a minute for 135 million weights. `sha256` is that of the file.

    Raises:
        GgufError: the file cannot be read, or a package that reads it is absent.
        OutputError: the cache cannot be written.
    """
    folder = home() / "language" / f"{path.stem}-{sha256[:16]}"
    if (folder / _DONE).is_file():
        return folder
    for package in ("transformers", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise GgufError(f"{path.name} is read by {package}, which is not installed: pip install 'seepage[caption]'")
    require_writable(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        _convert(path, Path(part) / folder.name)
        try:
            (Path(part) / folder.name).rename(folder)
        except OSError as error:
            # Another process may have been quicker; what it made is the same.
            if not (folder / _DONE).is_file():
                raise OutputError(f"cannot write {printable(folder)}: {error.strerror or error}") from error
    return folder


def _convert(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # one of its bars heeds nothing
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
            )
            # What is saved is an ordinary model: the quantised one refuses to be.
            config = model.config
            del config.quantization_config
            state = {name: value.half() for name, value in model.state_dict().items()}
            with torch.device("meta"):
                plain = type(model)(config).half()
            plain.load_state_dict(state, assign=True)
            plain.tie_weights()
            plain.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            for file in folder.iterdir():
                file.chmod(0o644)  # for all who share the cache
    except (OSError, ValueError, LookupError, RuntimeError, OverflowError, struct.error) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise GgufError(f"{printable(path)} cannot be read as a causal language model: {first}") from error
