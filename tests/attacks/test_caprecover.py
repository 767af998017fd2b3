from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny_language import BYTES, CAPTIONS, HEADER, captioned, leaks, save_language
from torch import Tensor, nn

from seepage import registry
from seepage.attacks.caprecover import adapter, recoverer
from seepage.attacks.caprecover.adapter import AdapterError
from seepage.attacks.caprecover.attack import CapRecover
from seepage.attacks.caprecover.recoverer import CapRecoverer
from seepage.attacks.chores import Laborious
from seepage.attacks.equipped import Equipped
from seepage.types import (
    Attack,
    Captions,
    Examples,
    Knowledge,
    Labels,
    Leak,
    NotRunError,
    Pictures,
    Recoverer,
    SeepageError,
)

SMALL = {"width": 24, "layers": 2, "heads": 2, "queries": 4, "align": 0, "least": 2, "most": 12}
NAMES = ("dog", "men, man", "child", "woman", "birds", "rock", "people", "cat")


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_language(tmp_path_factory.mktemp("language")))


def draws(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def knowledge(leak: Leak, pictures: Pictures, classes: tuple[str, ...] | None = None) -> Knowledge:
    parts = [(leak.rows(0, 5), _rows(pictures, 0, 5)), (leak.rows(5, 8), _rows(pictures, 5, 8))]
    return Knowledge((3, 2, 2), public=Examples(parts, ()), classes=classes)


def _rows(pictures: Pictures, start: int, stop: int) -> Pictures:
    return Pictures(
        pictures.images[start:stop],
        pictures.ids[start:stop],
        None if pictures.labels is None else pictures.labels[start:stop],
        pictures.classes,
        None if pictures.captions is None else pictures.captions[start:stop],
    )


@pytest.fixture(scope="module")
def attack(language: str) -> CapRecover:
    return CapRecover(language=language, steps=150, lr=1e-2, **SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted(attack: CapRecover) -> Recoverer:
    state = torch.get_rng_state()
    found = attack.fit(knowledge(leaks(), captioned()), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    return found


def test_it_is_an_attack() -> None:
    attack = registry.build("attack", "caprecover:read=words,decoding=beam,adapter=some/file")
    assert isinstance(attack, Attack)
    assert isinstance(attack, Equipped)
    assert isinstance(attack, Laborious)
    assert (attack.access, attack.auxiliary, attack.recovers, attack.budget) == ("black-box", "public", "labels", 0)
    assert registry.build("attack", registry.spec("attack", attack)) == attack
    assert CapRecover().recovers == "captions"
    assert CapRecover().equipment_sha256() is None


def test_eight_leaks_give_their_eight_captions(fitted: Recoverer) -> None:
    recovery = fitted.recover(leaks(), draws(8))
    assert isinstance(recovery.value, Captions)
    assert recovery.value.texts == CAPTIONS
    assert (recovery.value.log_likelihood > -0.5).all()
    assert {status.kind for status in recovery.status} == {"stopped"}
    assert recovery.passes.tolist() == [0] * 8


def test_it_is_the_features_that_say_it(fitted: Recoverer) -> None:
    turned = leaks().with_features(leaks().features.roll(1, 0))
    recovery = fitted.recover(turned, draws(8))
    assert isinstance(recovery.value, Captions)
    assert recovery.value.texts == (CAPTIONS[-1], *CAPTIONS[:-1])
    prior = fitted.prior(8, draws(8))
    assert isinstance(prior.value, Captions)
    assert len(set(prior.value.texts)) == 1
    assert sum(said == true for said, true in zip(prior.value.texts, CAPTIONS, strict=True)) <= 1
    other = fitted.recover(leaks(seed=77), draws(8))
    assert isinstance(other.value, Captions)
    assert sum(said == true for said, true in zip(other.value.texts, CAPTIONS, strict=True)) <= 4


def test_zeros_and_what_is_not_finite_have_failed(fitted: Recoverer) -> None:
    features = leaks().features.clone()
    features[2] = 0
    features[5, 0, 0, 0] = torch.nan
    recovery = fitted.recover(leaks().with_features(features), draws(8))
    assert isinstance(recovery.value, Captions)
    assert [status.kind == "failed" for status in recovery.status] == [row in (2, 5) for row in range(8)]
    for row, text in enumerate(recovery.value.texts):
        assert text == ("" if row in (2, 5) else CAPTIONS[row])


def test_the_true_caption_is_likelier_than_anothers(fitted: Recoverer) -> None:
    true = fitted.log_likelihood(leaks(), CAPTIONS)
    shuffled = fitted.log_likelihood(leaks(), (*CAPTIONS[1:], CAPTIONS[0]))
    nothing = fitted.log_likelihood(leaks().with_features(torch.zeros_like(leaks().features)), CAPTIONS)
    assert true is not None
    assert shuffled is not None
    assert nothing is not None
    assert (true > shuffled).all()
    assert (true - shuffled).mean() > 0.4
    assert (true > nothing).all()
    assert torch.isfinite(nothing).all()
    said = fitted.recover(leaks(), draws(8)).value
    assert isinstance(said, Captions)
    assert torch.allclose(said.log_likelihood, true, atol=1e-3)
    with pytest.raises(SeepageError, match="one caption a row"):
        fitted.log_likelihood(leaks(), CAPTIONS[:3])


def test_a_leak_is_read_once_whatever_is_asked_of_it(fitted: Recoverer) -> None:
    rows, said = [0, 3, 3, 3, 6, 0], [CAPTIONS[row] for row in (1, 3, 2, 0, 6, 0)]
    features = leaks().features[rows].clone()
    features[4, 0, 0, 0] = torch.nan
    asked = leaks().with_features(features)
    assert isinstance(fitted, CapRecoverer)
    read: list[int] = []
    hook = fitted.model.qformer.register_forward_hook(lambda module, args, out: read.append(len(out)))
    together = fitted.log_likelihood(asked, said)
    hook.remove()
    alone = [fitted.log_likelihood(asked.rows(row, row + 1), [text]) for row, text in enumerate(said)]
    assert together is not None
    assert torch.allclose(together, torch.cat([one for one in alone if one is not None]), atol=1e-5, equal_nan=True)
    assert together.isnan().tolist() == [False, False, False, False, True, False]
    assert read == [3]  # neighbours alone are compared, and one row is not finite


def test_what_is_run_on_is_run_on_once(attack: CapRecover, fitted: Recoverer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    passed: list[int] = []

    def there(features: Tensor) -> Tensor:
        passed.append(len(features))
        return features

    further = replace(attack, adapter=tmp_path / "adapter", through=HEADER.layer)
    found = further.fit(Knowledge((3, 2, 2), onward=lambda layer: there), torch.Generator())
    rows = [1, 1, 1, 4, 4, 1]
    early = Leak(leaks().features[rows], replace(HEADER, layer="early"))
    texts = [CAPTIONS[row] for row in (1, 2, 3, 4, 1, 1)]
    said = found.log_likelihood(early, texts)
    expected = fitted.log_likelihood(Leak(leaks().features[rows], HEADER), texts)
    assert said is not None
    assert expected is not None
    assert torch.allclose(said, expected, atol=1e-5)
    assert passed == [3]
    assert float(said[0]) == pytest.approx(float(said[5]), abs=1e-5)


def test_it_is_kept_and_loaded(attack: CapRecover, fitted: Recoverer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    for again in (
        attack.load(tmp_path / "adapter", Knowledge((3, 2, 2))),
        replace(attack, adapter=tmp_path / "adapter").fit(Knowledge((3, 2, 2)), torch.Generator()),
    ):
        one, two = fitted.recover(leaks(), draws(8)).value, again.recover(leaks(), draws(8)).value
        assert isinstance(one, Captions)
        assert isinstance(two, Captions)
        assert one.texts == two.texts
        assert torch.equal(one.log_likelihood, two.log_likelihood)


def test_an_earlier_leak_is_run_on_and_read_there(attack: CapRecover, fitted: Recoverer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    further = replace(attack, adapter=tmp_path / "adapter", through=HEADER.layer)
    assert (further.access, further.places()) == ("white-box", None)
    asked: list[str] = []

    def onward(layer: str) -> Callable[[Tensor], Tensor]:
        asked.append(layer)
        return lambda features: features.flip(-1) / 2

    early = Leak(2 * leaks().features.flip(-1), replace(HEADER, layer="early"))
    with pytest.raises(AdapterError, match="the leak is of early"):
        fitted.recover(early, draws(8))
    found = further.fit(Knowledge((3, 2, 2), onward=onward), torch.Generator())
    recovery = found.recover(early, draws(8))
    assert isinstance(recovery.value, Captions)
    assert recovery.value.texts == CAPTIONS
    assert asked == [HEADER.layer]
    score = found.score(early, CAPTIONS)
    assert score is None  # nothing was aligned
    silent = early.with_features(torch.zeros_like(early.features))
    said, expected = found.log_likelihood(silent, CAPTIONS), fitted.log_likelihood(_silenced(), CAPTIONS)
    assert said is not None
    assert expected is not None
    assert torch.allclose(said, expected)
    assert found.recover(silent, draws(8)).status[0].kind == "failed"
    with pytest.raises(NotRunError, match="which this attacker lacks"):
        further.fit(Knowledge((3, 2, 2)), torch.Generator())


def _silenced() -> Leak:
    return leaks().with_features(torch.zeros_like(leaks().features))


def test_the_adapters_hash_is_part_of_the_result(attack: CapRecover, fitted: Recoverer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    named = replace(attack, adapter=tmp_path / "adapter")
    assert named.equipment_sha256() == adapter.sha256(tmp_path / "adapter")
    assert named.learned_from(["00" * 32]) == ()
    with pytest.raises(AdapterError, match="no adapter"):
        replace(attack, adapter=tmp_path / "none").equipment_sha256()


def test_another_language_model_is_refused(fitted: Recoverer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    other = CapRecover(language=BYTES).load(tmp_path / "adapter", Knowledge((3, 2, 2)))
    with pytest.raises(AdapterError, match="is another model"):
        other.recover(leaks(), draws(8))


def test_a_leak_of_another_victim_or_shape_is_refused(fitted: Recoverer) -> None:
    with pytest.raises(AdapterError, match="the leak is of someone"):
        fitted.recover(Leak(leaks().features, replace(HEADER, victim="someone")), draws(8))
    with pytest.raises(AdapterError, match="has shape"):
        fitted.recover(leaks(shape=(6, 4, 5)), draws(8))


def test_without_pictures_or_adapter_it_is_not_run() -> None:
    nobody = Knowledge((3, 2, 2))
    with pytest.raises(NotRunError, match="seepage train caprecover"):
        CapRecover().fit(nobody, torch.Generator())
    with pytest.raises(NotRunError, match="seepage train caprecover"):
        CapRecover().chores(nobody, 4)


@pytest.mark.parametrize("captions", [None, ((),) * 8, (("", "  "),) * 8])
def test_pictures_without_captions_teach_none(captions: tuple[tuple[str, ...], ...] | None) -> None:
    pictures = replace(captioned(), captions=captions)
    with pytest.raises(NotRunError, match="read=caption learns from captions"):
        CapRecover().fit(knowledge(leaks(), pictures), torch.Generator())
    with pytest.raises(NotRunError, match="read=label learns from labels"):
        CapRecover(read="label").fit(knowledge(leaks(), pictures), torch.Generator())


@pytest.mark.parametrize("read", ["label", "words"])
def test_a_label_beyond_the_named_classes_is_refused(read: Literal["label", "words"]) -> None:
    pictures = replace(captioned(labels=torch.arange(8)), captions=None, classes=("a", "b", "c"))
    with pytest.raises(NotRunError, match="has label 3, and 3 classes are named"):
        CapRecover(read=read).fit(knowledge(leaks(), pictures), torch.Generator())


def test_labels_are_read_out(tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    pictures = replace(captioned(labels=labels), captions=None, classes=("a", "b", "c"))
    attack = CapRecover(read="label", steps=60, lr=1e-2, **SMALL)  # type: ignore[arg-type]
    fitted = attack.fit(knowledge(leaks(), pictures), torch.Generator().manual_seed(0))
    recovery = fitted.recover(leaks(), draws(8))
    assert isinstance(recovery.value, Labels)
    assert recovery.value.classes == ("a", "b", "c")
    assert recovery.value.scores.argmax(1).tolist() == labels.tolist()
    constant = fitted.constant(2)
    assert constant is not None
    assert isinstance(constant.value, Labels)
    assert constant.value.scores.argmax(1).tolist() == [0, 0]
    fitted.save(tmp_path / "adapter")
    again = attack.load(tmp_path / "adapter", Knowledge((3, 2, 2))).recover(leaks(), draws(8))
    assert isinstance(again.value, Labels)
    assert torch.equal(again.value.scores, recovery.value.scores)
    with pytest.raises(NotRunError, match="labels alone"):
        CapRecover().load(tmp_path / "adapter", Knowledge((3, 2, 2)))


def test_labels_by_number_are_read_out_by_number(tmp_path: Path) -> None:
    """What a victim calls its own classes says nothing of those that a read-out learned."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    pictures = replace(captioned(labels=labels), captions=None, classes=None)
    attack = CapRecover(read="label", steps=60, lr=1e-2, **SMALL)  # type: ignore[arg-type]
    attack.fit(knowledge(leaks(), replace(pictures, classes=NAMES[:3])), torch.Generator().manual_seed(0)).save(
        tmp_path / "named"
    )
    model, header = adapter.read(tmp_path / "named")
    adapter.write(tmp_path / "adapter", model, replace(header, classes=None))
    for classes in (None, NAMES):
        fitted = attack.load(tmp_path / "adapter", Knowledge((3, 2, 2), classes=classes))
        recovery, constant = fitted.recover(leaks(), draws(8)), fitted.constant(2)
        assert isinstance(recovery.value, Labels)
        assert recovery.value.classes is None
        assert recovery.value.scores.argmax(1).tolist() == labels.tolist()
        assert constant is not None
        assert constant.value.scores.shape == (2, 3)
        assert constant.value.classes is None


def test_words_name_classes(attack: CapRecover, fitted: Recoverer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    known = Knowledge((3, 2, 2), classes=NAMES)
    words = replace(attack, read="words").load(tmp_path / "adapter", known)
    recovery = words.recover(leaks(), draws(8))
    assert isinstance(recovery.value, Labels)
    assert recovery.value.classes == NAMES
    assert recovery.value.texts == CAPTIONS
    found = recovery.value.scores
    # "a man climbs the rock" says two of them; of the longer name there are more letters.
    assert found.argmax(1).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found[5, 1] > found[5, 0]
    assert torch.isfinite(found).all()
    with pytest.raises(NotRunError, match="none are known"):
        replace(attack, read="words").load(tmp_path / "adapter", Knowledge((3, 2, 2)))
    with pytest.raises(NotRunError, match="without labels"):
        replace(attack, read="label").load(tmp_path / "adapter", known)


def test_of_many_classes_the_language_model_is_asked_about_those_that_fit_best(language: str, tmp_path: Path) -> None:
    attack = CapRecover(language=language, steps=3, **{**SMALL, "align": 3})  # type: ignore[arg-type]
    fitted = attack.fit(knowledge(leaks(), captioned()), torch.Generator().manual_seed(0))
    fitted.save(tmp_path / "adapter")
    names = tuple(f"thing {number}" for number in range(70))
    words = replace(attack, read="words").load(tmp_path / "adapter", Knowledge((3, 2, 2), classes=names))
    leak = leaks()
    leak.features[7] = torch.nan
    value = words.recover(leak, draws(8)).value
    assert isinstance(value, Labels)
    assert value.texts is not None
    assert value.texts[7] == ""
    # None of them is said: 64 are told apart by how likely their sentences are, above 0, the others lie below.
    assert ((value.scores[:7] > 0).sum(1) == 64).all()
    fit = fitted.score(leak, [f"a photo of {name}" for name in names])
    assert fit is not None
    for scores, cosines in zip(value.scores[:7], fit[:7], strict=True):
        assert cosines[scores > 0].min() >= cosines[scores < 0].max()
    assert value.scores[7].isnan().all()


def test_of_equal_names_the_likelier_wins(attack: CapRecover, fitted: Recoverer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "adapter")
    names = ("zebra", "truck", "dog", "ship")
    words = replace(attack, read="words").load(tmp_path / "adapter", Knowledge((3, 2, 2), classes=names))
    recovery = words.recover(leaks().rows(1, 2), draws(1))
    assert isinstance(recovery.value, Labels)
    likely = [
        float(value[0])
        for name in names
        if (value := fitted.log_likelihood(leaks().rows(1, 2), [f"a photo of {name}"])) is not None
    ]
    assert recovery.value.scores[0].argsort(descending=True)[0] == torch.tensor(likely).argmax()
    assert recovery.value.scores[0].tolist() == pytest.approx(torch.tensor(likely).exp().tolist(), rel=1e-3)


def test_labels_become_captions_where_words_are_wanted(language: str) -> None:
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    names = ("dog", "cat", "child", "woman")
    pictures = replace(captioned(labels=labels), captions=None, classes=names)
    attack = CapRecover(read="words", language=BYTES, steps=3, **SMALL)  # type: ignore[arg-type]
    fitted = attack.fit(knowledge(leaks(), pictures), torch.Generator().manual_seed(0))
    recovery = fitted.recover(leaks(), draws(8))
    assert isinstance(recovery.value, Labels)
    assert recovery.value.scores.shape == (8, 4)


@pytest.mark.parametrize("decoding", ["beam", "sample"])
def test_other_decodings_say_it_too(attack: CapRecover, fitted: Recoverer, tmp_path: Path, decoding: str) -> None:
    fitted.save(tmp_path / "adapter")
    other = replace(attack, decoding=decoding, beams=3, temperature=0.1, batch=3)  # type: ignore[arg-type]
    recovery = other.load(tmp_path / "adapter", Knowledge((3, 2, 2))).recover(leaks(), draws(8))
    assert isinstance(recovery.value, Captions)
    assert sum(said == true for said, true in zip(recovery.value.texts, CAPTIONS, strict=True)) >= 7


def test_a_killed_training_is_gone_on_with(attack: CapRecover, fitted: Recoverer, tmp_path: Path) -> None:
    short = replace(attack, steps=60)
    known = knowledge(leaks(), captioned())
    whole = short.fit(known, torch.Generator().manual_seed(0))
    again = short.fit(known, torch.Generator().manual_seed(0), workdir=tmp_path)
    assert isinstance(whole, CapRecoverer)
    assert isinstance(again, CapRecoverer)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_its_chores_are_steps_and_reading(attack: CapRecover, fitted: Recoverer, tmp_path: Path) -> None:
    chores = attack.chores(knowledge(leaks(), captioned()), 4)
    assert [(chore.fitting, chore.each) for chore in chores] == [(0, 0), (150, 0), (0, 0.25)]
    fitted.save(tmp_path / "adapter")
    (reading,) = replace(attack, adapter=tmp_path / "adapter").chores(Knowledge((3, 2, 2)), 4)
    for chore in (*chores, reading):
        chore.once()


@pytest.mark.assets
def test_captions_are_ranked_once_aligned(language: str) -> None:
    attack = CapRecover(language=language, steps=60, lr=5e-3, **{**SMALL, "align": 200})  # type: ignore[arg-type]

    def query(images: torch.Tensor) -> Leak:
        """A victim whose pictures say in their first pixel which leak they give."""
        return leaks().with_features(leaks().features[images[:, 0, 0, 0].long()])

    known = replace(knowledge(leaks(), captioned()), query=query)
    fitted = attack.fit(known, torch.Generator().manual_seed(0))
    assert fitted.constant(1) is not None
    scores = fitted.score(leaks(), CAPTIONS)
    assert scores is not None
    assert (scores.argmax(1) == torch.arange(8)).float().mean() >= 0.75
    vectors = torch.stack([recoverer.minilm.loaded().one(text) for text in CAPTIONS])
    shuffled = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3, 2])
    shown = shuffled[:, None, None, None].float().expand(9, 3, 2, 2)
    by_vector, by_picture = fitted.score(leaks(), vectors), fitted.score(leaks(), shown)
    assert by_vector is not None
    assert by_picture is not None
    assert torch.allclose(by_vector, scores, atol=1e-5)
    assert by_picture.shape == (8, 9)
    assert shuffled[by_picture.argmax(1)].tolist() == list(range(8))
    assert torch.allclose(by_picture[:, 1], by_picture[:, 8])  # one picture, shown twice
    model = fitted.model  # type: ignore[attr-defined]
    own = model.vectors(model.queries(leaks().header.layer, leaks().features))
    assert torch.allclose(scores, own @ nn.functional.normalize(vectors @ model.wording.weight.T, dim=1).T, atol=1e-5)
    assert not torch.allclose(model.wording.weight, torch.eye(384), atol=1e-2)
    with pytest.raises(SeepageError, match="candidates are sentences"):
        fitted.score(leaks(), torch.zeros(8, 5))
    fitted._query = lambda images: leaks().with_features(torch.ones(len(images), 6, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(SeepageError, match="4, 4"):
        fitted.score(leaks(), shown)
    fitted._query = None  # type: ignore[attr-defined]
    assert fitted.score(leaks(), shown) is None  # nobody can be asked
    silent = fitted.score(leaks().with_features(torch.zeros(8, 6, 4, 4)), CAPTIONS)
    assert silent is not None
    assert silent.isnan().all()


def test_nothing_is_ranked_that_was_never_aligned(fitted: Recoverer) -> None:
    assert fitted.score(leaks(), CAPTIONS) is None
    assert fitted.constant(1) is None
