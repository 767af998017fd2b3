"""`seepage train`: an attack or a defense that learns, from public pictures whose features are computed once."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..attacks.caprecover import adapter
from ..attacks.caprecover.attack import CapRecover
from ..attacks.caprecover.language import EXTRA
from ..attacks.caprecover.presets import preset
from ..attacks.decoder import Decoder, DecoderRecoverer
from ..attacks.loop import Loop
from ..attacks.parameters import require_sensible
from ..attacks.probe import Probe, ProbeRecoverer
from ..attacks.process import Precision, require_precision
from ..attacks.trained import Origin
from ..data.feature_cache import Stored
from ..data.shown import MIRRORED
from ..files import replacing, require_writable
from ..pictures import remembered
from ..registry import suggest
from ..types import Progress, SeepageError
from ..victims import bottleneck
from .begun import Begun
from .hiding import TrainedDefense
from .material import Material, MaterialError, Part, material, sources
from .outcome import Outcome
from .stages import as_json, first_process, processes
from .train_caprecover import Scheme, train_caprecover
from .train_decoder import train_decoder
from .train_defense import train_defense
from .train_labels import train_probe

DEFENSE = "defense"
LEARNED = ("caprecover", "decoder", DEFENSE, "probe")
EFFORTS = ("quick", "standard", "full")
_WARM = 20
_SIZES = ("width", "layers", "heads", "queries", "start", "most")
_PRESETS_OWN = ("align", "batch", "lr", *_SIZES)

Tell = Callable[[str, float, str], None]
"""Called with a stage's name, the fraction of it that is done, and a word."""


class TrainRequestError(SeepageError):
    """A training that cannot be had as it was asked for."""


@dataclass(frozen=True)
class TrainRequest:
    """What is to be trained: `attack` is NAME[:key=value,...], `public` the pictures that the attacker owns.

    Without `select` one in five of `public` is held out by its hash. `steps` wins over `effort`. `stored` is how
    features are kept, `storage` how an adapter's weights are. Of caprecover alone, `preset` names one of the paper's
    configurations and `authors` trains as their code does: one pooled token, padding in the loss, no alignment, and
    `begin` is an adapter of any victim to go on from, whose sizes and language model hold. With
    `flips` mirror images are learned from too, and `crops` random parts of every picture; not by probes. `compiled`
    has torch.compile make caprecover's language model faster.
    """

    attack: str
    victim: str
    layers: tuple[str, ...]
    public: str
    output: Path
    select: str | None = None
    effort: str = "standard"
    steps: int | None = None
    language: str | None = None
    seed: int = 0
    limit: int | None = None
    size: int | None = None
    device: str = "cpu"
    precision: Precision = "fp32"
    accumulate: int = 1
    stored: Stored = "fp16"
    storage: adapter.Storage = "fp16"
    flips: bool = True
    crops: int = 0
    preset: str | None = None
    authors: bool = False
    begin: Path | None = None
    compiled: bool = False

    @property
    def workdir(self) -> Path:
        """Where checkpoints and what was measured on the way are kept."""
        return self.output.with_name(f"{self.output.stem}.train")

    @property
    def record(self) -> Path:
        """Where what the training has to tell is written."""
        return self.output.with_name(f"{self.output.stem}.training.json")


@dataclass(frozen=True)
class Trained:
    """The file that was written, what the training has to tell, and lines for whoever started it."""

    path: Path
    record: dict[str, Any]
    notes: tuple[str, ...]


def train(request: TrainRequest, tell: Tell = lambda stage, done, what: None) -> Trained:
    """Train what is asked for, going on where the same request stopped, and write it to `request.output`.

    Under torchrun the first process writes. The file is whole or absent.

    Raises:
        SeepageError: the request cannot be served; one line that says why.
        KeyboardInterrupt: it was interrupted; the same request goes on from the last checkpoint.
    """
    attack, text = _learner(request)
    scheme = _scheme(request, attack) if isinstance(attack, CapRecover) else None
    _require_possible(request, attack, scheme)
    if request.output.is_dir():
        raise TrainRequestError(f"-o {request.output} is a folder; expected a file, such as adapter.safetensors")
    require_writable(request.output.parent)
    require_writable(request.workdir)
    parts = sources(request.public, request.select, request.limit)
    varied = not isinstance(attack, Probe)
    have = material(
        request.victim,
        request.layers,
        parts,
        size=request.size,
        device=_device(request.device),
        stored=request.stored,
        flips=request.flips and varied,
        crops=request.crops if varied else 0,
        progress=lambda done, what: tell("features", done, what),
    )
    header = _header(request, text, have)
    header |= {} if scheme is None or scheme.begun is None else {"begun": scheme.begun.sha256}

    def advance(stage: str) -> Progress:
        return lambda done, what: tell(stage, done, what)

    outcome = _taught(request, scheme or attack, text, have, header, advance)
    record = _record(request, text, have, outcome)
    if first_process():
        with replacing(request.record) as part:
            part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    notes = (*have.notes, *(note for stage in outcome.stages for note in stage.curve.notes))
    return Trained(request.output, record, notes)


