"""Ways to more CIDEr than the shipped adapter has at MobileNetV2's last cut, tried on Flickr8k's dev split.

    SEEPAGE_DATA=... python benchmarks/caption_ways.py [--rows TEXT]... [--list] [--pictures 500]

All begin at the shipped adapter's weights, and decode greedily but for the row that says beam. Two need no training:
the mean log-probability over the leak and its mirror image, and over two adapters. Three go on training on the train
split: `consensus` draws the captions that agree with a picture's others (a softmax of CIDEr-D over .2),
`self-critical` rewards what the model itself says by CIDEr-D, against the mean reward of the picture's other samples
(Rennie et al. 2017; leave-one-out as in Kool et al. 2019), and `its own beam` learns to say greedily what its beam of
five says of 2,000 training pictures (Kim and Rush 2016). Differences are paired bootstraps over the same pictures.
Nothing here is chosen by, or tested on, the test split. Rows are kept when they are done; writes
`results/caption_ways.md` and `.json`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import asked
from seepage import assets
from seepage.attacks.caprecover import adapter
from seepage.attacks.caprecover.draws import draw
from seepage.attacks.caprecover.generation import Decode, captions, write
from seepage.attacks.caprecover.language import LanguageModel, Tokens, load
from seepage.attacks.caprecover.model import CapRecoverModel
from seepage.audit.statistics import describe, paired_difference
from seepage.metrics.caption import Cider
from seepage.metrics.sentences import Pair
from seepage.seeding import generator
from seepage.studies.captioned import Captioned, Sentences
from seepage.studies.material import material, sources

RESULTS = Path(__file__).parent / "results" / "caption_ways.json"
VICTIM, CUT, CARRIED = "zoo/mobilenet_v2", "features.17", "features.3"
SHIPPED = Path(adapter.__file__).parent / "adapters"
COLUMNS = ("way", "n", "CIDEr [95 %]", "more than greedy [95 %], paired", "nats a token", "minutes")
AT_ONCE = 20
KEEP = 0.3
Step = Callable[[int], Tensor]


@dataclass
class Bench:
    """What all ways share: the pictures, the language model and a way to score what is said."""

    train: Captioned
    dev: Captioned
    rows: tuple[int, ...]
    sentences: Sentences
    language: LanguageModel

    def prompts(self, model: CapRecoverModel, mirrored: bool = False) -> Iterator[Tensor]:
        """Yield what the language model reads of the dev pictures, some at a time."""
        for start in range(0, len(self.rows), AT_ONCE):
            leak = self.dev.part.features[CUT].read(self.rows[start : start + AT_ONCE])
            with torch.no_grad():
                yield model.prompt(model.queries(CUT, leak.flip(-1) if mirrored else leak), self.language)

    def references(self) -> tuple[tuple[str, ...], ...]:
        """Return what people said of the dev pictures."""
        own = dict(zip(self.dev.rows, self.dev.captions, strict=True))
        return tuple(own[row] for row in self.rows)

    def scores(self, said: Sequence[str]) -> list[float]:
        """Return CIDEr-D of one caption a dev picture."""
        truths = self.references()
        return Cider().scores([Pair(one, own) for one, own in zip(said, truths, strict=True)], truths)

    def surprise(self, model: CapRecoverModel) -> float:
        """Return nats a token of each dev picture's first caption."""
        nats, count = 0.0, 0
        for start, prompt in zip(range(0, len(self.rows), AT_ONCE), self.prompts(model), strict=True):
            some = self.rows[start : start + AT_ONCE]
            tokens = self.language.tokens(
                [self.dev.texts[self.dev.first(row)] for row in some], model.config.most_tokens
            )
            with torch.no_grad():
                nats -= float(self.language.log_probabilities(prompt, tokens).sum())
            count += int(tokens.lengths.sum())
        return nats / count


def opened(root: str, pictures: int) -> Bench:
    """Return both splits with their features, the captions' vectors and the language model."""
    have = material(
        VICTIM, (CUT,), sources(f"flickr8k/train@{root}", f"flickr8k/dev@{root}", None),
        progress=lambda done, what: None, flips=True,
    )  # fmt: skip
    train, dev = Captioned.of(have.train), Captioned.of(have.select)
    kept = assets.home() / "benchmarks" / "caption_ways.safetensors"
    sentences = Sentences.of(train, kept, lambda done, what: None)
    return Bench(train, dev, dev.rows[:pictures], sentences, load("smollm2", "cpu", torch.bfloat16))


def shipped(name: str) -> CapRecoverModel:
    """Return an adapter of the package."""
    return adapter.read(SHIPPED / f"{name}.safetensors")[0].eval()


def says(bench: Bench, model: CapRecoverModel, how: Decode) -> list[str]:
    """Return a caption a dev picture."""
    model.eval()
    return [
        one for prompt in bench.prompts(model) for one in captions(bench.language, write(bench.language, prompt, how))
    ]


