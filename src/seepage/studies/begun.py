"""A training of CapRecover that begins as an adapter: what reads and speaks is taken over, whatever it reads from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..attacks.caprecover import adapter
from ..attacks.caprecover.adapter import AdapterError, Header, Seen
from ..attacks.caprecover.language import LanguageModel
from ..attacks.caprecover.model import CapRecoverModel, ModelConfig
from ..files import printable
from .captioned import Captioned


@dataclass(frozen=True)
class Begun:
    """An adapter to begin as: of any victim, for other layers and other pictures."""

    path: Path
    sha256: str
    header: Header
    model: CapRecoverModel

    @staticmethod
    def of(path: Path) -> Begun:
        """Read it.

        Raises:
            AdapterError: it cannot be read.
        """
        model, header = adapter.read(path)
        return Begun(path, adapter.sha256(path), header, model)

    def config(self, classes: int, hide: float) -> ModelConfig:
        """Return its configuration, for other labels."""
        return replace(self.header.config, classes=classes, hide=hide)

    def require(self, language: LanguageModel | None, select: Captioned) -> None:
        """Refuse it where it speaks through another language model, or has learned from held-out pictures.

        Raises:
            AdapterError: it does.
        """
        name = printable(self.path)
        if language is not None and language.sha256 != self.header.language_sha256:
            raise AdapterError(
                f"--begin {name} speaks through {self.header.config.language or 'no language model'} "
                f"({self.header.language_sha256[:12] or 'none'}), not {language.name} ({language.sha256[:12]}): "
                "name the same with --language"
            )
        known = self.header.train.among(select.part.hashes())
        if known:
            raise AdapterError(
                f"--begin {name} has learned from {len(known)} of the pictures that are held out, which would flatter "
                "what it comes to: name others with --select"
            )

    def give(self, model: CapRecoverModel, classes: tuple[str, ...] | None) -> None:
        """Put its weights into a model of `config`: all but the mappers', and a read-out of other classes'."""
        left = ("mappers.", *(() if classes == self.header.classes else ("labels.",)))
        mine = {key: value for key, value in self.model.state_dict().items() if not key.startswith(left)}
        own = model.state_dict()
        model.load_state_dict({**own, **{key: value for key, value in mine.items() if key in own}})

    def seen(self, train: Seen, select: Seen) -> tuple[Seen, Seen]:
        """Return what a training has seen, and what its beginning had."""
        before = self.header
        return (
            replace(train, hashes=train.hashes | before.train.hashes),
            replace(select, hashes=select.hashes | before.select.hashes),
        )
