"""Where the caption extra is not installed: what needs it says so, what does not works."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from captions_at_hand import pictured, said

from seepage import registry
from seepage.types import Knowledge, NotRunError

TRUTH, RECOVERY = pictured(["a dog runs"]), said("a dog runs")


@pytest.fixture(autouse=True)
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accelerate", "gguf", "pycocoevalcap", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("key", ["bleu1", "bleu4", "rouge_l", "cider:least=1", "recall1"])
def test_what_is_our_own_is_there(key: str) -> None:
    assert registry.build("metric", key).unavailable((3, 8, 8)) is None


@pytest.mark.parametrize("key", ["cosine", "perplexity", "meteor", "spice"])
def test_what_is_not_names_the_extra(key: str, tmp_path: Path) -> None:
    if key in ("meteor", "spice") and shutil.which("java") is None:
        pytest.skip("there is no java on the PATH, which is the first thing it says")
    metric = registry.build("metric", f"{key}:model={tmp_path}" if key == "perplexity" else key)
    with pytest.raises(NotRunError, match=r"^\w+ needs the `caption` extra.*pip install 'seepage\[caption\]'$"):
        metric(TRUTH, RECOVERY)


@pytest.mark.parametrize("attack", ["caprecover", "caprecover:read=label"])
def test_an_attack_that_needs_it_is_not_run(attack: str) -> None:
    with pytest.raises(NotRunError, match=r"^caprecover needs the `caption` extra.*pip install 'seepage\[caption\]'$"):
        registry.build("attack", attack).fit(Knowledge((3, 8, 8)), torch.Generator())
