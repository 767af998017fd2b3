"""The tail on ciphertexts, end to end: a client encrypts, a server answers; whether it agrees, and what it costs.

Encryption is no defense of an audit's cell: whoever reads the wire, and the server itself, sees ciphertexts. This study
measures what that takes. The client holds the secret key and computes the prefix; the server holds the tail.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..audit.assemble import environment
from ..audit.request import Request
from ..audit.workbench import Workbench
from ..data import batches
from ..types import SplitModel
from ..victims import load
from ..victims.cut import cut
from .encrypted_keys import KeyFileError, Keys, read_keys
from .encrypted_product import Layout, Product, Sealer
from .encrypted_tail import affine_tail, spread_out
from .encrypted_wire import Client, ExchangeError, Greeting, Line, Server, connect


@dataclass(frozen=True)
class Sent:
    """One picture that went through: the outputs' largest class on either way, the largest difference, the times."""

    id: str
    plain: int
    encrypted: int
    max_abs_error: float
    encrypt_seconds: float
    server_seconds: float
    decrypt_seconds: float
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether both ways name the same class."""
        return self.plain == self.encrypted


def server_of(victim: str, layer: str, keys: Path, tell: Callable[[str], None], size: int | None = None) -> Server:
    """Return the server of a victim's tail from `layer` on, its weights encoded.

    Raises:
        KeyFileError: the keys hold the secret one, or are too small for the tail.
        TailError: the tail is not affine in the features; the message estimates what it would cost.
    """
    public = read_keys(keys, secret=False)
    whole = load(victim, size=size)
    split = cut(whole, layer)
    product = Product(affine_tail(whole, split), public)
    layout = product.layout
    tell(
        f"{product.tail.kind}: {product.outputs:,} outputs of {layout.channels:,} channels at {layout.positions} "
        f"positions, ciphertexts a picture: {layout.ciphertexts}; no secret key here"
    )
    return Server(split.weights_sha256, split.layer, product, tell)


def send(
    asked: Request, layer: str, keys: Path, server: str, progress: Callable[[float], None] = lambda done: None
) -> dict[str, Any]:
    """Send every picture's features, encrypted, and return the record of what came back.

    The plain tail that answers are held against is computed here too, for the comparison alone.

    Raises:
        KeyFileError: the keys lack the secret one, or the outputs do not fit into an answer.
        ExchangeError: the server cannot be reached, refuses, or speaks otherwise.
    """
    secret = read_keys(keys, secret=True)
    bench = Workbench(asked)
    split = bench.split(layer)
    bench.require_a_picture()
    shape = tuple(split.leak(torch.zeros(1, *split.image_shape)).features.shape[1:])
    greeting = Greeting(split.weights_sha256, split.layer, shape, secret.fingerprint)
    sent, failed = [], []
    with connect(server) as connection:
        line = Line(connection)
        client = Client(line, greeting)
        agreed = line.sent, line.received
        positions = math.prod(shape[axis] for axis in client.pooled)
        layout = Layout(positions, math.prod(shape) // positions, secret.slots)
        sealer = Sealer(secret)
        for done, batch in enumerate(batches(bench.source, split.load, 1)):
            failed += [f"{bench.source.entries[index].id}: {why}" for index, why in batch.failed.items()]
            if batch.pictures is not None:
                sent.append(_one(split, batch.pictures.ids[0], batch.pictures.images, client, layout, sealer))
            progress((done + 1) / len(bench.source))
    return {
        "schema_version": 1,
        "study": "encrypted",
        "victim": split.name,
        "weights_sha256": split.weights_sha256,
        "layer": split.layer,
        "data": bench.source.name,
        "manifest_sha256": bench.source.manifest_sha256(),
        "n": len(sent),
        "agreement": statistics.fmean(each.agrees for each in sent),
        "max_abs_error": max(each.max_abs_error for each in sent),
        "seconds": {
            name: {"mean": statistics.fmean(values), "max": max(values)}
            for name in ("encrypt_seconds", "server_seconds", "decrypt_seconds", "seconds")
            if (values := [float(getattr(each, name)) for each in sent])
        },
        "bytes": {
            "up": (line.sent - agreed[0]) / len(sent),
            "down": (line.received - agreed[1]) / len(sent),
            "plain": 4 * math.prod(shape),
        },
        "tail": {
            "kind": client.kind,
            "outputs": client.outputs,
            "positions": layout.positions,
            "channels": layout.channels,
            "ciphertexts": layout.ciphertexts,
        },
        "keys": _described(secret),
        "computed": {
            "client": "the prefix, encryption, decryption; for the comparison alone, the plain tail",
            "server": f"the whole tail ({client.kind}), on ciphertexts",
        },
        "environment": environment(split.device).model_dump(),
        "failed": failed,
        "samples": [asdict(each) for each in sent],
    }


def rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a record's table."""
    seconds, size, tail = record["seconds"], record["bytes"], record["tail"]
    agreed = sum(each["plain"] == each["encrypted"] for each in record["samples"])
    named = {
        "client, encryption": "encrypt_seconds",
        "server, the tail": "server_seconds",
        "client, decryption": "decrypt_seconds",
        "all but the prefix": "seconds",
    }
    return [
        ("tail", f"{tail['kind']}, {tail['outputs']:,} outputs"),
        ("same class as the plain tail", f"{agreed} of {record['n']}"),
        ("largest error of an output", f"{record['max_abs_error']:.2g}"),
        *(
            (f"seconds a picture: {words}", f"{seconds[name]['mean']:.3f} (at most {seconds[name]['max']:.3f})")
            for words, name in named.items()
        ),
        ("bytes up a picture", f"{size['up']:,.0f} (the plain features: {size['plain']:,})"),
        ("bytes down a picture", f"{size['down']:,.0f}"),
    ]


