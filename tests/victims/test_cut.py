"""The law of the cut on tiny networks, and what is refused."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import to_tensor

from seepage.victims import Victim, WeightsError
from seepage.victims.cut import CutError, NonFiniteError, cut, law
from seepage.victims.hooks import Site
from seepage.victims.preprocess import Normalise
from seepage.victims.structure import tensors, with_first

SHAPE = (3, 8, 8)


def victim_of(model: nn.Module, *, name: str = "module/tiny", shape: tuple[int, int, int] = SHAPE) -> Victim:
    return Victim(
        name=name,
        model=model.eval().requires_grad_(False),
        normalise=Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
        image_shape=shape,
        picture=lambda image: to_tensor(image.resize((shape[2], shape[1]))),
        preprocessing="resize",
        weights_sha256="0" * 64,
    )


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def pictures(rows: int = 3, seed: int = 7, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """One in-place relu, fired twice; the second time over the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu(self.bn1(self.conv1(x))))
        y += x
        return self.relu(y)


class Residual(nn.Module):
    """A stem whose features a later in-place relu overwrites, two blocks, pooling in functional code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(Block(6), Block(6))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.stem(x)))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


@pytest.fixture
def residual() -> Victim:
    return victim_of(seeded(Residual))


LEGAL = ["stem", "relu", "blocks.0", "blocks.0.relu#2", "blocks.1", "blocks", "drop", "head"]


@pytest.mark.parametrize("layer", LEGAL)
def test_a_suffix_after_its_prefix_is_the_model(residual: Victim, layer: str) -> None:
    split = cut(residual, layer)
    images = pictures()
    expected = residual.model(residual.normalise(images))
    leak = split.leak(images)
    kept = leak.features.clone()
    torch.testing.assert_close(split.finish(leak), expected, rtol=1e-5, atol=1e-7)
    # An in-place relu right after the cut works on a copy.
    assert torch.equal(leak.features, kept)
    assert (leak.header.victim, leak.header.layer) == (residual.name, split.layer)


def test_the_leak_is_what_the_module_returned(residual: Victim) -> None:
    images = pictures()
    model, stem = residual.model, residual.model.get_submodule("stem")
    assert torch.equal(cut(residual, "stem").prefix(images), stem(residual.normalise(images)))
    block = model.get_submodule("blocks.0")
    first = block(F.relu(stem(residual.normalise(images))))
    torch.testing.assert_close(cut(residual, "blocks.0").prefix(images), first)


@pytest.mark.parametrize("layer", ["blocks.0.conv1", "blocks.1.bn1", "blocks.0.relu#1", "blocks.1.conv2"])
def test_a_cut_that_a_skip_goes_around_is_refused_with_its_neighbours(residual: Victim, layer: str) -> None:
    with pytest.raises(CutError, match="goes around it") as caught:
        cut(residual, layer)
    assert str(caught.value).startswith(f"module/tiny cannot be cut at '{layer}'")
    before, after = ("relu", "blocks.0") if layer.startswith("blocks.0") else ("blocks.0", "blocks")
    assert f"nearest legal cuts: {before!r} and" in str(caught.value)
    assert after in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("blocks.0.rellu", "no layer 'blocks.0.rellu'; did you mean 'blocks.0.relu'"),
        ("stm", "did you mean 'stem'"),
        ("", "no layer ''; known: "),
        ("zzzzzzzz", "; known: blocks"),
        ("unused", "never runs 'unused'"),
        ("blocks.0.relu", "2 times: name a call, blocks.0.relu#1 to blocks.0.relu#2"),
        ("blocks.0.relu#3", "2 times"),
        ("blocks.0.relu#0", "2 times"),
        ("blocks.0.relu#two", "2 times"),
        ("stem#2", "once: name it stem"),
    ],
)
def test_a_layer_that_is_none_says_what_is(residual: Victim, layer: str, words: str) -> None:
    with pytest.raises(CutError) as caught:
        cut(residual, layer)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_calls_are_counted_from_one(residual: Victim) -> None:
    assert cut(residual, "stem#1").layer == "stem"
    split = cut(residual, "blocks.1.relu#2")
    assert split.layer == "blocks.1.relu#2"
    assert torch.equal(split.prefix(pictures()), cut(residual, "blocks.1").prefix(pictures()))


class Around(nn.Module):
    """A way around `inner` that `way` decides."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.way(x)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(lambda x: x.detach(), id="detached: only the numbers tell"),
        pytest.param(lambda x: (x > 0).float(), id="an index: only the numbers tell"),
        pytest.param(lambda x: 1e-9 * x, id="a whisper: only the graph tells"),
    ],
)
def test_no_way_around_a_cut_is_too_narrow(way: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CutError, match=r"'inner'.*goes around it"):
        cut(victim_of(seeded(lambda: Around(way))), "inner")


