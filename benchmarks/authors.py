"""CapRecover's training as its authors' code does it, and as it is done here, against the clock.

    SEEPAGE_DATA=... python benchmarks/authors.py [--layer features.3] [--seconds 7200] [--begin ADAPTER] [--fresh]

Two networks of one size learn captions of Flickr8k's train split from MobileNetV2 at one cut, one after the other in
one run, alone on the machine, from the same seed, at the same rate and batch, under the same frozen language model in
bf16, compiled while neither clock runs.

`authors` reads every picture anew and runs the victim at every step, has all places averaged into one token, counts
what fills captions up in the loss, and is not aligned to sentences; it has SECONDS. `ours` runs the victim once a
picture beforehand, computes sentence vectors, aligns and then learns to speak; all of that is on its clock, which
stops at a fifth of SECONDS. The rate falls along a cosine of each one's time. On the way, the clock stopped, both
describe 500 photographs of the dev split: CIDEr-D over them, words weighed by the dev split's references. A run that is
killed goes on where its clock stood five minutes before at most, unless `--fresh`; what ours learned is learned anew.
At the last cut, features.17, nothing is left between the two after 5,000 steps (`captions.py`), and most of a step is
the language model's, alike for both: there a fifth of the time is too little. With `--begin zoo/mobilenet_v2` ours goes
on from the adapter that ships, which has learned from the same pictures, 1,200 and 5,000 steps, at the last cut; what
that took is not on its clock, and the table says so.
Writes `results/authors_LAYER.md` and `.json`, with `_begun` behind the layer's name where ours went on from another.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from seepage import assets
from seepage.attacks.caprecover.draws import draw, draw_alike
from seepage.attacks.caprecover.fitting import Course
from seepage.attacks.caprecover.generation import Decode, captions, write
from seepage.attacks.caprecover.language import LanguageModel, load
from seepage.attacks.caprecover.mapper import Standard
from seepage.attacks.caprecover.model import CapRecoverModel, ModelConfig, configured
from seepage.attacks.caprecover.presets import as_the_authors
from seepage.attacks.caprecover.qformer import QFormerConfig
from seepage.audit.statistics import describe, paired_difference
from seepage.metrics import Cider
from seepage.metrics.sentences import Pair
from seepage.studies.begun import Begun
from seepage.studies.captioned import Captioned, Sentences
from seepage.studies.material import Material, material, sources

RESULTS = Path(__file__).parent / "results"
VICTIM, SEED = "zoo/mobilenet_v2", 0
BATCH, RATE, GENTLER, WARM = 16, 5e-4, 0.6, 20
ALIGN_BATCH, ALIGNED = 64, 0.4
"""Of our time for steps so much is alignment's."""
SHARE, LOOKS, TESTED = 0.2, 6, 500
KEPT = 300.0
"""So many seconds on the clock lie between two files to go on from."""
Say = Callable[[str, int, float, list[float]], None]
"""Takes who, after how many steps and seconds, and each test photograph's CIDEr-D."""


@dataclass
class Clock:
    """Seconds that count: those between `go` and `stop`."""

    spent: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def stop(self) -> float:
        """Stop it; return what was spent."""
        self.spent += time.perf_counter() - self.since
        return self.spent

    def go(self) -> None:
        """Go on."""
        self.since = time.perf_counter()

    @property
    def now(self) -> float:
        """What was spent so far, while it runs."""
        return self.spent + time.perf_counter() - self.since


