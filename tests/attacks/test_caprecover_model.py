from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_language import BYTES, CAPTIONS, save_blip2
from torch import nn

from seepage.attacks.caprecover.language import LanguageModel, Tokens, load
from seepage.attacks.caprecover.model import TEXT_WIDTH, CapRecoverModel, ModelConfig, configured
from seepage.attacks.caprecover.qformer import QFormer, QFormerConfig, QFormerError
from seepage.types import SeepageError

SMALL = QFormerConfig(width=24, layers=2, heads=2, queries=4, dropout=0.0)
LAYERS = {"features.3": (4, 9, 9), "tokens": (17, 6), "pooled": (30,)}


@pytest.fixture
def language() -> LanguageModel:
    return load(BYTES)


def built(language: LanguageModel, **changes: object) -> CapRecoverModel:
    config = configured(replace(ModelConfig(SMALL, classes=5), **changes), language)  # type: ignore[arg-type]
    return CapRecoverModel(config, LAYERS).eval()


def features(layer: str, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, *LAYERS[layer], generator=torch.Generator().manual_seed(1))


def test_one_qformer_serves_every_layer(language: LanguageModel) -> None:
    model = built(language)
    for layer in LAYERS:
        queries = model.queries(layer, features(layer))
        assert queries.shape == (3, 4, 24)
        assert model.prompt(queries, language).shape == (3, 4, language.width)
        assert model.vectors(queries).norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
        assert model.scores(queries).shape == (3, 5)
    with pytest.raises(SeepageError, match=r"trained for features\.3, tokens, pooled, the leak is of layer4"):
        model.mapper("layer4")


def test_weights_come_from_the_seed_alone(language: LanguageModel) -> None:
    state = torch.get_rng_state()
    one, two, other = built(language), built(language), CapRecoverModel(built(language).config, LAYERS, 1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.qformer.query, other.qformer.query)


def test_a_prompt_is_as_loud_as_embeddings(language: LanguageModel) -> None:
    prompt = built(language).prompt(100 * torch.randn(3, 4, 24), language)
    assert prompt.square().mean().sqrt().item() == pytest.approx(language.spread, rel=0.05)


def test_the_generation_loss_is_the_surprise_of_the_captions(language: LanguageModel) -> None:
    model, layer = built(language), "tokens"
    captions = language.tokens(CAPTIONS[:3], 40)
    found = model.generation_loss(layer, features(layer), captions, language).item()
    prompt = model.prompt(model.queries(layer, features(layer)), language)
    total, count = 0.0, 0
    for row in range(3):
        ids = captions.ids[row, : captions.lengths[row]]
        inputs = torch.cat([prompt[row : row + 1], language.embed(ids[None])], 1)
        logits = language.network(inputs_embeds=inputs).logits[0].detach().double()
        for place, token in enumerate(ids.tolist()):
            row_logits = logits[prompt.shape[1] - 1 + place]
            total += float(row_logits.exp().sum().log() - row_logits[token])
            count += 1
    assert found == pytest.approx(total / count, rel=1e-4)


def test_what_fills_captions_up_changes_no_loss_but_in_the_authors_scheme(language: LanguageModel) -> None:
    short = language.tokens(["a cat", "the red dog"], 40)
    other = Tokens(short.ids.masked_fill(~short.mask, 7), short.lengths)
    longer = Tokens(nn.functional.pad(short.ids, (0, 5), value=9), short.lengths)
    ours, theirs = built(language), built(language, filling=True, pooled=True)
    losses = [ours.generation_loss("tokens", features("tokens", 2), one, language).item() for one in (short, other)]
    assert losses[0] == losses[1]
    wide = ours.generation_loss("tokens", features("tokens", 2), longer, language).item()
    assert wide == pytest.approx(losses[0], abs=1e-5)
    counted = [theirs.generation_loss("tokens", features("tokens", 2), one, language).item() for one in (short, other)]
    assert counted[0] != pytest.approx(counted[1], abs=1e-3)


def test_the_authors_scheme_reads_one_token(language: LanguageModel) -> None:
    model = built(language, pooled=True)
    assert [model.mapper(layer).count for layer in LAYERS] == [1, 1, 1]


