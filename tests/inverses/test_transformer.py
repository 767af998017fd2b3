"""Transformer blocks of three libraries, taken apart into halves and undone."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torchvision.models import swin_transformer

from seepage.inverses import Target, Transformer, rule, serving
from seepage.inverses.halves import halves
from seepage.inverses.identity_residual import IdentityResidual
from seepage.types import Segment


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def timm_block(gain: float = 1.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = timm.models.vision_transformer.Block(24, num_heads=4).eval().requires_grad_(False)
    for name, weight in made.named_parameters():
        if "norm" not in name and weight.ndim > 1:
            weight.data *= gain
    return made


def dinov2_block() -> nn.Module:
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module = transformers.Dinov2Model(config).encoder.layer[0].eval().requires_grad_(False)
    return made


def clip_block() -> nn.Module:
    config = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = transformers.CLIPVisionModel(config).encoder.layers[0].eval().requires_grad_(False)
    return Called(layer)


class Called(nn.Module):
    """What a block is called with beside its tokens, and the first of what it returns."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x, attention_mask=None)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found


class AfterNorm(nn.Module):
    """The original transformer: normalised after each addition, so no half is a residual of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def segment(module: nn.Module) -> Segment:
    return Segment("block", "transformer", module, (9, 24), (9, 24))


def test_halves_make_up_the_block_in_every_library():
    x = drawn((2, 9, 24))
    for module in (timm_block(), dinov2_block(), clip_block()):
        parts = halves(module, x[:1])
        assert parts is not None
        between = parts.first(x)
        assert torch.allclose(parts.second(between), module(x), atol=1e-5)
        # Attention looks at all tokens, the second half at each alone.
        other = x.clone()
        other[:, 0] += 1
        assert not torch.equal(parts.first(other)[:, 1:], between[:, 1:])
        assert torch.allclose(parts.second(between[:, :1]), parts.second(between)[:, :1], atol=1e-5)


def test_halves_agree_with_the_parts_written_out():
    block, x = timm_block(), drawn((1, 9, 24))
    parts = halves(block, x)
    assert parts is not None
    between = x + block.attn(block.norm1(x))
    assert torch.allclose(parts.first(x), between, atol=1e-6)
    assert torch.allclose(parts.second(between), between + block.mlp(block.norm2(between)), atol=1e-6)


def test_other_blocks_have_no_halves_and_hooks_are_gone():
    assert halves(AfterNorm().eval(), drawn((1, 9, 24))) is None
    assert halves(nn.Sequential(nn.Linear(24, 24)), drawn((1, 9, 24))) is None
    assert halves(nn.Conv2d(3, 3, 1), drawn((1, 3, 4, 4))) is None
    block = timm_block()
    assert halves(block, drawn((1, 9, 24))) is not None
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_a_block_is_undone_to_float_precision_from_its_output():
    assert isinstance(rule("transformer")[1], Transformer)
    for module in (timm_block(), dinov2_block(), clip_block()):
        x = drawn((3, 9, 24))
        y = module(x)
        assert float((y - x).norm() / x.norm()) > 1e-2
        found = Transformer().invert(segment(module), Target(y, y), 480)
        assert [status.kind for status in found.status] == ["converged"] * 3
        assert float(((found.x - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).max()) < 1e-5
        assert int(found.passes.max()) <= 480


def test_a_strong_block_needs_its_known_token_and_a_start_nearby():
    """A class token of next to no size is blown up by its norm: its place is held, and what became of it not asked."""
    module, x = timm_block(2.0), drawn((2, 9, 24), 1)
    x[:, 0] = 1e-3 * drawn((24,), 2)
    known = torch.zeros(9, 24, dtype=torch.bool)
    known[0] = True
    y = module(x)
    start = x + 0.02 * drawn(x.shape, 3)
    start[:, 0] = x[:, 0]
    held = Transformer().invert(segment(module), Target(y, start, known=known), 2400)
    assert torch.equal(held.x[:, 0], x[:, 0])
    assert float((held.x - x).norm() / x.norm()) < 1e-3
    sought = Transformer().invert(segment(module), Target(y, start), 2400)
    assert float((sought.x - x).norm() / x.norm()) > float((held.x - x).norm() / x.norm())


def test_halves_are_solved_in_float64_whose_rounding_a_strong_block_blows_up():
    module, x = timm_block(2.0), drawn((2, 9, 24), 1)
    y = module(x)
    found = Transformer().invert(segment(module), Target(y, x + 0.02 * drawn(x.shape, 3)), 2400)
    assert found.x.dtype == y.dtype
    assert float((found.x - x).norm() / x.norm()) < 5e-6


def test_tokens_that_newton_leads_astray_are_solved_from_the_start_again():
    """Attention adds nothing here: each token is a problem of its own, and most are too strong for Newton's method."""
    module, x = timm_block(3.0), drawn((1, 100, 24), 1)
    module.attn.proj.weight.data.zero_()
    module.attn.proj.bias.data.zero_()
    y = module(x)
    block = Segment("block", "transformer", module, (100, 24), (100, 24))
    found = Transformer().invert(block, Target(y, x + 0.1 * drawn(x.shape, 3)), 1200)
    right = (found.x - x)[0].norm(dim=1) <= 1e-5 * x[0].norm(dim=1)
    assert int(right.sum()) >= 80


