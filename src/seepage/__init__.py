"""seepage: measure what seeps through the split of a vision model."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Cell": "schema",
    "Images": "types",
    "Knowledge": "types",
    "Leak": "types",
    "Pictures": "types",
    "Recovery": "types",
    "Request": "audit.request",
    "SeepageError": "types",
    "SplitModel": "types",
    "build": "registry",
    "cut": "victims.cut",
    "generator": "seeding",
    "generators": "seeding",
    "layers": "victims.layers",
    "load": "victims",
    "names": "registry",
    "open_source": "data",
    "read_leak": "data",
    "register": "registry",
    "row_hashes": "seeding",
    "run_audit": "audit.run",
    "write_leak": "data",
    "write_report": "report",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import seepage` stays fast."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'seepage' has no attribute {name!r}")
    module = importlib.import_module(f"seepage.{_PUBLIC[name]}")
    return getattr(module, "write" if name == "write_report" else name)


def __dir__() -> list[str]:
    return sorted(__all__)
