"""How attacks learn: which rows they see, which weights they keep, and what they refuse."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from seepage.attacks.learning import Course, Lesson, Moments, TrainingError, synthetic


class One(nn.Module):
    """A single number."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


def numbers(*values: float) -> list[Lesson]:
    return [(torch.tensor([[value]]),) for value in values]


def taught(lessons: list[Lesson], held: list[Lesson], steps: int = 200, lr: float = 0.1) -> tuple[float, float]:
    """Return where the number ends that is to be the lessons' mean, and its loss on those held out."""
    network = One()

    def loss(lesson: Lesson) -> Tensor:
        return (network.value - lesson[0]).square().mean()

    best = Course(steps, lr, 4).teach(network, loss, lessons, held, torch.Generator().manual_seed(0), lambda done: None)
    return network.value.item(), best


def test_it_learns_what_the_lessons_say() -> None:
    value, best = taught(numbers(1, 2, 3, 4), numbers(2.5))
    assert value == pytest.approx(2.5, abs=0.05)
    assert best == pytest.approx(0, abs=0.01)


def test_the_weights_that_are_kept_did_best_on_what_was_held_out() -> None:
    value, best = taught(numbers(4, 4, 4, 4), numbers(1), lr=0.02)
    assert value == pytest.approx(1, abs=0.2)
    assert best == pytest.approx((value - 1) ** 2, abs=1e-4)


def test_without_held_out_lessons_the_training_loss_decides() -> None:
    assert taught(numbers(4, 4), [])[0] == pytest.approx(4, abs=0.1)


def test_every_row_is_seen_equally_often_and_those_that_are_not_finite_never() -> None:
    seen: Counter[float] = Counter()
    network = One()

    def loss(lesson: Lesson) -> Tensor:
        seen.update(lesson[0].flatten().tolist())
        return network.value * 0 + lesson[0].mean() * 0

    lessons = numbers(1, 2, float("nan"), 3, 4, float("inf"), 5, 6)
    Course(6, 0.1, 3).teach(network, loss, lessons, [], torch.Generator(), lambda done: None)
    assert seen == {float(number): 3 for number in range(1, 7)}


def test_progress_is_told_up_to_the_end() -> None:
    told: list[float] = []
    network = One()
    course = Course(50, 0.1, 2)
    course.teach(network, lambda lesson: network.value.square(), numbers(1, 2), [], torch.Generator(), told.append)
    assert told == sorted(told)
    assert told[-1] == 1


@pytest.mark.parametrize("lessons", [[], numbers(float("nan"))])
def test_with_nothing_to_learn_from_it_says_so(lessons: list[Lesson]) -> None:
    with pytest.raises(TrainingError, match="nothing to learn from"):
        taught(lessons, numbers(1))
    with pytest.raises(TrainingError, match="nothing to learn from"):
        Moments().result()


def test_a_loss_that_is_never_finite_is_an_error() -> None:
    network = One()
    course = Course(50, 0.1, 2)
    with pytest.raises(TrainingError, match="not finite"):
        course.teach(
            network, lambda lesson: network.value / 0 * 0, numbers(1), [], torch.Generator(), lambda done: None
        )


def test_moments_are_those_of_all_rows_together() -> None:
    grid = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    grid[:, 2] = 0.25
    broken = torch.full((1, 3, 4, 5), torch.nan)
    moments = Moments()
    for part in (grid[:2], broken, grid[2:]):
        moments.add(part)
    mean, spread = moments.result()
    assert torch.allclose(mean.flatten(), grid.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(spread.flatten()[:2], grid[:, :2].std((0, 2, 3), correction=0), atol=1e-5)
    assert spread.flatten()[2] == 1


def test_a_fifth_of_the_synthetic_pictures_is_held_out() -> None:
    taught, held = (torch.cat(part) for part in synthetic(40, (3, 8, 8), torch.Generator().manual_seed(0)))
    assert (len(taught), len(held)) == (32, 8)
    everything = torch.cat([taught, held]).flatten(1)
    assert len(everything.unique(dim=0)) == 40
