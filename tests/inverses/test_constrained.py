"""The paper's problem under its constraints, on blocks whose input is known; and the solver on problems on paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seepage import registry
from seepage.inverses import Constrained, Split, Target
from seepage.inverses.activations import PIECEWISE, Activations, activations, grouped
from seepage.solvers import Solution
from seepage.solvers.augmented_lagrangian import AugmentedLagrangian
from seepage.types import Segment
from seepage.victims.cifar import PostActivationBlock, PreActivationBlock
from seepage.victims.faces import FaceResidual


def seeded(module: nn.Module, seed: int, gain: float = 0.4, shift: float = 1.0) -> nn.Module:
    """The module in float64, its weights, slopes and statistics drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            size = part.weight[0].numel() ** 0.5
            part.weight.data = gain * torch.randn(part.weight.shape, generator=generator) / size
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = 0.5 * torch.randn(part.running_mean.shape, generator=generator)
            part.running_var = 0.5 + torch.rand(part.running_var.shape, generator=generator)
            part.bias.data = shift * torch.randn(part.bias.shape, generator=generator)
        if isinstance(part, nn.PReLU):
            part.weight.data = 0.4 * torch.rand(part.weight.shape, generator=generator)
    return module.double().eval().requires_grad_(False)


def segment(module: nn.Module, *shape: int) -> Segment:
    with torch.no_grad():
        out = module(torch.zeros(1, *shape, dtype=next(module.parameters()).dtype))
    return Segment("block", None, module, shape, tuple(out.shape[1:]))


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def relative(found: Solution | Tensor, expected: Tensor) -> Tensor:
    x = found.x if isinstance(found, Solution) else found
    assert isinstance(x, Tensor)
    return (x - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


class Added(nn.Module):
    """y = x + W2 f(W1 x), f in place where it can be."""

    def __init__(self, activation: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.activation(2 * self.first(x)))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.PReLU(4), nn.PReLU(), nn.LeakyReLU(0.2)],
    ids=str,
)
def test_one_activation_between_two_convolutions_comes_back(activation):
    block = segment(seeded(Added(activation), 1), 4, 6, 6)
    x = 2 * noise(2, 4, 6, 6)
    y = block.module(x)
    solution = Constrained().invert(block, Target(y, y), 600)
    assert relative(y, x).min() > 0.2, "the start must be away, or a rule that does nothing would pass"
    assert relative(solution, x).max() < 1e-5
    assert {status.kind for status in solution.status} == {"converged"}
    assert "constraints missed by" in solution.status[0].message
    assert not activation._forward_hooks
    assert not activation._forward_pre_hooks


def test_a_block_with_two_relus_has_a_split_for_each_and_comes_back():
    block = segment(seeded(PreActivationBlock(4, 4, 1), 2, 0.6), 4, 6, 6)
    x = noise(2, 4, 6, 6)
    y = block.module(x)
    assert len(activations(block.module, y, PIECEWISE).calls) == 2
    solution = Constrained().invert(block, Target(y, y), 600)
    assert relative(y, x).min() > 0.02
    assert relative(solution, x).max() < 1e-5


def test_a_relu_at_the_end_leaves_open_what_it_cut():
    """What is negative before the last ReLU is n, free; the positive part and the bound at zero decide."""
    block = segment(seeded(PostActivationBlock(6, 6, 1), 5, 0.6, 0.1), 6, 6, 6)
    x = noise(2, 6, 6, 6).relu()
    y = block.module(x)
    solution = Constrained().invert(block, Target(y, y, 0.0), 900)
    assert solution.residual.max() < 1e-2
    assert relative(solution, x).max() < relative(y, x).min() / 4
    assert solution.x.min() >= 0


