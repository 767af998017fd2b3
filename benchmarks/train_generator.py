"""A small generator for the attack `gan`: the decoder of a variational autoencoder, trained on research pictures.

    SEEPAGE_DATA=... python benchmarks/train_generator.py faces|cifar10 -o FILE.safetensors [--steps 3000]

It is no GAN: a VAE (Kingma & Welling, 2014) trains in minutes and does not collapse; its pictures are blurred. `faces`
takes the first 35 people of AT&T/ORL in grey at 64 px, five people stay out for measuring; `cifar10` takes train/ at
32 px. The same command goes on where a killed one stopped, to the same weights as if it had not been: batches and noise
follow from the seed and the step. At the end the reconstruction error on pictures left out is printed.

    SEEPAGE_GENERATOR=FILE.safetensors seepage audit ... \\
        --attack gan:generator=module/benchmarks/train_generator.py:trained
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import tarfile
import time
import zipfile
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from seepage.files import replacing

SIZES = {"faces": 64, "cifar10": 32}
LATENT = 96
NOISE = 0.1  # the pixels' assumed deviation: it weighs the error against the divergence
BATCH = 32
LR = 1e-3
EVERY = 100
HELD_PEOPLE = 5


class Decoder(nn.Module):
    """From latents "b 96" to RGB in [0, 1]: what `trained` returns."""

    latent_dim = LATENT

    def __init__(self, size: int) -> None:
        super().__init__()
        self.start = nn.Linear(LATENT, 192 * 4 * 4)
        widths = [192, 128, 96, 64, 32][: size.bit_length() - 2]
        self.body = nn.Sequential(*(layer for a, b in itertools.pairwise(widths) for layer in self._double(a, b)))
        self.end = nn.Conv2d(widths[-1], 3, 3, padding=1)

    @staticmethod
    def _double(given: int, made: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(given, 4 * made, 3, padding=1), nn.PixelShuffle(2), nn.GroupNorm(8, made), nn.SiLU()

    def forward(self, z: Tensor) -> Tensor:
        """Return pictures "b 3 size size"."""
        return self.end(self.body(self.start(z).view(-1, 192, 4, 4))).sigmoid()


class Autoencoder(nn.Module):
    """The decoder and the encoder that it is trained with."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.decoder = Decoder(size)
        widths = [3, 32, 64, 96, 128][: size.bit_length() - 1]
        halves = [(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU()) for a, b in itertools.pairwise(widths)]
        flat = widths[-1] * (size >> len(halves)) ** 2
        layers = itertools.chain.from_iterable(halves)
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 2 * LATENT))

    def loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the negative evidence bound a picture, up to a constant."""
        mean, log = self.encoder(images).chunk(2, 1)
        off = self.decoder(mean + noise * (log / 2).exp()) - images
        error = off.square().flatten(1).sum(1) / (2 * NOISE**2)
        divergence = 0.5 * (mean.square() + log.exp() - 1 - log).sum(1)
        return (error + divergence).mean()


def trained() -> nn.Module:
    """Return the decoder of the file that SEEPAGE_GENERATOR names."""
    weights, said = _read(Path(os.environ["SEEPAGE_GENERATOR"]))
    decoder = Decoder(said["size"])
    decoder.load_state_dict(
        {n.removeprefix("model.decoder."): w for n, w in weights.items() if n.startswith("model.decoder.")}
    )
    return decoder


def pictures(data: str, folder: Path) -> tuple[Tensor, Tensor]:
    """Return pictures to train on and pictures left out, "n 3 h w"."""
    size = SIZES[data]
    if data == "faces":
        with tarfile.open(folder / "orl_faces.tgz") as archive:
            members = {m.name: m for m in archive.getmembers() if m.name.endswith(".pgm")}
            people = sorted({Path(name).parent.name for name in members}, key=lambda name: int(name.strip("s")))
            out = set(people[-HELD_PEOPLE:])
            parts: tuple[list[Tensor], list[Tensor]] = ([], [])
            for name in sorted(members):
                file = archive.extractfile(members[name])
                if file is not None:
                    parts[Path(name).parent.name in out].append(_picture(file.read(), size))
            return torch.stack(parts[0]), torch.stack(parts[1])
    with zipfile.ZipFile(folder / "cifar10_jpeg.zip") as archive:
        named = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))
        train = [name for name in named if "train/" in name]
        test = [name for name in named if "test/" in name][::100]
        return tuple(torch.stack([_picture(archive.read(n), size) for n in part]) for part in (train, test))  # type: ignore[return-value]


def _picture(content: bytes, size: int) -> Tensor:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    return pil_to_tensor(image).float() / 255


def train(data: str, out: Path, folder: Path, steps: int, seed: int) -> None:
    """Train up to `steps`, from where `out` stands."""
    torch.manual_seed(seed)
    model = Autoencoder(SIZES[data])
    adam = torch.optim.Adam(model.parameters(), lr=LR)
    done, seconds = 0, 0.0
    if out.exists():
        weights, said = _read(out)
        if (said["data"], said["seed"]) != (data, seed):
            raise SystemExit(f"{out} holds {said['data']} of seed {said['seed']}: name another file with -o")
        done, seconds = said["step"], said["seconds"]
        model.load_state_dict({n.removeprefix("model."): w for n, w in weights.items() if n.startswith("model.")})
        _restore(adam, weights)
    images, held = pictures(data, folder)
    began = time.perf_counter()
    for step in range(done, steps):
        draw = torch.Generator().manual_seed(seed + step)
        chosen = images[torch.randint(len(images), (BATCH,), generator=draw)]
        flip = torch.rand(BATCH, 1, 1, 1, generator=draw) < 0.5
        chosen = torch.where(flip, chosen.flip(3), chosen)
        loss = model.loss(chosen, torch.randn(BATCH, LATENT, generator=draw))
        adam.zero_grad()
        loss.backward()
        adam.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            spent = seconds + time.perf_counter() - began
            said = {"kind": "vae", "data": data, "size": SIZES[data], "seed": seed, "step": step + 1, "seconds": spent}
            _write(out, model, adam, said)
            print(f"step {step + 1}, loss {loss.item():.1f}, {spent:.0f} s", flush=True)
    with torch.no_grad():
        mean, _ = model.encoder(held).chunk(2, 1)
        psnr = -10 * (model.decoder(mean) - held).square().flatten(1).mean(1).log10()
    count = sum(weight.numel() for weight in model.decoder.parameters())
    print(f"{count:,} parameters in the decoder; {len(held)} left out, encoded and decoded: {psnr.mean():.1f} dB")


def _write(out: Path, model: Autoencoder, adam: torch.optim.Adam, said: dict[str, object]) -> None:
    tensors = {f"model.{name}": weight.detach().clone() for name, weight in model.state_dict().items()}
    for index, state in adam.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value.clone() for name, value in state.items()}
    with replacing(out) as part:
        save_file(tensors, part, metadata={"seepage-generator": json.dumps(said)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["seepage-generator"])
        return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118  no mapping


def _restore(adam: torch.optim.Adam, weights: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in weights.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(SIZES))
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    train(asked.data, asked.out, Path(os.environ["SEEPAGE_DATA"]), asked.steps, asked.seed)


if __name__ == "__main__":
    main()
