"""The two sides of the split with a file between them: write a leak, recover from one without the truth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .. import data, pictures, registry, seeding, victims, wire
from ..data.features import open_leak, read_header, read_leak
from ..defenses import Pipeline, digests, pipeline, read_secret, spend_secret, write_secret
from ..files import replacing, require_writable
from ..schema import Cost, RecoveredRow, RecoveryRecord
from ..types import Attack, Captions, Images, Knowledge, Labels, Law, Leak, Recoverer, Secret, SeepageError, SplitModel
from ..victims.cut import cut
from .assemble import environment
from .cell import batch_size, class_name, counted, writable
from .exposure import ESTIMATE, LIKELIHOOD, NAIVE, NONE, Exposure, fitted, sent
from .request import Request, RequestError
from .residual import residuals
from .rows import take_recovery
from .workbench import Workbench

RECOVERY = "recovery.json"
_BATCH = 16
_FILE_ATTACKERS = (NAIVE, ESTIMATE, LIKELIHOOD)


def dump(
    bench: Workbench, path: Path, advance: Callable[[float], None], secret: Path | None = None
) -> tuple[int, list[str]]:
    """Write what is sent of the request's pictures at its one layer, each as often as it says, all sends together.

    What the defenses keep to undo it goes to `secret`. Return the rows written and what was left out.

    Raises:
        SeepageError: no picture can be read, a file cannot be written, or a secret has no file or a file no secret.
    """
    split = bench.split(bench.layers[0])
    bench.require_a_picture()
    defense, sends = _defense(bench, split, secret), bench.request.sends
    if secret is not None and secret.resolve() == path.resolve():
        raise RequestError(f"-o {path} is --secret too: the leak and what undoes it go to files of their own")
    written, failed, kept, rows = 0, list[str](), list[Secret](), list[bytes]()
    names = [entry.id for entry in bench.source.entries for _ in range(sends)]
    with data.writing_leak(path, len(names) if bench.request.redact else names) as writer:
        for batch in data.batches(bench.source, split.load, _BATCH):
            failed += batch.failed.values()
            for row, index in enumerate(batch.indices):
                assert batch.pictures is not None
                image, name = batch.pictures.images[row], bench.source.entries[index].id
                for turn in range(sends):
                    leak, own = sent(bench, split, defense, image, bench.hashes[index], turn)
                    writer.append(dataclasses.replace(leak, ids=None if bench.request.redact else (name,)))
                    kept += [] if own is None else [own]
                    rows += [] if own is None else digests(leak)
                    written += 1
            advance((written / sends + len(failed)) / len(bench.source))
        if secret is not None:
            write_secret(kept, secret, rows)
    return written, failed


def _defense(bench: Workbench, split: SplitModel, secret: Path | None) -> Pipeline:
    defense = fitted(bench, split)
    if defense.keeps_secret and secret is None:
        raise RequestError(
            f"{' + '.join(defense.texts)} keeps a secret: --secret FILE says where, or nobody can undo it"
        )
    if secret is not None and not defense.keeps_secret:
        raise RequestError(f"--secret {secret}: {' + '.join(defense.texts) or 'no defense'} keeps no secret; mask does")
    return defense


def restore_file(path: Path, secret: Path, target: Path) -> int:
    """Undo what a secret undoes of a leak file, as the rightful next stage does, and spend the secret; return the rows.

    Raises:
        SeepageError: the leak or the secret cannot be read, do not belong together, or the secret was used.
    """
    leak = read_leak(path)
    if target.resolve() in (path.resolve(), secret.resolve()):
        raise RequestError(f"-o {target} is the leak or the secret itself: name another file, which is written anew")
    kept = read_secret(secret, leak)
    defense = pipeline(leak.header.defenses)
    if not defense.keeps_secret:
        carried = " + ".join(leak.header.defenses) or "no defense"
        raise RequestError(f"{path} carries {carried}: nothing of it is undone with a secret")
    restored = defense.restore(leak if leak.features.dtype == wire.MASKED else wire.decode(leak), kept)
    header = dataclasses.replace(restored.header, wire="fp32", scale=None)
    data.write_leak(dataclasses.replace(restored, header=header), target)
    spend_secret(secret)
    return len(leak)


def recover_file(
    request: Request, path: Path, folder: Path, attacker: str | None, advance: Callable[[float], None]
) -> RecoveryRecord:
    """Recover every row of a leak file and write pictures and `recovery.json` into the folder.

    The request's victim and layer, where given, must be the leak's; a raw array needs both. The attacker knows the
    defenses that the leak carries (the request's, else the header's) and takes each row for a send of its own; unless
    one is named he attacks the law's guess at the leak, `aware:estimate`.

    Raises:
        SeepageError: the file is no leak of this victim and layer, the attacker can make nothing of its defenses, or
            the folder cannot be written.
    """
    split = _split(request, path)
    leak = open_leak(path, split)
    carried = request.defenses or leak.header.defenses
    bench = Workbench(dataclasses.replace(request, defenses=carried, wire=leak.header.wire))
    text = registry.spec("attack", bench.attack(request.attacks[0]))
    attack = bench.attack(text)
    attacker, law = _attacker(attacker, bench, split, attack, path)
    require_writable(folder)
    began = time.perf_counter()
    fit_generator = seeding.generator(request.seed, "fit", split.name, split.layer, text)
    told = law if attacker == LIKELIHOOD else None
    recoverer = attack.fit(Knowledge(split.image_shape, split.prefix, law=told), fit_generator)
    fit_seconds = time.perf_counter() - began
    rows: list[RecoveredRow] = []
    size = batch_size(split.image_shape, split.device, attack.budget)
    total = len(leak) * max(1, attack.budget)
    for start in range(0, len(leak), size):
        part = wire.decode(leak.rows(start, start + size))
        if law is not None and attacker == ESTIMATE:
            part = law.estimate([part])
        part = part.with_features(part.features.to(split.device))
        with counted(split.prefix, partial(_tell, advance, start / len(leak), total)):
            rows += _recover(part, start, recoverer, split, told, request.seed, folder)
    record = RecoveryRecord(
        leak_sha256=pictures.file_sha256(path),
        victim=split.name,
        weights_sha256=split.weights_sha256,
        layer=split.layer,
        wire=leak.header.wire,
        defenses=bench.defenses,
        attacker=attacker,
        attack=text,
        effort=request.effort,
        access=attack.access,
        auxiliary=attack.auxiliary,
        seed=request.seed,
        environment=environment(split.device),
        rows=tuple(rows),
        cost=Cost(
            fit_seconds=fit_seconds,
            seconds=time.perf_counter() - began - fit_seconds,
            passes=sum(row.passes for row in rows),
        ),
    )
    with replacing(folder / RECOVERY) as target:
        target.write_text(record.model_dump_json(indent=2), encoding="utf-8")
    return record


def _attacker(
    named: str | None, bench: Workbench, split: SplitModel, attack: Attack, path: Path
) -> tuple[str, Law | None]:
    """Return who attacks a leak file, and the law that he knows: whoever is named, else who takes the law's guess."""
    if not bench.defenses:
        if named:
            raise RequestError(f"--attacker says what he makes of a defense, and {path} carries none")
        return NONE, None
    attacker = named or ESTIMATE
    if attacker not in _FILE_ATTACKERS:
        raise RequestError(f"--attacker {attacker}: a leak file is attacked by {', '.join(_FILE_ATTACKERS)}")
    try:
        exposure = Exposure(bench, split, attacker)
        exposure.require(attack, bench.request.attacks[0].partition(":")[0])
        law = None if exposure.defense is None else exposure.defense.law()
    except SeepageError as error:
        raise RequestError(f"{path} carries {' + '.join(bench.defenses)}, --attacker {attacker}: {error}") from error
    return attacker, None if attacker == NAIVE else law


