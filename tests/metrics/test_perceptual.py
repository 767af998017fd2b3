"""LPIPS: real weights or none, and the distance from its definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchmetrics.functional.image import lpips

from seepage.metrics import Lpips
from seepage.metrics.perceptual import distance
from seepage.types import Images, NotRunError, Pictures, Recovery, Status

PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def network() -> lpips._LPIPS:
    """torchmetrics' own linear weights on a backbone of random ones: right arithmetic, no judgement."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lpips._NoTrainLpips(net="alex", pnet_rand=True)


def call(metric: Lpips, picture: Tensor) -> Tensor:
    return metric(Pictures(picture, ("a",)), Recovery(Images(picture), (Status("stopped"),), torch.zeros(1).long()))


@pytest.mark.parametrize(("net", "filename"), [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_missing_weights_are_a_reason(checkpoints: Path, net: str, filename: str) -> None:
    metric = Lpips(net=net)  # type: ignore[arg-type]
    reason = metric.unavailable((3, 64, 64))
    assert reason is not None
    assert filename in reason
    assert str(checkpoints) in reason
    with pytest.raises(NotRunError) as caught:
        call(metric, PICTURE)
    assert str(caught.value) == reason
    assert list(checkpoints.iterdir()) == []


def test_random_weights_under_the_right_name_are_refused(checkpoints: Path) -> None:
    torch.save({"features.0.weight": torch.rand(64, 3, 11, 11)}, checkpoints / "alexnet-owt-7be5be79.pth")
    with pytest.raises(NotRunError, match="damaged or another file"):
        call(Lpips(), PICTURE)


def test_distance_is_its_definition_on_200_cases(network: lpips._LPIPS) -> None:
    random = torch.Generator().manual_seed(1)
    truth = torch.rand(200, 3, 31, 40, generator=random)
    strength = torch.rand(200, 1, 1, 1, generator=random)
    recovered = (1 - strength) * truth + strength * torch.rand(truth.shape, generator=random)
    found = torch.tensor([distance(network, a, b) for a, b in zip(truth, recovered)])
    torch.testing.assert_close(found, distance_by_hand(network, truth, recovered), atol=1e-6, rtol=1e-4)
    assert found.min() >= 0
    assert found.max() > 3 * found.min()


def distance_by_hand(network: lpips._LPIPS, truth: Tensor, recovered: Tensor) -> Tensor:
    """Zhang et al. 2018, equation 1: unit features after each of five ReLUs, weighted squares, mean over places."""
    features = torchvision.models.alexnet(weights=None).features.eval()
    slices = (network.net.slice1, network.net.slice2, network.net.slice3, network.net.slice4, network.net.slice5)
    features.load_state_dict({key: value for part in slices for key, value in part.state_dict().items()})
    linear = torch.load(Path(lpips.__file__).parent / "lpips_models" / "alex.pth", "cpu", weights_only=True)
    # ImageNet's mean and standard deviation, said of [-1, 1].
    mean = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    deviation = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    total = torch.zeros(len(truth))
    a, b = (2 * truth - 1 - mean) / deviation, (2 * recovered - 1 - mean) / deviation
    with torch.no_grad():
        step = 0
        for layer, module in enumerate(features[:12]):
            a, b = module(a), module(b)
            if layer in (1, 4, 7, 9, 11):
                unit_a, unit_b = (x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt() for x in (a, b))
                weights = linear[f"lin{step}.model.1.weight"].view(1, -1, 1, 1)
                total += (weights * (unit_a - unit_b).square()).sum(dim=1).mean(dim=(1, 2))
                step += 1
    return total


def test_smallest_picture_is_the_networks_own(network: lpips._LPIPS) -> None:
    assert distance(network, PICTURE[0, :, :31, :31], PICTURE[0, :, :31, :31]) == 0
    with pytest.raises(RuntimeError):
        distance(network, PICTURE[0, :, :30, :30], PICTURE[0, :, :30, :30])


@pytest.mark.assets
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_true_weights_rank_a_blur_behind_the_truth(net: str) -> None:
    metric = Lpips(net=net)  # type: ignore[arg-type]
    reason = metric.unavailable((3, 64, 64))
    if reason is not None:
        pytest.skip(reason)
    assert call(metric, PICTURE).item() == 0