@dataclass(frozen=True)
class Bench:
    """What both learn from and are asked about."""

    have: Material
    train: Captioned
    select: Captioned
    language: LanguageModel
    layer: str

    @property
    def counts(self) -> list[int]:
        """How many captions each picture has."""
        return [count for _, count in (self.train.places[row] for row in self.train.rows)]

    def text(self, place: int, one: int) -> int:
        """Return the number of one caption of a picture."""
        return self.train.places[self.train.rows[place]][0] + one

    def cider(self, model: CapRecoverModel) -> list[float]:
        """Return the CIDEr-D of what is said of each of the test's photographs, greedily."""
        model.eval()
        said: list[str] = []
        rows = self.select.rows[:TESTED]
        # Captions are written eagerly: they grow by a word at a time, and each length would be compiled anew.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for start in range(0, len(rows), 20):
                features = self.select.part.features[self.layer].read(rows[start : start + 20])
                prompt = model.prompt(model.queries(self.layer, features), self.language)
                said += captions(self.language, write(self.language, prompt, Decode()))
        model.train()
        references = dict(zip(self.select.rows, self.select.captions, strict=True))
        pairs = [Pair(text, references[row]) for text, row in zip(said, rows, strict=True)]
        return Cider().scores(pairs, tuple(references.values()))


def network(bench: Bench, *, authors: bool, begin: Path | None = None) -> CapRecoverModel:
    """Return a network that has learned the features' moments alone, and else what it begins as has."""
    config = configured(ModelConfig(QFormerConfig().sized()), bench.language)
    config = as_the_authors(config, Course())[0] if authors else config
    begun = None if begin is None else Begun.of(begin)
    config = config if begun is None else begun.config(0, 0.0)
    model = CapRecoverModel(config, {bench.layer: bench.train.part.features[bench.layer].shape}, SEED).train()
    if begun is not None:
        begun.require(bench.language, bench.select)
        begun.give(model, None)
    standard = Standard(model.layers[bench.layer])
    for features in bench.train.part.batches(bench.layer):
        standard.add(features)
    model.mapper(bench.layer).standardise(standard)
    return model


