"""Weights that a command needs, fetched with a bar."""

from __future__ import annotations

from collections.abc import Sequence

from .console import bar


def fetch_for(*victims: str) -> None:
    """Fetch the assets of the zoo victims among these names that are not here; what cannot be had is told by its user."""
    from ..assets import ASSETS, AssetError

    bare = [name.rpartition("=")[2] for name in victims]
    wanted = [name.removeprefix("zoo/") for name in bare if name.startswith("zoo/")]
    missing = [name for name in wanted if name in ASSETS and not ASSETS[name].path.exists()]
    try:
        fetch(missing)
    except AssetError:
        return


def fetch(names: Sequence[str]) -> list[str]:
    """Fetch assets by name with a bar; return their paths.

    Raises:
        AssetError: an asset cannot be had.
    """
    from .. import assets

    if not names:
        return []
    found = []
    with bar() as shown:
        for name in names:
            task = shown.add_task(f"fetching {name}", total=1.0)
            path = assets.fetch(
                name, lambda done, doing, task=task: shown.update(task, completed=done, description=doing)
            )  # type: ignore[misc]
            found.append(str(path))
    return found
