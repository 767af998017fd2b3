"""Frames between a client and a server of the encrypted tail: a kind, a length, a body; none larger than it may be."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ..types import SeepageError
from .encrypted_keys import KeyFileError
from .encrypted_product import Product

VERSION = 1
_HEAD = struct.Struct("!2sBI")
_MARK = b"sp"
_SECONDS = struct.Struct("!d")
_WORDS = 64 * 1024
_PATIENCE = 60.0


class ExchangeError(SeepageError):
    """The other side cannot be reached, is slow, or says what is no frame of this exchange."""


class Kind(IntEnum):
    """What a frame holds."""

    HELLO = 1
    READY = 2
    CIPHERTEXT = 3
    ANSWER = 4
    REFUSED = 5


@dataclass(frozen=True)
class Greeting:
    """What both sides have to agree on before anything is encrypted: the network, the cut, the keys."""

    weights_sha256: str
    layer: str
    shape: tuple[int, ...]
    key: str

    @classmethod
    def read(cls, body: bytes) -> Greeting:
        """Read one from a frame."""
        found = _object(body)
        shape = found.get("shape")
        weights, layer, key = (found.get(name) for name in ("weights_sha256", "layer", "key"))
        if found.get("version") != VERSION:
            raise ExchangeError(
                f"a greeting is of version {found.get('version')}, and version {VERSION} is spoken here"
            )
        if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
            raise ExchangeError("a greeting names no shape")
        if not (isinstance(weights, str) and isinstance(layer, str) and isinstance(key, str)):
            raise ExchangeError("a greeting lacks a network, a cut or a key")
        return cls(weights, layer, tuple(shape), key)

    def frame(self) -> bytes:
        """Write it for a frame."""
        return json.dumps({"version": VERSION, **self.__dict__}).encode()


class Line:
    """One connection: frames out and in, counted in bytes, each within a time."""

    def __init__(self, connection: socket.socket, patience: float = _PATIENCE) -> None:
        self.connection = connection
        self.patience = patience
        self.sent = self.received = 0

    def send(self, kind: Kind, body: bytes) -> None:
        """Send a frame.

        Raises:
            ExchangeError: the other side is gone or does not take it in time.
        """
        frame = _HEAD.pack(_MARK, kind, len(body)) + body
        try:
            self.connection.settimeout(self.patience)
            self.connection.sendall(frame)
        except OSError as error:
            raise ExchangeError(f"the other side does not listen: {error}") from error
        self.sent += len(frame)

    def receive(self, wanted: Kind, limit: int = _WORDS) -> bytes:
        """Return the body of the next frame.

        Raises:
            ExchangeError: it is another, too large, or not whole in time; what a refusal says is the message.
        """
        found = self.receive_or_end(wanted, limit)
        if found is None:
            raise ExchangeError(f"the other side ended the connection where a frame {wanted.name} was expected")
        return found

    def receive_or_end(self, wanted: Kind, limit: int = _WORDS) -> bytes | None:
        """Return the body of the next frame, None where the other side is done."""
        until = time.monotonic() + self.patience
        head = self._exactly(_HEAD.size, until, may_end=True)
        if not head:
            return None
        mark, number, length = _HEAD.unpack(head)
        if mark != _MARK or number not in (wanted, Kind.REFUSED):
            raise ExchangeError(f"expected a frame {wanted.name}, got {head[:3]!r}")
        most = _WORDS if number == Kind.REFUSED else limit
        if length > most:
            raise ExchangeError(f"a frame of {length:,} bytes where {most:,} are the most")
        body = self._exactly(length, until)
        if number == Kind.REFUSED:
            said = _object(body).get("message")
            raise ExchangeError(f"the other side refuses: {' '.join(str(said).split())}")
        return body

    def _exactly(self, count: int, until: float, *, may_end: bool = False) -> bytes:
        """Read so many bytes before a time: a byte now and then does not hold the line."""
        parts = bytearray()
        while len(parts) < count:
            left = until - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                self.connection.settimeout(left)
                part = self.connection.recv(min(count - len(parts), 1 << 20))
            except TimeoutError as error:
                raise ExchangeError(f"no whole frame within {self.patience:.0f} seconds") from error
            except OSError as error:
                raise ExchangeError(f"the connection broke: {error}") from error
            if not part:
                if may_end and not parts:
                    return b""
                raise ExchangeError(f"the connection ended after {len(parts)} of {count} bytes")
            parts += part
        self.received += count
        return bytes(parts)


class Server:
    """The side without the secret key: it answers one client after another, and outlives those who misbehave."""

    def __init__(self, weights_sha256: str, layer: str, product: Product, tell: Callable[[str], None]) -> None:
        self.product, self.tell = product, tell
        self.own = Greeting(weights_sha256, layer, product.tail.shape, product.keys.fingerprint)

    def serve(self, listener: socket.socket) -> None:
        """Answer until interrupted."""
        while True:
            connection, address = listener.accept()
            name = f"{address[0]}:{address[1]}"
            with connection:
                line = Line(connection)
                began, pictures = time.perf_counter(), 0
                try:
                    self._greet(line)
                    while self._answer(line):
                        pictures += 1
                except (ExchangeError, KeyFileError) as error:
                    self.tell(f"{name}: refused after {pictures} pictures: {error}")
                    self._refuse(line, str(error))
                else:
                    self.tell(
                        f"{name}: {pictures} pictures in {time.perf_counter() - began:.1f} s, {line.received:,} bytes "
                        f"in, {line.sent:,} bytes out"
                    )

    def _greet(self, line: Line) -> None:
        asked, own = Greeting.read(line.receive(Kind.HELLO)), self.own
        if asked.weights_sha256 != own.weights_sha256 or asked.layer != own.layer:
            raise ExchangeError(
                f"here is the tail of {own.weights_sha256[:12]} from {own.layer!r} on, not of "
                f"{asked.weights_sha256[:12]} from {asked.layer[:80]!r} on"
            )
        if asked.shape != own.shape:
            raise ExchangeError(f"the tail takes features of shape {own.shape}, not {asked.shape[:8]}")
        if asked.key != own.key:
            raise ExchangeError(
                "the public keys here are of another pair: copy the file written beside the client's own"
            )
        tail = self.product.tail
        ready = {"outputs": self.product.outputs, "pooled": tail.pooled, "kind": tail.kind}
        line.send(Kind.READY, json.dumps(ready).encode())

    def _answer(self, line: Line) -> bool:
        """Answer one picture; False where the client is done."""
        largest = self.product.keys.largest_ciphertext
        first = line.receive_or_end(Kind.CIPHERTEXT, largest)
        if first is None:
            return False
        rest = [line.receive(Kind.CIPHERTEXT, largest) for _ in range(self.product.layout.ciphertexts - 1)]
        began = time.perf_counter()
        answer = self.product([first, *rest])
        line.send(Kind.ANSWER, _SECONDS.pack(time.perf_counter() - began) + answer)
        return True

    def _refuse(self, line: Line, why: str) -> None:
        try:
            line.send(Kind.REFUSED, json.dumps({"message": why}).encode())
        except ExchangeError:
            self.tell("it was gone before it could be told")


class Client:
    """The side with the secret key, once it has agreed with a server on the cut and the keys."""

    def __init__(self, line: Line, greeting: Greeting) -> None:
        """Agree.

        Raises:
            ExchangeError: the server refuses, or is none.
        """
        self.line = line
        line.send(Kind.HELLO, greeting.frame())
        ready = _object(line.receive(Kind.READY))
        outputs, pooled = ready.get("outputs"), ready.get("pooled")
        axes = range(len(greeting.shape))
        if not isinstance(outputs, int) or outputs < 1 or not isinstance(pooled, list):
            raise ExchangeError("the server does not say what its tail gives")
        if not all(axis in axes for axis in pooled) or len(set(pooled)) < len(pooled):
            raise ExchangeError(f"the server pools axes {pooled[:8]} of features of shape {greeting.shape}")
        self.outputs, self.pooled, self.kind = outputs, tuple(pooled), str(ready.get("kind"))

    def ask(self, sealed: list[bytes], largest: int) -> tuple[bytes, float]:
        """Return the encrypted outputs of one picture, and the server's own seconds."""
        for ciphertext in sealed:
            self.line.send(Kind.CIPHERTEXT, ciphertext)
        body = self.line.receive(Kind.ANSWER, largest + _SECONDS.size)
        if len(body) < _SECONDS.size:
            raise ExchangeError("the server's answer is empty")
        return body[_SECONDS.size :], float(_SECONDS.unpack(body[: _SECONDS.size])[0])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes any that is free.

    Raises:
        ExchangeError: the address cannot be had.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise ExchangeError(f"cannot listen on {host}:{port}: {error}; --port 0 takes any free one") from error


def connect(address: str) -> socket.socket:
    """Connect to HOST:PORT.

    Raises:
        ExchangeError: it is no such address, or nobody answers there.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ExchangeError(f"--server is HOST:PORT, as 127.0.0.1:7100; got {address!r}")
    try:
        return socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE)
    except OSError as error:
        raise ExchangeError(f"nobody answers at {address}: {error}; start `seepage encrypt serve` there") from error


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ExchangeError("a frame of words is no JSON") from error
    if not isinstance(found, dict):
        raise ExchangeError("a frame of words is no JSON object")
    return found
