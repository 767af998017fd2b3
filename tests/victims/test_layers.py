"""Which cuts are listed, checked against the law tried everywhere, and what a cut costs, counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seepage.victims import Victim
from seepage.victims.cut import CutError, cut, law
from seepage.victims.hooks import Site
from seepage.victims.kinds import Ending, kind_of
from seepage.victims.layers import Layer, default_layers, layers

SHAPE = (3, 8, 8)


def victim_of(
    build: Callable[[], nn.Module],
    *,
    boundaries: tuple[str, ...] | None = None,
    defaults: tuple[str, ...] | None = None,
    shape: tuple[int, int, int] = SHAPE,
) -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval().requires_grad_(False)
    return Victim(
        name="module/tiny",
        model=model,
        normalise=nn.Identity(),
        image_shape=shape,
        picture=lambda image: torch.zeros(shape),
        preprocessing="none",
        weights_sha256="0" * 64,
        boundaries=boundaries,
        defaults=defaults,
    )


def names(found: tuple[Layer, ...]) -> list[str]:
    return [layer.name for layer in found]


class PostActivation(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))


class Wide(nn.Module):
    """x + F(x), or a projection and nothing after."""

    def __init__(self, width: int, out: int, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.inner(x)


class Dense(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.relu(self.conv(x))], 1)


class Two(nn.Module):
    """Two convolutions of one input, joined, and nothing carried over."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.join = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.left(x), self.right(x))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class Transformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Classifier(nn.Module):
    """A stem, two stages, functional pooling, dropout and logits: a user's network of the usual make."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(PostActivation(4, 4), PostActivation(4, 4))
        self.layer2 = nn.Sequential(PostActivation(4, 6), Dense(6))
        self.drop = nn.Dropout()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu_(self.stem(x))))
        return self.fc(self.drop(x.mean((2, 3))))


class Tokens(nn.Module):
    """Patches, a class token, positions, blocks in a ModuleList; the class token's features come out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.ModuleList([Transformer(8), Transformer(8)])
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class Branching(nn.Module):
    """Two outputs, a module whose result is thrown away, one called three times, one that passes its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.aside = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 1, 1)
        self.act, self.same = nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.one(x))
        self.aside(x)
        x = self.act(self.two(x))
        first, second = x.chunk(2, -1)
        return {"a": self.act(first.clone()), "b": self.same(second) + second}


class Turned(nn.Module):
    """Features whose first axis is no picture's: always one long, or as long as there are pictures by chance."""

    class Lead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[None]

    class Swap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lead, self.swap, self.out = nn.Conv2d(3, 2, 1), Turned.Lead(), Turned.Swap(), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.swap(self.lead(self.conv(x))[0]).transpose(0, 1))


@pytest.mark.parametrize("build", [Classifier, Tokens, Branching, Turned], ids=lambda build: build.__name__)
def test_the_legal_cuts_are_those_where_the_law_holds(build: Callable[[], nn.Module]) -> None:
    victim = victim_of(build)
    # The slow and obvious way: try every call of every module.
    names_of = [name for name, _ in victim.model.named_modules() if name]
    tried = law(victim, [Site(name, call) for name in names_of for call in (1, 2, 3)])
    often = {site.module for site in tried if site.call > 1}
    holding = {
        f"{site.module}#{site.call}" if site.module in often else site.module
        for site, found in tried.items()
        if found.holds
    }
    listed = layers(victim, every=True)
    assert set(names(listed)) == holding
    assert [layer.index for layer in listed] == list(range(len(listed)))


def test_a_layer_says_what_its_cut_sends() -> None:
    victim = victim_of(Classifier)
    for layer in layers(victim):
        assert cut(victim, layer.name).prefix(torch.rand(2, *SHAPE)).shape == (2, *layer.shape)


