"""Features at several cuts of one victim by a single pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from ..types import SplitModel
from .cut import HookedPrefix
from .hooks import Network, Site, capture, features, hooked, probe
from .structure import first


def several(splits: Sequence[SplitModel]) -> Callable[[Tensor, Sequence[str]], dict[str, Tensor]]:
    """Return images "b 3 h w", layers -> the features at those of the splits' layers, without gradients.

    The network runs to the deepest layer asked for and no further; the others are taken on the way, as each split's own
    prefix gives them. The splits must be cuts of one loaded victim.

    Raises:
        ValueError: they are not.
    """
    prefixes = {split.layer: split.prefix for split in splits}
    hooks = {layer: prefix for layer, prefix in prefixes.items() if isinstance(prefix, HookedPrefix)}
    if len(hooks) < len(prefixes) or len({id(prefix.network.model) for prefix in hooks.values()}) != 1:
        raise ValueError("several cuts by one pass must be cuts of one loaded victim")
    network = next(iter(hooks.values())).network
    sites = {layer: prefix.site for layer, prefix in hooks.items()}
    order = _order(network, splits[0], list(sites.values()))

    @torch.no_grad()
    def extract(images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        wanted = {layer: sites[layer] for layer in layers}
        deepest = max(wanted.values(), key=order.index)
        kept: dict[Site, Tensor] = {}

        def keep(site: Site, output: object) -> None:
            found = first(output)
            assert found is not None  # the site is a legal cut
            kept[site] = found.clone()  # what runs on may work in place

        with ExitStack() as stack:
            for site in set(wanted.values()) - {deepest}:
                stack.enter_context(hooked(network, site, partial(keep, site)))
            kept[deepest] = features(network, images.to(splits[0].device), deepest)
        return {layer: kept[site] for layer, site in wanted.items()}

    return extract


@torch.no_grad()
def _order(network: Network, split: SplitModel, sites: Sequence[Site]) -> list[Site]:
    """Return the sites in the order in which the network passes them."""
    _, passed = capture(network, probe(network, split.image_shape, 1, seed=7), sites)
    return list(passed)
