"""A defense through the command line: every attacker, what he reaches, what it costs, and the files between."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import seepage as api
from seepage.audit.exposure import Exposure
from seepage.audit.request import Request
from seepage.audit.workbench import Workbench
from seepage.schema import Cell
from seepage.store import Store
from seepage.types import Generators, Leak

Run = Callable[..., tuple[int, str, str]]
RMLE = ("--attack", "rmle:steps=40,lr=0.1", "--effort", "quick")
MODES = ("naive", "aware:estimate", "aware:likelihood", "aware:retrained", "repeated")


def cells(folder: Path) -> dict[tuple[str, str], Cell]:
    return {(c.spec.attacker, c.spec.attack.partition(":")[0]): c for c in Store(folder).cells().values()}


def error(cell: Cell) -> float:
    return cell.summary["mse"].mean


def test_every_attacker_meets_the_defense(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    asked = ("audit", victim, folder, "--layer", "wide", *RMLE, "--attack", "decoder:steps=20,pictures=10,width=16")
    code, out, err = seepage(*asked, "--defense", "noise-shift", "--sends", 16, "-o", tmp_path / "o")
    assert code == 0, err
    found = cells(tmp_path / "o")
    assert set(found) == {
        *((mode, attack) for mode in ("none", "naive", "aware:estimate", "repeated") for attack in ("rmle", "decoder")),
        ("aware:likelihood", "rmle"),
        ("aware:retrained", "decoder"),
    }
    assert {cell.status for cell in found.values()} == {"done"}
    of = {
        mode: error(found[mode, "rmle"]) for mode in ("none", "naive", "aware:estimate", "aware:likelihood", "repeated")
    }
    # Most of what protects from the naive is the noise's mean.
    assert of["naive"] > 1.3 * of["aware:estimate"] > 1.3 * of["aware:likelihood"] > of["none"]
    assert of["repeated"] < 0.5 * of["aware:estimate"]
    assert error(found["aware:retrained", "decoder"]) < error(found["naive", "decoder"])
    for (mode, _), cell in found.items():
        assert cell.spec.sends == (16 if mode == "repeated" else 1)
        assert cell.spec.defenses == (() if mode == "none" else ("noise-shift:scale=1",))
        assert cell.bytes_per_image == 16 * 16 * 16 * 4 * (1 if mode == "none" else 2)
        assert cell.utility["agreement"] == 1.0, "the next stage takes the noise away"
        assert {item.name for item in cell.checks} <= {"few-pictures", "no-better-than-control", "not-converged"}
    (claim,) = found["naive", "rmle"].protection
    assert (claim.holder, claim.protects_from) == ("client and provider", ("eavesdropper", "storage"))
    assert all(label in out for label in ("naive", "aware:likelihood", "repeated ×16"))
    page = (tmp_path / "o" / "report.html").read_text()
    assert "noise-shift:scale=1" in page
    again = seepage(*asked, "--defense", "noise-shift", "--sends", 16, "-o", tmp_path / "o")
    assert again[0] == 0
    assert cells(tmp_path / "o") == found, "nothing is run twice"


def test_with_the_mask_on_nobody_does_better_than_the_controls(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    asked = ("--attack", "decoder:steps=10,pictures=8,width=16", "--defense", "mask", "--sends", 4)
    code, _, err = seepage("audit", victim, folder, "--layer", "wide", *RMLE, *asked, "-o", tmp_path / "o")
    assert code == 0, err
    found = cells(tmp_path / "o")
    silent = found.pop(("aware:likelihood", "rmle"))
    assert (silent.status, "does not depend on the leak" in silent.message) == ("not_run", True)
    for (mode, _), cell in found.items():
        assert cell.status == "done"
        assert cell.utility["agreement"] == 1.0
        if mode != "none":
            assert cell.summary["mse"].recovery_high <= 0.01, "no better than the strongest control"
            assert cell.bytes_per_image == 16 * 16 * 16 * 4 + 32
    assert found["none", "rmle"].summary["mse"].recovery > 0.3


def test_attackers_that_cannot_be_say_why(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    asked = ("audit", victim, folder, "--layer", "mix", *RMLE, "--defense", "quantize:bits=2")
    code, _, err = seepage(*asked, "-o", tmp_path / "o")
    assert code == 0, err
    found = cells(tmp_path / "o")
    reasons = {mode: cell.message for (mode, _), cell in found.items() if cell.status == "not_run"}
    assert set(reasons) == {"aware:retrained", "repeated"}
    assert "decoder, probe or caprecover" in reasons["aware:retrained"]
    assert "nothing is drawn" in reasons["repeated"]
    assert found["naive", "rmle"].bytes_per_image == 16 * 16 * 3 * 2 // 8 + 8
    wanted = ("--attacker", "aware:estimate", "--attacker", "repeated")
    code, out, _ = seepage(*asked[:-1], "gaussian:sigma=0.1", *wanted, "--dry-run")
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()[1:4]] == ["none", "aware:estimate", "repeated"]


def test_probes_and_captioners_learn_on_defended_leaks(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    owned = tmp_path / "owned"
    owned.mkdir()
    lines = []
    for index in range(30):
        value = 40 + 40 * (index % 2) + index
        api.pictures.write_png(torch.full((3, 16, 16), value / 255), owned / f"{index:02d}.png")
        lines.append(json.dumps({"file_name": f"{index:02d}.png", "label": "light" if index % 2 else "dark"}))
    (owned / "metadata.jsonl").write_text("\n".join(lines))
    for index, path in enumerate(sorted(folder.glob("*.png"))):
        api.pictures.write_png(torch.full((3, 16, 16), (40 + 40 * (index % 2) + 31 + index) / 255), path)
    labels = [json.dumps({"file_name": f"{i}.png", "label": "light" if i % 2 else "dark"}) for i in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(labels))
    asked = ("audit", victim, folder, "--layer", "mix", "--attack", "probe", "--public", owned, "--metric", "top1")
    code, _, err = seepage(*asked, "--defense", "noise-shift:scale=2", "-o", tmp_path / "o")
    assert code == 0, err
    found = {mode: cell for (mode, _), cell in cells(tmp_path / "o").items()}
    assert found["aware:retrained"].summary["top1"].mean >= found["naive"].summary["top1"].mean
    assert found["aware:retrained"].summary["top1"].mean > 0.8
    assert found["aware:likelihood"].status == "not_run"


def test_leaks_do_not_depend_on_the_batch_and_differ_from_send_to_send(victim: str, folder: Path) -> None:
    request = Request(
        victim, str(folder), layers=("mix",), defenses=("gaussian:sigma=0.5", "dropout:rate=0.2"), sends=3
    )
    bench = Workbench(request)
    split = bench.split("mix")
    images = torch.stack([split.load(entry.path) for entry in bench.source.entries])
    for mode in MODES[:3] + MODES[4:]:
        exposure = Exposure(bench, split, mode, 3)
        together, _ = exposure.received(range(6), images)
        for order in ([3], [5, 0, 2]):
            apart, _ = exposure.received(order, images[order])
            assert torch.equal(apart.features, together.features[order])
    fresh = Workbench(request)
    again, _ = Exposure(fresh, fresh.split("mix"), "naive").received([1], images[1:2])
    naive, _ = Exposure(bench, split, "naive").received([1], images[1:2])
    assert torch.equal(again.features, naive.features)
    learned = Exposure(bench, split, "aware:retrained").knowledge().query
    assert learned is not None
    assert not torch.equal(learned(images[:1]).features, learned(images[:1]).features), "afresh each pass"
    clean = Exposure(bench, split, "naive").knowledge().query
    assert clean is not None
    assert torch.equal(clean(images[:1]).features, split.leak(images[:1]).features), "the naive know of no defense"


def test_a_not_finite_feature_is_found_behind_the_mask(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    poisoned = victim.replace(":tiny", ":poisoned")
    code, _, _ = seepage("audit", poisoned, folder, "--layer", "wide", *RMLE, "--defense", "mask", "-o", tmp_path / "o")
    assert code == 3
    failed = [cell for cell in cells(tmp_path / "o").values() if cell.status == "failed"]
    assert failed
    assert all("NaN" in cell.message for cell in failed)


def test_a_privacy_budget_stands_beside_the_leakage(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    pytest.importorskip("opacus")
    asked = ("--defense", "clip:limit=2", "--defense", "gaussian:sigma=4", "--sends", 4)
    code, _, err = seepage("audit", victim, folder, "--layer", "mix", *RMLE, *asked, "-o", tmp_path / "o")
    assert code == 0, err
    spent = {mode: cell.protection[1].epsilon for (mode, _), cell in cells(tmp_path / "o").items() if cell.protection}
    assert spent["naive"] == pytest.approx(4.377, abs=1e-3), "one send: mu = 1 at delta = 1e-5"
    assert spent["repeated"] > 2 * spent["naive"]


def test_what_is_sent_and_what_is_kept_are_two_files(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    sent, kept, back = (tmp_path / name for name in ("sent.safetensors", "kept.safetensors", "back.safetensors"))
    leaking = ("leak", victim, folder, "--layer", "wide", "--defense", "clip:limit=9", "--defense", "mask")
    code, _, err = seepage(*leaking, "-o", sent)
    assert (code, "--secret" in err, err.count("\n")) == (2, True, 1)
    assert not sent.exists()
    assert seepage(*leaking, "-o", sent, "--secret", kept)[0] == 0
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    leak = api.read_leak(sent)
    assert leak.features.dtype == torch.int32
    for mine in (sent, kept):
        before = mine.read_bytes()
        code, _, err = seepage("restore", sent, "--secret", kept, "-o", mine)
        assert (code, "name another file" in err, mine.read_bytes() == before) == (2, True, True)
    code, _, err = seepage(*leaking, "-o", tmp_path / "one", "--secret", tmp_path / "one")
    assert (code, err.count("\n"), (tmp_path / "one").exists()) == (2, 1, False)
    code, _, err = seepage("restore", sent, "--secret", kept, "-o", back)
    assert code == 0, err
    restored = api.read_leak(back)
    assert restored.header.defenses == ("clip:limit=9,by=norm,relative=false",)
    assert restored.features.flatten(1).norm(dim=1).max() <= 9 * (1 + 1e-6)
    for again in (kept, sent):
        code, _, err = seepage("restore", sent, "--secret", again, "-o", tmp_path / "x")
        assert (code, err.count("\n")) == (2, 1)
    assert "no secret" in err
    other = tmp_path / "other.safetensors"
    assert seepage(*leaking, "-o", tmp_path / "sent2.safetensors", "--secret", other)[0] == 0
    code, _, err = seepage("restore", sent, "--secret", other, "-o", tmp_path / "x")
    assert (code, "another leak" in err, err.count("\n")) == (2, True, 1)
    assert seepage("restore", tmp_path / "sent2.safetensors", "--secret", other, "-o", back)[0] == 0
    code, _, err = seepage("restore", back, "--secret", other, "-o", tmp_path / "x")
    assert code == 2
    code, _, err = seepage("leak", victim, folder, "--layer", "mix", "-o", sent, "--secret", tmp_path / "y")
    assert (code, "keeps no secret" in err) == (2, True)


def test_noise_is_taken_from_its_own_leak_alone(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    leaking = ("leak", victim, folder, "--layer", "wide", "--defense", "noise-shift")
    for seed in (0, 1):
        files = ("-o", tmp_path / f"sent{seed}.safetensors", "--secret", tmp_path / f"kept{seed}.safetensors")
        assert seepage(*leaking, *files, "--seed", seed)[0] == 0
    back = tmp_path / "back.safetensors"
    code, _, err = seepage(
        "restore", tmp_path / "sent0.safetensors", "--secret", tmp_path / "kept1.safetensors", "-o", back
    )
    assert (code, "another leak" in err, err.count("\n")) == (2, True, 1)
    assert not back.exists()
    for seed in (0, 1):
        files = (tmp_path / f"sent{seed}.safetensors", "--secret", tmp_path / f"kept{seed}.safetensors")
        assert seepage("restore", *files, "-o", tmp_path / f"back{seed}.safetensors")[0] == 0
    found = [api.read_leak(tmp_path / f"back{seed}.safetensors").features for seed in (0, 1)]
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_a_dump_is_attacked_by_what_it_carries(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    sent = tmp_path / "sent.safetensors"
    noise = ("--defense", "gaussian:sigma=0.2")
    assert seepage("leak", victim, folder, "--layer", "mix", *noise, "--sends", 9, "-o", sent)[0] == 0
    assert len(api.read_leak(sent)) == 54
    asked = ("audit", victim, folder, "--layer", "mix", *RMLE, "--leak", sent)
    code, _, err = seepage(*asked, "--sends", 9, "-o", tmp_path / "o")
    assert code == 0, err
    found = cells(tmp_path / "o")
    assert {mode for mode, _ in found} == set(MODES), "nothing is undefended in a dump"
    assert error(found["repeated", "rmle"]) < 0.5 * error(found["aware:estimate", "rmle"])
    assert error(found["aware:likelihood", "rmle"]) < error(found["naive", "rmle"])
    live = seepage("audit", victim, folder, "--layer", "mix", *RMLE, *noise, "--sends", 9, "-o", tmp_path / "live")
    assert live[0] == 0
    for key, cell in cells(tmp_path / "live").items():
        if key[0] in ("naive", "repeated"):
            assert error(cell) == pytest.approx(error(found[key]), rel=1e-6), "the same sends"
    for wrong, said in (((), "more than one row"), (("--sends", 10), "9 of the 10 rows")):
        code, _, err = seepage(*asked, *wrong, "-o", tmp_path / "x")
        assert (code, said in err, err.count("\n")) == (2, True, 1)


class Steps:
    """A law whose mean is rounded: its gradient is zero everywhere."""

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        return self.expected(clean)

    def expected(self, clean: Leak) -> Leak:
        return clean.with_features((4 * clean.features).round() / 4)

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        return sends[0]

    def log_likelihood(self, sent: Leak, clean: Leak) -> None:
        return None


@dataclass(frozen=True)
class Lawless:
    """Somebody's defense, without what an attacker may know of it."""

    holder: ClassVar[str] = "nobody"
    protects_from: ClassVar[tuple[str, ...]] = ("eavesdropper",)

    def fit(self, leaks: Iterator[Leak]) -> Lawless:
        return self

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, None]:
        return leak.with_features((4 * leak.features).round() / 4), None

    def restore(self, leak: Leak, secret: object) -> Leak:
        return leak


