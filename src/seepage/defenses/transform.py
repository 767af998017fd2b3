"""The law of a defense that draws nothing: what is sent is known from the leak, and lifted as well as can be."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..types import Generators, Law, Leak, Secret
from .base import EVERYONE, BuiltIn, applied, mean_of, together


class Transform(BuiltIn):
    """A defense that maps features to features of the same shape, the same for every send."""

    holder: ClassVar[str] = "nobody"
    protects_from: ClassVar[tuple[str, ...]] = EVERYONE

    @abstractmethod
    def map(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return what is sent for these features; differentiable, through steps as if they were none."""

    def lift(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the best guess at the features behind what was sent: as they are."""
        return features

    def blur(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Return how far lifted numbers are off, as a deviation: nothing, zeros staying zeros; infinity where numbers
        are mixed."""
        return features.new_zeros(len(features))

    def gain(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Return by how much lifting scales each row: it does not."""
        return features.new_ones(len(features))

    def exact(self, features: Float[Tensor, "b ..."]) -> Bool[Tensor, "b"]:
        """Return which rows are lifted to what they were but for the blur: all, as nothing is cut off."""
        return torch.ones(len(features), dtype=torch.bool)

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        """Return the mapped leak; nothing is kept."""
        return applied(leak, self, self.map(leak.features)), None

    def law(self) -> Law:
        """Return the map, which anyone may know."""
        return TransformLaw(self)


@dataclass(frozen=True)
class TransformLaw:
    """The map itself."""

    defense: Transform

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return what is sent."""
        return self.defense.protect(clean, generators)[0]

    def expected(self, clean: Leak) -> Leak:
        """Return what is sent."""
        return self.defense.protect(clean, ())[0]

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return the sends, which differ by what came before alone, averaged and lifted."""
        return sends[0].with_features(self.defense.lift(mean_of(tuple(sends))))

    def carried(self, sent: Leak, blur: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the blur, lifted as the numbers are, with the map's own."""
        return together(self.defense.gain(sent.features).to(blur) * blur, self.defense.blur(sent.features))

    def exact(self, sent: Leak) -> Bool[Tensor, "b"]:
        """Return the map's own."""
        return self.defense.exact(sent.features).cpu()

    def log_likelihood(self, sent: Leak, clean: Leak) -> None:
        """Return nothing: what is sent has no density."""
        return
