"""Recovered captions scored through the command line: an attack that names the colour it sees."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from tiny_language import save_language

from seepage import registry
from seepage.audit.judges import judges_of
from seepage.audit.request import CAPTION_METRICS, Request
from seepage.audit.workbench import Workbench
from seepage.metrics import Bleu1, Bleu4, Cider, RougeL
from seepage.metrics.constants import best_caption
from seepage.metrics.fluency import distinct, repetition
from seepage.metrics.sentences import Pair
from seepage.report.glossary import measure
from seepage.schema import Cell
from seepage.store import Store
from seepage.types import Captions, Knowledge, Leak, Pictures, Recoverer, Recovery, Status

Run = Callable[..., tuple[int, str, str]]
COLOURS = ("red", "green", "blue")
CAPTIONS = {
    "1.png": ("a red dog runs on the grass", "the red dog is running"),
    "2.png": ("a green ball lies in the sand",),
    "3.png": (),
    "4.png": ("a blue sea under a grey sky", "waves on a blue sea", "water"),
    "5.png": ("a red bus drives down the street", "a bus"),
}
SHADES = {"1.png": (250, 0, 0), "2.png": (0, 250, 0), "3.png": (0, 240, 0), "4.png": (0, 0, 250), "5.png": (240, 0, 0)}
METRICS = ("bleu4", "rouge_l", "cider:least=3")


def said(colour: str) -> str:
    return f"a {colour} dog runs on the \ud83d grass"


@dataclass(frozen=True)
class Namer:
    """Say the strongest colour of the leak, mixed as the tiny victim mixes."""

    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {}
    access: ClassVar[str] = "white-box"
    auxiliary: ClassVar[str] = "none"
    recovers: ClassVar[str] = "captions"
    budget: ClassVar[int] = 1

    def fit(self, knowledge: Knowledge, generator: torch.Generator, *, workdir=None, progress=None) -> Recoverer:
        return _Namer()

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        return _Namer()


@dataclass(frozen=True)
class Told(Namer):
    """One that says which language model writes its captions."""

    model: Path = Path()

    def writer(self) -> Path:
        return self.model


class _Namer(Recoverer):
    def recover(self, leak: Leak, generators) -> Recovery:
        mix = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]]).inverse()
        strongest = torch.einsum("oc,bc->bo", mix, leak.features.mean(dim=(2, 3))).argmax(1)
        return captions(*(said(COLOURS[int(index)]) for index in strongest))

    def prior(self, n: int, generators) -> Recovery:
        return captions(*["a thing"] * n)

    def constant(self, n: int) -> Recovery:
        return captions(*["a dog on the grass"] * n)

    def score(self, leak: Leak, candidates) -> torch.Tensor:
        """How many words of its own a candidate has."""
        texts = self.recover(leak, []).value.texts
        return torch.tensor(
            [[float(len(set(text.split()) & set(own.split()))) for own in candidates] for text in texts]
        )

    def log_likelihood(self, leak: Leak, captions) -> torch.Tensor:
        """Minus the caption's words, and 1 more where none of them is the leak's colour; a silent leak has none."""
        colours = [text.split()[1] for text in self.recover(leak, []).value.texts]
        silent = (leak.features == 0).flatten(1).all(1).tolist()
        return torch.tensor(
            [
                -float(len(text.split())) - (quiet or colour not in text.split())
                for text, colour, quiet in zip(captions, colours, silent)
            ]
        )

    def save(self, path: Path) -> None:
        path.touch()


def captions(*texts: str) -> Recovery:
    value = Captions(texts, torch.zeros(len(texts)))
    return Recovery(value, (Status("stopped"),) * len(texts), torch.zeros(len(texts), dtype=torch.long))


@pytest.fixture(autouse=True)
def namer() -> Iterator[None]:
    registry.names("attack")
    kinds = {"namer": Namer, "told": Told}
    for name, kind in kinds.items():
        registry.register("attack", name)(kind)
    yield
    for name in kinds:
        del registry._components["attack"][name]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "captioned"
    root.mkdir()
    lines = []
    for name, texts in CAPTIONS.items():
        Image.new("RGB", (16, 16), SHADES[name]).save(root / name)
        lines.append(json.dumps({"file_name": name} | ({"captions": texts} if texts else {})))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def audit(
    seepage: Run, victim: str, images: Path, output: Path, *more: object, metrics: tuple[str, ...] = METRICS
) -> Cell:
    asked = [word for metric in metrics for word in ("--metric", metric)]
    code, _, err = seepage("audit", victim, images, "--attack", "namer", "--layer", "mix", "-o", output, *asked, *more)
    assert code == 0, err
    (cell,) = Store(output).cells().values()
    return cell


def truth(*names: str) -> Pictures:
    return Pictures(torch.empty(len(names), 3, 0, 0), names, captions=tuple(CAPTIONS[name] for name in names))


ALL = truth("1.png", "2.png", "4.png", "5.png")
RECOVERED = tuple(said(colour) for colour in ("red", "green", "blue", "red"))


def test_captions_are_scored_beside_controls_and_ceiling(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run
) -> None:
    cell = audit(seepage, victim, pictures, tmp_path / "o")
    assert set(cell.summary) == set(METRICS)
    for key, metric in (("bleu4", Bleu4()), ("rouge_l", RougeL()), ("cider:least=3", Cider(least=3))):
        expected = metric(ALL, captions(*RECOVERED)).tolist()
        found = [sample.metrics[key] for sample in cell.samples if sample.metrics]
        assert found == pytest.approx(expected, rel=1e-9), key
        stats = cell.summary[key]
        assert (stats.n, stats.mean) == (4, pytest.approx(sum(expected) / 4))
        pooled = metric.corpus(ALL, captions(*RECOVERED))
        assert stats.corpus == (pooled if pooled is None else pytest.approx(pooled, rel=1e-9))
    assert cell.samples[2].metrics == {}
    assert cell.summary["bleu4"].corpus != pytest.approx(cell.summary["bleu4"].mean, rel=1e-3)
    rouge = {name: stats["rouge_l"] for name, stats in cell.controls.items()}
    assert set(rouge) == {"prior", "constant", "shuffled", "zero_features"}
    assert rouge["constant"].mean == pytest.approx(RougeL()(ALL, captions(*["a dog on the grass"] * 4)).mean().item())
    assert rouge["prior"].mean < rouge["constant"].mean
    assert cell.summary["rouge_l"].recovery is not None


def test_the_terminal_shows_what_was_said(victim: str, pictures: Path, tmp_path: Path, seepage: Run) -> None:
    asked = ("audit", victim, pictures, "--attack", "namer", "--metric", "rouge_l", "--layer", "mix")
    _, out, _ = seepage(*asked, "-o", tmp_path / "o")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "picture said of its leak at mix, by namer said by a person" in lines
    assert "4.png a blue dog runs on the ? grass a blue sea under a grey sky" in lines
    assert "3.png a green dog runs on the ? grass –" in lines, out
    assert lines[-1].endswith("report.html")
    for redacted in (seepage(*asked, "--redact", "-o", tmp_path / "r"), seepage("report", tmp_path / "o", "--redact")):
        assert redacted[0] == 0
        assert "said" not in redacted[1]


def test_the_corpus_value_of_bleu_has_an_interval_of_its_own(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run
) -> None:
    stats = audit(seepage, victim, pictures, tmp_path / "o").summary["bleu4"]
    pairs = [Pair(said(colour), CAPTIONS[name]) for colour, name in zip(("red", "green", "blue", "red"), ALL.ids)]
    drawn = random.Random(0)
    values = sorted(Bleu4().pooled(drawn.choices(pairs, k=4)) for _ in range(4000))
    assert stats.corpus is not None
    assert stats.corpus_low is not None
    assert stats.corpus_high is not None
    assert stats.corpus_low < stats.corpus < stats.corpus_high
    assert stats.corpus_low == pytest.approx(values[100], abs=0.02)
    assert stats.corpus_high == pytest.approx(values[-100], abs=0.02)
    assert f"{stats.corpus:.3f} (" in (tmp_path / "o" / "report.html").read_text()


def test_where_no_caption_is_perfect_recovery_runs_to_the_person(victim: str, tmp_path: Path, seepage: Run) -> None:
    root = tmp_path / "colours"
    root.mkdir()
    lines = []
    for index, colour in enumerate(COLOURS * 5):
        shade = tuple(250 - 3 * index if name == colour else 0 for name in COLOURS)
        Image.new("RGB", (16, 16), shade).save(root / f"{index:02}.png")
        texts = [f"one {colour} dog stands", f"one {colour} dog", f"there stands one {colour} dog"]
        lines.append(json.dumps({"file_name": f"{index:02}.png", "captions": texts}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    cell = audit(seepage, victim, root, tmp_path / "o")
    stats, person = cell.summary["cider:least=3"], cell.ceilings["human"]["cider:least=3"]
    control = max(known["cider:least=3"].mean for known in cell.controls.values())
    assert control < stats.mean < person.mean
    assert stats.recovery == pytest.approx((stats.mean - control) / (person.mean - control))
    assert 0 < stats.recovery_low <= stats.recovery <= stats.recovery_high < 1


def test_a_person_is_the_ceiling(victim: str, pictures: Path, tmp_path: Path, seepage: Run) -> None:
    cell = audit(seepage, victim, pictures, tmp_path / "o", metrics=("rouge_l", "bleu1", "repetition", "distinct"))
    others = Pictures(
        torch.empty(3, 3, 0, 0),
        ("1", "4", "5"),
        captions=tuple(CAPTIONS[name][1:] for name in ("1.png", "4.png", "5.png")),
    )
    person = captions(*(CAPTIONS[name][0] for name in ("1.png", "4.png", "5.png")))
    assert set(cell.ceilings) == {"human"}
    assert cell.ceilings["human"]["rouge_l"].n == 3
    assert cell.ceilings["human"]["rouge_l"].mean == pytest.approx(RougeL()(others, person).mean().item())
    assert "human" not in cell.controls
    # How captions read is measured of both, and is no leakage.
    told = [CAPTIONS[name][0] for name in ("1.png", "4.png", "5.png")]
    found = cell.ceilings["human"]["repetition"]
    assert (found.n, found.mean) == (3, pytest.approx(sum(map(repetition, told)) / 3))
    assert cell.summary["repetition"].recovery is None
    assert cell.summary["distinct"].recovery is None
    assert cell.summary["distinct"].mean == 1.0
    # Of the attack, too, the pictures count that a person speaks of: only sets of one size compare.
    same = [said(colour) for colour in ("red", "blue", "red")]
    assert cell.summary["distinct"].corpus == pytest.approx(distinct(same, 2))
    shown = (tmp_path / "o" / "report.html").read_text()
    for whole in (distinct(same, 2), distinct(told, 2)):
        assert f"over the corpus: {measure('distinct').show(whole)}" in shown
    assert "not leakage; higher is more leakage" not in shown
    assert cell.ceilings["human"]["distinct"].corpus == pytest.approx(distinct(told, 2))
    # Over the corpus people are scored as the attack is.
    pairs = [Pair(one, rest) for one, rest in zip(told, others.captions or (), strict=True)]
    assert cell.ceilings["human"]["bleu1"].corpus == pytest.approx(Bleu1().pooled(pairs))
    assert cell.ceilings["human"]["bleu1"].corpus_low is not None


def test_shuffled_is_scored_against_another_pictures_captions(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run
) -> None:
    cell = audit(seepage, victim, pictures, tmp_path / "o")
    # Each against the next of 5, 2, 3, 1, 4 that has captions: 2.png against 1.png.
    pairs = (("4.png", "red"), ("1.png", "green"), ("5.png", "blue"), ("2.png", "red"))
    scored = [RougeL()(truth(name), captions(said(colour))).item() for name, colour in pairs]
    assert cell.controls["shuffled"]["rouge_l"].n == 4
    assert cell.controls["shuffled"]["rouge_l"].mean == pytest.approx(sum(scored) / 4)


def test_records_hold_the_captions_unless_redacted(victim: str, pictures: Path, tmp_path: Path, seepage: Run) -> None:
    cell = audit(seepage, victim, pictures, tmp_path / "o")
    shown = cell.samples[0].recovered, cell.samples[0].truth
    assert [item.caption for item in shown if item is not None] == [
        "a red dog runs on the ? grass",
        CAPTIONS["1.png"][0],
    ]
    assert shown[1] is not None
    assert shown[1].image is not None
    assert (tmp_path / "o" / shown[1].image).is_file()
    redacted = audit(seepage, victim, pictures, tmp_path / "r", "--redact")
    assert {(sample.recovered, sample.truth) for sample in redacted.samples} == {(None, None)}
    assert redacted.summary["bleu4"].corpus is None
    assert redacted.summary["bleu4"].mean == cell.summary["bleu4"].mean
    assert "dog" not in (tmp_path / "r" / "results.jsonl").read_text()


def test_without_captions_the_metrics_say_so(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    cell = audit(seepage, victim, folder, tmp_path / "o")
    assert cell.summary == {}
    assert cell.unavailable["rouge_l"] == "none of the pictures has a reference caption"
    assert cell.unavailable["cider:least=3"] == (
        "CIDEr-D weighs words by the references of 3 pictures or more, and has those of 0"
    )


def test_a_group_of_one_gives_the_same_values(victim: str, pictures: Path, tmp_path: Path, seepage: Run) -> None:
    whole = audit(seepage, victim, pictures, tmp_path / "o")
    first = audit(seepage, victim, pictures, tmp_path / "one", "--limit", 4)
    again = [sample.metrics["rouge_l"] for sample in first.samples if sample.metrics]
    assert again == [sample.metrics["rouge_l"] for sample in whole.samples if sample.metrics][:3]


def test_the_own_caption_is_looked_for_among_the_others(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run
) -> None:
    """By shared words the red dog finds its own caption; the others find the dog's, the only one on grass."""
    more = ("--metric", "recall1", "--metric", "recall5")
    cell = audit(seepage, victim, pictures, tmp_path / "o", *more)
    assert [sample.metrics.get("recall1") for sample in cell.samples] == [1.0, 0.0, None, 0.0, 0.0]
    assert cell.unavailable["recall5"] == "Recall5 looks among the captions of more than 5 pictures, and has 4"
    # Of the shuffled ones, the ball is looked for as the dog, and found.
    assert cell.controls["shuffled"]["recall1"].mean == 0.25


