from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_language import CAPTIONS, HEADER, save_blip2

from seepage.attacks.caprecover import adapter
from seepage.attacks.caprecover.adapter import Header
from seepage.attacks.caprecover.fitting import Course
from seepage.attacks.caprecover.generation import Decode, captions, write
from seepage.attacks.caprecover.language import load
from seepage.attacks.caprecover.model import CapRecoverModel
from seepage.attacks.caprecover.presets import UnknownPresetError, as_the_authors, preset, presets

SHAPES = {
    "layer1": (256, 56, 56),
    "layer2": (512, 28, 28),
    "layer3": (1024, 14, 14),
    "layer4": (2048, 7, 7),
    "attnpool": (1024,),
    "ln_post": (50, 768),
}


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_blip2(tmp_path_factory.mktemp("blip2")))


def test_there_is_one_a_published_cell() -> None:
    assert len(presets()) == 8
    found = preset("rn50-coco-attnpool")
    assert (found.victim, found.layer, found.test) == ("open_clip/RN50@openai", "attnpool", "coco/val2017")
    assert found.published == {"bleu1": 0.70, "cider": 0.90, "cosine": 0.9052}
    assert (found.batch, found.lr, found.epochs, found.beams) == (32, 1e-4, 10, 5)
    assert preset("vit-b-32-cifar10").published == {"top1": 0.9271}
    assert found.course(118_287).steps == 36_964
    with pytest.raises(UnknownPresetError, match="did you mean 'rn50-coco-layer"):
        preset("rn50-coco-layer")


def test_absent_weights_are_named(blip2: str) -> None:
    assert "Salesforce/blip2-opt-2.7b is not in" in (preset("rn50-coco-layer1").absent() or "")
    assert replace(preset("rn50-coco-layer1"), start=blip2, language=blip2).absent() is None


@pytest.mark.parametrize("name", sorted(presets()))
@pytest.mark.parametrize("authors", [False, True])
def test_a_tiny_blip2_goes_all_the_way(blip2: str, tmp_path: Path, name: str, authors: bool) -> None:
    small = replace(preset(name), start=blip2, language=blip2)
    language = load(small.language)
    config, course = small.config(language), Course()
    if authors:
        config, course = as_the_authors(config, course)
        assert course.align == 0
    shape = SHAPES[small.layer]
    model = CapRecoverModel(config, {small.layer: shape})
    model.begin()
    features = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    assert model.mapper(small.layer).count == 1 or not authors
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = model.generation_loss(small.layer, features, language.tokens(CAPTIONS[:3], 20), language)
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    model.eval()
    header = Header(
        HEADER.victim, HEADER.weights_sha256, {small.layer: shape}, config, language.sha256, aligned=not authors
    )
    adapter.write(tmp_path / "adapter", model, header, "fp32")
    again, said = adapter.read(tmp_path / "adapter")
    assert said == header
    told = []
    for network in (model, again):
        prompt = network.prompt(network.queries(small.layer, features), language)
        assert prompt.shape[1] == config.qformer.queries + 1
        for how in (Decode(most=8), Decode("beam", beams=small.beams, most=8)):
            told.append(captions(language, write(language, prompt, how)))
    assert told[:2] == told[2:]
    assert all(len(text.split()) >= 3 for said_ in told for text in said_)


def test_blip2s_language_model_is_its_own(blip2: str) -> None:
    from transformers import Blip2ForConditionalGeneration

    language = load(blip2)
    theirs = Blip2ForConditionalGeneration.from_pretrained(blip2)
    inner = getattr(theirs, "language_model", None) or theirs.model.language_model
    for name, value in inner.state_dict().items():
        assert torch.equal(language.network.state_dict()[name], value)
    assert language.end == 1
    assert language.network.config.model_type == "opt"
