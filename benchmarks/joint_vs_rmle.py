"""`joint` beside `rmle` at equal time, at MobileNetV2's features.1, on photographs of 224 px not used for tuning.

    SEEPAGE_DATA=... python benchmarks/joint_vs_rmle.py [--pictures 8]

The photographs are the four of the embedded default and, where `SEEPAGE_DATA` names the research data, ImageNet samples
of the second half of the alphabet (tuning used the first). `rmle` gets as many steps as take at least the seconds that
`joint` took at `standard`, its fit included: where a run came out shorter, it is run again with more. Writes
`results/joint_vs_rmle.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tarfile
import time
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

import seepage
from seepage.audit.statistics import describe

RESULTS = Path(__file__).parent / "results"
LAYER = "features.1"
BATCH = 4
PROBE = 60


def photographs(split: seepage.SplitModel, count: int) -> torch.Tensor:
    """Return the default photographs, then ImageNet samples spread over the half that tuning did not use."""
    images = [split.load(entry.path) for entry in seepage.open_source().entries]
    data = os.environ.get("SEEPAGE_DATA")
    if data is not None and count > len(images):
        with tarfile.open(Path(data) / "imagenet_samples_256.tar") as archive:
            names = sorted(name for name in archive.getnames() if name.lower().endswith((".jpg", ".jpeg")))
            half = names[len(names) // 2 :]
            wanted = count - len(images)
            for name in half[:: len(half) // wanted][:wanted]:
                member = archive.extractfile(name)
                if member is not None:
                    images.append(split.load(Image.open(BytesIO(member.read())).convert("RGB")))
    return torch.stack(images[:count])


def run(name: str, split: seepage.SplitModel, images: torch.Tensor) -> dict[str, object]:
    """Attack every picture; return PSNRs, residuals, passes and seconds, fitting included."""
    began = time.perf_counter()
    attack = seepage.build("attack", name)
    recoverer = attack.fit(seepage.Knowledge(split.image_shape, split.prefix), seepage.generator(0, "fit", name))
    psnr: list[float] = []
    residuals: list[float] = []
    passes = 0
    for start in range(0, len(images), BATCH):
        truth = images[start : start + BATCH]
        leak = split.leak(truth)
        generators = seepage.generators(0, "attack", seepage.row_hashes(leak.features))
        recovery = recoverer.recover(leak, generators)
        pictures = seepage.Pictures(truth, tuple(str(start + row) for row in range(len(truth))))
        psnr += seepage.build("metric", "psnr")(pictures, recovery).tolist()
        again = split.leak(recovery.value.images).features
        residuals += ((again - leak.features).flatten(1).norm(dim=1) / leak.features.flatten(1).norm(dim=1)).tolist()
        passes += int(recovery.passes.sum())
    return {
        "attack": name,
        "psnr": psnr,
        "residual": residuals,
        "passes": passes,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Run both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    count = parser.parse_args().pictures
    split = seepage.cut(seepage.load("zoo/mobilenet_v2"), LAYER)
    images = photographs(split, count)
    probe = run(f"rmle:steps={PROBE}", split, images[:BATCH])
    joint = run("joint", split, images)
    allowed = float(str(joint["seconds"]))
    steps = math.ceil(allowed / (float(str(probe["seconds"])) / PROBE * len(images) / BATCH))
    rmle = run(f"rmle:steps={steps}", split, images)
    while (taken := float(str(rmle["seconds"]))) < allowed:
        steps = math.ceil(1.03 * steps * allowed / taken)
        rmle = run(f"rmle:steps={steps}", split, images)
    rows = [joint, rmle]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    head = f"`python benchmarks/joint_vs_rmle.py --pictures {count}`, {machine}, {datetime.now(UTC):%Y-%m-%d}."
    lines = [
        f"{head} zoo/mobilenet_v2 at {LAYER}, n = {len(images)} photographs of 224 px.",
        "",
        "| attack | mean PSNR (dB) [95 %] | median | minimum | median residual | passes each | seconds each |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stats = describe(row["psnr"], higher_leaks=True)
        residual = sorted(row["residual"])[len(row["residual"]) // 2]
        lines.append(
            f"| `{row['attack']}` | {stats.mean:.1f} [{stats.ci_low:.1f}, {stats.ci_high:.1f}] | {stats.median:.1f} | "
            f"{stats.min:.1f} | {residual:.1e} | {row['passes'] // len(images)} | {row['seconds'] / len(images):.1f} |"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "joint_vs_rmle.md").write_text("\n".join(lines) + "\n")
    record = {"machine": machine, "layer": LAYER, "rows": rows}
    (RESULTS / "joint_vs_rmle.json").write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
