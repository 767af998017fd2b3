"""Ways in which a picture gets worse, each graded by a strength in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter

PATCH = 8

Array = Float[np.ndarray, "h w 3"]
Family = Callable[[Array, float, np.random.Generator], Array]


def geometric(low: float, high: float, strength: float) -> float:
    """Return the value a fraction `strength` of the way from `low` to `high`, in equal ratios."""
    return low * (high / low) ** strength


def blur(picture: Array, strength: float, random: np.random.Generator) -> Array:
    """Gaussian blur of 0.7 to 12 pixels."""
    return gaussian_filter(picture, (geometric(0.7, 12, strength),) * 2 + (0,))


def noise(picture: Array, strength: float, random: np.random.Generator) -> Array:
    """White Gaussian noise of standard deviation 0.03 to 1.5."""
    return picture + geometric(0.03, 1.5, strength) * random.standard_normal(picture.shape)


def jpeg(picture: Array, strength: float, random: np.random.Generator) -> Array:
    """JPEG at quality 60 down to 1, of a picture made smaller up to eightfold."""
    small = Image.fromarray((255 * picture.clip(0, 1)).round().astype(np.uint8))
    size = round(small.width / geometric(1, 8, strength))
    file = BytesIO()
    small.resize((size, size), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=round(geometric(60, 1, strength)), subsampling=2
    )
    with Image.open(file) as coded:
        return np.asarray(coded.resize(picture.shape[1::-1], Image.Resampling.BICUBIC)) / 255


def resample(picture: Array, strength: float, random: np.random.Generator) -> Array:
    """Down to a 1.5th to a 28th of the side and up again."""
    side = round(picture.shape[0] / geometric(1.5, 28, strength))
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(picture, -1, 0)]
    small = [channel.resize((side, side), Image.Resampling.BOX) for channel in channels]
    large = [channel.resize(picture.shape[1::-1], Image.Resampling.BICUBIC) for channel in small]
    return np.stack([np.asarray(channel, dtype=np.float64) for channel in large], axis=-1)


def blur_and_noise(picture: Array, strength: float, random: np.random.Generator) -> Array:
    """Blur and noise together, at strengths of their own around the given one."""
    blurs, noises = (strength + random.uniform(-0.3, 0.3, 2)).clip(0, 1)
    return noise(blur(picture, 0.8 * blurs, random), 0.8 * noises, random)


def cast(picture: Array, strength: float, random: np.random.Generator) -> Array:
    """Contrast down to a hundredth around a shifted colour, with a little noise."""
    shift = 0.3 * strength * random.uniform(-1, 1, 3)
    pale = 0.5 + shift + geometric(0.9, 0.01, strength) * (picture - 0.5)
    return pale + 0.05 * strength * random.standard_normal(picture.shape)


def ridge(photographs: Float[np.ndarray, "n h w 3"]) -> Family:
    """Return the family of ridge decoders: every 8x8 patch from a few random linear measurements, as from features.

    The prior is the covariance of these photographs' patches.
    """
    covariance = np.cov(np.concatenate([patches_of(photograph) for photograph in photographs]), rowvar=False)
    root = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(covariance)))

    def decode(picture: Array, strength: float, random: np.random.Generator) -> Array:
        """Patches of 192 numbers from 150 down to 1 measurements."""
        across = picture.shape[0] // PATCH
        patches = patches_of(picture) - 0.5
        count = round(geometric(150, 1, strength))
        measured = random.standard_normal((count, patches.shape[1])) @ root
        gain = root @ measured.T @ np.linalg.inv(measured @ measured.T + 1e-3 * np.eye(count))
        # With C = L L^T and M = A L, the ridge solution C A^T (A C A^T + k)^-1 A p is L M^T (M M^T + k)^-1 M L^-1 p.
        decoded = np.linalg.solve(root, patches.T).T @ measured.T @ gain.T + 0.5
        return decoded.reshape(across, across, PATCH, PATCH, 3).swapaxes(1, 2).reshape(picture.shape)

    return decode


def patches_of(picture: Array) -> Float[np.ndarray, "n d"]:
    """Cut a picture into its 8x8 patches, flattened."""
    across = picture.shape[0] // PATCH
    tiles = picture.reshape(across, PATCH, across, PATCH, 3).swapaxes(1, 2)
    return tiles.reshape(-1, PATCH * PATCH * 3)


FAMILIES: dict[str, Family] = {
    "blur": blur,
    "noise": noise,
    "jpeg": jpeg,
    "resample": resample,
    "blur_and_noise": blur_and_noise,
    "cast": cast,
}
