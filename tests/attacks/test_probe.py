"""Labels read from leaks: against scikit-learn, on leaks whose labels are known, and with nothing to learn from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference
from tiny import draws, leak
from torch import Tensor

from seepage import registry
from seepage.attacks.networks import SavedAttackError
from seepage.attacks.probe import Probe
from seepage.attacks.reading import Reading
from seepage.attacks.regression import LogisticRegression
from seepage.types import Attack, Examples, Knowledge, Labels, Leak, NotRunError, Pictures, SeepageError

CLASSES = ("red", "green", "blue")
SHAPE = (3, 8, 8)


def pairs(count: int, shape: tuple[int, ...], seed: int, noise: float = 0.3, batch: int = 16) -> list:
    """Leaks whose label is the channel that is brightest, in batches that come class by class."""
    random = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) * len(CLASSES)) // count
    found = []
    for rows in labels.split(batch):
        features = noise * torch.randn(len(rows), *shape, generator=random)
        features[torch.arange(len(rows)), rows] += 1.0
        found.append((leak(5 * features + 2), shown(rows)))
    return found


def shown(labels: Tensor, classes: tuple[str, ...] | None = CLASSES) -> Pictures:
    return Pictures(torch.zeros(len(labels), *SHAPE), tuple(map(str, range(len(labels)))), labels, classes)


def knows(shape: tuple[int, ...] = (4, 6, 6)) -> Knowledge:
    return Knowledge(SHAPE, public=Examples(pairs(96, shape, 0), pairs(24, shape, 1)))


def fitted(kind: str, shape: tuple[int, ...] = (4, 6, 6)):
    return Probe(kind=kind, steps=120, lr=0.01, width=8).fit(knows(shape), torch.Generator().manual_seed(0))


def right(recoverer, shape: tuple[int, ...] = (4, 6, 6)) -> float:
    hits = [
        (recoverer.recover(given, draws(len(given))).value.scores.argmax(1) == truth.labels).float()
        for given, truth in pairs(30, shape, 2)
    ]
    return float(torch.cat(hits).mean())


@pytest.mark.parametrize("ridge", [0.3, 0.01])
def test_the_regression_is_scikit_learns(ridge: float) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(60, 5, generator=random, dtype=torch.float64)
    labels = (x[:, 0] + torch.randn(60, generator=random) > 0).long() + (x[:, 1] > 0.5).long()
    found = LogisticRegression(ridge).fit(x, labels, 3)
    reference = Reference(C=1 / (ridge * len(x)), tol=1e-10, max_iter=5000).fit(x.numpy(), labels.numpy())
    np.testing.assert_allclose(found.weight.numpy(), reference.coef_, atol=1e-4)
    # The intercepts are determined up to a constant.
    offsets = found.bias.numpy() - reference.intercept_
    np.testing.assert_allclose(offsets, offsets.mean(), atol=1e-4)


def test_the_ridge_is_the_one_that_serves_held_out_examples() -> None:
    random = torch.Generator().manual_seed(4)
    x, held = torch.randn(20, 40, generator=random), torch.randn(400, 40, generator=random)
    labels, truth = (x[:, 0] > 0).long(), (held[:, 0] > 0).long()
    chosen = LogisticRegression().fit(x, labels, 2, (held, truth))

    def loss(ridge: float) -> float:
        one = LogisticRegression(ridge).fit(x, labels, 2)
        return float(torch.nn.functional.cross_entropy(held @ one.weight.T + one.bias, truth))

    losses = {ridge: loss(ridge) for ridge in (10.0, 1.0, 0.1, 0.01, 0.001)}
    assert chosen.ridge == min(losses, key=losses.__getitem__)
    assert LogisticRegression().fit(x, labels, 2).ridge == 0.01


@pytest.mark.parametrize(
    ("shape", "most", "read"),
    [
        ((64, 32, 32), 2048, (64, 5, 5)),
        ((64, 32, 32), 16384, (64, 16, 16)),
        ((320, 7, 7), 2048, (320, 2, 2)),
        ((320, 7, 7), 16384, (320, 7, 7)),
        ((2500, 2, 2), 2048, (2500, 1, 1)),
        ((10,), 2048, (10, 1, 1)),
        ((17, 12), 2048, (12, 4, 4)),
    ],
)
def test_what_is_read_is_bounded(shape: tuple[int, ...], most: int, read: tuple[int, int, int]) -> None:
    reading = Reading(shape, (3, 32, 32), most)
    assert reading.shape == read
    assert reading(torch.zeros(2, *shape)).shape == (2, *read)


def test_places_are_averaged() -> None:
    features = torch.arange(32.0).view(1, 2, 4, 4)
    found = Reading((2, 4, 4), (3, 8, 8), 8)(features)
    np.testing.assert_allclose(found[0, 0].numpy(), [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize("kind", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("shape", [(4, 6, 6), (5, 4), (12,)], ids=str)
def test_labels_are_read(kind: str, shape: tuple[int, ...]) -> None:
    recoverer = fitted(kind, shape)
    value = recoverer.recover(pairs(4, shape, 2)[0][0], draws(4)).value
    assert isinstance(value, Labels)
    assert value.classes == CLASSES
    np.testing.assert_allclose(value.scores.exp().sum(1).numpy(), 1.0, rtol=1e-5)
    if shape != (5, 4):  # tokens whose label is their place: a grid's leading token lies nowhere
        assert right(recoverer, shape) > 0.9


def test_a_row_does_not_depend_on_its_batch() -> None:
    recoverer = fitted("conv")
    given = pairs(6, (4, 6, 6), 2)[0][0]
    together = recoverer.recover(given, draws(6)).value.scores
    alone = [recoverer.recover(given.rows(row, row + 1), draws(1)).value.scores[0] for row in range(6)]
    assert torch.equal(together, torch.stack(alone))


def test_nulls_know_the_classes_frequencies_alone() -> None:
    given = pairs(40, (4, 6, 6), 0)
    labels = torch.tensor([2] * 6 + [0] * 3 + [1] * 3)
    public = [(given[0][0].with_features(given[0][0].features[:12]), shown(labels))]
    recoverer = Probe().fit(Knowledge(SHAPE, public=Examples(public, [])), torch.Generator().manual_seed(0))
    constant = recoverer.constant(2).value.scores
    assert constant.argsort(descending=True).tolist() == [[2, 0, 1]] * 2
    prior = recoverer.prior(40, draws(40)).value.scores
    assert set(prior.argmax(1).tolist()) == {2}
    assert set(prior.argmin(1).tolist()) == {0, 1}
    assert torch.equal(prior[:5], recoverer.prior(5, draws(5)).value.scores)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    for kind in ("linear", "mlp", "conv"):
        recoverer, path = fitted(kind), tmp_path / f"{kind}.safetensors"
        recoverer.save(path)
        again = Probe(kind=kind).load(path, Knowledge(SHAPE))
        given = pairs(5, (4, 6, 6), 2)[0][0]
        first, second = (one.recover(given, draws(5)).value for one in (recoverer, again))
        assert torch.equal(first.scores, second.scores)
        assert second.classes == CLASSES
        assert torch.equal(recoverer.constant(1).value.scores, again.constant(1).value.scores)
    with pytest.raises(SavedAttackError, match="wanted are"):
        Probe().load(path, Knowledge((3, 9, 9)))
    path.write_bytes(b"no probe")
    with pytest.raises(SavedAttackError, match="holds no attack"):
        Probe().load(path, Knowledge(SHAPE))


def test_without_labels_it_is_not_run() -> None:
    def fit(public: Examples | None) -> None:
        Probe().fit(Knowledge(SHAPE, public=public), torch.Generator())

    with pytest.raises(NotRunError, match="--public"):
        fit(None)
    features = pairs(4, (4, 6, 6), 0)[0][0]
    for labels in (None, torch.full((4,), -1)):
        nothing = Pictures(torch.zeros(4, *SHAPE), ("a", "b", "c", "d"), labels)
        with pytest.raises(NotRunError, match="none of the public pictures"):
            fit(Examples([(features, nothing)], []))
    with pytest.raises(NotRunError, match="all of one"):
        fit(Examples([(features, shown(torch.zeros(4).long()))], []))


def test_pictures_without_a_label_and_leaks_that_are_no_numbers_are_left_out() -> None:
    given = pairs(96, (4, 6, 6), 0)
    features = torch.cat([part.features for part, _ in given])
    labels = torch.cat([truth.labels for _, truth in given])
    features[::7], labels[::5] = math.nan, -1
    kept = [row for row in range(96) if row % 7 and row % 5]
    spoilt = Examples([(leak(features), shown(labels))], [])
    clean = Examples([(leak(features[kept]), shown(labels[kept]))], [])
    scores = [
        Probe().fit(Knowledge(SHAPE, public=public), torch.Generator().manual_seed(0)).recover(given[0][0], draws(16))
        for public in (spoilt, clean)
    ]
    assert torch.equal(scores[0].value.scores, scores[1].value.scores)


def test_what_it_was_not_fitted_to_is_refused() -> None:
    recoverer = fitted("linear")
    with pytest.raises(SeepageError, match="shape"):
        recoverer.recover(leak(torch.ones(1, 4, 5, 6)), draws(1))
    bad = torch.ones(3, 4, 6, 6)
    bad[1, 0, 0, 0], bad[2] = math.inf, 0.0
    found = recoverer.recover(leak(bad), draws(3))
    assert [status.kind for status in found.status] == ["stopped", "failed", "failed"]
    assert torch.isfinite(found.value.scores).all()


@pytest.mark.parametrize("kind", ["linear", "mlp", "conv"])
def test_chores_leave_no_trace_and_can_be_done(kind: str) -> None:
    attack, knowledge = Probe(kind=kind, steps=7, width=8), knows()
    assert isinstance(attack, Attack)
    assert (attack.recovers, attack.auxiliary, attack.budget) == ("labels", "public", 0)
    before = torch.random.get_rng_state()
    chores = attack.chores(knowledge, 4)
    for chore in chores:
        chore.once()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(chore.fitting > 0 for chore in chores)
    assert registry.spec("attack", attack).startswith(f"probe:kind={kind},steps=7")
    given: Leak = pairs(4, (4, 6, 6), 2)[0][0]
    assert len(attack.fit(knowledge, torch.Generator().manual_seed(0)).recover(given, draws(4)).status) == 4
