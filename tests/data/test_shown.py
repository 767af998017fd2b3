"""The ways a picture is shown: what a crop is a part of, and how often each way is picked."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from seepage.data.shown import MIRRORED, PLAIN, pick, shown, ways


def ramp(height: int = 60, width: int = 80) -> Tensor:
    """A picture whose first two channels say where in it one is."""
    down = torch.linspace(0, 1, height)[:, None].expand(height, width)
    across = torch.linspace(0, 1, width)[None].expand(height, width)
    return torch.stack([down, across, torch.full_like(down, 0.5)])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 0.999])
def test_with_mirror_images_a_share_is_the_coin_that_it_was(share: float) -> None:
    assert pick(ways(flips=True, crops=0), share) == (MIRRORED if share < 0.5 else PLAIN)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("crops", [0, 3])
def test_every_way_is_as_likely(flips: bool, crops: int) -> None:
    known = ways(flips=flips, crops=crops)
    assert len(known) == 1 + flips + crops
    picked = Counter(pick(known, step / 1000) for step in range(1000))
    assert set(picked) == set(known)
    assert max(picked.values()) - min(picked.values()) <= 1


def test_picture_as_it_is_and_its_mirror_image() -> None:
    image = ramp()
    assert torch.equal(shown(image, PLAIN, "a"), image)
    assert torch.equal(shown(image, MIRRORED, "a"), image.flip(-1))


def test_crop_is_an_upright_part_of_the_picture_by_way_and_file_alone() -> None:
    image, areas, mirrored = ramp(), [], 0
    for number in range(200):
        part = shown(image, 2, f"file {number}")
        assert part.shape == image.shape
        assert torch.allclose(part[2], torch.full_like(part[2], 0.5))
        down, across = (part[0, -1, 0] - part[0, 0, 0]).item(), (part[1, 0, -1] - part[1, 0, 0]).item()
        assert down > 0  # never on its head
        areas.append(down * abs(across))
        mirrored += across < 0
    assert 0.33 < min(areas) < 0.5  # resampling takes a little of each end
    assert 0.9 < max(areas) <= 1.0
    assert sum(areas) / len(areas) == pytest.approx(0.7, abs=0.05)
    assert 70 < mirrored < 130
    assert torch.equal(shown(image, 2, "a"), shown(image, 2, "a"))
    assert not torch.equal(shown(image, 2, "a"), shown(image, 3, "a"))
    assert not torch.equal(shown(image, 2, "a"), shown(image, 2, "b"))


def test_picture_of_one_pixel_stays_one() -> None:
    assert torch.equal(shown(torch.full((3, 1, 1), 0.25), 4, "a"), torch.full((3, 1, 1), 0.25))
