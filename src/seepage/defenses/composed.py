"""What an attacker knows of several defenses one after another: their laws, composed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .. import seeding
from ..types import Defense, Generators, Law, Leak, Telling
from .base import Blurring, BuiltIn, Denoising, Showing, Unbiased, mean_of, randomised

_DRAWS = 32
_SMALL = 0.3
"""A rounding of so many deviations of the noise changes its density little: its variance by a tenth."""


class _MixedError(Exception):
    """Some rows show what was drawn, others do not: each is then looked at alone."""


@dataclass(frozen=True)
class _Since:
    """What was done to sends since a stage: how far off that left each one's rows, how many others each is the mean of,
    and whether nothing else was done."""

    blurs: Sequence[Float[Tensor, "b"]]
    behind: float = 1.0
    plain: bool = True

    def carried(self, law: Law, sends: Sequence[Leak]) -> _Since:
        """Return the same since the stage before this law's."""
        if not isinstance(law, Blurring):
            return _Since(self.blurs, self.behind, plain=False)
        blurs = [law.carried(send, blur).cpu() for send, blur in zip(sends, self.blurs, strict=True)]
        return _Since(blurs, self.behind, self.plain and all(bool(law.exact(send).all()) for send in sends))

    def met(self, share: float) -> _Since:
        """Return the same once several have become one, each number from a share of them."""
        return _Since(
            [torch.stack(list(self.blurs)).mean(0)], max(self.behind * len(self.blurs) * share, 1.0), self.plain
        )


