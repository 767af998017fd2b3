"""An affine map of encrypted features: how they lie in ciphertexts, and the product by a matrix's diagonals (CKKS)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .encrypted_keys import KeyFileError, Keys, require_tenseal
from .encrypted_tail import AffineTail

Array = npt.NDArray[np.float64]

HEADROOM = 64.0
"""How many times the answer to features of spread 1 an answer may be."""
_ERROR = 1e-3
_TURNED_BITS, _RESCALED_BITS, _WEIGHT_BITS = 17, 11, 5
"""What is uncertain of a turned number and of an answer, in bits of the scale; of a weight, in bits of its own scale.
Measured at degrees 4096 and 8192. Turning favours the first slots, whose roots of unity are near 1."""
_LARGEST = 4 * 2**30


@dataclass(frozen=True)
class Layout:
    """Where features lie: `groups` positions of all channels in a ciphertext, or a position in `width` of them."""

    positions: int
    channels: int
    slots: int

    @property
    def groups(self) -> int:
        """Positions that share a ciphertext."""
        return max(1, self.slots // self.channels)

    @property
    def width(self) -> int:
        """Ciphertexts that one position takes."""
        return math.ceil(self.channels / self.slots)

    @property
    def ciphertexts(self) -> int:
        """How many a picture takes."""
        return math.ceil(self.positions / self.groups) * self.width

    def pack(self, features: Array) -> Array:
        """Lay features, (positions, channels), into (ciphertexts, slots); what is left over is zero."""
        rows = np.zeros((math.ceil(self.positions / self.groups) * self.groups, self.channels))
        rows[: self.positions] = features
        rows = rows.reshape(-1, self.groups * self.channels)
        packed = np.zeros((len(rows), self.width * self.slots))
        packed[:, : rows.shape[1]] = rows
        return packed.reshape(-1, self.slots)


class Sealer:
    """The client's side: numbers to ciphertexts and back. The only one who holds the secret key."""

    def __init__(self, keys: Keys) -> None:
        _, self._seal = require_tenseal()
        self.keys = keys
        secret = keys.context.secret_key().data
        self._encoder = self._seal.CKKSEncoder(keys.seal)
        self._encryptor = self._seal.Encryptor(keys.seal, keys.context.public_key().data)
        # By the secret key a ciphertext's second half is random, and its seed is sent instead: half the bytes.
        self._encryptor.set_secret_key(secret)
        self._decryptor = self._seal.Decryptor(keys.seal, secret)

    def encrypt(self, packed: Array) -> list[bytes]:
        """Encrypt (ciphertexts, slots) row by row."""
        sealed = []
        for row in packed:
            plain = self._seal.Plaintext()
            self._encoder.encode(row.tolist(), self.keys.scale, plain)
            sealed.append(_bytes(self._encryptor.encrypt_symmetric(plain)))
        return sealed

    def decrypt(self, sealed: bytes, count: int) -> Array:
        """Return the first `count` numbers of an answer.

        Raises:
            KeyFileError: it is no ciphertext under these keys.
        """
        plain = self._seal.Plaintext()
        self._decryptor.decrypt(_ciphertext(self._seal, self.keys, sealed), plain)
        return np.array(self._encoder.decode_double(plain)[:count])


