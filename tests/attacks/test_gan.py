from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny import TinyPrefix, draws, leak, pictures, psnr, wide
from torch import Tensor, nn

from seepage import registry, seeding
from seepage.attacks.gan import Gan
from seepage.attacks.generators import GeneratorError, load
from seepage.types import Images, Knowledge, NotRunError, Recoverer, Recovery, SeepageError

SHAPE = (3, 16, 16)
FILE = '''
import torch
from torch import nn


class Linear(nn.Module):
    """0.5 plus a combination of fixed smooth pictures."""

    latent_dim = 6

    def __init__(self, size=16):
        super().__init__()
        noise = torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(4)) - 0.5
        basis = nn.functional.interpolate(noise, (size, size), mode="bicubic", align_corners=False)
        self.register_buffer("basis", basis / basis.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 3)

    def forward(self, z):
        return 0.5 + torch.einsum("bk,kchw->bchw", z, self.basis).clamp(-0.5, 0.5)


def linear():
    return Linear()


def small():
    return Linear(8)


class Shaped(Linear):
    latent_shape = (2, 3)

    def forward(self, z):
        return super().forward(z.flatten(1))


def shaped():
    return Shaped()


class Learned(nn.Module):
    latent_dim = 4

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3 * 16 * 16), nn.Sigmoid())

    def forward(self, z):
        return self.net(z).view(-1, 3, 16, 16)


def learned():
    return Learned()


def bright():
    model = Linear()
    model.basis += 0
    forward = model.forward
    model.forward = lambda z: forward(z) * 255
    return model


def grey():
    model = Linear()
    forward = model.forward
    model.forward = lambda z: forward(z)[:, :1]
    return model


def bare():
    return nn.Identity()


def text():
    return "no network"


def broken():
    raise OSError("no weights here")


constant = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "drawers.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def fitted(text: str, knowledge: Knowledge) -> Recoverer:
    recoverer: Recoverer = registry.build("attack", text).fit(knowledge, seeding.generator(0, "fit"))
    return recoverer


def images(recovery: Recovery) -> Tensor:
    assert isinstance(recovery.value, Images)
    return recovery.value.images


def drawn(file: Path, count: int, name: str = "linear") -> Tensor:
    """Pictures that the generator can draw, from latents that no attack starts from."""
    recoverer = fitted(f"gan:generator=module/{file}:{name}", Knowledge(SHAPE, wide()))
    return images(recoverer.prior(count, draws(count, first=100)))


@pytest.mark.parametrize("name", ["linear", "shaped", "small"])
def test_what_the_generator_can_draw_comes_back(file: Path, name: str) -> None:
    prefix, truth = wide(), drawn(file, 3, name)
    text = f"gan:generator=module/{file}:{name},steps=200,starts=2,prior=0,lr=0.1"
    recovery = fitted(text, Knowledge(SHAPE, prefix)).recover(leak(prefix(truth)), draws(3))
    assert psnr(images(recovery), truth).min() > 35
    assert recovery.passes.tolist() == [2 * 201] * 3


def test_what_it_cannot_draw_does_not(file: Path) -> None:
    prefix, truth = wide(), (torch.arange(16) % 2).float().expand(1, 3, 16, 16).contiguous()
    recovery = fitted(f"gan:generator=module/{file}:linear,steps=100,starts=1", Knowledge(SHAPE, prefix)).recover(
        leak(prefix(truth)), draws(1)
    )
    assert psnr(images(recovery), truth).item() < 10
    assert recovery.status[0].kind == "stopped"


def test_more_starts_end_at_a_lower_residual_whatever_the_truth(file: Path) -> None:
    prefix, truth = wide(), pictures(2)
    features = leak(prefix(truth))

    def misfit(starts: int) -> Tensor:
        text = f"gan:generator=module/{file}:linear,steps=3,starts={starts},prior=0"
        found = images(fitted(text, Knowledge(SHAPE, prefix)).recover(features, draws(2)))
        return (prefix(found) - features.features).flatten(1).norm(dim=1)

    one, many = misfit(1), misfit(8)
    assert (many <= one).all()
    assert (many < one).any()


def test_the_prior_on_latents_pulls_them_to_zero(file: Path) -> None:
    prefix, truth = wide(), drawn(file, 2)
    grey = torch.full_like(truth, 0.5)

    def found(prior: float) -> Tensor:
        text = f"gan:generator=module/{file}:linear,steps=200,starts=1,prior={prior},lr=0.1"
        return images(fitted(text, Knowledge(SHAPE, prefix)).recover(leak(prefix(truth)), draws(2)))

    assert psnr(found(1000), grey).min() > 25
    assert psnr(found(0), grey).max() < 20


def test_without_a_step_it_is_its_prior(file: Path) -> None:
    prefix, truth = wide(), pictures(2)
    recoverer = fitted(f"gan:generator=module/{file}:linear,steps=0,starts=1", Knowledge(SHAPE, prefix))
    prior = images(recoverer.prior(2, draws(2)))
    assert torch.equal(images(recoverer.recover(leak(prefix(truth)), draws(2))), prior)
    assert not torch.equal(prior[0], prior[1])


def classifier() -> TinyPrefix:
    """Scores of three classes: how red, green and blue a picture is."""
    return TinyPrefix(SHAPE, [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Sharp())], ["head"])


class Sharp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 30 * x


def test_the_class_objective_draws_a_picture_of_the_class_that_the_leak_says(file: Path) -> None:
    prefix = classifier()
    scores = torch.tensor([[9.0, 1.0, 2.0], [1.0, 9.0, 2.0], [1.0, 2.0, 9.0]])
    text = f"gan:generator=module/{file}:learned,objective=class,steps=150,starts=2,lr=0.1"
    recovery = fitted(text, Knowledge(SHAPE, prefix, classes=("red", "green", "blue"))).recover(leak(scores), draws(3))
    said = prefix(images(recovery)).softmax(1)
    assert said.argmax(1).tolist() == [0, 1, 2]
    for row, status in enumerate(recovery.status):
        assert status.message == f"probability {said[row, row]:.4f} of the class"


def test_the_class_objective_needs_a_classifier(file: Path) -> None:
    text = f"gan:generator=module/{file}:linear,objective=class"
    with pytest.raises(NotRunError, match=r"needs a classifier.*2 classes are known.*\(12, 16, 16\)"):
        fitted(text, Knowledge(SHAPE, wide(), classes=("a", "b")))
    with pytest.raises(NotRunError, match="classes are not known"):
        fitted(text, Knowledge(SHAPE, classifier()))


def test_without_what_it_needs_it_is_not_run(file: Path) -> None:
    with pytest.raises(NotRunError, match="name one with gan:generator="):
        fitted("gan", Knowledge(SHAPE, wide()))
    with pytest.raises(NotRunError, match="gan is a white-box attack"):
        fitted(f"gan:generator=module/{file}:linear", Knowledge(SHAPE))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bright", "draws from .* expected RGB in"),
        ("grey", r"maps 2 latents to \(2, 1, 16, 16\)"),
        ("bare", "latent_shape, such as"),
        ("text", "returned a str"),
        ("broken", "raised OSError: no weights here"),
        ("constant", "has no function 'constant'"),
        ("linar", "did you mean 'linear'"),
    ],
)
def test_what_is_no_generator_is_refused_by_name(file: Path, name: str, message: str) -> None:
    with pytest.raises(GeneratorError, match=message):
        fitted(f"gan:generator=module/{file}:{name}", Knowledge(SHAPE, wide()))


@pytest.mark.parametrize("text", ["zoo/linear", "module/file.py", "module/:linear", "module/absent.py:linear"])
def test_a_name_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(GeneratorError, match=r"module/path/to/file\.py:function"):
        fitted(f"gan:generator={text}", Knowledge(SHAPE, wide()))


def test_a_package_that_is_not_there_is_named() -> None:
    before = list(sys.path)
    with pytest.raises(GeneratorError, match="no_such_package"):
        fitted("gan:generator=module/no_such_package.module:make", Knowledge(SHAPE, wide()))
    assert sys.path == before


def test_a_file_may_hold_a_dataclass_under_postponed_annotations(file: Path) -> None:
    lines = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    lines += "@dataclass\nclass Plan:\n    size: int = 16\n"
    file.with_name("planned.py").write_text(lines + FILE, encoding="utf-8")
    found = load(f"module/{file.with_name('planned.py')}:linear", SHAPE, torch.device("cpu"))
    assert found(torch.zeros(1, *found.latent)).shape == (1, 3, 16, 16)


def test_random_weights_do_not_depend_on_global_state(file: Path) -> None:
    before = torch.get_rng_state()
    first = drawn(file, 1, "learned")
    assert torch.equal(before, torch.get_rng_state())
    torch.randn(5)
    assert torch.equal(first, drawn(file, 1, "learned"))


def test_rows_do_not_depend_on_their_batch(file: Path) -> None:
    prefix, truth = wide(), pictures(3)
    recoverer = fitted(f"gan:generator=module/{file}:linear,steps=20,starts=2", Knowledge(SHAPE, prefix))
    features = prefix(truth)
    together = images(recoverer.recover(leak(features), draws(3)))
    alone = images(recoverer.recover(leak(features[2:]), draws(1, first=2)))
    assert (together[2:] - alone).abs().max() < 1e-4
    assert torch.equal(together, images(recoverer.recover(leak(features), draws(3))))


def test_a_bad_row_fails_alone(file: Path) -> None:
    prefix, truth = wide(), pictures(3)
    features = prefix(truth)
    features[1, 0, 0, 0] = torch.nan
    recoverer = fitted(f"gan:generator=module/{file}:linear,steps=5,starts=1", Knowledge(SHAPE, prefix))
    recovery = recoverer.recover(leak(features), draws(3))
    assert [status.kind for status in recovery.status] == ["stopped", "failed", "stopped"]
    with pytest.raises(SeepageError, match="shape"):
        recoverer.recover(leak(torch.zeros(1, 12, 8, 8)), draws(1))


def test_a_prefix_that_gives_nan_fails_its_rows(file: Path) -> None:
    prefix, truth = wide(), pictures(1)
    features = leak(prefix(truth))
    prefix.body[1].weight.data[0] = torch.nan
    recoverer = fitted(f"gan:generator=module/{file}:linear,steps=5", Knowledge(SHAPE, prefix))
    recovery = recoverer.recover(features, draws(1))
    assert recovery.status[0].message == "from none of 4 starts is the objective finite"
    assert torch.equal(images(recovery), torch.full((1, *SHAPE), 0.5))


def test_what_is_saved_recovers_the_same(file: Path, tmp_path: Path) -> None:
    prefix, truth = wide(), pictures(1)
    knowledge = Knowledge(SHAPE, prefix)
    recoverer = fitted(f"gan:generator=module/{file}:linear,steps=5,starts=2", knowledge)
    recoverer.save(tmp_path / "saved")
    loaded = Gan().load(tmp_path / "saved", knowledge)
    features = leak(prefix(truth))
    assert torch.equal(*[images(one.recover(features, draws(1))) for one in (recoverer, loaded)])


@pytest.mark.parametrize("effort", ["quick", "standard", "full"])
def test_it_is_built_by_name_at_each_effort(effort: str, file: Path) -> None:
    attack = registry.build("attack", f"gan:generator=module/{file}:linear", Gan.efforts[effort])
    assert (attack.access, attack.auxiliary) == ("white-box", "public")
    assert registry.build("attack", registry.spec("attack", attack)) == attack
    assert attack.budget == attack.starts * (attack.steps + 1)


def test_no_start_is_refused() -> None:
    with pytest.raises(SeepageError, match="starts is at least 1"):
        registry.build("attack", "gan:starts=0")
