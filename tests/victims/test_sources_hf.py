"""transformers: towers found in whole models, by type, by folder, by hub; preprocessing is the processor's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    Blip2Config,
    Blip2Model,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MobileViTImageProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from seepage import victims
from seepage.types import SeepageError

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION = SMALL | {"image_size": 32, "patch_size": 16}
TEXT = SMALL | {"vocab_size": 16, "max_position_embeddings": 8}
SETTINGS = ",".join(f"{key}={value}" for key, value in VISION.items())
DINO = SETTINGS.replace("intermediate_size=48,", "")
SQUARE = {"height": 32, "width": 32}
SIZES = [(301, 203), (31, 47), (1, 1)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def outputs(victim: victims.Victim, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = victim.model(pixels)
    return out


def whole_models() -> dict[str, Any]:
    clip_text = TEXT | {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    return {
        "clip": lambda: CLIPModel(CLIPConfig(text_config=clip_text, vision_config=VISION)),
        "siglip": lambda: SiglipModel(SiglipConfig(text_config=clip_text, vision_config=VISION)),
        "llava": lambda: LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=VISION | {"model_type": "clip_vision_model"},
                text_config=TEXT | {"model_type": "llama", "num_key_value_heads": 2},
            )
        ),
        "blip-2": lambda: Blip2Model(
            Blip2Config(
                vision_config=VISION,
                qformer_config=TEXT | {"encoder_hidden_size": 32},
                text_config=TEXT | {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
            )
        ),
    }


def tower(model: Any) -> Any:
    inner = getattr(model, "model", model)
    return inner.vision_tower if hasattr(inner, "vision_tower") else inner.vision_model


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", ["clip", "siglip", "llava", "blip-2"])
def test_the_tower_of_a_whole_checkpoint_is_that_tower(kind: str, sharded: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = whole_models()[kind]().eval()
    model.save_pretrained(tmp_path, max_shard_size="30KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    victim = victims.load(f"hf/{tmp_path}")
    assert victim.name == f"hf/{tmp_path}"
    assert victim.image_shape == (3, 32, 32)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = tower(model)(pixels).pooler_output
    torch.testing.assert_close(outputs(victim, pixels), expected)


@pytest.mark.parametrize("kind", ["clip", "siglip", "llava", "blip-2"])
def test_a_type_with_settings_takes_the_tower_of_a_whole_file(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = whole_models()[kind]().eval()
    state = {name: value.half() for name, value in model.state_dict().items() if "logit_scale" not in name}
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "w.safetensors")
    victim = victims.load(f"hf/{kind}:{SETTINGS}@{tmp_path}/w.safetensors")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = tower(model.half().float())(pixels).pooler_output
    torch.testing.assert_close(outputs(victim, pixels), expected, atol=1e-5, rtol=1e-4)
    assert all(weight.dtype == torch.float32 for weight in victim.model.parameters())


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "blip-2", "llava", "dinov2", "dinov3_vit"])
def test_a_type_is_built_offline_with_initial_weights(kind: str) -> None:
    name = f"hf/{kind}:{DINO if kind == 'dinov2' else SETTINGS}"
    first, again, other = (victims.load(f"{name}@random{seed}") for seed in ("", ":0", ":1"))
    assert first.name == f"{name}@random:0"
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert outputs(first, first.normalise(torch.rand(1, *first.image_shape))).ndim == 2


def test_a_bare_type_has_transformers_default_configuration() -> None:
    victim = victims.load("hf/resnet@random")
    assert list(victim.model.config.depths) == list(transformers.ResNetConfig().depths)
    assert victim.image_shape == (3, 224, 224)


def test_a_classifier_is_one_where_the_checkpoint_or_its_settings_say_so(tmp_path: Path) -> None:
    names = {0: "cat", 1: "dog", 2: "eel"}
    torch.manual_seed(1)
    model = ViTForImageClassification(ViTConfig(**VISION, num_labels=3, id2label=names)).eval()
    model.save_pretrained(tmp_path)
    victim = victims.load(f"hf/{tmp_path}")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels).logits
    torch.testing.assert_close(outputs(victim, pixels), expected)
    assert victim.classes == ("cat", "dog", "eel")
    by_type = victims.load(f"hf/vit:{SETTINGS},num_labels=3@{tmp_path}/model.safetensors")
    torch.testing.assert_close(outputs(by_type, pixels), expected)
    bare = victims.load(f"hf/vit:{SETTINGS}@{tmp_path}/model.safetensors")
    with torch.no_grad():
        features = model.vit(pixels).last_hidden_state
    torch.testing.assert_close(outputs(bare, pixels), features)
    random = victims.load(f"hf/{tmp_path}@random")
    assert random.classes is None
    assert random.weights_sha256 != victim.weights_sha256


def test_a_classifiers_file_may_not_be_deeper_than_the_bare_model(tmp_path: Path) -> None:
    ViTForImageClassification(ViTConfig(**VISION)).save_pretrained(tmp_path)
    shallow = SETTINGS.replace("num_hidden_layers=2", "num_hidden_layers=1")
    with pytest.raises(victims.WeightsError, match=r"16 unexpected \(first vit\.layers\.1\."):
        victims.load(f"hf/vit:{shallow}@{tmp_path}/model.safetensors")


def test_a_file_that_does_not_fit_is_counted_and_its_first_named(tmp_path: Path) -> None:
    victim = victims.load(f"hf/dinov2:{DINO}@random")
    state = dict(victim.model.state_dict())
    save_file(state, tmp_path / "deep.safetensors")
    state["embeddings.cls_token"] = torch.zeros(1, 1, 8)
    del state["layernorm.weight"]
    save_file(state, tmp_path / "torn.safetensors")
    with pytest.raises(victims.WeightsError) as caught:
        victims.load(f"hf/dinov2:{DINO}@{tmp_path}/torn.safetensors")
    assert "1 of 43 tensors missing (first layernorm.weight)" in str(caught.value)
    assert "1 of another shape (first embeddings.cls_token: (1, 1, 8), expected (1, 1, 32))" in str(caught.value)
    shallow = DINO.replace("num_hidden_layers=2", "num_hidden_layers=1")
    with pytest.raises(victims.WeightsError, match=r"18 unexpected \(first encoder\.layer\.1\."):
        victims.load(f"hf/dinov2:{shallow}@{tmp_path}/deep.safetensors")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit:hidden=3@random", "'hidden_size'"),
        ("bert@random", "takes pixel values alone"),
        ("qwen2_vl@random", "takes pixel values alone"),
        ("resnet:depths=deep@random", "'depths'"),
        ("clip:num_labels=3@random", "leave num_labels out"),
    ],
)
def test_what_no_picture_goes_into_is_refused(name: str, hint: str) -> None:
    with pytest.raises(SeepageError) as caught:
        victims.load(f"hf/{name}")
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_or_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(victims.UnknownVictimError, match=r"no config\.json"):
        victims.load(f"hf/{tmp_path}")
    ViTConfig(**VISION).save_pretrained(tmp_path)
    with pytest.raises(victims.WeightsError, match=r"holds none of model\.safetensors"):
        victims.load(f"hf/{tmp_path}")
    assert victims.load(f"hf/{tmp_path}@random").image_shape == (3, 32, 32)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(victims.UnknownVictimError, match="no model that transformers knows"):
        victims.load(f"hf/{tmp_path}@random")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE),
        SiglipImageProcessor(size=SQUARE),
        ViTImageProcessor(size=SQUARE),
        BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE, image_mean=[0.1, 0.2, 0.3]),
        MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_a_folders_pictures_are_made_as_its_processor_does(
    processor: Any, size: tuple[int, int], tmp_path: Path
) -> None:
    ViTConfig(**VISION).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    victim = victims.load(f"hf/{tmp_path}@random")
    image = picture(size)
    expected = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    view = victim.picture(image)
    assert view.shape == (3, 32, 32)
    assert view.min() >= 0
    assert view.max() <= 1
    torch.testing.assert_close(victim.normalise(view[None]), expected, atol=3e-6, rtol=0)


def test_a_picture_is_rgb_even_where_the_network_wants_bgr(tmp_path: Path) -> None:
    ViTConfig(**VISION).save_pretrained(tmp_path)
    MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE).save_pretrained(tmp_path)
    victim = victims.load(f"hf/{tmp_path}@random")
    view = victim.picture(Image.new("RGB", (40, 40), (255, 0, 0)))
    assert view.mean((1, 2)).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert victim.normalise(view[None]).mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def test_a_types_own_preprocessing_serves_where_no_file_says() -> None:
    clip = victims.load(f"hf/clip:{SETTINGS}@random")
    image = picture((301, 203))
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip.normalise(clip.picture(image)[None]), expected, atol=3e-6, rtol=0)


def test_a_size_goes_into_the_table_of_positions_unless_that_is_trained(tmp_path: Path) -> None:
    small = victims.load(f"hf/clip:{SETTINGS}@random", size=48)
    assert small.image_shape == (3, 48, 48)
    assert outputs(small, torch.rand(1, 3, 48, 48)).shape == (1, 32)
    whole_models()["clip"]().save_pretrained(tmp_path)
    with pytest.raises(SeepageError, match="knows positions for 32 pixels alone, got size 48"):
        victims.load(f"hf/{tmp_path}", size=48)
    dino = victims.load(f"hf/dinov2:{DINO}@random", size=64)
    assert outputs(dino, torch.rand(1, 3, 64, 64)).shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        (f"clip:{SETTINGS}", "post_layernorm"),
        (f"siglip:{SETTINGS}", "post_layernorm"),
        (f"vit:{SETTINGS}", "layernorm"),
        (f"vit:{SETTINGS},num_labels=3", "vit.layernorm"),
        (f"dinov2:{DINO}", "layernorm"),
        (f"dinov3_vit:{SETTINGS}", "norm"),
        (f"blip-2:{SETTINGS}", "post_layernorm"),
        ("resnet:depths=[1,2],hidden_sizes=[8,16],embedding_size=8", "encoder.stages.1.layers.1"),
        ("convnext:depths=[1,2],hidden_sizes=[8,16],num_stages=2", "layernorm"),
        ("swin:depths=[1,1],num_heads=[1,2],embed_dim=8", "layernorm"),
    ],
)
def test_the_blocks_of_known_families_run_in_the_order_they_are_listed(name: str, last: str) -> None:
    victim = victims.load(f"hf/{name}@random")
    assert victim.boundaries is not None
    assert victim.boundaries[-1] == last
    ran: dict[str, None] = {}
    for boundary in victim.boundaries:
        module = victim.model.get_submodule(boundary)
        module.register_forward_hook(lambda *_, boundary=boundary: ran.setdefault(boundary))
    outputs(victim, victim.normalise(torch.rand(1, *victim.image_shape)))
    assert list(ran) == list(victim.boundaries)


def test_attention_has_derivatives_in_every_direction() -> None:
    victim = victims.load(f"hf/clip:{SETTINGS}@random")
    images = torch.rand(1, 3, 32, 32)
    direction = torch.rand(1, 3, 32, 32)
    _, forward = torch.autograd.functional.jvp(victim.model, images, direction)
    step = 1e-2
    numeric = (victim.model(images + step * direction) - victim.model(images - step * direction)) / (2 * step)
    torch.testing.assert_close(forward, numeric, atol=1e-3, rtol=1e-2)


@pytest.mark.research_data
def test_dinov2_loads_by_type_and_settings(research_data: Path) -> None:
    """The file is a ViT-S/14 of 518 pixels: width 384, 6 heads; depth 12 and patch 14 are transformers' defaults."""
    file = research_data / "weights" / "dinov2_small_fp16.safetensors"
    victim = victims.load(f"hf/dinov2:hidden_size=384,num_attention_heads=6,image_size=518@{file}")
    assert victim.image_shape == (3, 224, 224)
    assert all(weight.dtype == torch.float32 for weight in victim.model.parameters())
    out = outputs(victim, victim.normalise(victim.picture(picture((301, 203)))[None]))
    assert out.shape == (1, 384)
    assert torch.isfinite(out).all()
