from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_language import CAPTIONS, save_language
from torch import Tensor

from seepage.attacks.caprecover.generation import Decode, captions, likeliest, log_likelihood, write
from seepage.attacks.caprecover.language import LanguageModel, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language(tmp_path_factory.mktemp("language"))


@pytest.fixture
def language(folder: Path) -> LanguageModel:
    return load(str(folder))


def prompts(language: LanguageModel, rows: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, language.width, generator=torch.Generator().manual_seed(seed)) * 3 * language.spread


def draws(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def test_greedy_takes_the_likeliest_token_every_time(language: LanguageModel) -> None:
    prompt = prompts(language)
    written = write(language, prompt, Decode(least=1, most=12))
    for row in range(len(prompt)):
        inputs = prompt[row : row + 1]
        for step in range(int(written.tokens.lengths[row])):
            scores = language.network(inputs_embeds=inputs).logits[0, -1].log_softmax(0)
            allowed = scores.clone()
            allowed[list(language.banned)] = -torch.inf
            if step == 0:
                allowed[language.end] = -torch.inf
            token = int(allowed.argmax())
            assert token == written.tokens.ids[row, step]
            assert written.log_probabilities[row, step].item() == pytest.approx(scores[token].item(), abs=1e-4)
            inputs = torch.cat([inputs, language.embed(torch.tensor([[token]]))], 1)


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_a_beam_of_one_is_greedy(language: LanguageModel, length: float) -> None:
    prompt = prompts(language, 8)
    greedy = write(language, prompt, Decode(most=12))
    beam = write(language, prompt, Decode("beam", beams=1, length=length, most=12))
    assert captions(language, beam) == captions(language, greedy)
    assert torch.equal(beam.tokens.lengths, greedy.tokens.lengths)
    assert torch.allclose(beam.log_likelihood, greedy.log_likelihood, atol=1e-5)


def test_a_wide_beam_finds_the_likeliest_caption_of_all(language: LanguageModel) -> None:
    prompt = prompts(language, 3, seed=4)
    size = language.network.config.vocab_size
    words = torch.tensor([token for token in range(size) if token not in (*language.banned, language.end)])
    pairs = torch.cartesian_prod(words, words)
    ends = torch.full((len(pairs), 1), language.end)
    for row in range(3):
        every = prompt[row].expand(len(pairs), -1, -1)
        inputs = torch.cat([every, language.embed(pairs)], 1)
        scores = language.network(inputs_embeds=inputs).logits[:, 2:].log_softmax(2)
        totals = scores.gather(2, torch.cat([pairs, ends], 1)[:, :, None])[:, :, 0].sum(1)
        found = write(language, prompt[row : row + 1], Decode("beam", beams=2000, length=0.0, least=2, most=3))
        # Some captions of the same length go on where these end.
        ended = found.tokens.ids[0, 2] == language.end
        assert not ended or found.tokens.ids[0, :2].tolist() == pairs[totals.argmax()].tolist()
        assert float(found.log_probabilities.sum()) >= float(totals.max()) - 1e-4


def test_a_wider_beam_is_at_least_as_likely(language: LanguageModel) -> None:
    prompt = prompts(language, 8, seed=2)
    greedy = write(language, prompt, Decode(most=12))
    beam = write(language, prompt, Decode("beam", beams=6, most=12))
    assert beam.log_likelihood.mean() > greedy.log_likelihood.mean()


@pytest.mark.parametrize("how", [Decode(), Decode("beam", beams=3), Decode("sample")])
def test_log_likelihood_is_the_sum_over_what_was_written(language: LanguageModel, how: Decode) -> None:
    prompt = prompts(language)
    written = write(language, prompt, how, draws(5))
    again = language.log_probabilities(prompt, written.tokens)
    assert torch.allclose(written.log_probabilities, again, atol=1e-4)
    ended = written.tokens.ids.gather(1, written.tokens.lengths[:, None] - 1)[:, 0] == language.end
    texts = captions(language, written)
    asked = log_likelihood(language, prompt, texts, 40)
    assert torch.allclose(asked[ended], written.log_likelihood[ended], atol=1e-4)


@pytest.mark.parametrize("how", [Decode(least=4, most=6), Decode("beam", beams=3, least=4, most=6)])
def test_captions_have_the_length_asked_for(language: LanguageModel, how: Decode) -> None:
    written = write(language, prompts(language, 16), how)
    assert (written.tokens.lengths >= 5).all()
    assert (written.tokens.lengths <= 6).all()
    assert all(4 <= len(text.split()) <= 6 for text in captions(language, written))
    assert not torch.isin(written.tokens.ids, torch.tensor(language.banned)).any()


@pytest.mark.parametrize("how", [Decode(), Decode("beam", beams=3), Decode("sample")])
def test_a_row_is_the_same_alone(language: LanguageModel, how: Decode) -> None:
    prompt = prompts(language, 6)
    together = captions(language, write(language, prompt, how, draws(6)))
    alone = [
        captions(language, write(language, prompt[row : row + 1], how, draws(6)[row : row + 1])) for row in range(6)
    ]
    assert list(together) == [one[0] for one in alone]


def test_sampling_follows_its_generators_and_its_share(language: LanguageModel) -> None:
    prompt = prompts(language, 1).repeat(64, 1, 1)
    one = captions(language, write(language, prompt, Decode("sample", temperature=1.5, share=1.0), draws(64)))
    two = captions(language, write(language, prompt, Decode("sample", temperature=1.5, share=1.0), draws(64)))
    assert one == two
    assert len(set(one)) > 8
    greedy = captions(language, write(language, prompt, Decode()))
    assert captions(language, write(language, prompt, Decode("sample", share=1e-6), draws(64))) == greedy
    first = torch.tensor([language.tokenizer.encode(text)[0] for text in one])
    scores = language.network(inputs_embeds=prompt[:1]).logits[0, -1]
    scores[[*language.banned, language.end]] = -torch.inf
    expected = (scores / 1.5).softmax(0)
    likeliest = int(expected.argmax())
    assert (first == likeliest).float().mean().item() == pytest.approx(float(expected[likeliest]), abs=0.25)


def test_the_models_own_captions_are_likelier_than_others(language: LanguageModel) -> None:
    prompt = prompts(language, 1).repeat(2, 1, 1)
    known, odd = log_likelihood(language, prompt, [CAPTIONS[0], "water a bench reads the over"], 40).tolist()
    assert known > odd


def test_a_prompt_is_read_once_for_all_that_is_said_after_it(language: LanguageModel) -> None:
    prompt, texts = prompts(language, 3), [*CAPTIONS[:5], "a", "dog"]
    after = [2, 0, 0, 2, 1, 2, 0]
    expected = torch.tensor(
        [
            float(log_likelihood(language, prompt[place : place + 1], [text], 40))
            for text, place in zip(texts, after, strict=True)
        ]
    )
    assert torch.allclose(log_likelihood(language, prompt, texts, 40, after), expected, atol=1e-5)
    tokens = language.tokens(texts, 40)
    own = language.log_probabilities(prompt[after], tokens)
    assert torch.allclose(language.log_probabilities(prompt, tokens, after=torch.tensor(after)), own, atol=1e-5)
    read: list[int] = []
    hook = language.network.register_forward_pre_hook(
        lambda module, args, given: read.append(given["inputs_embeds"].shape[0]), with_kwargs=True
    )
    log_likelihood(language, prompt, texts, 40, after)
    hook.remove()
    assert read == [3, 7]


@pytest.mark.parametrize(
    "typed",
    [
        "opt:hidden_size=32,word_embed_proj_dim=32,ffn_dim=64,num_hidden_layers=2,num_attention_heads=2",
        "gpt2:n_embd=32,n_layer=2,n_head=2",
    ],
)
def test_other_language_models_count_places_on_from_the_prompt(typed: str) -> None:
    language = load(typed)
    prompt, tokens = prompts(language, 2), language.tokens(["a dog runs", "two", "a man"], 40)
    after = torch.tensor([1, 0, 1])
    own = language.log_probabilities(prompt[after], tokens)
    assert torch.allclose(language.log_probabilities(prompt, tokens, after=after), own, atol=1e-5)


def test_the_likeliest_tokens_are_those_of_the_whole_order() -> None:
    """Whatever is left out has no share, also where many tokens are equally likely."""
    dice = torch.Generator().manual_seed(0)
    for wanted in (0.3, 0.9, 0.999, 1.0):
        for round_off in (False, True):
            shares = (4 * torch.randn(6, 400, generator=dice, dtype=torch.float64)).softmax(1)
            if round_off:
                shares = (shares * 64).round() / 64 + 1e-6
                shares /= shares.sum(1, keepdim=True)
            whole, order = torch.sort(shares, dim=1, descending=True, stable=True)
            ranked, tokens = likeliest(shares, wanted, few=32)
            kept = whole.cumsum(1) - whole < wanted
            for row in range(6):
                count = int(kept[row].sum())
                assert torch.equal(tokens[row, :count], order[row, :count])
                assert torch.equal(ranked[row, :count], whole[row, :count])
                assert bool((ranked[row].cumsum(0) - ranked[row] >= wanted)[count:].all())
    sharp = torch.zeros(1, 1000, dtype=torch.float64)
    sharp[0, 7] = 1.0
    assert likeliest(sharp, 0.9)[0].shape[1] < 1000