@dataclass(frozen=True)
class PipelineLaw:
    """The stages' laws in their order.

    `kept` is what a stage's output becomes in the pipeline, given the stage's place and input.
    """

    stages: tuple[Defense, ...]
    kept: Callable[[int, Leak, Leak], Leak]

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return what might be sent."""
        for place, stage in enumerate(self.stages):
            clean = self.kept(place, clean, stage.law().sample(clean, generators))
        return clean

    def expected(self, clean: Leak) -> Leak | None:
        """Return the mean of what would be sent: by the stages' formulas where these compose, else over 32 draws."""
        return self._mean(clean, {}, len(self.stages))

    def matched(self, clean: Leak, sent: Leak) -> Leak | None:
        """Return what is expected given what a send shows of the stages' draws; None where it shows nothing."""
        try:
            shown = self._shown(sent)
        except _MixedError:
            parts = [(clean.rows(row, row + 1), sent.rows(row, row + 1)) for row in range(len(sent))]
            return _together([self.matched(*part) or self.expected(part[0]) for part in parts])
        return self._mean(clean, shown, len(self.stages)) if shown else None

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return the best guess at the clean leak.

        From the last stage back each send is guessed at by itself, as far as the stage where several become one: the
        one that `gathers` most of those that draw, the first of equals. What a stage left out is filled in there alone.
        """
        try:
            return self._estimate(sends)
        except _MixedError:
            found = [self._estimate([send.rows(row, row + 1) for send in sends]) for row in range(len(sends[0]))]
            return sends[0].with_features(torch.cat([one.features for one in found]))

    def _estimate(self, sends: Sequence[Leak]) -> Leak:
        found = filled = list(sends)
        since, meeting = _Since([torch.zeros(len(send)) for send in sends]), self._meeting()
        for place in reversed(range(len(self.stages))):
            law = self.stages[place].law()
            shown = [_shown(law, one, blur) for one, blur in zip(found, since.blurs, strict=True)]
            before = since.carried(law, found)
            if place > meeting:
                alone = [_alone(law, one, own) for one, own in zip(found, shown, strict=True)]
                if filled is found and all(own is None for own in shown):
                    found = filled = alone  # none has a hole
                else:
                    filled = [_filled(law, own or one) for one, own in zip(filled, shown, strict=True)]
                    found = alone
                since = before
                continue
            told = [own for own in shown if own is not None]
            holes = filled if place == meeting and filled is not found else ()
            several = self._several(place, found, told, holes, since)
            since = before.met(law.share if isinstance(law, Showing) else 1.0)
            found = filled = [several]
        return found[0]

    def log_likelihood(self, sent: Leak, clean: Leak) -> Float[Tensor, "b"] | None:
        """Return that of the last stage that draws, of what it seems to have sent by what the stages after it sent.

        Stages before it that draw have to show what, in all rows, and those after it must leave all but a rounding,
        small beside the noise; else, as where nothing is drawn, there is none.
        """
        drawing = [place for place, stage in enumerate(self.stages) if randomised(stage)]
        if not drawing:
            return None
        last = drawing[-1]
        try:
            shown = self._shown(sent)
        except _MixedError:
            return None
        if any(place not in shown for place in drawing[:-1]):
            return None
        reaching = self._mean(clean, shown, last)
        if reaching is None:
            return None
        since = _Since([torch.zeros(len(sent))])
        for stage in reversed(self.stages[last + 1 :]):
            since = since.carried(stage.law(), [sent])
            sent = stage.law().estimate([sent])
        if not since.plain or (since.blurs[0].any() and not _small(since.blurs[0], self.stages[last])):
            return None
        return self.stages[last].law().log_likelihood(sent, reaching)

    def _several(
        self, place: int, found: Sequence[Leak], told: Sequence[Leak], filled: Sequence[Leak], since: _Since
    ) -> Leak:
        """Return what a stage makes of several; `told` are those that show its draw, `filled` those without holes."""
        law, blur = self.stages[place].law(), torch.stack(list(since.blurs)).mean(0)
        # Numbers that were mixed are off by what nobody knows, and are taken as they are.
        blur = blur.where(torch.isfinite(blur), 0.0)
        if isinstance(law, Showing) and not told:
            return law.untold(found, blur)
        if isinstance(law, Unbiased) and any(isinstance(one.law(), Showing) for one in self.stages[:place]):
            # What is left out is filled in by the earlier stage that left it out.
            return law.unbiased(found, plain=since.plain and not blur.any())
        if isinstance(law, Denoising):
            return law.guess(found, blur, behind=since.behind, plain=since.plain)
        several = law.estimate(told or found)
        if not filled:
            return several
        whole = law.estimate(filled).features
        return several.with_features(several.features.where(several.features != 0, whole))

    def _shown(self, sent: Leak) -> dict[int, Leak]:
        """Return, by their places, what the stages let through, where that shows."""
        found: dict[int, Leak] = {}
        blur = torch.zeros(len(sent))
        for place in reversed(range(len(self.stages))):
            law = self.stages[place].law()
            own = _shown(law, sent, blur)
            if own is not None:
                found[place] = own
            if place and not isinstance(law, Blurring):
                break
            blur = law.carried(sent, blur).cpu() if isinstance(law, Blurring) else blur
            if place:
                sent = _alone(law, sent, own)
        return found

    def _mean(self, clean: Leak, shown: Mapping[int, Leak], upto: int) -> Leak | None:
        """Return what is expected to leave the first stages."""
        drawn = self._to_draw(shown, upto)
        if not drawn:
            return self._through(clean, shown, upto, drawn, ())
        # A mean that does not depend on the leak is none, and what is sent has then no formula either.
        if any(stage.law().expected(clean) is None for stage in self.stages[:upto]):
            return None
        # The same for every row, so that none depends on those beside it.
        turns = [seeding.generators(0, "law", [""] * len(clean), turn) for turn in range(_DRAWS)]
        found = [self._through(clean, shown, upto, drawn, turn) for turn in turns]
        known = [one for one in found if one is not None]
        return known[0].with_features(mean_of(known)) if len(known) == len(found) else None

    def _to_draw(self, shown: Mapping[int, Leak], upto: int) -> set[int]:
        """Return the places of stages whose mean does not go through those after them as their draws do."""
        bent = [place for place, stage in enumerate(self.stages[:upto]) if not getattr(stage, "affine", False)]
        return {
            place
            for place, stage in enumerate(self.stages[:upto])
            if randomised(stage) and place not in shown and any(other > place for other in bent)
        }

    def _through(
        self, clean: Leak, shown: Mapping[int, Leak], upto: int, drawn: set[int], draws: Generators
    ) -> Leak | None:
        for place, stage in enumerate(self.stages[:upto]):
            law = stage.law()
            found: Leak | None
            if place in shown and isinstance(law, Telling):
                found = law.matched(clean, shown[place])
            else:
                found = law.sample(clean, draws) if place in drawn else law.expected(clean)
            if found is None:
                return None
            clean = self.kept(place, clean, found)
        return clean

    def _meeting(self) -> int:
        """Return the place of the stage at which several sends become one."""
        drawing = [place for place, stage in enumerate(self.stages) if randomised(stage)]
        return max(drawing, key=lambda place: getattr(self.stages[place], "gathers", 0), default=len(self.stages) - 1)


def _shown(law: Law, sent: Leak, blur: Float[Tensor, "b"]) -> Leak | None:
    if not isinstance(law, Telling) or not torch.isfinite(blur).all():
        return None
    if not isinstance(law, Showing):
        return None if blur.any() else sent
    told = law.told(sent, blur)
    if told.any() and not told.all():
        raise _MixedError
    return law.shown(sent, blur) if told.all() else None


def _together(rows: Sequence[Leak | None]) -> Leak | None:
    known = [row for row in rows if row is not None]
    return known[0].with_features(torch.cat([row.features for row in known])) if len(known) == len(rows) else None


def _small(blur: Float[Tensor, "b"], stage: Defense) -> bool:
    """Whether a stage's noise, which has no edge, is so wide that what came since changes its density little."""
    noise = stage.noise() if isinstance(stage, BuiltIn) else None
    return noise is not None and noise.kind != "uniform" and bool((blur <= _SMALL * noise.scale).all())


def _filled(law: Law, sent: Leak) -> Leak:
    return law.unbiased([sent]) if isinstance(law, Unbiased) else law.estimate([sent])


def _alone(law: Law, sent: Leak, shown: Leak | None) -> Leak:
    """Return the guess at what a stage was given, holes left where it left zeros."""
    if shown is None:
        return sent if isinstance(law, Showing) else _filled(law, sent)
    guess = law.estimate([shown])
    return guess.with_features(guess.features * (shown.features != 0))