def learn(
    model: CapRecoverModel,
    loss: Callable[[int], Tensor],
    rate: float,
    clock: Clock,
    until: float,
    looks: int,
    look: Callable[[int], None],
    kept: Path | None = None,
) -> int:
    """Make steps until the clock says so; look so many times on the way, the last time at the end; return the steps.

    Goes on from what an earlier call wrote to `kept`, its clock's seconds among it.
    """
    adam = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    began, step = clock.now, 0
    marks = [began + (until - began) * (place + 1) / looks for place in range(looks)]
    torch.manual_seed(SEED)
    if kept is not None and kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        torch.set_rng_state(state["dice"])
        clock.spent, step = state["spent"], state["step"]
        marks = [mark for mark in marks if mark > clock.spent]
        clock.go()
    saved = clock.now
    while clock.now < until:
        done = (clock.now - began) / (until - began)
        for group in adam.param_groups:
            group["lr"] = rate * min((step + 1) / WARM, 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        adam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(step)
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        step += 1
        if len(marks) > 1 and clock.now >= marks[0]:
            marks.pop(0)
            clock.stop()
            look(step)
            clock.go()
        if kept is not None and clock.now - saved >= KEPT:
            saved = clock.stop()
            state = {"model": model.state_dict(), "adam": adam.state_dict(), "dice": torch.get_rng_state()}
            torch.save({**state, "spent": saved, "step": step}, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
            clock.go()
    clock.stop()
    if looks:
        look(step)
    clock.go()
    return step


def theirs(bench: Bench, seconds: float, kept: Path, say: Say) -> None:
    """Learn as the published code does: the victim runs at every step; a killed run goes on from `kept`."""
    model, (split,) = network(bench, authors=True), bench.have.splits.values()
    warm_up(bench, model)
    clock = Clock()

    def loss(step: int) -> Tensor:
        some = draw(SEED, "speak", step, BATCH, bench.counts)
        entries = [bench.train.part.source.entries[bench.train.rows[place]] for place in some.rows]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            leak = split.leak(torch.stack([split.load(entry.path) for entry in entries]))
        texts = [bench.train.texts[bench.text(place, one)] for place, one in zip(some.rows, some.captions, strict=True)]
        tokens = bench.language.tokens(texts, model.config.most_tokens)
        return model.generation_loss(bench.layer, leak.features, tokens, bench.language)

    def look(step: int) -> None:
        say("authors", step, clock.spent, bench.cider(model))

    learn(model, loss, RATE, clock, seconds, LOOKS, look, kept)


def ours(bench: Bench, clock: Clock, seconds: float, folder: Path, begin: Path | None, say: Say) -> None:
    """Learn as `seepage train caprecover` does; the clock has run since before the victim did."""
    clock.go()
    vectors = Sentences.of(bench.train, folder / "train.safetensors", lambda done, what: None)
    model, features = network(bench, authors=False, begin=begin), bench.train.part.features[bench.layer]
    clock.stop()
    warm_up(bench, model)
    clock.go()

    def align(step: int) -> Tensor:
        some = draw(SEED, "align", step, ALIGN_BATCH, bench.counts)
        shown = features.read([bench.train.rows[place] for place in some.rows])
        text = vectors[[bench.text(place, one) for place, one in zip(some.rows, some.captions, strict=True)]]
        return model.alignment_loss(bench.layer, shown, text)

    def speak(step: int) -> Tensor:
        length = lambda place, one: len(bench.train.texts[bench.text(place, one)])  # noqa: E731
        some = draw_alike(SEED, "speak", step, BATCH, bench.counts, length)
        picked = [bench.text(place, one) for place, one in zip(some.rows, some.captions, strict=True)]
        shown = features.read([bench.train.rows[place] for place in some.rows])
        tokens = bench.language.tokens([bench.train.texts[one] for one in picked], model.config.most_tokens)
        return model.generation_loss(bench.layer, shown, tokens, bench.language, text=vectors[picked])

    def look(step: int) -> None:
        say("ours", step, clock.spent, bench.cider(model))

    ready = clock.now
    learn(model, align, GENTLER * RATE, clock, ready + ALIGNED * (seconds - ready), 0, look)
    learn(model, speak, RATE, clock, seconds, LOOKS, look)


def main(layer: str, seconds: float, pictures: int | None, begin: Path | None, results: Path, fresh: bool) -> None:
    """Let both learn and write what they said when."""
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("authors: set SEEPAGE_DATA to the folder with flickr8k_images.tar and flickr8k_text.tgz")
    root, own = os.environ["SEEPAGE_DATA"], assets.home()
    name = f"authors-{layer}-{seconds:.0f}{f'-{pictures}' if pictures else ''}{'-begun' if begin else ''}"
    folder = own / "benchmarks" / name
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    kept, learned = folder / "theirs.pt", folder / "ours.json"
    known = folder / "theirs.json"
    found: list[dict[str, Any]] = json.loads(learned.read_text()) if learned.exists() else []

    def say(who: str, step: int, spent: float, cider: list[float]) -> None:
        found.append({"who": who, "step": step, "seconds": spent, "cider": cider})
        print(f"{datetime.now(UTC):%H:%M:%S} {who}, step {step}, {spent:.0f} s: CIDEr {mean(cider):.3f}", flush=True)
        if who == "authors":
            known.write_text(json.dumps(found))

    language = load("smollm2", dtype=torch.bfloat16)
    parts = sources(f"flickr8k/train@{root}", f"flickr8k/dev@{root}", pictures)
    with language.compiled():
        if not found:
            with tempfile.TemporaryDirectory() as empty:
                # Nothing that earlier runs left behind is on our clock's side.
                (Path(empty) / "assets").symlink_to(own / "assets")
                with unittest.mock.patch.dict(os.environ, {"SEEPAGE_HOME": empty}):
                    clock = Clock()
                    have = material(VICTIM, (layer,), parts)
                    print(f"{datetime.now(UTC):%H:%M:%S} the victim ran once: {clock.stop():.0f} s", flush=True)
                    bench = Bench(have, Captioned.of(have.train), Captioned.of(have.select), language, layer)
                    ours(bench, clock, SHARE * seconds, Path(empty), begin, say)
            learned.write_text(json.dumps(found))
        if kept.exists():
            until = torch.load(kept, weights_only=True)["spent"]
            found += [one for one in json.loads(known.read_text())[len(found) :] if one["seconds"] <= until]
        have = material(VICTIM, (layer,), parts)
        theirs(Bench(have, Captioned.of(have.train), Captioned.of(have.select), language, layer), seconds, kept, say)
    write_tables(found, layer, seconds, begin, results)


def warm_up(bench: Bench, model: CapRecoverModel) -> None:
    """Have all that the network's steps run through compiled: captions alike in length and not, whose masks differ."""
    for step in range(8):
        some = draw(SEED, "warm", step, BATCH, bench.counts)
        texts = [bench.train.texts[bench.text(place, one)] for place, one in zip(some.rows, some.captions, strict=True)]
        texts = texts[:1] * BATCH if step % 2 else texts
        shown = bench.train.part.features[bench.layer].read([bench.train.rows[place] for place in some.rows])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.generation_loss(
                bench.layer, shown, bench.language.tokens(texts, model.config.most_tokens), bench.language
            )
        torch.autograd.backward(loss)
    model.zero_grad()


def write_tables(
    found: Sequence[dict[str, Any]], layer: str, seconds: float, begin: Path | None, results: Path
) -> None:
    """Write both files."""
    last = {who: next(one for one in reversed(found) if one["who"] == who) for who in ("authors", "ours")}
    goal, spent = mean(last["authors"]["cider"]), last["authors"]["seconds"]
    met = next((one for one in found if one["who"] == "ours" and mean(one["cider"]) >= goal), None)
    more, low, high = paired_difference(last["authors"]["cider"], last["ours"]["cider"])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    asked = f"--layer {layer} --seconds {seconds:.0f}{f' --begin {begin}' if begin else ''}"
    stamp = f"`python benchmarks/authors.py {asked}`, {machine}, torch {torch.__version__}"
    said = f"The authors' scheme ends at CIDEr {goal:.3f} after {spent:.0f} s; ours is " + (
        f"there after {met['seconds']:.0f} s, {spent / met['seconds']:.1f} times sooner."
        if met
        else "not there after a fifth of the time."
    )
    origin = "" if begin is None else f" Ours went on from {begin}, {Begun.of(begin).header.trained_on}, not counted."
    lines = [
        f"{stamp}, {datetime.now(UTC):%Y-%m-%d}.{origin}",
        "",
        f"{said} At its end, after {last['ours']['seconds']:.0f} s, ours scores {more:+.3f} [{low:+.3f}, {high:+.3f}] "
        f"against theirs at its own end, on the same {len(last['ours']['cider'])} photographs.",
        "",
        "| | steps | seconds | CIDEr [95 %] |",
        "|---|---|---|---|",
    ]
    for one in found:
        stats = describe(one["cider"], higher_leaks=True)
        interval = f"{stats.mean:.3f} [{stats.ci_low:.3f}, {stats.ci_high:.3f}]"
        lines.append(f"| {one['who']} | {one['step']} | {one['seconds']:.0f} | {interval} |")
    name = f"authors_{layer.replace('.', '')}{'_begun' if begin else ''}"
    (results / f"{name}.md").write_text("\n".join([*lines, ""]))
    rows = [{**one, "cider": mean(one["cider"])} for one in found]
    (results / f"{name}.json").write_text(json.dumps({"stamp": stamp, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="features.3", help="where MobileNetV2 is cut")
    parser.add_argument("--seconds", type=float, default=7200.0, help="what the authors' scheme has")
    parser.add_argument("--pictures", type=int, help="learn from so many pictures alone: for a try")
    parser.add_argument("--begin", type=Path, help="an adapter that ours goes on from")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="where the tables go")
    given = parser.parse_args()
    main(given.layer, given.seconds, given.pictures, given.begin, given.output, given.fresh)