def test_an_attack_that_ranks_nothing_says_so(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Namer, "score", Recoverer.score)
    cell = audit(seepage, victim, pictures, tmp_path / "o", "--metric", "recall1")
    assert cell.unavailable == {"recall1": "the attack ranks no candidates"}


def test_likelihood_of_the_references_beside_another_leak_and_none(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run
) -> None:
    cell = audit(seepage, victim, pictures, tmp_path / "o", metrics=("nll",))
    own = {"1.png": "red", "2.png": "green", "4.png": "blue", "5.png": "red"}
    # Each picture's captions under the leak of the next of 5, 2, 3, 1, 4, with or without captions of its own.
    elsewhere = {"1.png": "blue", "2.png": "green", "4.png": "red", "5.png": "green"}

    def surprise(name: str, colour: str) -> float:
        texts = [text.split() for text in CAPTIONS[name]]
        return sum(len(text) + (colour not in text) for text in texts) / len(texts)

    found = {sample.id: sample.metrics.get("nll") for sample in cell.samples}
    assert found == {name: surprise(name, own[name]) if name in own else None for name in CAPTIONS}

    def mean(colours: dict[str, str]) -> float:
        return sum(surprise(name, colour) for name, colour in colours.items()) / 4

    assert cell.summary["nll"].mean == pytest.approx(mean(own))
    assert cell.controls["shuffled"]["nll"].mean == pytest.approx(mean(elsewhere))
    assert cell.controls["zero_features"]["nll"].mean == pytest.approx(mean(dict.fromkeys(own, "")))
    assert cell.summary["nll"].mean < cell.controls["shuffled"]["nll"].mean < cell.controls["zero_features"]["nll"].mean
    assert cell.summary["nll"].recovery is None


