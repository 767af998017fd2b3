from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seepage.attacks.caprecover.mapper import Grid, Mapper, Standard
from seepage.attacks.learning import TrainingError
from seepage.types import SeepageError

MAPS = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
TOKENS = st.tuples(st.integers(1, 300), st.integers(1, 40))
VECTORS = st.tuples(st.integers(1, 400))


@settings(max_examples=40, deadline=None)
@given(st.one_of(MAPS, TOKENS, VECTORS))
def test_any_shape_becomes_at_most_64_tokens(shape: tuple[int, ...]) -> None:
    mapper = Mapper(shape, 16)
    tokens = mapper(torch.randn(2, *shape))
    assert tokens.shape == (2, mapper.count, 16)
    assert 1 <= mapper.count <= 64
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((320, 7, 7), 49),
        ((16, 112, 112), 49),
        ((24, 56, 56), 49),
        ((8, 8, 8), 64),
        ((50, 32), 50),  # 7 x 7 and a class token
        ((197, 32), 50),  # 14 x 14 halved, and a class token
        ((257, 32), 64),  # 16 x 16 halved fills the tokens: the class token is added to each
        ((1280,), 4),
        ((10,), 1),
    ],
)
def test_the_tokens_of_known_shapes(shape: tuple[int, ...], count: int) -> None:
    mapper = Mapper(shape, 384)
    assert mapper.count == count
    assert mapper(torch.randn(1, *shape)).shape == (1, count, 384)


def test_tokens_and_maps_of_the_same_grid_agree() -> None:
    features = torch.randn(2, 5, 4, 4)
    tokens = torch.cat([torch.randn(2, 1, 5), features.flatten(2).mT], 1)
    grid, extra = Grid.of((17, 5)).split(tokens)
    assert torch.equal(grid, features)
    assert torch.equal(extra, tokens[:, :1])
    last, _ = Grid.of((4, 4, 5)).split(features.permute(0, 2, 3, 1))
    assert torch.equal(last, features)


@pytest.mark.parametrize("shape", [(6, 4, 4), (17, 6), (257, 6), (9,), (4, 40, 40)])
def test_every_number_that_comes_in_changes_what_comes_out(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mapper = Mapper(shape, 16)
    features = torch.randn(1, *shape, requires_grad=True)
    # A layer norm's output sums to nothing.
    (slope,) = torch.autograd.grad((mapper(features) * torch.randn(16)).sum(), features)
    assert (slope != 0).float().mean() > 0.99


def test_where_a_number_stands_matters() -> None:
    torch.manual_seed(0)
    mapper = Mapper((3, 4, 4), 16)
    features = torch.randn(1, 3, 4, 4)
    straight, turned = mapper(features), mapper(features.mT)
    assert not torch.allclose(straight.sum(1), turned.sum(1), atol=1e-4)
    with torch.no_grad():
        mapper.down.zero_()
        mapper.across.zero_()
    assert torch.allclose(mapper(features).sum(1), mapper(features.mT).sum(1), atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5, 4), (10, 3), (7,)])
def test_features_are_standardised_by_channel(shape: tuple[int, ...]) -> None:
    scale, offset = torch.tensor(40.0), torch.tensor(-7.0)
    features = torch.randn(50, *shape)
    plain, moved = Mapper(shape, 16), Mapper(shape, 16)
    moved.load_state_dict(plain.state_dict())
    for mapper, given_ in ((plain, features), (moved, scale * features + offset)):
        standard = Standard(shape)
        for part in given_.split(20):
            standard.add(part)
        standard.add(torch.full((2, *shape), torch.nan))
        mapper.standardise(standard)
    assert torch.allclose(plain(features), moved(scale * features + offset), atol=1e-4)
    grid, extra = Grid.of(shape).split(features)
    flat = torch.cat([grid.flatten(2), extra.mT], 2).transpose(0, 1).flatten(1)
    assert torch.allclose(plain.mean, flat.mean(1), atol=1e-5)
    assert torch.allclose(plain.spread, flat.std(1, unbiased=False), atol=1e-5)


def test_a_channel_that_never_varies_stays_finite() -> None:
    standard = Standard((3,))
    standard.add(torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, 0.0]]))
    mean, spread = standard.result()
    assert mean.tolist() == [1.0, 2.5, 0.0]
    assert spread.tolist() == [1.0, 0.5, 1.0]
    with pytest.raises(TrainingError, match="nothing to learn from"):
        Standard((3,)).result()


def test_the_pooled_token_knows_no_place() -> None:
    mapper = Mapper((3, 4, 4), 16, pooled=True)
    features = torch.randn(2, 3, 4, 4)
    shuffled = features.flatten(2)[:, :, torch.randperm(16)].view_as(features)
    assert mapper(features).shape == (2, 1, 16)
    assert torch.allclose(mapper(features), mapper(shuffled), atol=1e-5)


def test_nothing_is_zero_once_standardised() -> None:
    for shape in ((3, 5, 4), (4, 4, 3), (10, 3), (7,)):
        grid = Grid.of(shape)
        values = torch.arange(1.0, grid.channels + 1)
        sample = grid.filled(values, shape)
        assert sample.shape == shape
        rows, extra = grid.split(sample[None])
        assert torch.equal(rows[0, :, 0, 0], values)
        assert (rows == values[None, :, None, None]).all()
        assert (extra == values).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(SeepageError, match=r"shape \(3, 5, 5\), expected is \(3, 4, 4\)"):
        Mapper((3, 4, 4), 16)(torch.zeros(1, 3, 5, 5))
    for shape in ((), (2, 3, 4, 5), (0, 4, 4)):
        with pytest.raises(SeepageError, match="a map"):
            Grid.of(shape)


def test_training_hides_channels_and_tokens_and_reading_none() -> None:
    torch.manual_seed(0)
    mapper, plain = Mapper((40, 8, 8), 16, hide=0.25), Mapper((40, 8, 8), 16)
    plain.load_state_dict(mapper.state_dict())
    features = torch.randn(50, 40, 8, 8)
    assert torch.equal(mapper.eval()(features), plain(features))
    seen: list[Tensor] = []
    mapper.body.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    tokens = mapper.train()(features)
    channels = (seen[0] == 0).flatten(2)
    assert torch.equal(channels.all(2), channels.any(2)), "a channel is there or not"
    assert channels.all(2).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (tokens == 0).all(2).float().mean().item() == pytest.approx(0.25, abs=0.03)
    kept = ~channels.all(2)
    assert torch.allclose(seen[0][kept], features[kept] / 0.75)
    assert not torch.equal(mapper(features), tokens)


def test_a_class_token_hides_the_same_channels_and_one_token_stays() -> None:
    torch.manual_seed(0)
    tokens = Mapper((17, 24), 16, hide=0.5).train()
    seen: list[Tensor] = []
    tokens.body.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    assert tokens.extras is not None
    tokens.extras.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    tokens(torch.randn(6, 17, 24))
    grid, extra = seen
    assert torch.equal((grid == 0).all((2, 3)), (extra == 0).all(1))
    assert 0.2 < (extra == 0).float().mean().item() < 0.8
    single = Mapper((3, 4, 4), 16, pooled=True, hide=0.9).train()
    assert (single(torch.randn(20, 3, 4, 4)) != 0).any(2).all()
