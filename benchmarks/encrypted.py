"""The tail on encrypted features, in two processes: the client with the key, the server without.

    SEEPAGE_DATA=... python benchmarks/encrypted.py [--tail cifar|mobilenet]...

`cifar`: 200 CIFAR-10 test pictures, ResNet-20's pooled tail of 10 classes. `mobilenet`: 10 photographs, MobileNetV2's
pooled tail of 1,000 classes. The commands are those of the command line, over loopback, one thread each. Writes
`results/encrypted.md`, with both sides' logs, and `.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import inversion

RESULTS = Path(__file__).parent / "results"
TAILS = {
    "cifar": ("zoo/cifar_resnet20", "layer3.2", "cifar", 200),
    "mobilenet": ("zoo/mobilenet_v2", "features.18", "photographs", 10),
}
HEAD = (
    "tail", "pictures", "same class", "largest error", "s: encrypt", "s: server", "s: decrypt", "s: all",
    "s: slowest", "bytes up", "bytes down", "plain features",
)  # fmt: skip
BESIDE = 0.5
"""Other work on the machine, in running processes a core, from which on times are called upper bounds."""


def run(name: str, pictures: str) -> dict[str, Any]:
    """Start a server, send it pictures from another process, and return the record and what both said."""
    victim, layer, _, count = TAILS[name]
    seepage = [sys.executable, "-m", "seepage", "encrypt"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    beside = os.getloadavg()[0] / (os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([*seepage, "keys", "-o", "keys"], cwd=folder, env=alone, check=True)
        made = time.perf_counter() - began
        serve = ["serve", victim, "--layer", layer, "--keys", "keys/public.tenseal", "--port", "0"]
        with Path(folder, "log").open("w") as log, subprocess.Popen(
            [*seepage, *serve], cwd=folder, env=alone, stdout=subprocess.PIPE, stderr=log, text=True
        ) as server:  # fmt: skip
            assert server.stdout is not None
            began = time.perf_counter()
            address = server.stdout.readline().strip()
            ready = time.perf_counter() - began
            send = ["send", victim, pictures, "--layer", layer, "--keys", "keys/secret.tenseal", "--limit", str(count)]
            said = subprocess.run(
                [*seepage, *send, "--server", address, "-o", "out"],
                cwd=folder, env=alone, check=True, capture_output=True, text=True,
            )  # fmt: skip
            server.terminate()
        record: dict[str, Any] = json.loads(Path(folder, "out", "encrypted.json").read_text())
        record["started"] = {"seconds_keys": made, "seconds_server": ready, "load": beside}
        record["log"] = {
            "server": [f"$ seepage encrypt {' '.join(serve)}", address, *Path(folder, "log").read_text().splitlines()],
            "client": [
                f"$ seepage encrypt {' '.join(send).replace(pictures, 'PICTURES')} --server {address} -o out",
                *(line.rstrip() for line in said.stdout.splitlines()),
            ],
        }
    return record


def line(record: dict[str, Any]) -> str:
    """Return a record's line of the table."""
    seconds, size, tail = record["seconds"], record["bytes"], record["tail"]
    same = sum(each["plain"] == each["encrypted"] for each in record["samples"])
    dagger = " †" if record["started"]["load"] > BESIDE else ""
    parts = [
        f"{record['victim']} from `{record['layer']}` on: {tail['kind']}, {tail['outputs']:,} classes",
        str(record["n"]),
        f"{same} ({record['agreement']:.1%})",
        f"{record['max_abs_error']:.1e}",
        *(
            f"{seconds[name]['mean']:.3f}{dagger}"
            for name in ("encrypt_seconds", "server_seconds", "decrypt_seconds", "seconds")
        ),
        f"{seconds['seconds']['max']:.3f}{dagger}",
        f"{size['up']:,.0f}",
        f"{size['down']:,.0f}",
        f"{size['plain']:,}",
    ]
    return f"| {' | '.join(parts)} |"


def write(known: dict[str, Any]) -> None:
    """Write the tables anew."""
    text = ["# The tail on encrypted features, in two processes", ""]
    text += ["`python benchmarks/encrypted.py`, loopback, one thread a process. Keys: CKKS, degree 8192, primes of", ""]
    record = next(iter(known.values()))
    bits = ",".join(map(str, record["keys"]["bits"]))
    text[-2] += f" {bits} bits, scale 2^{record['keys']['scale_bits']}; TenSEAL {record['tenseal']}. Seconds are a"
    text[-2] += " picture's, the prefix not counted; bytes a picture's, both directions framed."
    text += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD), *map(line, known.values()), ""]
    if any(record["started"]["load"] > BESIDE for record in known.values()):
        text += ["† Other work ran on the machine: the times are upper bounds.", ""]
    for record in known.values():
        text += [f"## {record['victim']}", "", f"{record['date']}, {record['environment']['device']}. "]
        started = record["started"]
        text[-1] += f"Keys in {started['seconds_keys']:.0f} s, the server ready in {started['seconds_server']:.0f} s."
        for side, said in record["log"].items():
            text += ["", f"The {side}:", "", "```text", *said, "```"]
        text.append("")
    (RESULTS / "encrypted.md").write_text("\n".join(text))
    (RESULTS / "encrypted.json").write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    """Run the tails asked for and write all that is on record."""
    from importlib.metadata import version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tail", choices=tuple(TAILS), action="append")
    asked = parser.parse_args()
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit("encrypted: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip and imagenet_samples_256.tar")
    folders = inversion.pictures(Path(root))
    path = RESULTS / "encrypted.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in asked.tail or TAILS:
        known[name] = run(name, folders[TAILS[name][2]])
        known[name] |= {"tenseal": version("tenseal"), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        write({key: known[key] for key in TAILS if key in known})
        print(line(known[name]), flush=True)


if __name__ == "__main__":
    main()