def test_pictures_without_references_get_a_verdict(victim: str, pictures: Path, tmp_path: Path, seepage: Run) -> None:
    (pictures / "metadata.jsonl").unlink()
    cell = audit(seepage, victim, pictures, tmp_path / "o", metrics=("nll_gap", "nll", "rouge_l"))
    # Each against the next of 5, 2, 3, 1, 4: 2.png and 3.png are both green.
    assert [sample.metrics["nll_gap"] for sample in cell.samples] == [1.0, 0.0, 1.0, 1.0, 1.0]
    assert cell.controls["constant"]["nll_gap"].mean == 0.0
    assert set(cell.unavailable) == {"nll", "rouge_l"}
    assert "shuffled" not in {name for name, scores in cell.controls.items() if "nll_gap" in scores}


def test_an_attack_without_a_language_model_says_so(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Namer, "log_likelihood", Recoverer.log_likelihood)
    cell = audit(seepage, victim, pictures, tmp_path / "o", metrics=("nll", "nll_gap", "bleu1"))
    assert set(cell.summary) == {"bleu1"}
    assert {cell.unavailable[key] for key in ("nll", "nll_gap")} == {"the attack has no language model to ask"}


def test_each_cell_is_asked_what_its_attack_recovers(victim: str, pictures: Path, tmp_path: Path, seepage: Run) -> None:
    arguments = ("audit", victim, pictures, "--layer", "mix", "--attack", "namer", "--attack", "rmle:steps=3")
    asked = ("--metric", "mse", "--metric", "bleu1", "--metric", "top1")
    assert seepage(*arguments, *asked, "-o", tmp_path / "o")[0] == 0
    cells = {cell.spec.attack.partition(":")[0]: cell for cell in Store(tmp_path / "o").cells().values()}
    assert cells["namer"].spec.metrics == ("bleu1",)
    assert cells["rmle"].spec.metrics == ("mse", "top1")
    assert set(cells["namer"].summary) == {"bleu1"}
    assert set(cells["rmle"].summary) == {"mse"}
    assert cells["rmle"].unavailable == {"top1": "none of the pictures has a label"}


