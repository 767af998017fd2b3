"""The one-time mask there and back over a billion values: every bit pattern's share, NaN and infinities included.

    python benchmarks/mask.py [--values N]

A tenth of the values are normal numbers, the others all bit patterns alike, so that NaN with any payload, infinities
and denormals come as often as chance has it. Counts the values whose 32 bits did not come back, and the bits of what is
sent that are set, which is half of them. Writes `results/mask.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch

import seepage

RESULTS = Path(__file__).parent / "results"
CHUNK = 10_000_000
_BITS = [bin(value).count("1") for value in range(256)]


def values(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return floats of every kind."""
    some = torch.randn(count // 10, generator=generator).view(torch.int32)
    any_bits = torch.randint(-(2**31), 2**31, (count - len(some),), generator=generator, dtype=torch.int32)
    return torch.cat([some, any_bits]).view(torch.float32)[None]


def main(wanted: int) -> None:
    """Mask and unmask chunk by chunk."""
    mask, header = seepage.build("defense", "mask"), seepage.types.LeakHeader("none", "", "none", "none")
    set_bits = torch.tensor(_BITS)
    lost = done = ones = not_numbers = 0
    seconds = 0.0
    generator = torch.Generator().manual_seed(0)
    while done < wanted:
        clean = values(min(CHUNK, wanted - done), generator)
        began = time.process_time()
        sent, secret = mask.protect(seepage.Leak(clean, header), ())
        back = mask.restore(sent, secret)
        seconds += time.process_time() - began
        lost += int((back.features.view(torch.int32) != clean.view(torch.int32)).sum())
        octets = sent.features.view(torch.uint8).flatten().long().bincount(minlength=256)
        ones += int((octets * set_bits).sum())
        not_numbers += int(clean.isnan().sum())
        done += clean.numel()
    share, deviation = ones / (32 * done), 0.5 / math.sqrt(32 * done)
    found = {
        "values": done,
        "not_a_number": not_numbers,
        "lost": lost,
        "share_of_bits_set": share,
        "deviations_from_half": (share - 0.5) / deviation,
        "seconds_there_and_back": seconds,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "mask.json").write_text(json.dumps(found, indent=1) + "\n")
    text = (
        f"# The one-time mask, there and back\n\n`python benchmarks/mask.py --values {wanted}`, {found['date']}, one "
        f"thread, {found['machine']}.\n\n| | |\n|---|---|\n| values | {done:,} |\n| of them NaN | {not_numbers:,} |\n"
        f"| whose bits did not come back | {lost:,} |\n| share of the bits sent that are set | {share:.7f}, "
        f"{abs(found['deviations_from_half']):.1f} standard deviations from a half |\n"
        f"| processor seconds, there and back | {seconds:.0f} |\n"
    )
    (RESULTS / "mask.md").write_text(text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=10**9)
    main(parser.parse_args().values)
