"""PEEL: the walk from the leak back to the picture, one block of the network at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..inverses import FALLBACK, Constrained, Inverse, Split, Step, Target, better, sizes, steps, unknowns
from ..priors import Ridge, RidgeDecoder, total_variation
from ..priors.ridge import Layout
from ..registry import register
from ..solvers import Solution
from ..types import (
    Access,
    Auxiliary,
    Generators,
    Images,
    Knowledge,
    Leak,
    NotRunError,
    Progress,
    Recoverer,
    Recovers,
    Recovery,
    Shape,
    Status,
)
from .head import Searches, remaining, searches
from .inversion import GREY, device_of, ended, leak_shape, recover_rows, white_box
from .joint import Joint
from .parameters import within

_EXACT_WIRES = ("fp32", "fp16")
# Another start lies so much of its norm away; none is tried where the residual is no larger than this.
_APART, _SOLVED = 0.5, 1e-6


@register("attack", "peel")
@dataclass(frozen=True)
class Peel:
    """Walk back over the prefix's segments: find what each was given from what it gave, until that is the picture.

    Arif, Murugesan, Das, Gittens & Chen, "PEEL the Layers and Find Yourself" (SaTML 2025), Algorithm 1. `walk=chain`
    hands each recovery to the segment before: one leak is all it sees. Of each segment f, last to first, it seeks the x
    with f(x) = y, by least |f(x) - y|^2. The paper's own form, of a block y = S(x) + W2 relu(W1 x), is least
    |y - S(x) - W2 p|^2 with W1 x = p - n, p >= 0, n >= 0, <p, n> = 0. How other kinds split is our reading: each ReLU
    has a p and an n; the first of a pre-activation block splits x, the last of a post-activation one has p = y where
    y > 0.

    A kind of block is solved by its own registered inverse, one without by the generic solver; all segments but the
    first are solved in the split form instead by `form=constrained`, with multipliers, and by `form=penalty`, as the
    authors' scripts do. `start=output` is the paper's hypothesis, a block's output for its input where the shapes
    agree, else zeros or what a grey picture gives, whichever fits; `zeros`; `noise` of deviation `noise`; `ridge`, what
    the picture of a linear decoder gives, fitted on `pictures` synthetic ones; `search`: blocks are undone from their
    outputs as far as that brings synthetic pictures back, `joint` finds a picture behind the rest, at the effort
    `search` and without beginning again, the walk goes on from what that gives each segment, and whichever of both
    pictures leaks more like the leak is kept. Where a segment gives fewer numbers than it takes, or
    what it gave is not exact to `tolerance`, `tv` times the total variation of what is sought decides what is open.
    `window` segments in a row are undone at once: what a block alone leaves open, the ones before it may tell. Where
    what a segment gave is exact and no fewer numbers than it takes, and its input is not found, the search begins again
    from up to `starts` places in all, the others half its norm away from the first; the answer that fits best is kept.
    Each start runs a segment at most `passes` times. White-box; auxiliary: none, synthetic with `start=ridge` and
    `start=search`.
    """

    walk: Literal["chain"] = "chain"
    form: Literal["least-squares", "penalty", "constrained"] = "least-squares"
    start: Literal["output", "zeros", "noise", "ridge", "search"] = "output"
    passes: int = 480
    tv: float = 0.3
    noise: float = 1e-3
    pictures: int = 24
    tolerance: float = 1e-3
    window: int = within(1, least=1)
    starts: int = within(1, least=1)
    search: Literal["quick", "standard", "full"] = "standard"

    recovers: ClassVar[Recovers] = "images"
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"passes": 60, "search": "quick"},
        "standard": {},
        "full": {"passes": 2400, "search": "full"},
    }

    @property
    def access(self) -> Access:
        """The prefix is needed, segment by segment."""
        return "white-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """Synthetic pictures where the start is learned."""
        return "synthetic" if self.start in ("ridge", "search") else "none"

    @property
    def budget(self) -> int:
        """Each segment is run at most so often, hence the prefix; a search comes on top."""
        return self.starts * self.passes + (self._search.budget if self.start == "search" else 0)

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Look at each segment once, and fit the start where it is learned.

        Raises:
            NotRunError: the attacker has no prefix, or another form is asked for than a search goes with.
        """
        prefix, seed = white_box(knowledge, "peel"), generator.initial_seed()
        grey = torch.full((1, *knowledge.image_shape), GREY, device=device_of(prefix))
        learned = None
        if self.start == "ridge":
            # The seed alone is saved: fitting again takes seconds and gives the same decoder.
            fresh = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                learned = Ridge(self.pictures).fit(
                    prefix, knowledge.image_shape, fresh, device=grey.device, progress=progress
                )
        path = steps(prefix, grey, self.window)
        heads, count = None, 0
        if self.start == "search":
            if self.form != "least-squares":
                raise NotRunError(f"peel:start=search undoes blocks by rules of their own, not by form={self.form}")
            # A defended leak is not exact, and no block is undone from what is not.
            smooth = partial(_smooth, self.tv, knowledge.image_shape)
            count = remaining(path, seed, self.passes - 2, smooth) if knowledge.law is None else len(path)
            heads = searches(path, knowledge, seed, self._search)
            heads(count)
        return PeelRecoverer(self, seed, leak_shape(prefix), path, learned, heads, count)

    @property
    def _search(self) -> Joint:
        return Joint(**Joint.efforts[self.search] | {"again": 0})  # type: ignore[arg-type]

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`, its start fitted again from the saved seed."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        seed = saved.pop("seed")
        return Peel(**saved).fit(knowledge, torch.Generator().manual_seed(seed))


class PeelRecoverer(Recoverer):
    """The walk over one prefix."""

    def __init__(
        self,
        attack: Peel,
        seed: int,
        expected: Shape,
        path: tuple[Step, ...],
        learned: tuple[RidgeDecoder, Tensor] | None,
        heads: Searches | None = None,
        count: int = 0,
    ) -> None:
        self.attack = attack
        self.seed = seed
        self.expected = expected
        self.path = path
        self.learned = learned
        self.heads = heads
        self.count = count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of a picture, channels first."""
        _, channels, height, width = self.path[0].grey.shape
        return channels, height, width

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Walk back from each row of the leak."""
        trace: list[Tensor] = []
        exact = leak.header.wire in _EXACT_WIRES and not leak.header.defenses

        def search(features: Tensor, rows: Sequence[int]) -> tuple[Tensor, Sequence[Status], Tensor]:
            walk = _Walk(self.attack, self.image_shape, features, exact, [generators[row] for row in rows])

            def back(path: Sequence[Step], guesses: Sequence[Tensor | None]) -> None:
                for step, guess in zip(reversed(path), reversed(guesses), strict=True):
                    walk.back(step, guess)
                    trace.append(_scattered(walk.features, rows, len(leak)))

            if self.heads is None:
                back(self.path, self._guesses(features))
                pictures = walk.pictures()
                return pictures, walk.ended(self._misfit(pictures, features)), walk.passes()
            count = self.count if exact else len(self.path)
            back(self.path[count:], [None] * (len(self.path) - count))
            sought = self.heads(count).recover(leak.with_features(walk.features), walk.generators)
            assert isinstance(sought.value, Images)
            searched = sought.value.images.to(features)
            lost = {row: one for row, one in enumerate(sought.status) if one.kind == "failed"} | walk.failures
            back(self.path[:count], self._forward(searched, count)[:-1])
            walked = walk.pictures()
            off, other = self._misfit(walked, features), self._misfit(searched, features)
            nearer = off < other
            for row in walk.failures:
                nearer[row] = False
            # What fails behind the search leaves its picture, and what failed in it may be walked to all the same.
            walk.failures = {row: one for row, one in lost.items() if not nearer[row]}
            pictures = torch.where(nearer.view(-1, 1, 1, 1), walked, searched)
            runs = walk.passes() + (sought.passes * count / len(self.path)).ceil().long()
            return pictures, walk.ended(torch.where(nearer, off, other)), runs

        recovery = recover_rows(leak, self.expected, self.image_shape, search)
        return replace(recovery, trace=tuple(trace[:-1]))

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return the picture that the walk starts from where no leak has spoken."""
        if self.heads is not None:
            return self.heads(self.count).prior(n, generators)
        picture = self.path[0].grey if self.learned is None else self.learned[0](self.learned[1])
        images = picture.expand(n, -1, -1, -1).clone()
        return Recovery(Images(images), (Status("stopped", "no leak"),) * n, torch.zeros(n).long())

    def save(self, path: Path) -> None:
        """Write the configuration."""
        path.write_text(json.dumps({**asdict(self.attack), "seed": self.seed}), encoding="utf-8")

    def _guesses(self, features: Float[Tensor, "b ..."]) -> Sequence[Tensor | None]:
        """Return for each segment what the decoded picture gives it to start from."""
        if self.learned is None:
            return [None] * len(self.path)
        return self._forward(self.learned[0](features))[:-1]

    def _misfit(self, pictures: Float[Tensor, "b 3 h w"], features: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Return by how much what pictures leak is off, relative to the leak."""
        off: Tensor = self._forward(pictures)[-1] - features
        missed: Tensor = off.flatten(1).norm(dim=1) / sizes(features)[:, 0]
        return missed

    @torch.no_grad()
    def _forward(self, pictures: Float[Tensor, "b 3 h w"], count: int | None = None) -> list[Tensor]:
        """Return pictures and what each segment, or each of the first `count`, makes of them."""
        given = [pictures]
        for step in self.path[:count]:
            given.append(step.segment.module(given[-1]))
        return given


class _Walk:
    """Where the rows of one leak stand between two segments. A row that failed is NaN from there on."""

    def __init__(
        self,
        attack: Peel,
        image_shape: tuple[int, int, int],
        features: Float[Tensor, "b ..."],
        exact: bool,
        generators: Generators,
    ) -> None:
        self.attack = attack
        self.image_shape = image_shape
        self.features = features
        self.generators = generators
        self.exact: Bool[Tensor, "b"] = torch.full((len(features),), exact)
        self.runs: Float[Tensor, "b"] = torch.zeros(len(features))
        self.worst: list[tuple[float, str]] = [(0.0, "")] * len(features)
        self.failures: dict[int, Status] = {}
        self.steps = 0
        self.unruled: list[str] = []

    def back(self, step: Step, guess: Float[Tensor, "b ..."] | None) -> None:
        """Take the rows from what a segment gave to what it was given; `guess` is where to start, if that is known."""
        start, spent = self._start(step) if guess is None else (guess, 1)
        # One more run tells how the picture's features differ from the leak's.
        spent += 1
        self.steps += 1
        start = step.start_at(start)
        inverse = self._inverse(step)
        found = torch.full_like(start, float("nan"))
        given = self.exact.clone()
        for exact in (True, False):
            rows = [row for row in (given == exact).nonzero().flatten().tolist() if row not in self.failures]
            if not rows:
                continue
            prior, identified = _smooth(self.attack.tv, self.image_shape, step), exact and not step.loses
            target = Target(
                self.features[rows], start[rows], step.lower, step.upper, prior, identified, exact, step.known
            )
            solved = inverse.invert(step.segment, target, self.attack.passes - spent)
            for _ in range(1, self.attack.starts if identified else 1):
                solved = self._again(step, inverse, target, solved, rows)
            found[rows] = unknowns(solved)
            self.runs[rows] += solved.passes.cpu() + spent
            for row, residual, status in zip(rows, solved.residual.tolist(), solved.status, strict=True):
                self._judge(row, residual, status, step.segment.name)
        for row in self.failures:
            found[row] = float("nan")
        self.exact &= not step.loses
        self.features = found

    def _again(self, step: Step, inverse: Inverse, target: Target, solved: Solution, rows: Sequence[int]) -> Solution:
        """Return the better of what was solved and what another start leads to, for rows that are not solved yet."""
        sound = torch.tensor([status.kind != "failed" for status in solved.status], device=solved.residual.device)
        left = (sound & (solved.residual > _SOLVED)).nonzero().flatten()
        if not len(left):
            return solved
        drawn = [torch.randn(step.segment.in_shape, generator=self.generators[rows[row]]) for row in left.tolist()]
        start = target.start[left]
        size = start.flatten(1).square().mean(1).sqrt()
        size = torch.where(size > 0, size, 1.0).view(-1, *[1] * (start.ndim - 1))
        noise = torch.stack(drawn).to(start)
        other = replace(target.rows(left), start=step.start_at(start + _APART * size * noise))
        return better(solved, inverse.invert(step.segment, other, self.attack.passes), left)

    def _judge(self, row: int, residual: float, status: Status, name: str) -> None:
        if status.kind == "failed":
            self.failures[row] = Status("failed", f"segment {name}: {status.message}")
            return
        self.exact[row] &= residual <= self.attack.tolerance
        self.worst[row] = max(self.worst[row], (residual, name))

    def ended(self, residual: Float[Tensor, "b"]) -> list[Status]:
        """Return how the walk ended for each row, `residual` being that of its picture relative to the leak."""
        solved = [self.failures.get(row, Status("stopped")) for row in range(len(self.worst))]
        kinds = ", ".join(sorted(set(self.unruled)))
        generic = f"; generic solver for {len(self.unruled)} of {self.steps} segments ({kinds})" if kinds else ""
        found = []
        for status, (worst, name) in zip(ended(residual, solved, self.attack.tolerance), self.worst, strict=True):
            detail = f", at worst {worst:.2e} of {name}{generic}"
            found.append(status if status.kind == "failed" else replace(status, message=status.message + detail))
        return found

    def pictures(self) -> Float[Tensor, "b 3 h w"]:
        """Return what the walk ended at, grey where it failed."""
        failed = torch.tensor([row in self.failures for row in range(len(self.features))])
        return torch.where(failed.view(-1, 1, 1, 1).to(self.features.device), GREY, self.features)

    def passes(self) -> Int[Tensor, "b"]:
        """Return the runs in prefixes: those of all segments over how many these are, rounded up."""
        return (self.runs / self.steps).ceil().long()

    def _inverse(self, step: Step) -> Inverse:
        kind = step.segment.kind
        if self.attack.form != "least-squares" and not step.first:
            return Split() if self.attack.form == "penalty" else Constrained()
        name, inverse = step.served
        if name == FALLBACK:
            self.unruled.append(kind or "no kind")
        return inverse

    def _start(self, step: Step) -> tuple[Tensor, int]:
        """Return where to look from for a segment's input, and the runs that it took to tell."""
        shape = step.segment.in_shape
        grey = step.grey.expand(len(self.features), *shape)
        zeros = torch.zeros_like(grey)
        if self.attack.start == "noise":
            drawn = torch.stack([torch.randn(shape, generator=generator) for generator in self.generators]).to(zeros)
            return (grey if step.first else zeros) + self.attack.noise * drawn, 0
        if step.first:
            return grey.clone(), 0
        if self.attack.start == "zeros":
            return zeros, 0
        if not step.reshapes:
            return self.features, 0
        far, near = (self._distance(step, x) for x in (zeros, grey))
        return torch.where((near < far).view(-1, *[1] * len(shape)), grey, zeros), 2

    @torch.no_grad()
    def _distance(self, step: Step, x: Tensor) -> Float[Tensor, "b"]:
        distance: Tensor = (step.segment.module(x) - self.features).flatten(1).norm(dim=1)
        return distance


def _smooth(tv: float, image_shape: tuple[int, int, int], step: Step) -> Callable[[Tensor], Tensor] | None:
    """Return the prior on what a segment was given; None where that is no map."""
    layout = Layout.of(step.segment.in_shape, image_shape)
    return None if layout.order == "vector" else lambda x: tv * total_variation(layout.arrange(x))


def _scattered(found: Tensor, rows: Sequence[int], total: int) -> Tensor:
    """Return rows among as many as the leak has; those that it had no numbers for are NaN."""
    everything = found.new_full((total, *found.shape[1:]), float("nan"))
    everything[list(rows)] = found
    return everything
