"""`seepage encrypt`: a client with the key, a server in a process of its own without it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seepage.studies.encrypted_wire import ExchangeError, Greeting, Kind, Line

pytest.importorskip("tenseal")

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--degree", 4096, "--bits", "40,28,40", "--scale", 28)


@pytest.fixture
def keys(seepage: Run, tmp_path: Path) -> Path:
    """A folder with a pair of keys."""
    code, said, error = seepage("encrypt", "keys", "-o", tmp_path / "keys", *SMALL)
    assert code == 0, error
    assert said.strip() == str(tmp_path / "keys" / "public.tenseal")
    return tmp_path / "keys"


@pytest.fixture
def server(victim: str, keys: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a server of the tiny victim's tail after its rectifier."""
    words = ["encrypt", "serve", victim, "--layer", "relu", "--keys", str(keys / "public.tenseal"), "--port", "0"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "seepage", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
            assert process.poll() is None, (tmp_path / "log").read_text()
        finally:
            process.terminate()


def test_the_tail_agrees_and_the_server_outlives_bad_clients(
    seepage: Run, victim: str, folder: Path, keys: Path, server: str, tmp_path: Path
) -> None:
    common = ("--layer", "relu", "--keys", keys / "secret.tenseal", "--server", server, "-o", tmp_path / "out")
    code, said, error = seepage("encrypt", "send", victim, folder, *common)
    assert code == 0, error
    path = said.strip().splitlines()[-1]
    record = json.loads(Path(path).read_text())
    assert (record["n"], record["agreement"], record["failed"]) == (6, 1.0, [])
    assert 0 < record["max_abs_error"] < 5e-3
    assert record["tail"]["kind"] == "pool and linear"
    assert record["bytes"]["up"] > record["bytes"]["plain"] == 16 * 16 * 16 * 4
    assert "6 of 6" in said
    assert str(keys) not in json.dumps(record)

    host, _, port = server.rpartition(":")
    good = Greeting(record["weights_sha256"], "relu", (16, 16, 16), "0" * 64)
    for frames, why in (
        ([b"GET / HTTP/1.1\r\n\r\n"], "expected a frame HELLO"),
        ([b"sp\x01\xff\xff\xff\xff"], "bytes where 65,536 are the most"),
        ([b"sp\x01\x00\x00\x00\x02{}"], "version None"),
        ([_frame(Kind.HELLO, good.frame())], "of another pair"),
    ):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            for frame in frames:
                connection.sendall(frame)
            with pytest.raises(ExchangeError, match=f"the other side refuses: .*{why}"):
                Line(connection).receive(Kind.READY)
    socket.create_connection((host, int(port)), timeout=30).close()

    code, _, error = seepage("encrypt", "keys", "-o", tmp_path / "others", *SMALL)
    assert code == 0, error
    others = (*common[:3], tmp_path / "others" / "secret.tenseal", *common[4:])
    for words, why in (
        ((victim, folder, *others), "of another pair"),
        ((victim, folder, "--layer", "pool", *common[2:]), "here is the tail of"),
        ((victim, folder, *common[:3], keys / "public.tenseal", *common[4:]), "holds no secret key"),
    ):
        code, _, error = seepage("encrypt", "send", *words)
        assert code == 2
        assert why in error
        assert len(error.strip().splitlines()) == 1
    (folder / "broken.png").write_bytes(b"no picture")
    code, _, error = seepage("encrypt", "send", victim, folder, *common)
    assert code == 0, error
    assert "left out: broken.png" in error
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        line = Line(connection)
        line.send(Kind.HELLO, Greeting(good.weights_sha256, "relu", good.shape, _fingerprint(keys)).frame())
        line.receive(Kind.READY)
        for _ in range(2):
            line.send(Kind.CIPHERTEXT, b"no ciphertext" * 100)
        with pytest.raises(ExchangeError, match="holds no ciphertext under these keys"):
            line.receive(Kind.ANSWER)
    assert seepage("encrypt", "send", victim, folder, *common)[0] == 0
    log = (tmp_path / "log").read_text()
    assert "no secret key here" in log
    assert log.count(": 6 pictures in ") == 3


@pytest.mark.parametrize(
    ("layer", "file", "why"),
    [
        ("relu", "secret.tenseal", "which a server must not have"),
        ("wide", "public.tenseal", "is not affine in the features: multiplicative depth about 16"),
        ("relu", "none.tenseal", "cannot read"),
    ],
)
def test_what_a_server_refuses(seepage: Run, victim: str, keys: Path, layer: str, file: str, why: str) -> None:
    code, said, error = seepage("encrypt", "serve", victim, "--layer", layer, "--keys", keys / file, "--port", 0)
    assert (code, said) == (2, "")
    assert why in error
    assert len(error.strip().splitlines()) == 1


def test_nobody_there(seepage: Run, victim: str, folder: Path, keys: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    words = ("--keys", keys / "secret.tenseal", "--server", f"127.0.0.1:{free}", "-o", tmp_path / "out")
    code, _, error = seepage("encrypt", "send", victim, folder, "--layer", "relu", *words)
    assert code == 2
    assert "nobody answers" in error
    code, _, error = seepage("encrypt", "keys", "-o", tmp_path / "more", "--bits", "60,forty")
    assert code == 2
    assert "whole numbers with commas" in error


def _frame(kind: Kind, body: bytes) -> bytes:
    return b"sp" + bytes([kind]) + len(body).to_bytes(4, "big") + body


def _fingerprint(keys: Path) -> str:
    from seepage.studies.encrypted_keys import read_keys

    return read_keys(keys / "public.tenseal", secret=False).fingerprint