@torch.no_grad()
def _one(split: SplitModel, name: str, images: torch.Tensor, client: Client, layout: Layout, sealer: Sealer) -> Sent:
    leak = split.leak(images)
    plain = split.finish(leak).flatten().double().cpu().numpy()
    if len(plain) != client.outputs:
        raise ExchangeError(f"the server's tail gives {client.outputs} outputs, and this one's {len(plain)}")
    _require_room(sealer.keys, float(abs(plain).max()))
    features = spread_out(leak.features, client.pooled)[0].double().cpu().numpy()
    began = time.perf_counter()
    sealed = sealer.encrypt(layout.pack(features))
    encrypted = time.perf_counter()
    answer, server_seconds = client.ask(sealed, sealer.keys.largest_ciphertext)
    answered = time.perf_counter()
    found = sealer.decrypt(answer, client.outputs)
    ended = time.perf_counter()
    return Sent(
        id=name,
        plain=int(plain.argmax()),
        encrypted=int(found.argmax()),
        max_abs_error=float(abs(found - plain).max()),
        encrypt_seconds=encrypted - began,
        server_seconds=server_seconds,
        decrypt_seconds=ended - answered,
        seconds=ended - began,
    )


def _require_room(keys: Keys, largest: float) -> None:
    """Beyond what an answer can hold, it comes back as another number, and nobody would see it."""
    room = keys.primes[0] / keys.scale / 2
    if largest >= room:
        raise KeyFileError(
            f"an output of {largest:.4g} does not fit: keys of {','.join(map(str, keys.bits))} bits hold up to "
            f"{room:.4g} at this scale; --bits 60,40,60 --scale 40 hold 500,000"
        )


def _described(keys: Keys) -> dict[str, Any]:
    return {
        "scheme": "CKKS",
        "degree": keys.degree,
        "bits": list(keys.bits),
        "scale_bits": round(math.log2(keys.scale)),
        "security_bits": 128,
    }