class Rounding(Lawless):
    def law(self) -> Steps:
        return Steps()


class Shrinking(Rounding):
    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, None]:
        return leak.with_features(leak.features[..., :8]), None


class Silent(Lawless):
    def law(self) -> None:
        return None


class HalfSteps(Steps):
    def estimate(self, sends: Sequence[Leak]) -> Leak:
        return sends[0].with_features(sends[0].features.repeat_interleave(2, dim=-1))


class Halving(Lawless):
    """Sends every other column and guesses the rest."""

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, None]:
        return leak.with_features(leak.features[..., ::2]), None

    def restore(self, leak: Leak, secret: object) -> Leak:
        return leak.with_features(leak.features.repeat_interleave(2, dim=-1))

    def law(self) -> HalfSteps:
        return HalfSteps()


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defenses of somebody's own, for one test."""
    api.registry.names("defense")
    for name, component in (
        ("lawless", Lawless),
        ("rounding", Rounding),
        ("shrinking", Shrinking),
        ("silent", Silent),
        ("halving", Halving),
    ):
        monkeypatch.setitem(api.registry._components["defense"], name, component)


@pytest.mark.usefixtures("plugins")
def test_a_defense_whose_law_is_none_is_refused_by_name(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    code, _, err = seepage(
        "audit", victim, folder, "--layer", "mix", *RMLE, "--defense", "silent", "-o", tmp_path / "o"
    )
    assert (code, "'silent'" in err, "no attacker who knows it" in err, err.count("\n")) == (2, True, True, 1)
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("plugins")
def test_what_is_sent_in_another_shape_is_read_by_who_estimates_the_leak(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    asked = ("audit", victim, folder, "--layer", "mix", *RMLE, "--defense", "halving", "-o", tmp_path / "o")
    code, _, err = seepage(*asked)
    assert code == 0, err
    status = {mode: (cell.status, cell.message) for (mode, _), cell in cells(tmp_path / "o").items()}
    assert status["none"][0] == status["aware:estimate"][0] == "done"
    for mode in ("naive", "aware:likelihood"):
        assert status[mode][0] == "not_run"
        assert "(3, 16, 8), the leak (3, 16, 16)" in status[mode][1]


@pytest.mark.usefixtures("plugins")
def test_a_gradient_that_hides_is_flagged(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    asked = ("audit", victim, folder, "--layer", "mix", *RMLE, "--defense", "rounding", "-o", tmp_path / "o")
    code, _, err = seepage(*asked)
    assert code == 0, err
    flagged = {
        mode for (mode, _), c in cells(tmp_path / "o").items() if "gradient-masking" in {x.name for x in c.checks}
    }
    assert flagged == {"aware:likelihood"}


def test_a_defense_that_fits_one_cut_of_two_is_run_there_and_listed_at_the_other(
    tmp_path: Path, folder: Path, seepage: Run
) -> None:
    (tmp_path / "tokens.py").write_text(
        "import torch\nfrom torch import nn\n\ndef tokens():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(2), nn.Linear(16, 16), nn.Flatten(), "
        "nn.Linear(64, 3))\n\ntokens.image_shape = (3, 16, 16)\n"
    )
    layers = ("--layer", "0", "--layer", "1")
    asked = ("audit", f"module/{tmp_path / 'tokens.py'}:tokens", folder, *layers, *RMLE, "--limit", 2)
    code, _, err = seepage(*asked, "--defense", "token-shuffle", "--attacker", "aware:estimate", "-o", tmp_path / "o")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "o" / "results.jsonl").read_text().splitlines()]
    found = {(line["spec"]["layer"], line["spec"]["attacker"]): line for line in lines}
    assert len(lines) == len(found) == 4
    assert {place: line["status"] for place, line in found.items()} == {
        ("0", "none"): "done",
        ("0", "aware:estimate"): "not_run",
        ("1", "none"): "done",
        ("1", "aware:estimate"): "done",
    }
    assert (
        "token-shuffle needs a leak of tokens (tokens, width), 0 gives (4, 4, 4)"
        in found["0", "aware:estimate"]["message"]
    )
    assert "needs a leak of tokens" in (tmp_path / "o" / "report.html").read_text()


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--defense", "gaussian:sigma=-1"), "sigma is a finite number of at least 0, got -1"),
        (("--defense", "gaussian:sigma=nan"), "got nan"),
        (("--defense", "gausian"), "did you mean 'gaussian'"),
        (("--defense", "token-drop"), "needs a leak of tokens"),
        (("--defense", "mask", "--defense", "clip"), "mask comes last"),
        (("--defense", "mask", "--wire", "fp16"), "--wire fp32"),
        (("--defense", "gaussian", "--attacker", "naive"), "add one of aware:estimate"),
        (("--defense", "gaussian", "--attacker", "aware:estimat"), "did you mean 'aware:estimate'"),
        (("--defense", "gaussian", "--sends", 0), "--sends is at least 1"),
        (("--attacker", "aware:estimate"), "name one with --defense"),
        (("--sends", 4), "name one with --defense"),
        (("--defense", "lawless"), "has no law(), so that no attacker who knows it could be run"),
        (("--defense", "shrinking"), "turns a leak of (3, 16, 16) into one of (3, 16, 8)"),
    ],
)
def test_a_defense_that_cannot_be_is_one_line(
    arguments: tuple[object, ...], said: str, victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    code, _, err = seepage("audit", victim, folder, "--layer", "mix", *RMLE, *arguments, "-o", tmp_path / "o")
    assert (code, err.count("\n")) == (2, 1), err
    assert said in err
    assert not (tmp_path / "o").exists()
