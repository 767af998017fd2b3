"""What an attack says it will do, against the operations it then does: a forecast rests on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import draws, leak, pictures, wide
from torch.utils.flop_counter import FlopCounterMode

from seepage.attacks.chores import Laborious
from seepage.attacks.decoder import Decoder
from seepage.attacks.deep_image_prior import DeepImagePrior
from seepage.attacks.divide import Divide
from seepage.attacks.gan import Gan
from seepage.attacks.joint import Joint
from seepage.attacks.rmle import RMLE
from seepage.types import Attack, Examples, Images, Knowledge, NotRunError, Pictures, Recovery

SHAPE = (3, 16, 16)
ROWS = 3
DECODER = Decoder(pictures=12, steps=14, batch=4, width=16)
DIVIDE = Divide(pictures=12, steps=20, batch=4, width=12, refine=6)
PRIOR = DeepImagePrior(steps=10, channels=8, depth=2)
JOINT = Joint(pictures=24, corrections=2, steps=40, newton=2, inner=10)


def knowledge() -> Knowledge:
    prefix = wide()
    truth = pictures(10)
    pair = leak(prefix(truth)), Pictures(truth, tuple(map(str, range(10))))
    return Knowledge(SHAPE, prefix, public=Examples([pair], [pair]))


def flops(attack: Attack) -> tuple[float, float]:
    """Return the operations of convolutions and products: as the chores have it, and as fitting and recovering do."""
    known = knowledge()
    assert isinstance(attack, Laborious)
    said = 0.0
    for chore in attack.chores(known, ROWS):
        with FlopCounterMode(display=False) as counter:
            chore.once()
        said += counter.get_total_flops() * (chore.fitting + chore.each * ROWS)
    with FlopCounterMode(display=False) as counter:
        recoverer = attack.fit(known, torch.Generator().manual_seed(0))
        recoverer.recover(leak(known.prefix(pictures(ROWS))), draws(ROWS))
    return said, counter.get_total_flops()


@pytest.mark.parametrize(
    "attack",
    [
        DECODER,
        replace(DECODER, train="public"),
        DIVIDE,
        replace(DIVIDE, train="public"),
        PRIOR,
        replace(JOINT, start="grey"),
    ],
    ids=str,
)
def test_chores_add_up_to_what_the_attack_does(attack: Attack) -> None:
    said, done = flops(attack)
    assert 0.75 * done < said < 1.33 * done


def test_a_search_of_latents_passes_all_rows_at_each_step(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "from torch import nn\n\n\nclass Made(nn.Sequential):\n    latent_shape = (4, 16, 16)\n\n"
        "    def __init__(self):\n        super().__init__(nn.Conv2d(4, 3, 1), nn.Sigmoid())\n"
    )
    attack, known = Gan(f"module/{tmp_path}/made.py:Made", starts=2, steps=5), knowledge()
    (chore,) = attack.chores(known, ROWS)
    seen: list[int] = []
    known.prefix.register_forward_hook(lambda prefix, given, made: seen.append(len(made)))
    chore.once()
    assert seen == [ROWS]
    assert chore.fitting == 0
    assert chore.each * ROWS == attack.budget


@pytest.mark.parametrize("attack", [DECODER, DIVIDE, PRIOR], ids=lambda attack: type(attack).__name__)
def test_twice_the_steps_are_twice_the_work(attack: Attack) -> None:
    known = knowledge()
    short, long = (
        sum(chore.fitting + chore.each for chore in one.chores(known, ROWS))
        for one in (attack, replace(attack, steps=10 * attack.steps))
    )
    assert 4 * short < long < 11 * short


def test_rehearsing_changes_nothing_that_counts() -> None:
    known = knowledge()
    before = {name: tensor.clone() for name, tensor in known.prefix.state_dict().items()}
    features = leak(known.prefix(pictures(1)))

    def recovered(rehearse: bool) -> Recovery:
        for chore in DIVIDE.chores(known, ROWS) if rehearse else ():
            chore.once()
        return DIVIDE.fit(known, torch.Generator().manual_seed(0)).recover(features, draws(1))

    plain, rehearsed = recovered(False).value, recovered(True).value
    assert isinstance(plain, Images)
    assert isinstance(rehearsed, Images)
    assert torch.equal(plain.images, rehearsed.images)
    assert all(torch.equal(before[name], tensor) for name, tensor in known.prefix.state_dict().items())


def test_attacks_that_only_pass_have_no_chores_and_what_cannot_run_says_so() -> None:
    assert not isinstance(RMLE(), Laborious)
    for attack in (DECODER, replace(DECODER, train="public"), DIVIDE, PRIOR, Gan()):
        with pytest.raises(NotRunError):
            attack.chores(Knowledge(SHAPE), ROWS)


def test_a_learned_start_adds_a_pass_a_picture_and_correction_and_two_pictures_taken_both_ways() -> None:
    known = knowledge()
    # A product is a pass; a step has four more.
    newton, descent = 2 * (10 + 4), 40 + 1
    _, learned = JOINT.chores(known, ROWS)
    assert learned.each == pytest.approx((2 + descent + newton) / ROWS)
    assert learned.fitting == pytest.approx((24 * 3 + 2 * (descent + 2 * newton)) / ROWS)
    _, untried = replace(JOINT, steps=0).chores(known, ROWS)
    assert untried.fitting == pytest.approx(24 * 3 / ROWS)
    (plain,) = replace(JOINT, start="grey").chores(known, ROWS)
    assert plain.each == pytest.approx(4 * (1 + 4) / ROWS)