def test_boundaries_of_a_user_network_are_its_containers_children_and_its_classifier() -> None:
    victim = victim_of(Classifier)
    found = layers(victim)
    assert names(found) == ["layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2", "drop", "fc"]
    every = {layer.name: layer for layer in layers(victim, every=True)}
    assert all(every[layer.name] == layer for layer in found)
    assert "layer1.0.conv1" not in every
    assert "layer1.0.relu#2" in every


def test_a_module_list_has_no_end_of_its_own() -> None:
    assert names(layers(victim_of(Tokens))) == ["blocks.0", "blocks.1"]


def test_without_containers_the_top_level_children_are_the_boundaries() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early = nn.Conv2d(4, 2, 1), PostActivation(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.early(x))

    assert names(layers(victim_of(Flat))) == ["early", "late"]


def test_a_sequential_network_has_its_children_and_theirs_in_containers() -> None:
    parts = lambda: nn.Sequential(  # noqa: E731
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 2)
    )
    assert names(layers(victim_of(parts))) == ["0.0", "0.1", "0", "1", "2", "3"]


def test_given_boundaries_are_listed_where_they_are_legal_with_pooled_vector_and_logits() -> None:
    victim = victim_of(Classifier, boundaries=("layer2.1", "stem", "layer1.0.conv1", "absent"))
    assert names(layers(victim)) == ["stem", "layer2.1", "drop", "fc"]


def test_default_layers_are_the_given_ones_or_five_over_the_blocks() -> None:
    assert default_layers(victim_of(Classifier, defaults=("stem",))) == ("stem",)
    # Legal ones alone, and of a module that runs twice a call.
    given = victim_of(Branching, defaults=("one", "aside", "act"))
    assert default_layers(given) == ("one", "act#1")
    assert default_layers(victim_of(Classifier)) == ("layer1.0", "layer1.1", "layer2.0", "layer2.1")
    found = default_layers(victim_of(lambda: nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(9)])))
    assert found == ("0", "2", "4", "6", "8")
    for layer in default_layers(victim_of(Classifier)):
        assert cut(victim_of(Classifier), layer).layer == layer


def test_multiply_adds_and_bytes_are_those_counted_by_hand() -> None:
    found = {layer.name: layer for layer in layers(victim_of(Classifier), every=True)}
    pixels = 8 * 8
    stem = pixels * 4 * 3 * 9
    first = stem + 2 * pixels * 4 * 4 * 9
    second = first + 2 * pixels * 4 * 4 * 9
    third = second + pixels * (6 * 4 * 9 + 6 * 6 * 9 + 6 * 4)
    total = third + pixels * 2 * 6 * 9 + 8 * 5
    expected = {"stem": stem, "layer1.0": first, "layer1": second, "layer2.0": third, "drop": total - 40, "fc": total}
    for name, macs in expected.items():
        assert found[name].macs_before == macs
        assert found[name].macs_after == total - macs
    assert {layer.macs_before + layer.macs_after for layer in found.values()} == {total}
    assert found["layer2.0"].shape == (6, 8, 8)
    assert found["layer2.0"].bytes == {"fp32": 4 * 384, "fp16": 2 * 384, "int8": 384 + 4}


def test_attention_is_counted() -> None:
    found = {layer.name: layer for layer in layers(victim_of(Tokens), every=True)}
    patches = 4 * 8 * 3 * 16
    tokens, width = 5, 8
    block = tokens * width * (3 * width + width + width) + 2 * tokens * tokens * width
    assert found["patch"].macs_before == patches
    assert found["blocks.0"].macs_before == patches + block
    assert found["norm"].macs_before == patches + 2 * block
    assert found["norm"].macs_after == 0


