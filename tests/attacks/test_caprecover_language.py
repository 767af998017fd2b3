from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from tiny_language import BYTES, CAPTIONS, save_gguf, save_language
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from seepage import assets
from seepage.attacks.caprecover import language as languages
from seepage.attacks.caprecover.attack import CapRecover
from seepage.attacks.caprecover.gguf import GgufError, dequantised
from seepage.attacks.caprecover.language import LanguageError, LanguageModel, load
from seepage.attacks.caprecover.pretrained import PretrainedError, folder_sha256
from seepage.types import SeepageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language(tmp_path_factory.mktemp("language"))


@pytest.fixture
def language(folder: Path) -> LanguageModel:
    return load(str(folder))


def test_captions_there_and_back(language: LanguageModel) -> None:
    tokens = language.tokens([*CAPTIONS, "a  man\n"], 20)
    assert [language.caption(row) for row in tokens.ids.tolist()] == [*CAPTIONS, "a man"]
    assert tokens.lengths.tolist() == [len(caption.split()) + 1 for caption in CAPTIONS] + [3]
    assert tokens.mask.sum(1).tolist() == tokens.lengths.tolist()


def test_a_million_words_other_encodings_and_none_at_all(language: LanguageModel) -> None:
    tokens = language.tokens(["dog " * 1_000_000, "", "\udcff a dog \ud800", "日本語"], 12)
    assert tokens.ids.shape == (4, 12)
    assert tokens.lengths.tolist() == [12, 1, 3, 2]
    assert tokens.ids[0, -1] == language.end