def _taught(
    request: TrainRequest,
    attack: Any,
    text: str,
    have: Material,
    header: dict[str, Any],
    advance: Callable[[str], Progress],
) -> Outcome:
    """Train by the attack's own kind, CapRecover by its scheme, and write what came of it."""
    recoverer: ProbeRecoverer | DecoderRecoverer
    if isinstance(attack, Probe):
        recoverer, outcome = train_probe(attack, text, have, request.seed, advance("probe"))
    elif isinstance(attack, Decoder):
        loop = _loop(request, attack.steps, attack.lr)
        recoverer, outcome = train_decoder(attack, have, loop, header, request.workdir, advance("decoder"))
    elif isinstance(attack, TrainedDefense):
        loop = _loop(request, attack.steps, attack.lr)
        network, told, outcome = train_defense(
            attack, have, request.size, loop, header, request.workdir, advance("bottleneck")
        )
        if first_process():
            bottleneck.write(request.output, network, told)
        return outcome
    else:
        # The language model is frozen: where half the bits are computed with, it is kept in them.
        half = request.precision == "bf16"
        model, said, outcome = train_caprecover(
            attack,
            have,
            request.steps,
            lambda steps, lr: _loop(request, steps, lr),
            header,
            request.workdir,
            advance,
            torch.bfloat16 if half else torch.float32,
            request.compiled,
        )
        if first_process():
            adapter.write(request.output, model, said, request.storage)
        return outcome
    if first_process():
        ((layer, _),) = have.splits.items()
        learned = [*have.train.hashes(), *have.select.hashes()]
        recoverer.origin = Origin.of(have.train.features[layer].header, learned)
        recoverer.save(request.output)
    return outcome


def _learner(request: TrainRequest) -> tuple[Any, str]:
    """Return the attack or defense with its effort and steps, and the text that builds it.

    Raises:
        TrainRequestError: it learns nothing beforehand, or the request does not fit it.
    """
    name, given = registry.parse(request.attack)
    if name not in LEARNED:
        raise TrainRequestError(f"nothing called {name!r} is trained beforehand{suggest(name, LEARNED)}")
    if request.effort not in EFFORTS:
        raise TrainRequestError(f"no effort is called {request.effort!r}; known: {', '.join(EFFORTS)}")
    if request.crops < 0:
        raise TrainRequestError(f"{request.crops} crops of each picture; expected 0 or more")
    if not request.layers:
        raise TrainRequestError("training needs a layer: name it with --layer (see `seepage layers`)")
    if name != "caprecover" and len(request.layers) > 1:
        raise TrainRequestError(f"a {name} is trained at one layer, and {len(request.layers)} are named: train each")
    if request.language is not None and name != "caprecover":
        raise TrainRequestError(f"--language is caprecover's alone: a {name} has no language model")
    if name != "caprecover" and (request.preset is not None or request.authors):
        raise TrainRequestError(f"--preset and --authors are caprecover's alone, not a {name}'s")
    if name != "caprecover" and request.compiled:
        raise TrainRequestError(f"--compile is for caprecover's language model: a {name} has none")
    if request.begin is not None:
        if name != "caprecover" or request.preset is not None or request.authors:
            raise TrainRequestError("--begin is for caprecover, without --preset and --authors")
        typed = [key for key in given if key in _SIZES]
        if typed:
            raise TrainRequestError(f"--begin {request.begin} has its own {', '.join(typed)}: name it without")
    if request.preset is not None:
        preset(request.preset)  # which refuses a name that is none, before the work
        typed = [key for key in given if key in _PRESETS_OWN]
        if typed:
            raise TrainRequestError(f"--preset {request.preset} has its own {', '.join(typed)}: name it without")
    component = TrainedDefense if name == DEFENSE else registry.get("attack", name)
    defaults = dict(component.efforts.get(request.effort, {}))
    if request.steps is not None:
        defaults["steps"] = request.steps
    if request.language is not None and "language" not in given:
        defaults["language"] = request.language
    if name == DEFENSE:
        defense = registry.made("trained", request.attack, TrainedDefense, defaults)
        require_sensible(defense, name)
        return defense, registry.written(name, defense)
    attack = registry.build("attack", request.attack, defaults)
    require_sensible(attack, name)
    if getattr(attack, "adapter", None) is not None:
        raise TrainRequestError(f"{name}:adapter names what training writes: leave it out, and name the file with -o")
    if getattr(attack, "through", None):
        raise TrainRequestError(f"{name}:through is for audits: train it at that layer, with --layer {attack.through}")
    if name == "caprecover" and importlib.util.find_spec("transformers") is None:
        raise TrainRequestError(f"training caprecover needs {EXTRA}")
    return attack, registry.spec("attack", attack)


