"""`seepage train caprecover`: several layers into one file, with its controls, resumed bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from seepage.attacks.caprecover import adapter, language
from seepage.attacks.caprecover.attack import CapRecover
from seepage.audit.plan import jobs
from seepage.audit.request import Request
from seepage.audit.workbench import Workbench
from seepage.data import open_source
from seepage.studies.train import TrainRequest, train
from seepage.types import Captions, Knowledge, Labels, SeepageError
from seepage.victims import load
from seepage.victims.cut import cut

Run = Callable[..., tuple[int, str, str]]
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 50), "blue": (40, 50, 200)}
TINY = "caprecover:align=0,width=32,layers=1,heads=2,queries=4,lr=0.005,most=24"
LANGUAGE = "bloom"
"""Of transformers' defaults the smallest: 64 wide, two layers, drawn from a seed, reading bytes; hard to lead."""
WIDER = "opt:num_hidden_layers=1"
"""768 wide: its prompt leads it, though its weights are drawn."""


def pictures(root: Path, count: int, seed: int, *, captions: bool = True, labels: bool = True) -> Path:
    """Noisy squares of three colours, which are their labels and what their captions say."""
    root.mkdir(parents=True)
    random = np.random.default_rng(seed)
    lines = []
    for index in range(count):
        name = list(COLOURS)[index % 3]
        picture = np.array(COLOURS[name]) + random.normal(0, 15, (16, 16, 3)) + random.normal(0, 15, (1, 1, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / f"{index:02d}.png")
        known: dict[str, object] = {"file_name": f"{index:02d}.png"}
        known |= {"captions": [f"a {name} one"]} if captions else {}
        known |= {"label": name} if labels else {}
        lines.append(json.dumps(known))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("assets") is None:
        monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))