def test_without_a_metric_captions_get_theirs(victim: str, pictures: Path) -> None:
    bench = Workbench(Request(victim=victim, images=str(pictures), layers=("mix",), attacks=("namer",)))
    assert tuple(bench.metrics("captions")) == CAPTION_METRICS
    assert bench.recovered == ("captions",)
    assert judges_of(bench.request) == ()
    assert "50 pictures" in bench.unavailable("captions")["cider"]


def test_captions_are_recovered_from_a_file_without_the_truth(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run
) -> None:
    leak = tmp_path / "leak.safetensors"
    assert seepage("leak", victim, pictures, "--layer", "mix", "-o", leak)[0] == 0
    code, out, err = seepage("recover", leak, "--attack", "namer", "-o", tmp_path / "r")
    assert code == 0, err
    rows = json.loads((tmp_path / "r" / "recovery.json").read_text())["rows"]
    colours = ("red", "green", "green", "blue", "red")
    assert [row["caption"] for row in rows] == [f"a {colour} dog runs on the ? grass" for colour in colours]
    assert all(row["image"] is None for row in rows)
    assert "a blue dog runs" in " ".join(out.split())


def test_the_report_of_captions_quotes_them(victim: str, pictures: Path, tmp_path: Path, seepage: Run) -> None:
    audit(seepage, victim, pictures, tmp_path / "o")
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "a green dog runs on the ? grass" in page
    assert CAPTIONS["2.png"][0] in page
    assert "Recovered captions" in page
    assert "MS-SSIM" not in page