def test_a_separator_stands_between_queries_and_caption(language: LanguageModel) -> None:
    model = built(language, separated=True)
    prompt = model.prompt(torch.randn(2, 4, 24), language)
    assert prompt.shape == (2, 5, language.width)
    assert torch.equal(prompt[:, 4], language.embed(torch.zeros(2, 1, dtype=torch.long))[:, 0])


def test_infonce_by_hand(language: LanguageModel) -> None:
    model = built(language)
    text = nn.functional.normalize(torch.randn(3, TEXT_WIDTH), dim=1)
    found = model.alignment_loss("tokens", features("tokens"), text).item()
    own = model.vectors(model.queries("tokens", features("tokens"))).detach().double()
    logits = own @ text.double().T / float(model.temperature.detach().exp())
    rows = [-float(logits[i].log_softmax(0)[i]) for i in range(3)]
    columns = [-float(logits[:, i].log_softmax(0)[i]) for i in range(3)]
    assert found == pytest.approx((sum(rows) / 3 + sum(columns) / 3) / 2, rel=1e-4)


def test_sentences_are_reworded_from_the_identity_on(language: LanguageModel) -> None:
    text = nn.functional.normalize(torch.randn(3, TEXT_WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)
    model, plain = built(language), built(language, rewords=False)
    assert torch.allclose(model.sentences(text), text, atol=1e-6)
    assert torch.equal(plain.sentences(text), text)
    # All else is drawn as it is without.
    kept = plain.state_dict()
    assert {name for name in model.state_dict() if name not in kept} == {"wording.weight"}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in kept.items())
    assert model.wording is not None
    model.wording.weight.data.mul_(3)[0] = 0
    bent = model.sentences(text)
    assert torch.allclose(bent.norm(dim=1), torch.ones(3))
    assert (bent[:, 0] == 0).all()
    loss = model.alignment_loss("tokens", features("tokens"), text)
    torch.autograd.backward(loss)
    assert model.wording.weight.grad is not None
    assert loss.item() == pytest.approx(plain.alignment_loss("tokens", features("tokens"), bent).item(), abs=1e-5)


def test_generation_keeps_the_alignment(language: LanguageModel) -> None:
    model = built(language)
    captions, text = language.tokens(CAPTIONS[:3], 40), nn.functional.normalize(torch.randn(3, TEXT_WIDTH), dim=1)
    both = model.generation_loss("tokens", features("tokens"), captions, language, text=text, keep=0.25).item()
    said = model.generation_loss("tokens", features("tokens"), captions, language).item()
    meant = model.alignment_loss("tokens", features("tokens"), text).item()
    assert both == pytest.approx(said + 0.25 * meant, rel=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_a_caption_said_of_two_pictures_is_wrong_for_neither(language: LanguageModel, half: bool) -> None:
    model = built(language)
    text = nn.functional.normalize(torch.randn(1, TEXT_WIDTH), dim=1).repeat(3, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model.alignment_loss("tokens", features("tokens"), text)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_labels_are_learned_by_their_cross_entropy(language: LanguageModel) -> None:
    model = built(language)
    labels = torch.tensor([0, 4, 2])
    scores = model.scores(model.queries("pooled", features("pooled"))).detach().double().log_softmax(1)
    expected = -float(scores[torch.arange(3), labels].mean())
    assert model.label_loss("pooled", features("pooled"), labels).item() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(SeepageError, match="without labels"):
        built(language, classes=0).scores(torch.randn(1, 4, 24))


def test_the_frozen_language_model_teaches_and_stays(language: LanguageModel) -> None:
    model = built(language).train()
    before = {name: value.clone() for name, value in language.network.state_dict().items()}
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    captions = language.tokens(CAPTIONS[:3], 40)
    losses = []
    for _ in range(5):
        adam.zero_grad()
        loss = model.generation_loss("tokens", features("tokens"), captions, language)
        torch.autograd.backward(loss)
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in language.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_nothing_is_the_same_at_every_layer_of_a_shape(language: LanguageModel) -> None:
    model = built(language)
    mapper = model.mapper("features.3")
    mapper.mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    found = model.nothing("features.3", 2)
    assert found.shape == (2, 4, 9, 9)
    assert (found[1, 2] == 3).all()


def test_a_configuration_survives_json() -> None:
    config = ModelConfig(SMALL.sized(), classes=3, pooled=True)
    assert ModelConfig.of(json.loads(json.dumps(asdict(config)))) == config
    before = asdict(config)
    del before["rewords"]  # as it was written before there was such a thing
    assert ModelConfig.of(before) == replace(config, rewords=False)
    with pytest.raises(TypeError):
        ModelConfig.of({**asdict(config), "wide": 3})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QFormerConfig(width=25, heads=2), "heads divide"),
        (QFormerConfig(queries=0), "at least 1"),
        (QFormerConfig(dropout=1.0), "dropout"),
        (QFormerConfig(start="minilm"), "12 heads and at most 6 layers"),
    ],
)
def test_sizes_that_do_not_go_together(config: QFormerConfig, words: str) -> None:
    with pytest.raises(QFormerError, match=words):
        config.sized()