def request_of(victim: str, tmp_path: Path, name: str = "adapter", **changes: object) -> TrainRequest:
    public, held = tmp_path / "public", tmp_path / "held"
    if not public.exists():
        pictures(public, 24, 0)
        pictures(held, 9, 1)
    settings: dict[str, object] = {"select": str(held), "steps": 60, "language": LANGUAGE, **changes}
    attack = str(settings.pop("attack", TINY))
    path = tmp_path / "out" / f"{name}.safetensors"
    return TrainRequest(attack, victim, ("mix", "wide"), str(public), path, **settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_one_file_serves_every_layer_it_was_trained_at(seepage: Run, victim: str, tmp_path: Path) -> None:
    """It says the colour of pictures it never saw, beats its controls, knows what it saw, and is drawn by depth."""
    trained = train(request_of(victim, tmp_path, language=WIDER))
    _, header = adapter.read(trained.path)
    assert tuple(header.layers) == ("mix", "wide")
    assert header.caption in {f"a {name} one" for name in COLOURS}
    assert header.classes == open_source(tmp_path / "public").classes
    assert header.label == 0
    assert not header.aligned
    assert header.config.language == WIDER
    source, held = open_source(tmp_path / "public"), open_source(tmp_path / "held")
    hashes = [entry.file_sha256 for entry in (*source.entries, *held.entries)]
    assert set(header.seen(hashes)) == set(hashes)
    assert header.train.manifest_sha256 == source.manifest_sha256()
    for layer in header.layers:
        own, other, none = (header.scores[f"{layer}/nll/{name}"] for name in ("held-out", "shuffled", "no features"))
        assert own < other - 0.1
        assert own < none
        assert header.scores[f"{layer}/top1/held-out"] == 1.0
        assert header.scores[f"{layer}/top1/shuffled"] == 0.0  # of another colour, each of them
    test = open_source(pictures(tmp_path / "test", 6, 2))
    for layer in header.layers:
        split = cut(load(victim), layer)
        leak = split.leak(torch.stack([split.load(entry.path) for entry in test.entries]))
        knowledge = Knowledge(split.image_shape, classes=test.classes)
        draws = [torch.Generator()] * len(test)
        labels = CapRecover(read="label", adapter=trained.path).fit(knowledge, torch.Generator()).recover(leak, draws)
        assert isinstance(labels.value, Labels)
        assert labels.value.scores.argmax(1).tolist() == [entry.label for entry in test.entries]
        said = CapRecover(adapter=trained.path, most=24).fit(knowledge, torch.Generator()).recover(leak, draws)
        assert isinstance(said.value, Captions)
        assert len(said.value.texts) == len(test)
    attacks = ["--attack", f"caprecover:adapter={trained.path},most=24", "--attack", "joint", "--effort", "quick"]
    where = ["--layer", "mix", "--layer", "wide", "-o", tmp_path / "depth"]
    code, _, error = seepage("depth", victim, tmp_path / "test", *attacks, *where)
    assert code == 0, error
    record = json.loads((tmp_path / "depth" / "depth.json").read_text())
    assert record["missing"] == []
    drawn = {curve["recovers"]: curve for curve in record["curves"]}
    assert set(drawn) == {"captions", "images"}
    assert [point["layer"] for point in drawn["captions"]["points"]] == ["mix", "wide"]
    assert all(point["n"] == 6 for point in drawn["captions"]["points"])
    (step,) = [step for step in record["steps"] if step["attack"] == "caprecover"]
    assert (step["before"], step["after"], step["n"]) == ("mix", "wide", 6)
    first, second = (point["mean"] for point in drawn["captions"]["points"])
    assert step["difference"] == pytest.approx(second - first)


def test_record_and_page_show_curves_beside_controls(seepage: Run, victim: str, tmp_path: Path) -> None:
    request = request_of(victim, tmp_path)
    options = ["--public", request.public, "--select", request.select, "--steps", 12, "--language", LANGUAGE]
    layers = ["--layer", "mix", "--layer", "wide"]
    target = tmp_path / "a" / "small.safetensors"
    code, out, error = seepage("train", TINY, victim, *layers, *options, "--storage", "int8", "-o", target)
    assert code == 0, error
    assert out.splitlines()[-1] == str(target)
    assert "control: another picture's" in out
    record = json.loads((tmp_path / "a" / "small.training.json").read_text())
    (stage,) = record["stages"]
    assert stage["unit"] == "nats a token of captions; the training loss adds labels"
    assert set(stage["held"]) == {"held-out", "shuffled", "no features"}
    assert stage["curve"]["step"] == list(range(1, 13))
    page = (tmp_path / "a" / "small.training.html").read_text()
    assert "<svg" in page
    assert "best constant caption" in page
    assert adapter.read_header(target).layers == {"mix": (3, 16, 16), "wide": (16, 16, 16)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_it_goes_on_to_the_same_bits(victim: str, tmp_path: Path, precision: str) -> None:
    whole = train(request_of(victim, tmp_path, "whole", steps=20, precision=precision))

    def stop(stage: str, done: float, what: str) -> None:
        if stage == "speak" and done >= 0.6:
            raise KeyboardInterrupt

    request = request_of(victim, tmp_path, "stopped", steps=20, precision=precision)
    with pytest.raises(KeyboardInterrupt):
        train(request, stop)
    assert not request.output.exists()
    seen: list[float] = []
    again = train(request, lambda stage, done, what: seen.append(done) if stage == "speak" else None)
    assert seen[0] >= 0.6
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert any("going on from step" in note for note in again.notes)
    # What half the bits taught is read by all of them: it is the same language model.
    assert adapter.read_header(again.path).language_sha256 == language.load(LANGUAGE).sha256


def test_pictures_without_captions_go_by_their_class(victim: str, tmp_path: Path) -> None:
    pictures(tmp_path / "public", 24, 0, captions=False)
    pictures(tmp_path / "held", 9, 1, captions=False)
    header = adapter.read_header(train(request_of(victim, tmp_path, steps=4)).path)
    assert header.caption in {f"a photo of {name}" for name in COLOURS}


def test_captions_alone_are_enough(victim: str, tmp_path: Path) -> None:
    pictures(tmp_path / "public", 24, 0, labels=False)
    pictures(tmp_path / "held", 9, 1, labels=False)
    trained = train(request_of(victim, tmp_path, steps=4))
    header = adapter.read_header(trained.path)
    assert header.label is None
    assert header.config.classes == 0
    assert {row[2] for row in trained.record["rows"]} == {"–"}


def test_bad_input_is_one_line_and_nothing_is_written(seepage: Run, victim: str, tmp_path: Path) -> None:
    request = request_of(victim, tmp_path)
    bare = pictures(tmp_path / "bare", 24, 3, captions=False, labels=False)
    words = ["train", TINY, victim, "--language", LANGUAGE, "--layer", "mix", "--public"]
    target = tmp_path / "out" / "a.safetensors"
    for more, message in (
        ([bare], "too few pictures of bare have captions or labels"),
        ([request.public, "--language", tmp_path / "nowhere"], "nowhere"),
        ([request.public, "--language", "no_such/model"], "no_such/model"),
        ([request.public, "--layer", "nowhere"], "nowhere"),
        ([request.public, "--storage", "int4"], "expected fp32 or fp16 or int8"),
        ([request.public, "--preset", "rn50-coco-layer9"], "did you mean 'rn50-coco-layer"),
        ([request.public, "--preset", "rn50-coco-layer3"], "--preset rn50-coco-layer3 has its own align, width"),
    ):
        code, out, error = seepage(*words, *more, "--steps", 2, "-o", target)
        assert code == 2, (more, error)
        assert message in error
        assert len(error.strip().splitlines()) == 1, error
        assert out == ""
        assert not target.exists()
    code, _, error = seepage("train", f"{TINY},adapter=x", victim, "--layer", "mix", "--public", bare, "-o", target)
    assert code == 2
    assert "leave it out" in error
    code, _, error = seepage("train", f"{TINY},through=mix", victim, "--layer", "mix", "--public", bare, "-o", target)
    assert code == 2
    assert "train it at that layer, with --layer mix" in error


def test_scheme_of_the_authors_is_one_pooled_token_without_alignment(victim: str, tmp_path: Path) -> None:
    attack = TINY.replace("align=0", "align=40")
    trained = train(request_of(victim, tmp_path, attack=attack, steps=4, authors=True))
    model, header = adapter.read(trained.path)
    assert header.config.pooled
    assert header.config.filling
    assert not header.aligned
    assert model.mapper("wide")(torch.rand(2, 16, 16, 16)).shape[1] == 1
    assert [stage["name"] for stage in trained.record["stages"]] == ["speak"]


@pytest.mark.parametrize(("words", "message"), [(1_000_000, "at most 10,000 characters"), (1_900, None)])
def test_captions_a_million_words_long_are_refused_and_long_ones_cut(
    victim: str, tmp_path: Path, words: int, message: str | None
) -> None:
    request = request_of(victim, tmp_path, steps=2)
    lines = (tmp_path / "public" / "metadata.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"captions": ["word " * words]}
    (tmp_path / "public" / "metadata.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]))
    if message is None:
        assert train(request).path.exists()
        return
    with pytest.raises(SeepageError, match=message):
        train(request)
    assert not request.output.exists()


@pytest.mark.assets
def test_queries_are_aligned_to_sentences_that_are_computed_once(victim: str, tmp_path: Path) -> None:
    attack = TINY.replace("align=0", "align=40")
    request = request_of(victim, tmp_path, attack=attack, steps=4)
    trained = train(request)
    first, second = trained.record["stages"]
    assert [first["name"], second["name"]] == ["align", "speak"]
    held = dict(first["held"]["held-out"])
    assert held[40] < held[0] - 0.3
    assert held[40] < dict(first["held"]["shuffled"])[40] - 0.3
    assert adapter.read_header(trained.path).aligned
    vectors = request.workdir / "train.safetensors"
    stamp, before = vectors.stat().st_mtime_ns, trained.path.read_bytes()
    assert train(request).path.read_bytes() == before
    assert vectors.stat().st_mtime_ns == stamp
    vectors.write_bytes(vectors.read_bytes()[:100])
    assert train(request).path.read_bytes() == before
    assert vectors.stat().st_mtime_ns != stamp


def test_pictures_that_an_adapter_learned_from_are_refused(seepage: Run, victim: str, tmp_path: Path) -> None:
    """By the hash of their files; and without --layer the adapter is used where it was trained."""
    request = request_of(victim, tmp_path, steps=2)
    path = train(request).path
    attack = f"caprecover:adapter={path},most=4"
    code, out, error = seepage("audit", victim, tmp_path / "held", "--attack", attack, "-o", tmp_path / "seen")
    assert code == 2
    assert out == ""
    assert "has learned from 9 of the 9 pictures under audit, the first 00.png" in error
    test = pictures(tmp_path / "test", 2, 2)
    code, _, error = seepage("audit", victim, test, "--attack", attack, "--dry-run")
    assert code == 0, error
    grid = jobs(Workbench(Request(victim, str(test), attacks=(attack, "rmle"))))
    assert [job.spec.layer for job in grid if job.spec.attack.startswith("caprecover")] == ["mix", "wide"]
    assert len({job.spec.layer for job in grid if job.spec.attack.startswith("rmle")}) > 2


def test_labels_alone_need_no_language_model(victim: str, tmp_path: Path) -> None:
    """Named classes could be said; whoever wants labels trains a read-out, and no model is loaded."""
    request = request_of(victim, tmp_path, attack=f"{TINY},read=label", language="/no/such/model")
    trained = train(request)
    header = adapter.read_header(trained.path)
    assert (header.language_sha256, header.aligned, header.caption) == ("", False, "")
    assert header.scores["mix/top1/held-out"] == 1.0
    pictures(tmp_path / "bare", 30, 3, labels=False)
    bare = request_of(victim, tmp_path, "bare", attack=f"{TINY},read=label", select=None)
    with pytest.raises(SeepageError, match="has a label, which read=label learns"):
        train(replace(bare, public=str(tmp_path / "bare")))


def relabelled(root: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    lines = map(json.loads, (root / "metadata.jsonl").read_text().splitlines())
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(change(*line)) for line in enumerate(lines)))


def test_labels_are_learned_of_the_pictures_that_have_one(victim: str, tmp_path: Path) -> None:
    """What has a caption and no label teaches no label, and one without a caption does."""
    request = request_of(victim, tmp_path, attack=f"{TINY},read=label", steps=4)

    def some(place: int, line: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in line.items() if key != ("label" if place % 2 else "captions")}

    for folder in ("public", "held"):
        relabelled(tmp_path / folder, some)
    header = adapter.read_header(train(request).path)
    assert 0 <= header.scores["mix/top1/held-out"] <= 1


def test_a_held_out_class_that_was_never_learned_is_left_out(victim: str, tmp_path: Path) -> None:
    request = request_of(victim, tmp_path, attack=f"{TINY},read=label", steps=4)

    def numbered(place: int, line: dict[str, Any]) -> dict[str, Any]:
        return {"file_name": line["file_name"], "label": place % 3}

    relabelled(tmp_path / "public", numbered)
    relabelled(
        tmp_path / "held", lambda place, line: {**numbered(place, line), "label": 7 if place == 0 else place % 3}
    )
    header = adapter.read_header(train(request).path)
    assert 0 <= header.scores["mix/top1/held-out"] <= 1


def test_an_adapter_of_another_language_model_fetches_none(victim: str, tmp_path: Path) -> None:
    path = train(request_of(victim, tmp_path, steps=2)).path
    assert CapRecover(adapter=path).assets() == ("minilm", "minilm_tokenizer")
    assert CapRecover(adapter=tmp_path / "nowhere").assets()[0] == language.DEFAULT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "fp16 training needs a GPU"),
        ({"accumulate": 0}, "accumulate is a number of at least 1, got 0"),
        ({"steps": 0}, "steps is a number at least 1, got 0"),
        ({"attack": f"{TINY},lr=0".replace("lr=0.005,", "")}, "lr is a number above 0, got 0"),
        ({"attack": TINY.replace("width=32", "width=33")}, "33"),
        ({"language": "no-such-folder/model"}, "no-such-folder/model"),
    ],
)
def test_what_cannot_work_is_refused_before_the_victim_runs(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stages: list[str] = []
    with pytest.raises(SeepageError, match=message) as caught:
        train(request_of(victim, tmp_path, **changes), lambda stage, done, what: stages.append(stage))
    assert len(str(caught.value).splitlines()) == 1
    assert stages == []
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_training_begins_as_an_adapter_of_other_layers(seepage: Run, victim: str, tmp_path: Path) -> None:
    """What speaks is taken over: before the first step it says more than one drawn at random."""
    first = train(replace(request_of(victim, tmp_path, "first", language=WIDER), layers=("mix",)))
    more = pictures(tmp_path / "more", 12, 2)

    def asked(name: str, **changes: object) -> TrainRequest:
        request = request_of(victim, tmp_path, name, language=WIDER, steps=2, **changes)
        attack = "caprecover:align=0,lr=0.000001" if "begin" in changes else TINY
        return replace(request, attack=attack, layers=("wide",), public=str(more))

    begun = train(asked("begun", begin=first.path))
    drawn = train(asked("drawn"))
    held = {one.path.stem: one.record["stages"][-1]["held"]["no features"][0][1] for one in (begun, drawn)}
    assert held["begun"] < held["drawn"] - 0.5
    before, after = (adapter.read(one.path) for one in (first, begun))
    assert tuple(after[1].layers) == ("wide",)
    assert after[1].train.hashes > before[1].train.hashes
    assert "begun as an adapter of" in after[1].trained_on
    weights = [model.state_dict() for model, _ in (before, after)]
    shared = [key for key in weights[0] if key.startswith(("qformer.", "speech."))]
    assert shared
    for key in shared:
        torch.testing.assert_close(weights[1][key], weights[0][key], atol=2e-3, rtol=2e-3)

    mine = ("train", "--layer", "wide", "--public", more, "--begin", first.path, "-o", tmp_path / "no.safetensors")
    for words, message in [
        (["caprecover:width=64", victim, "--select", tmp_path / "held"], "has its own width: name it without"),
        (["caprecover", victim, "--authors", "--select", tmp_path / "held"], "--begin is for caprecover, without"),
        (["probe", victim], "--begin is for caprecover, without --preset and --authors"),
        (["caprecover", victim, "--select", tmp_path / "held", "--language", LANGUAGE], "name the same with"),
        (["caprecover", victim, "--select", tmp_path / "public"], "learned from 24 of the pictures that are held out"),
        (["caprecover", victim, "--begin", tmp_path / "none"], "no adapter"),
    ]:
        code, _, error = seepage(*mine, *words)
        assert (code, message in error, len(error.strip().splitlines())) == (2, True, 1), error
    assert not (tmp_path / "no.safetensors").exists()
