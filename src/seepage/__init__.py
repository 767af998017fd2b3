"""seepage: measure what seeps through the split of a vision model."""

from __future__ import annotations

__version__ = "0.1.0"
