from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from seepage.bounds import NaturalPrior, at_picture, dfil, information, jacobian, unbounded, van_trees
from seepage.types import Noise

SHAPE = (3, 17, 20)
PIXELS = math.prod(SHAPE)
PRIOR = NaturalPrior(SHAPE)
GAUSSIAN, LAPLACE = Noise("gaussian", 0.05), Noise("laplace", 0.05)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(outputs: int, inputs: int = PIXELS) -> nn.Sequential:
    found = nn.Linear(inputs, outputs)
    with torch.no_grad():
        found.weight.copy_(torch.randn(outputs, inputs, generator=draw(1)) / math.sqrt(inputs))
        found.bias.copy_(torch.randn(outputs, generator=draw(2)))
    return nn.Sequential(nn.Flatten(), found.requires_grad_(False))


def precision(prior: NaturalPrior) -> Tensor:
    pixels = math.prod(prior.image_shape)
    return prior.precision(torch.eye(pixels, dtype=torch.float64).view(-1, *prior.image_shape)).flatten(1)


def closed_form(matrix: Tensor, weight: float, prior: NaturalPrior) -> float:
    known = weight * matrix.double().T @ matrix.double() + precision(prior)
    return float(torch.linalg.inv(known).trace()) / len(known)


@pytest.mark.parametrize("noise", [GAUSSIAN, LAPLACE], ids=lambda noise: noise.kind)
def test_on_a_linear_model_leakage_and_bound_are_the_closed_form(noise: Noise) -> None:
    model = linear(800)
    matrix = model[1].weight
    weight = {"gaussian": 1, "laplace": 2}[noise.kind] / 0.05**2
    picture = torch.rand(1, *SHAPE, generator=draw(3))
    leakage = dfil(model, picture, noise, draw(4), probes=128)
    assert leakage.value == pytest.approx(weight * float(matrix.square().sum()) / PIXELS, rel=0.02)
    wanted = closed_form(matrix, weight, PRIOR)
    found = van_trees(model, noise, PRIOR, draw(5), probes=64, steps=150)
    assert found.value == pytest.approx(wanted, rel=0.02)
    assert found.high - found.low < 0.05 * wanted


def test_on_affine_and_relu_leakage_and_bound_are_the_closed_form_at_a_point() -> None:
    model = nn.Sequential(linear(1600), nn.ReLU())
    picture = torch.rand(1, *SHAPE, generator=draw(6))
    dense = torch.autograd.functional.jacobian(model, picture).reshape(1600, PIXELS)
    torch.testing.assert_close(jacobian(model, picture), dense)
    weight = 1 / 0.05**2
    leakage = dfil(model, picture, GAUSSIAN, draw(7), probes=128)
    assert leakage.value == pytest.approx(weight * float(dense.square().sum()) / PIXELS, rel=0.02)
    found = at_picture(model, picture, GAUSSIAN, PRIOR, draw(8), probes=64, steps=150)
    assert found.value == pytest.approx(closed_form(dense, weight, PRIOR), rel=0.02)


def test_on_a_curved_model_it_stays_below_van_trees_however_little_is_spent() -> None:
    """Of affine and ReLU the mean information is known: how often each output is on, by 20,000 draws."""
    prior = NaturalPrior((3, 5, 6))
    first = linear(120, 90)
    model, matrix = nn.Sequential(first, nn.ReLU()), first[1].weight.double()
    on = (first(prior.draw(20_000, draw(9))) > 0).double().mean(0)
    mean = matrix.T @ (on[:, None] * matrix)
    weight = 1 / 0.05**2
    wanted = float(torch.linalg.inv(weight * mean + precision(prior)).trace()) / 90
    found = [
        van_trees(model, GAUSSIAN, prior, draw(10), probes=64, steps=steps, draws=draws)
        for steps, draws in ((0, 1), (3, 1), (60, 1), (60, 8))
    ]
    assert all(0 < one.low < 1.02 * wanted for one in found)
    assert found[0].value < found[1].value < found[3].value
    assert found[3].value > 0.6 * wanted


def test_on_pictures_of_the_prior_the_posterior_mean_attains_the_bound() -> None:
    prior, noise = NaturalPrior((3, 8, 8)), Noise("gaussian", 0.2)
    model = linear(150, 192)
    matrix, bias = model[1].weight.double(), model[1].bias.double()
    pictures = prior.draw(600, draw(11)).double()
    sent = pictures.flatten(1) @ matrix.T + bias + 0.2 * torch.randn(600, 150, generator=draw(12), dtype=torch.float64)
    known = matrix.T @ matrix / 0.2**2 + precision(prior)
    about = sent - bias - 0.5 * matrix.sum(1)
    recovered = 0.5 + torch.linalg.solve(known, (about @ matrix / 0.2**2).T).T
    errors = (recovered - pictures.flatten(1)).square().mean(1)
    margin = 4 * float(errors.std()) / math.sqrt(600)
    bound = van_trees(model, noise, prior, draw(13), probes=96, steps=100)
    assert bound.low - margin < float(errors.mean()) < bound.high + margin
    careless = (0.5 + about @ torch.linalg.pinv(matrix).T - pictures.flatten(1)).square().mean(1)
    assert float(careless.mean()) > bound.high + margin


def test_more_sends_tell_more() -> None:
    model = linear(400)
    once, often = (van_trees(model, GAUSSIAN, PRIOR, draw(14), probes=8, sends=k).value for k in (1, 16))
    quieter = van_trees(model, Noise("gaussian", 0.05 / 4), PRIOR, draw(14), probes=8).value
    assert often < once
    assert often == pytest.approx(quieter, rel=1e-6)


@pytest.mark.parametrize("noise", [None, Noise("uniform", 0.1), Noise("gaussian", 0.0)])
def test_noise_without_information_gives_a_reason_and_no_number(noise: Noise | None) -> None:
    assert unbounded(noise)
    if noise is not None:
        with pytest.raises(ValueError, match=noise.kind):
            information(noise)


def test_a_single_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="2 probes"):
        van_trees(linear(40), GAUSSIAN, PRIOR, draw(17), probes=1, steps=0)


def test_the_prior_draws_what_it_says() -> None:
    prior = NaturalPrior((3, 6, 8))
    drawn = prior.draw(20_000, draw(15)).double()
    flat = drawn.flatten(1) - 0.5
    assert float(flat.mean(0).abs().max()) < 0.01
    white = flat.T @ flat / len(flat) @ precision(prior)
    assert float((white - torch.eye(144)).square().mean().sqrt()) < 0.05
    assert 0.02 < float(flat.square().mean()) < 0.12
    shrunk = prior.shrink(drawn[:2], 7.0)
    torch.testing.assert_close(7.0 * shrunk + prior.precision(shrunk), drawn[:2])
    signs = prior.signs(3, draw(16))
    torch.testing.assert_close(signs.flatten(1).square().sum(1), torch.full((3,), 144.0))
