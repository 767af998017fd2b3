"""What every metric on pictures promises: names, order, rows apart, NaN seen, a quick import."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seepage import registry
from seepage.metrics import Agreement, ImageMetric, Lpips, Mse, MsSsim, Psnr, Ssim
from seepage.types import Captions, Images, NotRunError, Pictures, Recovery, SeepageError, Status

METRICS = {"mse": Mse, "psnr": Psnr, "ssim": Ssim, "ms_ssim": MsSsim, "lpips": Lpips, "agreement": Agreement}
HERE = [Mse(), Psnr(), Ssim(), MsSsim(), Agreement()]
each_metric = pytest.mark.parametrize("metric", HERE, ids=lambda metric: type(metric).__name__)


def judge(images: Tensor) -> Tensor:
    """Says which of nine regions is brightest."""
    return functional.adaptive_avg_pool2d(images.mean(dim=1), 3).flatten(1)


def photographs(count: int, side: int = 176) -> Tensor:
    """Smooth random pictures with one bright region each."""
    random = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 3, 6, 6, generator=random)
    return functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)


def pictures(images: Tensor) -> Pictures:
    return Pictures(images, tuple(map(str, range(len(images)))))


def recovery(images: Tensor) -> Recovery:
    return Recovery(Images(images), (Status("stopped"),) * len(images), torch.zeros(len(images), dtype=torch.long))


def test_names_and_parameters() -> None:
    for name, metric in METRICS.items():
        assert registry.get("metric", name) is metric
        assert dataclasses.is_dataclass(metric)
        assert metric.reads == (Images,)
    assert registry.build("metric", "lpips:net=vgg") == Lpips(net="vgg")
    assert registry.spec("metric", Lpips()) == "lpips:net=alex"


@each_metric
def test_the_truth_itself_is_perfect(metric: ImageMetric) -> None:
    truth = photographs(3)
    assert metric.perfect is not None
    assert metric(pictures(truth), recovery(truth.clone()), judge).tolist() == pytest.approx([metric.perfect] * 3)


@pytest.mark.parametrize("metric", HERE[:-1], ids=lambda metric: type(metric).__name__)
def test_more_noise_is_less_leakage(metric: ImageMetric) -> None:
    truth = photographs(1)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    scores = [metric(pictures(truth), recovery(truth + level * noise)).item() for level in (0.01, 0.05, 0.2, 0.8)]
    assert scores == sorted(scores, reverse=metric.higher_means_more_leakage)
    assert len(set(scores)) == 4


@each_metric
def test_a_value_does_not_depend_on_its_batch(metric: ImageMetric) -> None:
    truth = photographs(5)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    recovered = truth + torch.tensor([0.0, 0.01, 0.1, 0.3, 1.0]).view(5, 1, 1, 1) * noise
    recovered[4] = recovered[4].flip(-1)
    together = metric(pictures(truth), recovery(recovered), judge).tolist()
    assert len(set(together)) > 1
    apart = [metric(pictures(truth[[i]]), recovery(recovered[[i]]), judge).item() for i in range(5)]
    order = [3, 1, 4, 0, 2]
    turned = metric(pictures(truth[order]), recovery(recovered[order]), judge).tolist()
    assert apart == together
    assert turned == [together[i] for i in order]


@each_metric
@pytest.mark.parametrize("pixel", [math.nan, math.inf, -math.inf])
def test_a_pixel_that_is_no_number_shows_in_its_row_alone(metric: ImageMetric, pixel: float) -> None:
    truth = photographs(3)
    recovered = (0.9 * truth).clone()
    clean = metric(pictures(truth), recovery(recovered), judge).tolist()
    recovered[1, 2, 100, 7] = pixel
    found = metric(pictures(truth), recovery(recovered), judge).tolist()
    assert math.isnan(found[1])
    assert [found[0], found[2]] == [clean[0], clean[2]]


@each_metric
def test_inputs_are_left_as_they_were(metric: ImageMetric) -> None:
    truth = photographs(1)
    recovered = (2 * truth).requires_grad_()
    before = truth.clone(), recovered.detach().clone()
    value = metric(pictures(truth), recovery(recovered), judge)
    assert not value.requires_grad
    assert torch.equal(truth, before[0])
    assert torch.equal(recovered, before[1])


def test_other_shapes_and_kinds_are_refused_in_words() -> None:
    truth = photographs(2)
    with pytest.raises(SeepageError, match=r"\(1, 3, 176, 176\) recovered and \(2, 3, 176, 176\)"):
        Psnr()(pictures(truth), recovery(truth[:1]))
    captions = Recovery(Captions(("a", "b"), torch.zeros(2)), (Status("stopped"),) * 2, torch.zeros(2).long())
    with pytest.raises(SeepageError, match="got Captions"):
        Psnr()(pictures(truth), captions)


def test_agreement_compares_the_judges_first_labels() -> None:
    truth = torch.zeros(3, 3, 30, 30)
    truth[:, :, :10, :10] = 0.8
    recovered = truth.clone()
    recovered[1, :, :10, 10:20] = 1.0
    # The picture changed everywhere and the judge says the same of it.
    recovered[2] = 0.3 * truth[2] + 0.5
    found = Agreement()(pictures(truth), recovery(recovered), judge)
    assert found.tolist() == [1.0, 0.0, 1.0]


def test_agreement_without_a_judge_or_with_a_broken_one() -> None:
    truth = photographs(1)
    with pytest.raises(NotRunError, match="--judge"):
        Agreement()(pictures(truth), recovery(truth))
    found = Agreement()(pictures(truth), recovery(truth), lambda images: torch.full((len(images), 4), torch.nan))
    assert math.isnan(found.item())


def test_the_judge_is_handed_clipped_single_precision_pictures() -> None:
    seen = []

    def watching(images: Tensor) -> Tensor:
        seen.append((images.dtype, float(images.min()), float(images.max())))
        return judge(images)

    truth = photographs(1).double()
    Agreement()(pictures(truth), recovery(3 * truth - 1), watching)
    assert {dtype for dtype, _, _ in seen} == {torch.float32}
    assert all(low >= 0 and high <= 1 for _, low, high in seen)


def test_importing_them_loads_no_heavy_library() -> None:
    script = (
        "import sys, seepage.metrics; print(*(m for m in ('torchmetrics', 'skimage', 'scipy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