def together(bench: Bench, prompts: Sequence[Iterator[Tensor]]) -> list[str]:
    """Return captions whose every word is the likeliest by the mean log-probability over several prompts."""
    language, how, said = bench.language, Decode(), []
    for some in zip(*prompts, strict=True):
        ids = torch.zeros(len(some[0]), 0, dtype=torch.long)
        done = torch.zeros(len(ids), dtype=torch.bool)
        while ids.shape[1] < how.most and not done.all():
            mean = torch.stack([after(language, prompt, ids) for prompt in some]).mean(0)
            mean[:, list(language.banned)] = -torch.inf
            if ids.shape[1] < how.least:
                mean[:, language.end] = -torch.inf
            token = mean.argmax(1).masked_fill(done, language.end)
            ids, done = torch.cat([ids, token[:, None]], 1), done | (token == language.end)
        said += [language.caption(row) for row in ids.tolist()]
    return said


@torch.no_grad()
def after(language: LanguageModel, prompt: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities of the next token; all is read anew, which short captions can afford."""
    embedded = language.embed(ids)
    read = torch.cat([prompt.to(embedded), embedded], 1)
    logits: Tensor = language.network(inputs_embeds=read, use_cache=False, logits_to_keep=1).logits
    return logits[:, -1].float().log_softmax(1)


def trained(model: CapRecoverModel, rate: float, steps: int, loss: Step, name: str) -> CapRecoverModel:
    """Return the model after some steps of AdamW, its rate warmed up and let down along a cosine."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    model.train()
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
        found = loss(step)
        optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            print(f"{name}: step {step + 1} of {steps}, {(time.perf_counter() - began) / (step + 1):.2f} s", flush=True)
    return model.eval()


def consensus(bench: Bench, model: CapRecoverModel, steps: int, size: int = 32, spread: float = 0.2) -> CapRecoverModel:
    """Go on training, with captions drawn the more often the better they agree with the picture's others."""
    judge, documents = Cider(), tuple(bench.train.captions)
    lead = [judge.scores([Pair(own[i], own[:i] + own[i + 1 :]) for own in documents], documents) for i in range(5)]
    weights = (torch.tensor(lead).T / spread).softmax(1)

    def loss(step: int) -> Tensor:
        drawn = draw(0, "consensus", step, size, [1] * len(documents))
        pick = torch.multinomial(weights[list(drawn.rows)], 1, generator=generator(0, "fit", "consensus", step))[
            :, 0
        ].tolist()
        rows = [bench.train.rows[one] for one in drawn.rows]
        texts = [bench.train.first(row) + one for row, one in zip(rows, pick, strict=True)]
        tokens = bench.language.tokens([bench.train.texts[one] for one in texts], model.config.most_tokens)
        kept = bench.train.part.features[CUT]
        leak = kept.read(rows, kept.ways(drawn.shares))
        return model.generation_loss(CUT, leak, tokens, bench.language, text=bench.sentences[texts], keep=KEEP)

    return trained(model, 2e-4, steps, loss, "consensus")


def self_critical(
    bench: Bench, model: CapRecoverModel, steps: int, size: int = 8, samples: int = 4, warmth: float = 0.5
) -> CapRecoverModel:
    """Go on training by the reward of what the model says itself."""
    judge, truths, language = Cider(), bench.train.captions, bench.language
    how = Decode("sample", temperature=warmth, share=1.0, most=24)

    def loss(step: int) -> Tensor:
        drawn = draw(0, "self-critical", step, size, [len(own) for own in truths])
        rows = [bench.train.rows[one] for one in drawn.rows]
        kept = bench.train.part.features[CUT]
        queries = model.queries(CUT, kept.read(rows, kept.ways(drawn.shares)))
        prompt = model.prompt(queries, language).repeat_interleave(samples, 0)
        dice = [generator(0, "fit", "self-critical", step, row) for row in range(len(prompt))]
        written = write(language, prompt.detach(), how, dice)
        pairs = [Pair(one, truths[drawn.rows[i // samples]]) for i, one in enumerate(captions(language, written))]
        reward = torch.tensor(judge.scores(pairs, tuple(truths))).view(size, samples)
        others = (reward.sum(1, keepdim=True) - reward) / (samples - 1)
        found = likelihood(language, prompt, written.tokens, warmth).sum(1)
        said = -((reward - others).flatten() * found).mean() / written.tokens.lengths.float().mean()
        texts = [bench.train.first(row) + one for row, one in zip(rows, drawn.captions, strict=True)]
        return said + KEEP * model.alignment(queries, bench.sentences[texts])

    return trained(model, 1e-4, steps, loss, "self-critical")


def distilled(
    bench: Bench, model: CapRecoverModel, steps: int, pictures: int = 2000, size: int = 32
) -> CapRecoverModel:
    """Go on training with what the model's own beam says in place of what people said."""
    kept, rows = bench.train.part.features[CUT], bench.train.rows[:pictures]
    file = assets.home() / "benchmarks" / f"beams-{adapter.sha256(SHIPPED / 'mobilenet_v2.safetensors')[:12]}.json"
    said: list[str] = json.loads(file.read_text())[:pictures] if file.exists() else []
    for start in range(len(said), len(rows), AT_ONCE):
        with torch.no_grad():
            prompt = model.prompt(model.queries(CUT, kept.read(rows[start : start + AT_ONCE])), bench.language)
        said += captions(bench.language, write(bench.language, prompt, Decode("beam", beams=5)))
        file.write_text(json.dumps(said))
        print(f"{datetime.now(UTC):%H:%M:%S} beams of {len(said)} of {len(rows)} pictures", flush=True)
    counts = [len(own) for own in bench.train.captions[:pictures]]

    def loss(step: int) -> Tensor:
        drawn = draw(0, "distilled", step, size, counts)
        some = [rows[one] for one in drawn.rows]
        tokens = bench.language.tokens([said[one] for one in drawn.rows], model.config.most_tokens)
        texts = [bench.train.first(row) + one for row, one in zip(some, drawn.captions, strict=True)]
        leak = kept.read(some, kept.ways(drawn.shares))
        return model.generation_loss(CUT, leak, tokens, bench.language, text=bench.sentences[texts], keep=KEEP)

    return trained(model, 2e-4, steps, loss, "distilled")


def likelihood(language: LanguageModel, prompt: Tensor, tokens: Tokens, warmth: float) -> Tensor:
    """Return the log-probability of each token at a temperature."""
    embedded = language.embed(tokens.ids[:, :-1])
    read = torch.cat([prompt.to(embedded), embedded], 1)
    logits = language.network(inputs_embeds=read, use_cache=False, logits_to_keep=tokens.ids.shape[1]).logits
    found = -nn.functional.cross_entropy(logits.float().mT / warmth, tokens.ids, reduction="none")
    return torch.where(tokens.mask, found, 0.0)


def ways(bench: Bench) -> dict[str, Callable[[], tuple[list[str], float | None]]]:
    """Return, by name, what gives a caption a dev picture, and the surprise where one model says it."""
    late, both = "mobilenet_v2", ("mobilenet_v2", "mobilenet_v2_by_depth")

    def alone(make: Callable[[], CapRecoverModel], how: Decode = Decode()) -> tuple[list[str], float]:  # noqa: B008
        model = make()
        return says(bench, model, how), bench.surprise(model)

    def mirrored() -> tuple[list[str], None]:
        model = shipped(late)
        return together(bench, [bench.prompts(model), bench.prompts(model, mirrored=True)]), None

    def ensemble() -> tuple[list[str], None]:
        return together(bench, [bench.prompts(shipped(name)) for name in both]), None

    return {
        "greedy": lambda: alone(lambda: shipped(late)),
        "beam of 5": lambda: alone(lambda: shipped(late), Decode("beam", beams=5)),
        "the leak and its mirror image": mirrored,
        "two adapters": ensemble,
        "consensus, 400 steps": lambda: alone(lambda: consensus(bench, shipped(late), 400)),
        "self-critical, 150 steps": lambda: alone(lambda: self_critical(bench, shipped(late), 150)),
        "its own beam, 400 steps": lambda: alone(lambda: distilled(bench, shipped(late), 400)),
    }


def note(known: dict[str, dict[str, Any]]) -> None:
    """Write both files anew."""
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    stamp = f"`python benchmarks/caption_ways.py`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    lines = [stamp, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    base = known["greedy"]["scores"]
    for name, one in known.items():
        stats = describe(one["scores"], higher_leaks=True)
        more, low, high = paired_difference(base, one["scores"])
        difference = "–" if name == "greedy" else f"{more:+.3f} [{low:+.3f}, {high:+.3f}]"
        nats = "–" if one["nats"] is None else f"{one['nats']:.3f}"
        interval = f"{stats.mean:.3f} [{stats.ci_low:.3f}, {stats.ci_high:.3f}]"
        cells = (name, str(stats.n), interval, difference, nats, f"{one['seconds'] / 60:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    RESULTS.with_suffix(".md").write_text("\n".join([*lines, ""]))


def main(wanted: Sequence[str], listing: bool, pictures: int) -> None:
    """Try the ways that are missing and write the table."""
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("caption_ways: set SEEPAGE_DATA to the folder with flickr8k_images.tar and flickr8k_text.tgz")
    bench = opened(os.environ["SEEPAGE_DATA"], pictures)
    everything = ways(bench)
    names = [name for name in everything if not wanted or any(text in name for text in wanted)]
    if listing:
        print("\n".join(names))
        return
    known: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        if len(known.get(name, {}).get("scores", ())) == pictures:
            continue
        began = time.perf_counter()
        said, nats = everything[name]()
        known[name] = {"scores": bench.scores(said), "nats": nats, "seconds": time.perf_counter() - began}
        known = {key: known[key] for key in everything if key in known and len(known[key]["scores"]) == pictures}
        if "greedy" in known:
            note(known)
        print(f"{datetime.now(UTC):%H:%M:%S} {name}", flush=True)


if __name__ == "__main__":
    parser = asked.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=500, help="how many of the dev split")
    given = parser.parse_args()
    main(given.rows, given.list, given.pictures)
