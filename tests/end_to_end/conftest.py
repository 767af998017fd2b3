"""A tiny victim on disk, a folder of small pictures, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seepage.cli import run

VICTIM = '''
import torch
from torch import nn


class Tiny(nn.Module):
    """An invertible mixing of colours, a wide convolution, a head."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1, bias=False)
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 5)
        self.num_classes = 5
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]]).view(3, 3, 1, 1))

    def forward(self, x):
        x = self.relu(self.wide(self.mix(x)))
        return self.head(self.pool(x).flatten(1))


def tiny():
    torch.manual_seed(0)
    return Tiny()


def judge():
    torch.manual_seed(1)
    return Tiny()


def embedder():
    model = tiny()
    del model.num_classes
    return model


def poisoned():
    model = tiny()
    with torch.no_grad():
        model.wide.weight[0, 0, 0, 0] = float("nan")
    return model


def overflowing():
    model = tiny()
    with torch.no_grad():
        model.mix.weight.mul_(1e38)
    return model


for function in (tiny, embedder, judge, poisoned, overflowing):
    function.image_shape = (3, 16, 16)
'''


@pytest.fixture
def victim(tmp_path: Path) -> str:
    """The name of the tiny victim."""
    path = tmp_path / "victims.py"
    path.write_text(VICTIM)
    return f"module/{path}:tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of smooth colour, 16 px."""
    root = tmp_path / "pictures"
    root.mkdir()
    rows, columns = np.mgrid[0:16, 0:16] / 15.0
    random = np.random.default_rng(0)
    for index in range(6):
        a, b, c = random.uniform(0, 1, (3, 3))
        picture = (a + np.multiply.outer(rows, b - a) + np.multiply.outer(columns, c - a)).clip(0, 1)
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(root / f"{index}.png")
    return root


@pytest.fixture
def seepage(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        words = [str(argument) for argument in arguments]
        if words[0] == "audit" and "--metric" not in words and "--spec" not in words:
            words += ["--metric", "mse", "--metric", "psnr", "--metric", "ssim"]  # those that need no weights
        code = run(words)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call