def test_the_default_has_about_ten_million_weights() -> None:
    qformer = QFormer(QFormerConfig().sized())
    assert 8e6 < sum(weight.numel() for weight in qformer.parameters()) < 12e6
    assert sum(weight.requires_grad for weight in qformer.parameters()) == len(list(qformer.parameters()))


@pytest.mark.assets
def test_minilms_layers_are_taken_over() -> None:
    from safetensors.torch import load_file

    from seepage import assets

    theirs = load_file(assets.fetch("minilm"))
    qformer = QFormer(QFormerConfig(heads=12, layers=3, start="minilm").sized())
    fresh = {name: value.clone() for name, value in qformer.state_dict().items()}
    qformer.begin()
    own = qformer.state_dict()
    for layer in range(3):
        for mine, yours in (
            ("attention.attention.query.weight", "attention.self.query.weight"),
            ("attention.output.LayerNorm.bias", "attention.output.LayerNorm.bias"),
            ("intermediate_query.dense.weight", "intermediate.dense.weight"),
            ("output_query.dense.bias", "output.dense.bias"),
        ):
            expected = theirs[f"encoder.layer.{layer}.{yours}"]
            assert torch.equal(own[f"model.encoder.layer.{layer}.{mine}"], expected)
        kept = f"model.encoder.layer.{layer}.crossattention.attention.query.weight"
        assert torch.equal(own[kept], fresh[kept])


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_blip2_checkpoint_gives_qformer_and_projection(tmp_path: Path, shard: str, language: LanguageModel) -> None:
    from transformers import Blip2ForConditionalGeneration

    save_blip2(tmp_path, shard)
    theirs = {
        name.removeprefix("model."): value
        for name, value in Blip2ForConditionalGeneration.from_pretrained(tmp_path).state_dict().items()
    }
    config = configured(ModelConfig(QFormerConfig(start=str(tmp_path))), language)
    assert (config.qformer.width, config.qformer.reads, config.qformer.inner, config.qformer.queries) == (24, 20, 40, 6)
    model = CapRecoverModel(config, LAYERS)
    model.begin()
    assert torch.equal(model.qformer.query, theirs["query_tokens"])
    for name, value in model.qformer.model.state_dict().items():
        assert torch.equal(value, theirs[f"qformer.{name}"])
    assert torch.equal(model.speech.weight, theirs["language_projection.weight"])


def test_a_blip2_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_blip2(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = next(name for name in state if name.endswith("qformer.encoder.layer.1.output_query.dense.weight"))
    state.pop(name)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(QFormerError, match=r"1 of the Q-Former's weights are absent.*output_query"):
        QFormer(QFormerConfig(start=str(tmp_path)).sized()).begin()


def test_no_blip2_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(QFormerError, match="names no qformer_config"):
        QFormerConfig(start=str(tmp_path)).sized()
    with pytest.raises(SeepageError, match="no folder here and no hub id"):
        QFormerConfig(start="blip2").sized()
