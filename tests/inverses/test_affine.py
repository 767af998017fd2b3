"""Affine segments against the pseudo-inverse of their matrix, and poolings."""

from __future__ import annotations

import math

import pytest
import torch
from known_blocks import noise, relative, seeded, segment
from timm.layers import PatchEmbed
from torch import Tensor, nn

from seepage.inverses import Generic, Target, serving
from seepage.inverses.affine import Affine, pseudo_inverse
from seepage.inverses.pool import Pool
from seepage.types import Segment


def matrix(part: Segment) -> Tensor:
    """The segment's matrix, column by column from its differences."""
    size = math.prod(part.in_shape)
    origin = part.module(torch.zeros(1, *part.in_shape))
    ways = torch.eye(size).view(size, *part.in_shape)
    return (part.module(ways) - origin).flatten(1).T.double()


class Tokens(nn.Module):
    """A patch embedding with a class token, positions and a scaled input, as vision transformers have it."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.embed = seeded(PatchEmbed(8, patch, 3, width), 5)
        self.token = nn.Parameter(noise(1, 1, width, seed=1))
        self.places = nn.Parameter(noise(1, (8 // patch) ** 2 + 1, width, seed=2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed((x - 0.4) / torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1))
        return torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places


SEGMENTS = {
    "head": (nn.Linear(12, 5), (12,)),
    "wide head": (nn.Linear(6, 9), (6,)),
    "convolution": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5)),
    "average": (nn.AdaptiveAvgPool2d(1), (4, 3, 3)),
    "norm": (nn.BatchNorm1d(7), (7,)),
    "flatten": (nn.Flatten(), (2, 3, 3)),
    "patches that lose": (Tokens(4, 20), (3, 8, 8)),
    "patches that do not": (Tokens(2, 14), (3, 8, 8)),
    "square patches": (Tokens(2, 12), (3, 8, 8)),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_an_affine_segment_is_undone_by_the_pseudo_inverse_of_its_matrix(name):
    module, shape = SEGMENTS[name]
    part = segment(seeded(module, 4), shape)
    assert serving(part) == ("affine", Affine())
    x = noise(3, *shape, seed=6)
    start = noise(3, *shape, seed=7)
    y = part.module(x)
    with torch.no_grad():
        missed = (y - part.module(start)).flatten(1).double()
    nearest = start.flatten(1) + (missed @ torch.linalg.pinv(matrix(part), rtol=1e-6).T).float()
    solution = Affine().invert(part, Target(y, start), 60)
    assert relative(solution.x.flatten(1), nearest).max() < 1e-5
    assert {status.kind for status in solution.status} == {"converged"}
    if math.prod(part.out_shape) >= math.prod(shape):
        assert relative(solution, x).max() < 1e-4


def test_only_the_part_that_a_head_shows_comes_back():
    part = segment(seeded(nn.Linear(12, 5), 4), (12,), "head")
    x = noise(2, 12)
    solution = serving(part)[1].invert(part, Target(part.module(x), torch.zeros(2, 12), identified=False), 60)
    basis = torch.linalg.svd(part.module.weight).Vh
    assert torch.allclose(solution.x @ basis[:5].T, x @ basis[:5].T, atol=1e-5)
    assert torch.allclose(solution.x @ basis[5:].T, torch.zeros(2, 7), atol=1e-5)


@pytest.mark.parametrize("name", ["convolution", "average", "wide head", "patches that lose"])
def test_a_map_too_large_for_its_matrix_is_undone_by_conjugate_gradients(name, monkeypatch):
    module, shape = SEGMENTS[name]
    part = segment(seeded(module, 4), shape)
    change = 0.1 * noise(2, *part.out_shape, seed=9)
    monkeypatch.setattr("seepage.inverses.affine._LARGEST", 0)
    monkeypatch.setattr("seepage.inverses.affine.patchwise", lambda *_: None)
    found = pseudo_inverse(part, 1e-6, 200)(change).flatten(1)
    expected = change.flatten(1).double() @ torch.linalg.pinv(matrix(part), rtol=1e-6).T
    assert relative(found, expected.float()).max() < 1e-3


def test_the_prior_decides_what_the_map_leaves_open_and_nothing_else():
    part = segment(nn.AvgPool2d(2), (1, 4, 4), "pool")
    x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
    y = part.module(x)

    def energy(given: Tensor) -> Tensor:
        return 1e-2 * given.flatten(1).square().sum(1)

    start = noise(1, 1, 4, 4)
    solution = serving(part)[1].invert(part, Target(y, start, prior=energy, identified=False), 800)
    assert relative(solution, nn.functional.interpolate(y, scale_factor=2)).max() < 0.05
    assert solution.residual.max() < 1e-6


def test_between_bounds_the_map_is_still_explained():
    part = segment(SEGMENTS["patches that lose"][0], (3, 8, 8), "stem")
    x = noise(2, 3, 8, 8).mul(0.4).add(0.5).clamp(0, 1)
    y = part.module(x)
    start = torch.full_like(x, 0.5)
    free = Affine().invert(part, Target(y, start, identified=False), 90)
    held = Affine().invert(part, Target(y, start, 0.0, 1.0, identified=False), 90)
    assert free.x.min() < -0.05, "the bounds must matter"
    assert held.x.min() >= 0
    assert held.x.max() <= 1
    assert held.residual.max() < 0.1 * relative(part.module(free.x.clamp(0, 1)).flatten(1), y.flatten(1)).min()
    assert (relative(held, x) < relative(free, x)).all()


def test_bends_are_noticed():
    for module in (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.LayerNorm(4), nn.Softmax(1)):
        part = segment(module, (4,), "head")
        assert not Affine().fits(part)
        assert serving(part) == ("generic", Generic())


def test_a_max_pooling_gives_the_largest_input_that_explains_it():
    part = segment(nn.MaxPool2d(3, 2, 1), (2, 8, 8), "pool")
    x = noise(2, 2, 8, 8)
    y = part.module(x)
    assert serving(part) == ("pool", Pool())
    solution = Pool().invert(part, Target(y, torch.zeros_like(x), identified=False), 50)
    assert torch.equal(part.module(solution.x), y)
    assert (solution.x >= x).all()
    assert {status.kind for status in solution.status} == {"converged"}


def test_below_the_maxima_the_prior_decides():
    part = segment(nn.MaxPool2d(2), (1, 8, 8), "pool")
    x = noise(1, 1, 8, 8).abs()
    y = part.module(x)

    def energy(given: Tensor) -> Tensor:
        return 1e-3 * given.flatten(1).square().sum(1)

    solution = Pool().invert(part, Target(y, torch.zeros_like(x), 0.0, None, energy, False), 300)
    highest = nn.functional.interpolate(y, scale_factor=2)
    assert solution.residual.max() < 0.1
    assert (solution.x <= highest + 1e-6).all()
    assert solution.x.square().sum() < 0.5 * highest.square().sum()


def test_what_a_weak_direction_magnifies_beyond_the_bounds_is_left_at_the_start():
    turn = torch.linalg.qr(noise(40, 40, seed=1)).Q
    weak = nn.Linear(40, 40, bias=False)
    weak.weight.data = (turn * torch.logspace(0, -5, 40)) @ torch.linalg.qr(noise(40, 40, seed=2)).Q
    part = segment(weak, (40,))
    x = 0.5 + 0.2 * noise(3, 40, seed=3).clamp(-2, 2)
    near = (x + 0.01 * noise(3, 40, seed=4)).clamp(0, 1)
    with torch.no_grad():
        exact = weak(x)
        off = exact + 1e-4 * exact.norm(dim=1, keepdim=True) * noise(3, 40, seed=5) / 40**0.5
    found = Affine().invert(part, Target(off, near, 0.0, 1.0), 100)
    plain = (torch.linalg.pinv(weak.weight.data.double(), rtol=1e-6) @ off.double().T).T.clamp(0, 1)
    assert (relative(plain.float(), x) > 0.2).all()
    assert (relative(found.x, x) < 0.3 * relative(plain.float(), x)).all()
    assert (found.passes <= 100).all()
    # Where y is exact, nothing is left at the start.
    assert (relative(Affine().invert(part, Target(exact, near, 0.0, 1.0), 100).x, x) < 0.1 * relative(near, x)).all()
