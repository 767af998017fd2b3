from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seepage.solvers.frozen import Frozen
from seepage.solvers.linearise import Linearised
from seepage.solvers.solve import Problem


def still(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules).double().eval().requires_grad_(False)


def worn(norm: nn.Module) -> nn.Module:
    """A batch norm whose statistics and weights are no longer those of a new one."""
    draw = torch.Generator().manual_seed(1)
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + (0.5 if name == "running_var" else 0.1))
    return norm


def derivatives(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, J^T w and J v at fixed w and v; J v twice backward."""
    x = x.clone().requires_grad_()
    y = f(x)
    draw = torch.Generator().manual_seed(2)
    w = torch.randn(y.shape, generator=draw, dtype=y.dtype)
    v = torch.randn(x.shape, generator=draw, dtype=x.dtype)
    seed = w.clone().requires_grad_()
    (back,) = torch.autograd.grad(y, x, seed, create_graph=True)
    (ahead,) = torch.autograd.grad(back, seed, v)
    return y.detach(), back.detach(), ahead


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (still(nn.Conv1d(3, 4, 3, padding=1), worn(nn.BatchNorm1d(4)), nn.Tanh()), (2, 3, 9)),
    "strided": (still(nn.Conv2d(3, 6, 3, 2, 1), worn(nn.BatchNorm2d(6)), nn.Tanh(), nn.Conv2d(6, 2, 1)), (2, 3, 9, 8)),
    "groups": (still(nn.Conv2d(4, 8, (3, 5), padding=(0, 2), dilation=(2, 1), groups=2), nn.Tanh()), (2, 4, 9, 9)),
    "depthwise": (still(nn.Conv2d(4, 4, 3, groups=4, bias=False), worn(nn.BatchNorm2d(4, affine=False))), (1, 4, 7, 7)),
    "same": (still(nn.Conv2d(3, 4, 3, padding="same"), nn.Tanh()), (2, 3, 6, 6)),
    "circular": (still(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.Tanh()), (2, 3, 6, 6)),
    "3d": (still(nn.Conv3d(2, 3, 3, padding=1), worn(nn.BatchNorm3d(3))), (1, 2, 4, 4, 4)),
    "statistics of the batch": (still(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), (3, 3, 6, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_both_derivatives_are_those_of_the_plain_network(name: str) -> None:
    network, shape = NETWORKS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plain = derivatives(network, x)
    with Frozen():
        frozen = derivatives(network, x)
    for one, other in zip(frozen, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_one_picture_without_a_batch_is_convolved_too() -> None:
    network = still(nn.Conv2d(3, 4, 3))
    x = torch.randn(3, 6, 6, dtype=torch.float64)
    with Frozen():
        assert torch.equal(network(x), network(x[None])[0])


def test_weights_that_learn_get_their_gradient() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 6, 6)
    with Frozen():
        network(x).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_a_product_with_the_jacobian_convolves_once_a_convolution() -> None:
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(4, 4, 3, padding=1), worn(nn.BatchNorm2d(4)), nn.ReLU())]
    network = still(*layers).float()
    x = torch.rand(2, 4, 8, 8)
    problem, flat = Problem.of(lambda u, z: network(u) - z, x, torch.zeros(2, 4, 8, 8), None, None, None)
    model = Linearised(problem, flat)
    model.forward(torch.ones_like(flat))  # the first one builds what the others share
    with Counted() as counted:
        model.forward(torch.ones_like(flat))
    convolutions = {name: count for name, count in counted.calls.items() if "convolution" in name}
    assert convolutions == {"aten::convolution": 3}
    assert not any("norm" in name for name in counted.calls)
