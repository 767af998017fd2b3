"""torchvision, timm, open_clip and the zoo: networks and preprocessing are the library's own."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor
from torchvision import models

from seepage import victims
from seepage.types import SeepageError
from seepage.victims.preprocess import Normalise
from seepage.victims.zoo import imagenet_classes

# Wide, tall, small enough to be enlarged, and next to nothing.
SIZES = [(301, 203), (180, 420), (31, 47), (1, 1)]
TINY_CLIP = "open_clip/ViT-B-32:layers=1,width=64"


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def seen(victim: victims.Victim, image: Image.Image) -> Tensor:
    """Return what the network gets, and check what everybody else gets on the way."""
    view = victim.picture(image)
    assert view.shape == victim.image_shape
    assert view.dtype == torch.float32
    assert view.min() >= 0
    assert view.max() <= 1
    network_input: Tensor = victim.normalise(view[None])[0]
    return network_input


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", models.ResNet18_Weights.IMAGENET1K_V1),
        ("mobilenet_v3_small", models.MobileNet_V3_Small_Weights.IMAGENET1K_V1),
        ("efficientnet_b1", models.EfficientNet_B1_Weights.IMAGENET1K_V2),
    ],
)
def test_torchvision_pictures_are_made_as_torchvision_does(
    name: str, weights: models.WeightsEnum, size: tuple[int, int]
) -> None:
    victim = victims.load(f"torchvision/{name}@random")
    image = picture(size)
    torch.testing.assert_close(seen(victim, image), weights.transforms()(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "convnext_atto"])
def test_timm_pictures_are_made_as_timm_does(name: str, size: tuple[int, int]) -> None:
    victim = victims.load(f"timm/{name}@random")
    transform = create_transform(**resolve_model_data_config(victim.model), is_training=False)
    image = picture(size)
    torch.testing.assert_close(seen(victim, image), transform(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_open_clip_pictures_are_made_as_open_clip_does(size: tuple[int, int]) -> None:
    from open_clip import image_transform

    victim = victims.load(f"{TINY_CLIP}@random")
    image = picture(size)
    expected = image_transform(224, is_train=False)(image)
    torch.testing.assert_close(seen(victim, image), expected, atol=1e-6, rtol=0)


def test_siglips_preprocessing_is_not_clips() -> None:
    from open_clip import image_transform

    victim = victims.load("open_clip/ViT-B-16-SigLIP:timm_model_name=vit_tiny_patch16_224@random")
    half = (0.5, 0.5, 0.5)
    expected = image_transform(224, is_train=False, mean=half, std=half, resize_mode="squash")
    image = picture((301, 203))
    torch.testing.assert_close(seen(victim, image), expected(image), atol=1e-6, rtol=0)


def test_normalisation_is_subtract_and_divide() -> None:
    images = torch.full((1, 3, 1, 1), 0.6)
    plain = Normalise((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(images).flatten()
    flipped = Normalise((0.1, 0.2, 0.3), (1.0, 2.0, 4.0), bgr=True)(images).flatten()
    torch.testing.assert_close(plain, torch.tensor([0.5, 0.2, 0.075]))
    torch.testing.assert_close(flipped, torch.tensor([0.075, 0.2, 0.5]))


def test_any_mode_of_picture_is_seen_as_rgb() -> None:
    victim = victims.load("timm/test_resnet@random")
    grey = picture((200, 180)).convert("L")
    assert torch.equal(victim.picture(grey), victim.picture(grey.convert("RGB")))


def test_a_sliver_is_refused_before_it_fills_the_memory() -> None:
    victim = victims.load("timm/test_resnet@random")
    with pytest.raises(SeepageError, match="1x5000 is over 200 times as long as wide"):
        victim.picture(Image.new("RGB", (1, 5000)))


def test_torchvision_builds_the_very_network() -> None:
    torch.manual_seed(7)
    reference = models.resnet18().eval()
    victim = victims.load("torchvision/resnet18@random:7")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(victim.model(image), reference(image))


def test_timms_tag_is_the_weights_in_either_place() -> None:
    by_default = victims.load("timm/test_resnet@random:2")
    by_tag = victims.load("timm/test_resnet.r160_in1k@random:2")
    assert by_default.name == by_tag.name == "timm/test_resnet.r160_in1k@random:2"
    assert by_default.weights_sha256 == by_tag.weights_sha256
    torch.manual_seed(2)
    reference = timm.create_model("test_resnet").eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(by_default.model(image), reference(image))


def test_preactivation_and_wide_resnets_are_known_by_name() -> None:
    names = {source.name: source.names for source in victims.known()}
    assert {"resnetv2_50", "resnetv2_50x1_bit", "resnetv2_101"} <= set(names["timm"])
    assert {"wide_resnet50_2", "wide_resnet101_2"} <= set(names["torchvision"])


def test_open_clips_visual_tower_is_the_one_of_the_whole_model() -> None:
    import open_clip

    torch.manual_seed(3)
    config = open_clip.get_model_config("ViT-B-32")
    vision = config["vision_cfg"] | {"layers": 1, "width": 64}
    whole = open_clip.CLIP(config["embed_dim"], vision, config["text_cfg"] | {"layers": 1, "width": 64, "heads": 1})
    image = torch.rand(1, 3, 224, 224)
    victim = victims.load(f"{TINY_CLIP}@random")
    victim.model.load_state_dict(whole.visual.state_dict())
    with torch.no_grad():
        expected = whole.eval().encode_image(victim.normalise(image))
        torch.testing.assert_close(victim.model(victim.normalise(image)), expected)


def test_open_clip_takes_the_tower_out_of_a_whole_checkpoint(tmp_path: Path) -> None:
    victim = victims.load(f"{TINY_CLIP}@random:4")
    tower = victim.model.state_dict()
    whole = {f"visual.{name}": value for name, value in tower.items()} | {"text_projection": torch.zeros(2, 2)}
    save_file(tower, tmp_path / "tower.safetensors")
    save_file(whole, tmp_path / "whole.safetensors")
    for file in ("tower", "whole"):
        loaded = victims.load(f"{TINY_CLIP}@{tmp_path}/{file}.safetensors")
        assert loaded.weights_sha256 == victim.weights_sha256
    with pytest.raises(victims.WeightsError, match="missing"):
        victims.load(f"open_clip/ViT-B-32:layers=2,width=64@{tmp_path}/whole.safetensors")


def test_open_clip_names_may_be_written_with_a_slash() -> None:
    assert victims.load("open_clip/ViT-B/32:layers=1,width=64@random").name == f"{TINY_CLIP}@random:0"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT-B-32:layer=1", "'layers'"),
        ("ViT-B-16-SigLIP:layers=1", "no setting 'layers'"),
        ("RN50:layers", "key=value"),
    ],
)
def test_open_clip_refuses_settings_that_the_tower_lacks(name: str, hint: str) -> None:
    with pytest.raises(victims.UnknownVictimError, match=hint):
        victims.load(f"open_clip/{name}@random")


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/resnet18",
        "torchvision/mobilenet_v2",
        "torchvision/mobilenet_v3_small",
        "torchvision/efficientnet_b0",
        "torchvision/convnext_tiny",
        "torchvision/densenet121",
        "torchvision/regnet_y_400mf",
        "torchvision/swin_t",
        "torchvision/squeezenet1_0",
        "torchvision/shufflenet_v2_x0_5",
        "torchvision/mnasnet0_5",
        "timm/test_vit",
        "timm/test_resnet",
        "timm/test_efficientnet",
        "timm/convnext_atto",
        "timm/resnetv2_50",
        "timm/regnety_002",
        "timm/mobilenetv3_small_050",
        "timm/test_byobnet",
        TINY_CLIP,
        "zoo/mobilenet_v2",
        "zoo/efficientnet_lite0",
    ],
)
def test_the_blocks_of_known_families_run_in_the_order_they_are_listed(name: str) -> None:
    victim = victims.load(f"{name}@random")
    assert victim.boundaries is not None
    assert len(victim.boundaries) >= 3
    ran: list[str] = []
    for boundary in victim.boundaries:
        victim.model.get_submodule(boundary).register_forward_hook(lambda *_, boundary=boundary: ran.append(boundary))
    with torch.no_grad():
        victim.model(victim.normalise(torch.rand(1, *victim.image_shape)))
    assert ran == list(victim.boundaries)
    assert victim.defaults is not None
    assert 3 <= len(victim.defaults) <= 5
    assert set(victim.defaults) <= set(victim.boundaries)
    assert list(victim.defaults) == sorted(victim.defaults, key=victim.boundaries.index)


def test_the_zoo_takes_initial_weights_and_files(tmp_path: Path) -> None:
    victim = victims.load("zoo/mobilenet_v2@random")
    assert victim.defaults == ("features.1", "features.3", "features.6", "features.13", "features.17")
    assert victim.classes is None
    save_file(victim.model.state_dict(), tmp_path / "w.safetensors")
    assert victims.load(f"zoo/mobilenet_v2@{tmp_path}/w.safetensors").weights_sha256 == victim.weights_sha256
    with pytest.raises(victims.WeightsError, match="does not fit"):
        victims.load(f"zoo/efficientnet_lite0@{tmp_path}/w.safetensors")


@pytest.mark.assets
def test_the_zoos_weights_recognise_a_cat() -> None:
    from skimage import data

    cat = Image.fromarray(data.chelsea())
    for name in ("mobilenet_v2", "efficientnet_lite0"):
        victim = victims.load(f"zoo/{name}")
        assert victim.name == f"zoo/{name}@IMAGENET1K_V1"
        assert victim.classes == imagenet_classes()
        with torch.no_grad():
            best = int(victim.model(victim.normalise(victim.picture(cat)[None])).argmax())
        assert "cat" in imagenet_classes()[best] or imagenet_classes()[best] == "tabby"


@pytest.mark.assets
def test_mobilenets_pictures_are_made_as_torchvision_does_for_its_weights() -> None:
    victim = victims.load("zoo/mobilenet_v2")
    image = picture((301, 203))
    expected = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()(image)
    torch.testing.assert_close(seen(victim, image), expected, atol=1e-6, rtol=0)


@pytest.mark.assets
@pytest.mark.research_data
@pytest.mark.parametrize(("name", "least"), [("mobilenet_v2", 0.7), ("efficientnet_lite0", 0.75)])
def test_the_zoo_recognises_photographs(name: str, least: float, research_data: Path) -> None:
    synsets = {synset: index for index, synset in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    victim = victims.load(f"zoo/{name}")
    views, labels = [], []
    with tarfile.open(research_data / "imagenet_samples_256.tar") as archive:
        for member in [item for item in archive.getmembers() if item.isfile()][::10]:
            labels.append(synsets[Path(member.name).name.partition("_")[0]])
            views.append(victim.picture(Image.open(archive.extractfile(member))))
    with torch.no_grad():
        right = [
            int(victim.model(victim.normalise(view[None])).argmax()) == label for view, label in zip(views, labels)
        ]
    assert len(right) == 50
    assert sum(right) / len(right) >= least
