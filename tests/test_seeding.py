import hashlib
import itertools
import subprocess
import sys
from typing import get_args

import pytest
import torch

from seepage.seeding import Role, generator, generators, row_hashes

ROLES = get_args(Role)


def draw(source: torch.Generator) -> list[float]:
    return torch.rand(4, generator=source).tolist()


def test_equal_parts_give_equal_numbers():
    assert draw(generator(3, "attack", "picture", 1)) == draw(generator(3, "attack", "picture", 1))


def test_any_difference_gives_other_numbers():
    calls = [(seed, role, part, turn) for seed in (0, 1) for role in ROLES for part in ("a", "b") for turn in (0, 1)]
    drawn = [draw(generator(seed, role, part, turn)) for seed, role, part, turn in calls]
    assert all(a != b for a, b in itertools.combinations(drawn, 2))


def test_parts_do_not_run_into_each_other():
    assert draw(generator(0, "fit", "ab", "c")) != draw(generator(0, "fit", "a", "bc"))
    assert draw(generator(1, "fit", 23)) != draw(generator(12, "fit", 3))


def test_numbers_are_the_same_in_another_process():
    code = (
        "import torch; from seepage.seeding import generator;"
        "print(torch.rand(4, generator=generator(3, 'law', 'x', 2)).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == str(draw(generator(3, "law", "x", 2)))


def test_a_samples_generator_depends_on_neither_batch_nor_order():
    hashes = ["aa", "bb", "cc"]
    together = dict(zip(hashes, map(draw, generators(7, "defense", hashes, turn=2))))
    assert len({tuple(values) for values in together.values()}) == 3
    for order in itertools.permutations(hashes):
        assert dict(zip(order, map(draw, generators(7, "defense", order, turn=2)))) == together
    for item in hashes:
        assert draw(generators(7, "defense", [item], turn=2)[0]) == together[item]


def test_global_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(generator(0, "attack", "x"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int32])
def test_row_hashes_are_those_of_the_bytes(dtype):
    rows = torch.arange(24).reshape(2, 3, 4).to(dtype)
    expected = tuple(hashlib.sha256(bytes(row.flatten().view(torch.uint8).tolist())).hexdigest() for row in rows)
    assert row_hashes(rows) == expected
    assert row_hashes(rows[1:]) == expected[1:]
    assert expected[0] != expected[1]


def test_row_hashes_do_not_depend_on_the_layout_in_memory():
    rows = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    turned = rows.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert not turned.is_contiguous()
    assert row_hashes(turned) == row_hashes(rows)
    assert len(row_hashes(torch.ones(3))) == 3