def test_norms_before_zero_padding_are_kept_and_the_border_is_exact():
    """Folding a norm into the convolution after it changes what the padding stands for."""
    face = seeded(FaceResidual(4, 4, 1), 4, 0.5)
    block = segment(face, 4, 8, 8)
    x = noise(2, 4, 8, 8)
    y = face(x)
    solution = Constrained().invert(block, Target(y, y), 600)
    border = torch.ones(8, 8, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert isinstance(solution.x, Tensor)
    assert (solution.x - x)[..., border].abs().max() < 1e-4

    folded = seeded(FaceResidual(4, 4, 1), 4, 0.5)
    norm, conv = folded.res_layer[0], folded.res_layer[1]
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - gain * norm.running_mean
    bias = (conv.weight * shift.view(1, -1, 1, 1)).sum((1, 2, 3))
    folded.res_layer[0] = nn.Identity()
    folded.res_layer[1] = nn.Conv2d(4, 4, 3, padding=1).double().requires_grad_(False)
    folded.res_layer[1].weight.data = conv.weight * gain.view(1, -1, 1, 1)
    folded.res_layer[1].bias.data = bias
    off = (folded(x) - y).abs()
    assert off[..., 2:-2, 2:-2].max() < 1e-10
    assert off[..., border].mean() > 0.02
    wrong = Constrained().invert(segment(folded, 4, 8, 8), Target(y, y), 600)
    assert (wrong.x - x)[..., border].abs().mean() > 0.02


def test_what_an_activation_is_given_is_its_parts_and_these_exclude_each_other():
    for activation, expected in ((nn.ReLU6(), 6.0), (nn.PReLU(4), None), (nn.ReLU(), None)):
        module = seeded(Added(activation), 6)
        x = 4 * noise(2, 4, 5, 5)
        seen = activations(module, x, PIECEWISE)
        (call,) = seen.calls
        group = tuple(call.start(seen.given[0].detach()))
        assert call.ceiling == expected
        assert min(part.min() for part in group) >= 0
        assert torch.allclose(call.missed(seen.given[0].detach(), group), torch.zeros(()).double(), atol=1e-12)
        assert all((one * other).abs().max() == 0 for one, other in call.pairs(group))
        assert torch.allclose(call.gives(group), activation(seen.given[0].detach()))
        replaced = Activations(PIECEWISE, {0: torch.zeros_like(group[0])})
        assert torch.equal(replaced.through(module, x), x), "the value stands in the activation's place"
        assert grouped(group, seen.calls) == [(call, group)]


def test_a_block_without_such_activations_is_plain_least_squares():
    layer = seeded(nn.Sequential(nn.Linear(5, 9), nn.Tanh()), 2, 0.3)
    block = segment(layer, 5)
    x = noise(2, 5)
    solution = Constrained().invert(block, Target(layer(x), torch.zeros_like(x)), 600)
    assert relative(solution, x).max() < 1e-5


def test_it_is_better_than_penalties_and_never_runs_the_block_too_often():
    runs = 0

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal runs
        runs += 1

    block = segment(seeded(Added(nn.ReLU()), 8, 0.4), 4, 6, 6)
    x = noise(2, 4, 6, 6)
    y = block.module(x)
    errors = {}
    handle = block.module.register_forward_pre_hook(count)
    for inverse in (Constrained(), Split()):
        for passes in (60, 400):
            runs = 0
            solution = inverse.invert(block, Target(y, y), passes)
            assert 0 < solution.passes.max() <= passes
            assert runs <= passes
            errors[type(inverse)] = relative(solution, x).max()
    handle.remove()
    assert errors[Constrained] < errors[Split] / 10
    assert registry.spec("inverse", Constrained()) == "constrained:rounds=6,inner=40,weight=0.1,tolerance=1e-06"


def test_a_row_that_breaks_fails_alone_and_rows_do_not_depend_on_their_batch():
    block = segment(seeded(Added(nn.ReLU()), 1), 4, 6, 6)
    x = noise(3, 4, 6, 6)
    y = block.module(x)
    alone = Constrained().invert(block, Target(y[2:], y[2:]), 600)
    y[1, 0, 0, 0] = float("nan")
    together = Constrained().invert(block, Target(y, y), 600)
    assert [status.kind for status in together.status] == ["converged", "failed", "converged"]
    assert relative(together, x)[[0, 2]].max() < 1e-5
    assert relative(together.x[2:], alone.x).max() < 1e-6


def test_the_solver_finds_the_nearest_point_of_a_circle_and_its_multiplier():
    """min |x - a|^2 on |x| = 1 is a / |a|, where the multipliers over twice the weight are (|a| - 1) / 2w."""
    a = torch.tensor([[3.0, 4.0], [0.3, 0.1], [-2.0, 0.5]], dtype=torch.double)

    def parts(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return x - z, 0.5 * (x.square().sum(1, keepdim=True) - 1)

    found = AugmentedLagrangian(rounds=60, steps=8, inner=4).solve(parts, a.clone(), a)
    assert relative(found.x, a / a.norm(dim=1, keepdim=True)).max() < 1e-5
    assert torch.allclose(found.residual, (a.norm(dim=1) - 1).abs(), atol=1e-5)


def test_the_solver_says_when_constraints_cannot_be_met():
    def parts(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return x - z, x.square().sum(1, keepdim=True) + 1

    start = noise(2, 3)
    solver = AugmentedLagrangian(rounds=5)
    found = solver.solve(parts, start, start)
    assert [status.kind for status in found.status] == ["stopped"] * 2
    assert all(float(status.message.rpartition(" ")[2]) >= 1 for status in found.status)
    assert found.passes.max() <= solver.budget


def test_the_solver_keeps_to_bounds():
    """Least distance to (2, -1, 0.5) on x1 + x2 + x3 = 1 within [0, 1]: (0.75, 0, 0.25) + shift, by hand (1, 0, 0)."""
    z = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.double)

    def parts(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return x - z, x.sum(1, keepdim=True) - 1

    found = AugmentedLagrangian(rounds=40).solve(parts, torch.zeros_like(z), z, lower=0.0, upper=1.0)
    assert torch.allclose(found.x, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.double), atol=1e-5)
