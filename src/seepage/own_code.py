"""A user's own Python file, run as a module: it is the user's code, and does what it likes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType


def run_file(path: Path) -> ModuleType:
    """Run a .py file and return it as a module; whatever the file raises comes through.

    The module is registered under a private name that depends on the whole path, because dataclasses, type hints and
    pickles look their module up by name. A file that fails leaves what was registered before it.
    """
    name = f"_seepage_{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
        raise
    return module