class Product:
    """The server's side: an affine tail on ciphertexts, by diagonals in baby and giant steps (Halevi and Shoup 2018).

    The rows of the matrix are repeated to a power of two, `rows`; its diagonals are laid over all slots, so that one
    product serves every position in a ciphertext, and the parts of an answer are added by rotations at the end.
    """

    def __init__(self, tail: AffineTail, keys: Keys) -> None:
        """Prepare the diagonals.

        Raises:
            KeyFileError: the keys are too small for the tail: the message says in what, and what would do.
        """
        self.tail, self.keys = tail, keys
        self.outputs = len(tail.bias)
        self.layout = Layout(math.prod(tail.shape[axis] for axis in tail.pooled), tail.channels, keys.slots)
        self.rows = 2 ** math.ceil(math.log2(self.outputs))
        self.baby = 2 ** math.ceil(math.log2(self.rows) / 2)
        _require_room(self)
        _, self._seal = require_tenseal()
        self._evaluator = self._seal.Evaluator(keys.seal)
        self._encoder = self._seal.CKKSEncoder(keys.seal)
        self._rotations = keys.context.galois_keys().data
        self._diagonals = self._encoded()

    def __call__(self, sealed: Sequence[bytes]) -> bytes:
        """Return the encrypted outputs for one picture's ciphertexts.

        Raises:
            KeyFileError: these are no ciphertexts under the server's keys.
        """
        given = [_ciphertext(self._seal, self.keys, each) for each in sealed]
        try:
            return _bytes(self._multiply(given))
        except (RuntimeError, ValueError) as error:
            raise KeyFileError(f"the ciphertexts cannot be computed on: {error}") from error

    def _multiply(self, given: list[Any]) -> Any:
        turned = [self._turned(self._sum(given[block :: self.layout.width])) for block in range(self.layout.width)]
        answer: Any = None
        for giant in reversed(range(self.rows // self.baby)):
            if answer is not None:
                self._evaluator.rotate_vector_inplace(answer, self.baby, self._rotations)
            for (block, step), diagonal in self._diagonals[giant].items():
                product = self._seal.Ciphertext(self.keys.seal)
                self._evaluator.multiply_plain(turned[block][step], diagonal, product)
                answer = product if answer is None else self._add(answer, product)
        step = self.rows
        while step < self.keys.slots:
            part = self._seal.Ciphertext(self.keys.seal)
            self._evaluator.rotate_vector(answer, step, self._rotations, part)
            answer = self._add(answer, part)
            step *= 2
        # After the sum: what a rotation adds is measured against the scale, which is still that of a product.
        self._evaluator.rescale_to_next_inplace(answer)
        # The last prime alone can hold the answer, and is the least to send.
        self._evaluator.mod_switch_to_inplace(answer, self.keys.seal.last_parms_id())
        bias = self._seal.Plaintext()
        padded = np.zeros(self.rows)
        padded[: self.outputs] = self.tail.bias.double().numpy()
        everywhere = np.tile(padded, self.keys.slots // self.rows)
        self._encoder.encode(everywhere.tolist(), answer.parms_id(), answer.scale, bias)
        self._evaluator.add_plain_inplace(answer, bias)
        return answer

    def _add(self, left: Any, right: Any) -> Any:
        self._evaluator.add_inplace(left, right)
        return left

    def _sum(self, parts: list[Any]) -> Any:
        total = parts[0]
        for part in parts[1:]:
            self._evaluator.add_inplace(total, part)
        return total

    def _turned(self, ciphertext: Any) -> list[Any]:
        """Return it turned by 0, 1, ... slots, each from the one before: one key serves all."""
        turned = [ciphertext]
        while len(turned) < self.baby:
            turned.append(self._seal.Ciphertext(self.keys.seal))
            self._evaluator.rotate_vector(turned[-2], 1, self._rotations, turned[-1])
        return turned

    def _encoded(self) -> list[dict[tuple[int, int], Any]]:
        """Return the diagonals by giant step, block and baby step; those of zeros are left out."""
        layout, slots = self.layout, self.keys.slots
        matrix = np.zeros((self.rows, layout.width * slots))
        tiled = np.tile(self.tail.matrix.double().numpy(), (1, layout.groups))
        matrix[: self.outputs, : tiled.shape[1]] = tiled
        place = np.arange(slots)
        found: list[dict[tuple[int, int], Any]] = []
        for giant in range(self.rows // self.baby):
            found.append({})
            for block in range(layout.width):
                columns = matrix[:, block * slots : (block + 1) * slots]
                for step in range(self.baby):
                    turn = giant * self.baby
                    diagonal = np.roll(columns[place % self.rows, (place + turn + step) % slots], turn)
                    if diagonal.any():
                        plain = self._seal.Plaintext()
                        # Multiplied by the prime that rescaling divides by, the answer's scale is the features'.
                        self._encoder.encode(diagonal.tolist(), float(self.keys.primes[-1]), plain)
                        found[-1][block, step] = plain
        return found


def _require_room(product: Product) -> None:
    """Refuse keys whose slots, levels, size or precision do not do for the tail."""
    keys, tail = product.keys, product.tail
    shown = f"these keys (degree {keys.degree}, primes of {','.join(map(str, keys.bits))} bits)"
    if len(keys.primes) < 2:
        raise KeyFileError(f"{shown} have no level for a product, and the tail needs one: --bits 60,40,60 has")
    if product.rows > keys.slots:
        raise KeyFileError(
            f"{shown} hold {keys.slots:,} outputs at most, and the tail has {product.outputs:,}: --degree "
            f"{2 * product.rows} would do"
        )
    size = product.rows * product.layout.width * keys.degree * len(keys.primes) * 8
    if size > _LARGEST:
        raise KeyFileError(
            f"the tail's {tail.matrix.numel():,} weights take {size / 2**30:.0f} GiB encoded; 4 are allowed"
        )
    weights = tail.matrix.double()
    lengths = weights.square().sum(1).sqrt() * math.sqrt(product.layout.positions)
    answer = float((lengths + tail.bias.abs()).max()) * HEADROOM
    room = keys.primes[0] / keys.scale / 2
    if answer > room:
        raise KeyFileError(
            f"{shown} hold answers up to {room:.3g} at a scale of 2^{math.log2(keys.scale):.0f}, and the tail's may "
            f"reach {answer:.3g}: give the first prime more bits than the scale, as in --bits 60,40,60 --scale 40"
        )
    error = expected_error(product)
    if error > _ERROR:
        raise KeyFileError(
            f"{shown} at a scale of 2^{math.log2(keys.scale):.0f} would be off by about {error:.1%} of an answer: "
            "--bits 60,40,60 --scale 40 are precise to millionths"
        )


def expected_error(product: Product) -> float:
    """Return the error of an answer to features of spread 1, over the answer's own spread, roughly."""
    keys, layout = product.keys, product.layout
    weights = product.tail.matrix.double()
    length = float(weights.square().sum(1).mean().sqrt()) * math.sqrt(layout.positions)
    features = math.sqrt(layout.positions * layout.channels)
    weights_rounded = features * 2.0**_WEIGHT_BITS / keys.primes[-1]
    return 2.0**_TURNED_BITS / keys.scale + (2.0**_RESCALED_BITS / keys.scale + weights_rounded) / length


def _bytes(saved: Any) -> bytes:
    """Return what a SEAL object saves, which its Python face does to files alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ciphertext")
        saved.save(str(path))
        return path.read_bytes()


def _ciphertext(seal: Any, keys: Keys, sealed: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ciphertext")
        path.write_bytes(sealed)
        loaded = seal.Ciphertext(keys.seal)
        try:
            loaded.load(keys.seal, str(path))
        except (RuntimeError, ValueError) as error:
            raise KeyFileError(f"a frame holds no ciphertext under these keys: {error}") from error
    return loaded