def test_captions_are_not_judged_by_the_language_model_that_wrote_them(
    victim: str, pictures: Path, tmp_path: Path
) -> None:
    writer, other = save_language(tmp_path / "writer", steps=0), save_language(tmp_path / "other", steps=1)
    shutil.copytree(writer, tmp_path / "copy")

    def lacking(attack: str, model: Path) -> dict[str, str]:
        metrics = (f"perplexity:model={model}",)
        bench = Workbench(Request(victim, str(pictures), layers=("mix",), attacks=(attack,), metrics=metrics))
        return dict(bench.unavailable("captions"))

    for same in (writer, tmp_path / "copy"):
        (reason,) = lacking(f"told:model={writer}", same).values()
        assert reason == f"perplexity: {same} is the language model that writes told's captions: name another"
    assert lacking(f"told:model={writer}", other) == {}
    assert lacking("namer", writer) == {}


def test_the_constant_is_the_best_of_what_was_learned_from(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run
) -> None:
    """What an attack would say of any picture is not the strongest that could be said: that is found beside it."""
    public = tmp_path / "public"
    public.mkdir()
    told = ["a blue sea under a grey sky", "a blue sea under the sky", "two cats sleep", "a blue sea under clouds"]
    lines = []
    for index, text in enumerate(told):
        Image.new("RGB", (16, 16), (7 * index, 9, 11)).save(public / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "captions": [text]}))
    (public / "metadata.jsonl").write_text("\n".join(lines))
    best = best_caption([[text] for text in told])
    assert "blue sea" in best
    cell = audit(seepage, victim, pictures, tmp_path / "o", "--public", public)
    expected = RougeL()(ALL, captions(*[best] * 4)).mean().item()
    assert cell.controls["constant"]["rouge_l"].mean == pytest.approx(expected)