def test_what_does_not_depend_on_the_picture_is_no_way_around() -> None:
    split = cut(victim_of(seeded(lambda: Around(torch.ones_like))), "inner")
    images = pictures()
    torch.testing.assert_close(split.finish(split.leak(images)), split.prefix(images) + 1)


class Shaped(nn.Module):
    """`odd` returns what `form` makes of its features, `read` takes them out again."""

    class Odd(nn.Module):
        def __init__(self, form: Callable[[Tensor], object]) -> None:
            super().__init__()
            self.form = form

        def forward(self, x: Tensor) -> object:
            return self.form(x)

    def __init__(self, form: Callable[[Tensor], object], read: Callable[[object], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.odd = Shaped.Odd(form)
        self.read = read
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> object:
        x = self.read(self.odd(self.conv(x)))
        return OrderedDict(logits=self.head(x.mean((2, 3))), nothing=None)


@dataclass
class Output:
    note: str
    state: Tensor


@pytest.mark.parametrize(
    ("form", "read"),
    [
        pytest.param(lambda x: (x, None), lambda out: out[0], id="tuple"),
        pytest.param(lambda x: [None, {"x": x}], lambda out: out[1]["x"], id="list of dicts"),
        pytest.param(lambda x: Output("note", x), lambda out: out.state, id="dataclass"),
        pytest.param(lambda x: torch.max(torch.stack([x, -x]), 0), lambda out: out.values, id="a named return type"),
    ],
)
def test_the_first_tensor_of_a_structure_is_the_leak(
    form: Callable[[Tensor], object], read: Callable[[object], Tensor]
) -> None:
    victim = victim_of(seeded(lambda: Shaped(form, read)))
    split = cut(victim, "odd")
    images = pictures()
    torch.testing.assert_close(split.finish(split.leak(images)), victim.model(victim.normalise(images))["logits"])


def test_a_structure_is_rebuilt_and_not_changed() -> None:
    old, new = torch.zeros(2), torch.ones(2)
    inner = OrderedDict(none=None, x=old)
    given = (None, [inner, old], Output("note", old))
    changed = with_first(given, new)
    assert tensors(changed) == (new, old, old)
    assert tensors(given) == (old, old, old)
    assert inner["x"] is old
    assert changed[1][0]["x"] is new
    assert changed[2] is given[2]
    with pytest.raises(ValueError, match="no tensor in a tuple"):
        with_first((None, "text"), new)


def test_transformers_outputs_are_rebuilt() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    victim = victim_of(
        seeded(lambda: Shaped(lambda x: BaseModelOutputWithPooling(x, x[:, :, 0, 0].detach()), lambda out: out[0]))
    )
    split = cut(victim, "odd")
    images = pictures()
    torch.testing.assert_close(split.finish(split.leak(images)), victim.model(victim.normalise(images))["logits"])


def test_every_output_must_follow_from_the_leak() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            early = self.early(x)
            return self.late(early), early

    victim = victim_of(seeded(Two))
    assert cut(victim, "early").layer == "early"
    with pytest.raises(CutError, match="goes around it"):
        cut(victim, "late")


@pytest.mark.parametrize(
    ("form", "read", "words"),
    [
        pytest.param(
            lambda x: x.transpose(0, 1), lambda out: out.transpose(0, 1), "first axis is not the pictures'", id="axis 1"
        ),
        pytest.param(lambda x: x.flip(0), lambda out: out.flip(0), "depend on the others", id="another order"),
        pytest.param(lambda x: str(x.shape), lambda out: torch.zeros(2, 4, 1, 1), "no features", id="no tensor"),
        pytest.param(lambda x: (x > 0).long(), lambda out: out.float(), "no features", id="whole numbers"),
    ],
)
def test_features_have_one_row_a_picture(
    form: Callable[[Tensor], object], read: Callable[[object], Tensor], words: str
) -> None:
    with pytest.raises(CutError, match=words):
        cut(victim_of(seeded(lambda: Shaped(form, read))), "odd")


class State:
    """Everything about a model that cutting it may not change."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [module.training for module in model.modules()]
        self.hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
        self.grads = [(p.requires_grad, p.grad) for p in model.parameters()]
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.attributes = [set(vars(module)) for module in model.modules()]

    def same(self, other: State) -> bool:
        fields = (self.modes, self.hooks, self.grads, self.attributes, list(self.weights))
        others = (other.modes, other.hooks, other.grads, other.attributes, list(other.weights))
        return fields == others and all(torch.equal(self.weights[key], other.weights[key]) for key in self.weights)


def test_nothing_of_the_victim_changes(residual: Victim) -> None:
    residual.model.register_forward_hook(lambda *_: None)
    residual.model.get_submodule("head").requires_grad_(True)
    before = State(residual.model)
    split = cut(residual, "blocks.0")
    assert split.prefix.segments
    split.finish(split.leak(pictures()))
    for layer in ("blocks.0.conv1", "unused", "nothing"):
        with pytest.raises(CutError):
            cut(residual, layer)
    with pytest.raises(RuntimeError):
        split.prefix(pictures().double())
    with pytest.raises(RuntimeError):
        split.finish(split.leak(pictures()).with_features(torch.rand(1, 9, 8, 8)))
    assert State(residual.model).same(before)


def test_a_victim_that_fails_says_so_in_one_line(residual: Victim) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a fault of its own")

    residual.model.get_submodule("blocks.1").register_forward_hook(fail)
    before = State(residual.model)
    with pytest.raises(KeyError):
        cut(residual, "blocks.0")
    assert State(residual.model).same(before)
    flat = victim_of(seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(10, 2))))
    with pytest.raises(CutError, match=r"module/tiny does not run on pictures of 3x8x8: .*mat1 and mat2"):
        cut(flat, "1")


def test_training_mode_is_refused_and_kept(residual: Victim) -> None:
    residual.model.get_submodule("blocks.1.bn1").train()
    with pytest.raises(CutError, match=r"in training mode at blocks\.1\.bn1"):
        cut(residual, "stem")
    assert residual.model.get_submodule("blocks.1.bn1").training


def test_a_victim_with_chance_in_it_is_said_to_have_some() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    victim = victim_of(nn.Sequential(nn.Flatten(), Noisy(), nn.Flatten()))
    with pytest.raises(CutError, match="gives other outputs each time for the same picture"):
        cut(victim, "1")


def test_weights_that_are_not_finite_are_named(residual: Victim) -> None:
    residual.model.get_submodule("blocks.0.conv2").weight.view(-1)[5] = torch.nan
    with pytest.raises(WeightsError, match=r"blocks\.0\.conv2\.weight holds 1 NaN"):
        cut(residual, "stem")


def test_features_that_are_not_finite_are_named() -> None:
    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (1e3 * x.abs() + 1e3).exp()

    victim = victim_of(nn.Sequential(OrderedDict(flat=nn.Flatten(), over=Overflow())))
    with pytest.raises(NonFiniteError, match="features at 'over'"):
        cut(victim, "over")
    with pytest.raises(NonFiniteError, match="outputs"):
        cut(victim, "flat")


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, bias=False)
        self.tanh = nn.Tanh()
        self.head = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tanh(self.conv(x)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_prefix_differentiates_twice_and_in_both_modes() -> None:
    victim = victim_of(seeded(Smooth).double())
    victim.normalise.double()
    prefix = cut(victim, "tanh").prefix
    weight = victim.model.get_submodule("conv").weight
    mean = torch.tensor([0.4, 0.5, 0.6]).double().view(1, 3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.25]).double().view(1, 3, 1, 1)

    def by_hand(images: Tensor) -> Tensor:
        return torch.tanh(F.conv2d((images - mean) / std, weight))

    images = pictures(1).double().requires_grad_()
    direction = pictures(1, seed=8).double()
    assert torch.autograd.gradcheck(prefix, (images,))
    assert torch.autograd.gradgradcheck(prefix, (images,))
    value, tangent = torch.func.jvp(prefix, (images.detach(),), (direction,))
    expected, expected_tangent = torch.func.jvp(by_hand, (images.detach(),), (direction,))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(tangent, expected_tangent)
    _, pull = torch.func.vjp(prefix, images.detach())
    _, expected_pull = torch.func.vjp(by_hand, images.detach())
    torch.testing.assert_close(pull(tangent)[0], expected_pull(tangent)[0])
    rows = torch.func.vmap(lambda image: prefix(image[None])[0])(pictures(2).double())
    torch.testing.assert_close(rows, by_hand(pictures(2).double()))


def test_a_copy_in_double_precision_leaves_the_victim_alone(residual: Victim) -> None:
    split = cut(residual, "blocks.0")
    single = split.prefix(pictures())
    twin = copy.deepcopy(split.prefix).double()
    assert twin(pictures().double()).dtype == torch.float64
    torch.testing.assert_close(twin(pictures().double()).float(), single, rtol=1e-5, atol=1e-6)
    features = pictures().double()
    for segment in twin.segments:
        features = segment.module(features)
    torch.testing.assert_close(features, twin(pictures().double()))
    assert {weight.dtype for weight in residual.model.parameters()} == {torch.float32}
    assert torch.equal(split.prefix(pictures()), single)


def test_threads_that_share_a_model_do_not_meet(residual: Victim) -> None:
    splits = [cut(residual, layer) for layer in ("relu", "blocks.0.relu#2", "blocks.1.relu#2", "head")]
    expected = [split.prefix(pictures()) for split in splits]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(40):
            if not torch.equal(splits[index].prefix(pictures()), expected[index]):
                wrong.append(splits[index].layer)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(splits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_stopped_run_leaves_nothing_behind(residual: Victim) -> None:
    held: list[weakref.ref[Tensor]] = []
    residual.model.get_submodule("stem").register_forward_hook(lambda *call: held.append(weakref.ref(call[2])))
    prefix = cut(residual, "blocks.0").prefix
    held.clear()
    gc.disable()
    try:
        with torch.no_grad():
            prefix(pictures())
        # The frames of the stopped run are gone without waiting for the collector.
        assert [reference() for reference in held] == [None]
    finally:
        gc.enable()


def test_one_module_under_two_names_is_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1)
            self.two = self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    victim = victim_of(seeded(Twice))
    split = cut(victim, "two#2")
    assert split.layer == "one#2"
    torch.testing.assert_close(split.prefix(pictures()), victim.model(victim.normalise(pictures())))
    assert split.prefix.segments[-1].name == "one#2"


def test_a_picture_is_read_as_the_victim_reads_it(residual: Victim) -> None:
    image = cut(residual, "stem").load(Image.new("L", (20, 10), 51))
    assert image.shape == SHAPE
    torch.testing.assert_close(image, torch.full(SHAPE, 0.2))


def test_the_law_is_shared_between_sites(residual: Victim) -> None:
    runs = []
    handle = residual.model.get_submodule("stem").register_forward_hook(lambda *_: runs.append(1))
    sites = [Site("stem"), Site("blocks.0"), Site("blocks.0.conv1"), Site("unused")]
    found = law(residual, sites)
    handle.remove()
    assert len(runs) == 2 + 3
    assert [found[site].holds for site in sites[:3]] == [True, True, False]
    assert found[Site("blocks.0.conv1")].error > 1e-3
    assert Site("unused") not in found
