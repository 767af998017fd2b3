"""Weights that a command needs, fetched with a bar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .console import TaskID, bar

if TYPE_CHECKING:
    from ..types import Attack


def fetch_for(*victims: str) -> None:
    """Fetch the assets of the zoo victims among these names; who uses them says what cannot be had."""
    from ..assets import ASSETS, AssetError

    bare = [name.rpartition("=")[2] for name in victims]
    wanted = [name.removeprefix("zoo/") for name in bare if name.startswith("zoo/")]
    missing = [name for name in wanted if name in ASSETS and not ASSETS[name].path.exists()]
    try:
        fetch(missing)
    except AssetError:
        return


def fetch_equipment(attacks: Iterable[Attack]) -> None:
    """Fetch the assets that attacks use, as `fetch_for` does."""
    from ..assets import ASSETS, TEXT, AssetError
    from ..attacks.equipped import Supplied

    known = {**ASSETS, **TEXT}
    wanted = dict.fromkeys(name for attack in attacks if isinstance(attack, Supplied) for name in attack.assets())
    try:
        fetch([name for name in wanted if not known[name].path.exists()])
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

            def tell(done: float, doing: str, task: TaskID = task) -> None:
                shown.update(task, completed=done, description=doing)

            found.append(str(assets.fetch(name, tell)))
    return found