def _scheme(request: TrainRequest, attack: CapRecover) -> Scheme:
    """Return how CapRecover is trained.

    Raises:
        AdapterError: what it is to begin as cannot be read.
    """
    begun = None if request.begin is None else Begun.of(request.begin)
    return Scheme(attack, None if request.preset is None else preset(request.preset), request.authors, begun)


def _require_possible(request: TrainRequest, attack: Any, scheme: Scheme | None) -> None:
    """Refuse what would fail only after the victim had seen every picture.

    Raises:
        TrainingError: no steps can be made like that.
        QFormerError, LanguageError, AssetError, PretrainedError, GgufError: what caprecover is made of cannot be had.
    """
    if isinstance(attack, Probe):
        return
    _loop(request, 1 if request.steps is None else request.steps, attack.lr).require_sensible()
    require_precision(request.precision, torch.device(_device(request.device)))
    if scheme is not None:
        scheme.require()


def _loop(request: TrainRequest, steps: int, lr: float) -> Loop:
    warm = min(_WARM, steps // 5)
    every = max(min(steps // 20, 100), 1)
    return Loop(steps, lr, warm, accumulate=request.accumulate, precision=request.precision, every=every)


def _header(request: TrainRequest, text: str, have: Material) -> dict[str, Any]:
    """Return what makes a training this one and no other."""
    shapes = {layer: list(have.train.features[layer].shape) for layer in have.splits}
    return {
        "attack": text,
        "victim": have.victim.name,
        "weights_sha256": have.victim.weights_sha256,
        "preprocessing": have.victim.preprocessing,
        "layers": shapes,
        "train": have.train.source.manifest_sha256(),
        "select": have.select.source.manifest_sha256(),
        "stored": request.stored,
        "flips": request.flips,
        "crops": request.crops,
        "preset": request.preset,
        "authors": request.authors,
        "compiled": request.compiled,
        "seed": request.seed,
    }


def _record(request: TrainRequest, text: str, have: Material, outcome: Outcome) -> dict[str, Any]:
    learned, held = outcome.parts or (have.train, have.select)
    facts = [
        ["attack", text],
        *([["preset", f"{request.preset}, whose sizes and course hold"]] if request.preset is not None else []),
        *([["begun as", f"{request.begin}, whose sizes hold"]] if request.begin is not None else []),
        ["victim", f"{have.victim.name} (weights {have.victim.weights_sha256[:12]})"],
        ["layers", ", ".join(have.splits)],
        ["trained on", _told(learned)],
        ["shown", _shown(have.train)],
        ["held out", f"{_told(held)}, none of them in the former"],
        ["seed", str(request.seed)],
        ["precision", f"{request.precision}{', compiled' if request.compiled else ''}"],
        ["processes", str(processes())],
        ["file", request.output.name],
    ]
    return {
        "version": 1,
        "name": text.partition(":")[0],
        "facts": facts,
        "splits": {
            name: {
                "source": part.source.name,
                "pictures": len(part.rows),
                "manifest_sha256": part.source.manifest_sha256(),
                "files": sorted(remembered(part.hashes())),
            }
            for name, part in (("train", learned), ("select", held))
        },
        "stages": [as_json(stage) for stage in outcome.stages],
        "title": outcome.title,
        "columns": list(outcome.columns),
        "rows": [list(row) for row in outcome.rows],
        "notes": list(have.notes),
    }


def _told(part: Part) -> str:
    return f"{len(part.rows)} pictures of {part.source.name} (manifest {part.source.manifest_sha256()[:12]})"


def _shown(part: Part) -> str:
    """Return in which ways pictures were shown to the victim."""
    known = next(iter(part.features.values())).folders
    crops = sum(way > MIRRORED for way in known)
    said = ["as they are", *(["mirrored"] if MIRRORED in known else [])]
    return ", ".join([*said, *([f"as {crops} random part{'s' * (crops > 1)} of each"] if crops else [])])


def _device(device: str) -> str:
    """Return this process's own device where torchrun started several on GPUs."""
    several = processes() > 1 and device.partition(":")[0] == "cuda"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if several else device


__all__ = ["EFFORTS", "LEARNED", "MaterialError", "Tell", "TrainRequest", "TrainRequestError", "Trained", "train"]