def _tell(advance: Callable[[float], None], done: float, total: int, passes: float) -> None:
    advance(min(1.0, done + passes / total))


def _split(request: Request, path: Path) -> SplitModel:
    header = read_header(path)
    name = request.victim or (header.victim if header else "")
    layer = request.layers[0] if request.layers else (header.layer if header else "")
    if not name or not layer:
        raise RequestError(f"{path} does not say which model it came from: name it with --victim and --layer")
    return cut(victims.load(name, device=request.device, size=request.size), layer)


def _recover(
    leak: Leak, start: int, recoverer: Recoverer, split: SplitModel, law: Law | None, seed: int, folder: Path
) -> list[RecoveredRow]:
    recovery = recoverer.recover(leak, seeding.generators(seed, "attack", seeding.row_hashes(leak.features)))
    off = residuals(split, leak, recovery, law)
    rows = []
    for row, status in enumerate(recovery.status):
        image = caption = label = None
        value = take_recovery(recovery, [row]).value
        if status.kind != "failed":
            if isinstance(value, Images):
                image = f"{start + row:05d}.png"
                pictures.write_png(value.images[0].clamp(0, 1), folder / image)
            elif isinstance(value, Captions):
                caption = writable(value.texts[0])
            elif isinstance(value, Labels):
                label = class_name(int(value.scores[0].argmax()), value.classes)
                caption = None if value.texts is None else writable(value.texts[0])
        rows.append(
            RecoveredRow(
                name=leak.ids[row] if leak.ids else str(start + row),
                status=status.kind,
                message=status.message,
                residual=off[row] if status.kind != "failed" else None,
                passes=int(recovery.passes[row]),
                image=image,
                caption=caption,
                label=label,
            )
        )
    return rows
