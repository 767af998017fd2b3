"""The judge of the face rows: EfficientNet-lite0 up to its fifth stage, adapted to faces by `train_face_judge.py`.

Who learns, who is judged and how many pictures a gallery holds is said here too: the rows of `peel_tables.py` and the
figures of the judge must mean the same people.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from seepage import assets

HERE = Path(__file__).parent
LEARNED, JUDGED, TARGETS = range(1, 21), range(21, 41), range(36, 41)
PICTURES, KNOWN = 10, 5  # of every person, and those of them in the gallery
SIDE, CELLS, WIDTH = 112, 4, 512
STAGES = (80, 112)  # the channels of stages 4 and 5


class Unit(nn.Module):
    """Scale "b d" to unit length."""

    def forward(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return F.normalize(vectors, dim=1)


class FaceNetwork(nn.Module):
    """Faces "b 3 112 112", RGB in [0, 1], to embeddings "b 512" of unit length."""

    image_shape = (3, SIDE, SIDE)

    def __init__(self) -> None:
        super().__init__()
        lite = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.lower = nn.Sequential(lite.conv_stem, lite.bn1, *lite.blocks[:4])
        self.upper = lite.blocks[4]
        self.head = nn.Sequential(nn.Linear(sum(STAGES) * CELLS**2, WIDTH), Unit())

    def cells(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3072"]:
        """Return what the head is given."""
        fourth = self.lower((images - 127 / 255) / (128 / 255))
        both = fourth, self.upper(fourth)
        return torch.cat([F.adaptive_avg_pool2d(stage, CELLS).flatten(1) for stage in both], 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 512"]:
        embeddings: Tensor = self.head(self.cells(images))
        return embeddings


def network() -> FaceNetwork:
    """Return the network, as `module/benchmarks/face_judge.py:network@FILE` has it."""
    return FaceNetwork()


def weights() -> Path:
    """Return where the trained weights are kept."""
    return assets.home() / "training" / "face_judge.safetensors"


def name() -> str:
    """Return the judge as `--judge face=` takes it."""
    return f"module/{HERE}/face_judge.py:network@{weights()}"