def test_log_probabilities_are_the_models_own(language: LanguageModel) -> None:
    prompt = torch.randn(2, 3, language.width, generator=torch.Generator().manual_seed(0)) * language.spread
    tokens = language.tokens(CAPTIONS[:2], 20)
    found = language.log_probabilities(prompt, tokens)
    for row in range(2):
        length = int(tokens.lengths[row])
        ids = tokens.ids[row : row + 1, :length]
        inputs = torch.cat([prompt[row : row + 1], language.embed(ids)], 1)
        logits = language.network(inputs_embeds=inputs).logits[0, 2:-1].double()
        by_hand = [logits[i].softmax(0)[ids[0, i]].log().item() for i in range(length)]
        assert found[row, :length].tolist() == pytest.approx(by_hand, abs=1e-4)
        assert (found[row, length:] == 0).all()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here: g++")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_says_the_same_of_all_lengths(language: LanguageModel) -> None:
    def found(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randn(len(captions), 3, language.width, generator=generator) * language.spread
        prompt.requires_grad_()
        said = language.log_probabilities(prompt, language.tokens(captions, 20))
        return said.detach(), torch.autograd.grad(said.sum(), prompt)[0]

    some = [[" ".join(["dog"] * length), "a man"] for length in range(2, 9)]
    plain = [found(captions) for captions in some]
    body = language.network.base_model
    as_it_was = body.forward
    counted = CompileCounterWithBackend("inductor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
        with language.compiled():
            compiled = [found(captions) for captions in some]
    assert counted.frame_count <= 2
    assert body.forward == as_it_was
    for one, other in zip(plain, compiled, strict=True):
        for before, after in zip(one, other, strict=True):
            torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:The .grad attribute of a Tensor")
def test_nothing_to_compile_with(language: LanguageModel) -> None:
    prompt = torch.randn(1, 3, language.width)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.raises(LanguageError, match=r"cannot be compiled here .*no-such-compiler.*: leave out --compile"),
        language.compiled(),
    ):
        language.log_probabilities(prompt, language.tokens(["a dog"], 20))


def test_half_the_bits_say_nearly_the_same(folder: Path, language: LanguageModel) -> None:
    half = load(str(folder), dtype=torch.bfloat16)
    assert half.network.get_input_embeddings().weight.dtype == torch.bfloat16
    assert half.sha256 == language.sha256
    prompt = torch.randn(2, 3, language.width, generator=torch.Generator().manual_seed(0)) * language.spread
    tokens = language.tokens(CAPTIONS[:2], 20)  # of two lengths: the shorter one is filled up, and masked
    found = half.log_probabilities(prompt.requires_grad_(), tokens)
    assert torch.allclose(found, language.log_probabilities(prompt, tokens), atol=0.1)
    torch.autograd.backward(found.sum())
    assert prompt.grad is not None
    assert (prompt.grad != 0).any()


def test_filling_touches_nothing_unless_it_is_asked_for(language: LanguageModel) -> None:
    prompt = torch.randn(1, 3, language.width, generator=torch.Generator().manual_seed(0)) * language.spread
    short = language.tokens(CAPTIONS[7:], 20)
    wide = languages.Tokens(torch.cat([short.ids, torch.full((1, 6), 5)], 1), short.lengths)
    other = languages.Tokens(torch.cat([short.ids, torch.full((1, 6), 9)], 1), short.lengths)
    plain = language.log_probabilities(prompt, short).sum()
    assert language.log_probabilities(prompt, wide).sum().item() == pytest.approx(plain.item(), abs=1e-5)
    assert torch.equal(language.log_probabilities(prompt, wide), language.log_probabilities(prompt, other))
    counted = [language.log_probabilities(prompt, one, filling=True).sum() for one in (wide, other)]
    assert counted[0] != counted[1]


def test_special_tokens_are_told(language: LanguageModel) -> None:
    assert language.end == 1
    assert set(language.banned) == {0, 2}
    assert language.spread == pytest.approx(
        language.network.get_input_embeddings().weight.square().mean().sqrt().item(), rel=1e-5
    )
    assert not any(weight.requires_grad for weight in language.network.parameters())
    # Sums of many numbers end differently with the number of threads, and a checkpoint says what it began with.
    assert language.spread == float(f"{language.spread:.6g}")


@pytest.mark.parametrize(
    "name",
    [
        BYTES,
        "opt:hidden_size=32,word_embed_proj_dim=16,ffn_dim=32,num_hidden_layers=1,num_attention_heads=2",
        "gpt2:n_embd=32,n_layer=1,n_head=2",
    ],
)
def test_a_type_with_settings_reads_bytes(name: str) -> None:
    state = torch.get_rng_state()
    language = load(name)
    assert torch.equal(torch.get_rng_state(), state)
    tokens = language.tokens(["a dög", ""], 20)
    assert [language.caption(row) for row in tokens.ids.tolist()] == ["a dög", ""]
    prompt = torch.zeros(2, 2, language.width)
    assert language.log_probabilities(prompt, tokens).shape == (2, 7)
    languages._load.cache_clear()
    again = load(name)
    assert again.sha256 == language.sha256
    assert again is not language


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/folder", "no folder here and no hub id"),
        ("smollm", "type smollm2"),
        ("no-one/has-this-model", r"not in .* cannot be fetched \(HF_HUB_OFFLINE is set\); type smollm2"),
        ("nowhere.gguf", r"no file nowhere\.gguf; type smollm2"),
        ("opt:hiden_size=3", "did you mean 'hidden_size'"),
        ("opt:hidden_size=5,num_attention_heads=2", "no causal language model"),
        ("llama:vocab_size=12,hidden_size=8,num_attention_heads=2,num_hidden_layers=1", "at least 257"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(name: str, words: str) -> None:
    with pytest.raises(SeepageError, match=words) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_weights_that_are_absent_are_never_drawn(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LanguageError, match=r"1 weights in .* are absent.*up_proj"):
        load(str(tmp_path))
    assert folder_sha256(tmp_path) != folder_sha256(folder)


def test_who_writes_is_known(folder: Path) -> None:
    assert CapRecover(language=str(folder)).writer() == folder
    assert CapRecover(language=str(folder), read="label").writer() is None
    assert CapRecover(language=BYTES).writer() is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"has no config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(LanguageError, match="holds no causal language model"):
        load(str(tmp_path))


def test_a_gguf_file_of_ones_own_is_read_and_led(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    path = save_gguf(tmp_path / "own.gguf")
    language = load(str(path))
    assert (language.width, language.end) == (32, 0)
    assert language.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    tokens = language.tokens(["a dog", "dog cat"], 20)
    assert tokens.lengths.tolist() == [4, 4]  # two words and the space between them, and the end
    assert [language.caption(row) for row in tokens.ids.tolist()] == ["a dog", "dog cat"]
    prompt = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = -language.log_probabilities(prompt, tokens).sum()
    torch.autograd.backward(before)
    assert prompt.grad is not None
    with torch.no_grad():
        assert -language.log_probabilities(prompt - 0.1 * prompt.grad / prompt.grad.norm(), tokens).sum() < before


def test_a_file_that_is_no_gguf_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(GgufError, match="cannot be read as a causal language model") as caught:
        load(str(tmp_path / "model.gguf"))
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "home" / "language").iterdir()) == []


@pytest.mark.assets
@pytest.mark.slow
def test_smollm2_speaks_english() -> None:
    language = load("smollm2")
    prompt = language.embed(torch.tensor([language.tokenizer.encode("A photograph of")]))
    likely, not_likely = (
        language.log_probabilities(prompt, language.tokens([text], 20)).sum().item()
        for text in (" a dog on the beach.", " the a beach dog. on")
    )
    assert language.width == 576
    assert likely > not_likely + 5
    path = assets.fetch("smollm2")
    assert dequantised(path, assets.TEXT["smollm2"].sha256).is_dir()