def test_multiheaded_attention_of_torch_is_counted_too() -> None:
    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, stride=4)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.patch(x).flatten(2).transpose(1, 2))

    found = {layer.name: layer for layer in layers(victim_of(Torch), every=True)}
    tokens, width = 4, 8
    block = tokens * (4 * width * width + 2 * width * 16) + 2 * tokens * tokens * width
    assert found["layer"].macs_before - found["patch"].macs_before == block
    assert found["layer"].kind == "transformer"


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        pytest.param(lambda: PostActivation(3, 3), "post-activation", id="identity"),
        pytest.param(lambda: PostActivation(3, 4), "post-activation", id="projection"),
        pytest.param(lambda: Wide(3, 3, nn.Conv2d(3, 3, 3, padding=1)), "pre-activation", id="x + F(x)"),
        pytest.param(lambda: Wide(3, 5, nn.Conv2d(3, 5, 3, padding=1)), "downsample", id="S(x) + F(x)"),
        pytest.param(
            lambda: Wide(3, 3, nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 3, 1))),
            "linear-bottleneck",
            id="depthwise",
        ),
        pytest.param(lambda: Two(torch.add), None, id="two projections"),
        pytest.param(lambda: Dense(3), "dense", id="dense"),
        pytest.param(lambda: Two(lambda left, right: torch.cat([left, right], 1)), None, id="two in parallel"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), "stem", id="first"),
        pytest.param(lambda: nn.AvgPool2d(2), "pool", id="pool"),
    ],
)
def test_a_block_is_known_by_how_its_output_comes_about(build: Callable[[], nn.Module], kind: str | None) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = build()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    (found,) = [layer for layer in layers(victim_of(One), every=True) if layer.name == "block"]
    assert found.kind == kind


def test_the_end_of_a_container_is_of_the_kind_of_its_last_block() -> None:
    kinds = {layer.name: layer.kind for layer in layers(victim_of(Classifier), every=True)}
    assert kinds["layer1"] == kinds["layer1.1"] == kinds["layer1.1.relu#2"] == "post-activation"
    assert kinds["layer2"] == "dense"
    assert kinds["stem"] == "stem"
    assert kinds["drop"] is None
    assert kinds["fc"] == "head"
    assert {layer.kind for layer in layers(victim_of(Tokens))} == {"transformer"}


def test_other_activations_after_the_sum_are_no_post_activation_block() -> None:
    assert kind_of(nn.Identity(), Ending("gelu", "add", True)) is None
    assert kind_of(nn.Identity(), Ending("relu", "add", True)) == "post-activation"


def test_blocks_are_known_by_type() -> None:
    from timm.models.resnetv2 import PreActBasic
    from torchvision.models.convnext import CNBlock
    from torchvision.models.densenet import _Transition
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.shufflenetv2 import InvertedResidual as Shuffled

    assert kind_of(BasicBlock(4, 4)) == "post-activation"
    assert kind_of(InvertedResidual(4, 4, 1, 6)) == "linear-bottleneck"
    assert kind_of(Shuffled(4, 4, 1)) is None
    assert kind_of(CNBlock(4, 1e-6, 0.0)) == "convnext"
    assert kind_of(_Transition(4, 2)) == "downsample"
    assert kind_of(PreActBasic(32, 32)) == "pre-activation"
    assert kind_of(PreActBasic(32, 32), reshapes=True) == "downsample"

    class Mine(BasicBlock):
        """A user's block that builds on a known one."""

    assert kind_of(Mine(4, 4)) == "post-activation"


def test_a_victim_without_gradients_is_said_to_have_none() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.detach())

    with pytest.raises(CutError, match="the outputs of module/tiny carry no gradient to its pictures"):
        layers(victim_of(Closed))


def test_a_victim_that_takes_other_pictures_says_so() -> None:
    with pytest.raises(CutError, match="does not run on pictures of 3x5x5"):
        layers(victim_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), shape=(3, 5, 5)))


def test_listing_changes_nothing() -> None:
    victim = victim_of(Classifier)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in victim.model.modules()]
    weights = {name: value.clone() for name, value in victim.model.state_dict().items()}
    layers(victim)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in victim.model.modules()]
    assert all(torch.equal(value, weights[name]) for name, value in victim.model.state_dict().items())
    assert not any(weight.requires_grad for weight in victim.model.parameters())
