"""Which attack can be which attacker's."""

from __future__ import annotations

from pathlib import Path

import pytest

from seepage import registry
from seepage.audit.exposure import pairing


@pytest.mark.parametrize(
    ("attack", "attacker", "words"),
    [
        ("joint", "aware:retrained", "learns from no leaks"),
        ("joint", "aware:likelihood", ""),
        ("peel", "aware:likelihood", "has no place for a law"),
        ("probe", "aware:retrained", ""),
        ("caprecover", "aware:retrained", ""),
        # It needs the victim's layers, and still learns from leaks.
        ("caprecover:through=layer3.2", "aware:retrained", ""),
        ("caprecover:through=layer3.2,adapter={file}", "aware:retrained", "comes trained"),
        ("caprecover:adapter={file}", "naive", ""),
    ],
)
def test_pairs_that_cannot_be_say_why(tmp_path: Path, attack: str, attacker: str, words: str) -> None:
    file = tmp_path / "adapter"
    file.write_bytes(b"weights")
    built = registry.build("attack", attack.format(file=file))
    name = attack.partition(":")[0]
    said = pairing(built, name, attacker)
    assert said == "" if not words else words in said
    assert not said or said.startswith(name)