class Relative(nn.Module):
    """Attention that knows by how far tokens are apart, and so takes no fewer of them."""

    def __init__(self) -> None:
        super().__init__()
        self.block = timm_block()
        self.apart = 0.1 * drawn((9, 24), 7)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 9:
            raise RuntimeError(f"expected 9 tokens, not {x.shape[1]}")
        found: Tensor = self.block(x + self.apart) - self.apart
        return found


def test_a_block_of_a_fixed_number_of_tokens_goes_by_the_other_rule():
    module, x = Relative(), drawn((1, 9, 24))
    assert halves(module, x) is None
    y = module(x)
    found = Transformer().invert(segment(module), Target(y, y), 480)
    assert float((found.x - x).norm() / x.norm()) < 1e-4


def test_a_block_on_a_map_of_tokens_is_served_as_other_residuals_are():
    """Swin's windows lie on a map: what a user is told of a block is the rule that is run there."""
    swin = swin_transformer.SwinTransformerBlock(8, 2, [2, 2], [0, 0]).eval()
    part = Segment("block", "transformer", swin, (4, 4, 8), (4, 4, 8))
    assert not Transformer().fits(part)
    assert serving(part) == ("residual", IdentityResidual())
    assert serving(segment(AfterNorm().eval()))[0] == "residual"
    for block in (timm_block(), dinov2_block(), clip_block()):
        assert serving(segment(block))[0] == "transformer"


@pytest.mark.parametrize("passes", [0, 6, 24, 41, 60, 100, 480])
def test_passes_are_a_limit_and_few_of_them_break_nothing(passes):
    module, x = timm_block(3.0), drawn((2, 9, 24))
    y = module(x)
    found = Transformer(tolerance=1e-12).invert(segment(module), Target(y, x + 0.02 * drawn(x.shape, 3)), passes)
    assert torch.isfinite(found.x).all()
    assert int(found.passes.max()) <= max(passes, 2)


def test_what_is_left_is_handed_on_and_the_nearer_is_kept():
    """Tokens that Newton's steps leave at a hundredth are taken further by the rule for other residuals."""
    from seepage.inverses import IdentityResidual

    module, x = timm_block(3.0), drawn((1, 9, 24))
    y = module(x)
    target = Target(y, x + 0.02 * drawn(x.shape, 3))
    found = Transformer().invert(segment(module), target, 480)
    other = IdentityResidual().invert(segment(module), target, 480)
    assert float(found.residual) <= 2 * float(other.residual)


def test_tokens_that_are_all_known_leave_nothing_to_solve():
    module, x = timm_block(), drawn((1, 9, 24))
    found = Transformer().invert(segment(module), Target(module(x), x, known=torch.ones(9, 24).bool()), 480)
    assert torch.isfinite(found.x).all()


def test_rows_are_solved_apart_and_a_broken_one_has_failed():
    module, x = timm_block(), drawn((3, 9, 24))
    y = module(x)
    y[1, 2, 3] = float("nan")
    found = Transformer().invert(segment(module), Target(y, torch.nan_to_num(y)), 480)
    assert [status.kind for status in found.status] == ["converged", "failed", "converged"]
    alone = Transformer().invert(segment(module), Target(y[2:], y[2:]), 480)
    assert torch.allclose(found.x[2:], alone.x, atol=1e-5)


def test_what_is_not_exact_goes_by_the_other_rule():
    module, x = timm_block(), drawn((1, 9, 24))
    y = module(x) + 0.1 * drawn(x.shape, 5)
    found = Transformer().invert(segment(module), Target(y, y, identified=False), 60)
    assert torch.isfinite(found.x).all()
    assert int(found.passes[0]) <= 60
