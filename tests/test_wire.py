import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seepage.types import Leak, LeakHeader, SeepageError
from seepage.wire import FORMATS, bytes_per_image, decode, encode

HEADER = LeakHeader("module/toy", "00", "body", "none")
TINY = 2.0**-126

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(floats, min_size=n, max_size=n), min_size=1, max_size=4))


def leak_of(values: object) -> Leak:
    return Leak(torch.as_tensor(values, dtype=torch.float32), HEADER, None)


def travelled(values: object, wire: str) -> torch.Tensor:
    return decode(encode(leak_of(values), wire)).features


@given(rows)
def test_int8_is_within_half_a_step_of_every_value(values):
    sent = encode(leak_of(values), "int8")
    truth = np.array(values, dtype=np.float64)
    scale = np.array(sent.header.scale, dtype=np.float64)[:, None]
    back = decode(sent).features.double().numpy()
    # Half a step, and what multiplying in float32 rounds.
    assert (np.abs(back - truth) <= scale / 2 * (1 + 1e-5) + np.abs(truth) * 4e-7).all()
    assert np.isfinite(back).all()


@given(rows)
def test_int8_uses_its_whole_range(values):
    sent = encode(leak_of(values), "int8")
    largest = np.abs(np.array(values, dtype=np.float32)).max(1)
    levels = sent.features.numpy().astype(int)
    assert (np.abs(levels) <= 127).all()
    assert (np.abs(levels).max(1)[largest >= 128 * TINY] == 127).all()
    assert (levels[largest == 0] == 0).all()


@given(rows)
def test_int8_mirrors_with_the_sign(values):
    plus, minus = (encode(leak_of(torch.tensor(values) * sign), "int8") for sign in (1, -1))
    assert torch.equal(plus.features, -minus.features)
    assert plus.header.scale == minus.header.scale


@given(rows, st.sampled_from(FORMATS))
def test_a_row_travels_alike_whatever_its_batch(values, wire):
    try:
        together = encode(leak_of(values), wire)
    except SeepageError:
        assert wire in ("fp16", "bf16")
        return
    for i, row in enumerate(values):
        alone = encode(leak_of([row]), wire)
        assert torch.equal(alone.features[0], together.features[i])
        assert alone.header.scale is None or alone.header.scale == together.header.scale[i : i + 1]


@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=8))
def test_fp16_rounds_as_numpy_does(values):
    assert (travelled([values], "fp16").numpy() == np.array([values], dtype=np.float16).astype(np.float32)).all()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8))
def test_bf16_keeps_eight_bits_of_mantissa(values):
    truth = np.array([values], dtype=np.float64)
    assert (np.abs(travelled([values], "bf16").double().numpy() - truth) <= np.abs(truth) * 2**-8 + 1e-40).all()


@given(rows)
def test_fp32_loses_nothing(values):
    assert torch.equal(travelled(values, "fp32"), torch.tensor(values))


@pytest.mark.parametrize("wire", FORMATS)
@pytest.mark.parametrize("value", [0.0, -0.0, 3.5, -3.5, 1e-42, -1e-42])
def test_rows_of_one_value(wire, value):
    back = travelled(torch.full((2, 3, 2, 2), value), wire)
    assert back.shape == (2, 3, 2, 2)
    assert back.dtype == torch.float32
    assert (back - value).abs().max() <= abs(value) * 2**-8 + 1e-40 + (6e-8 if wire == "fp16" else 0)


def test_the_largest_float_survives_int8():
    assert torch.isfinite(travelled([[torch.finfo(torch.float32).max, -1.0]], "int8")).all()


@pytest.mark.parametrize(("wire", "size"), [("fp32", 96), ("fp16", 48), ("bf16", 48), ("int8", 24 + 4)])
def test_bytes_on_the_wire(wire, size):
    sent = encode(leak_of(torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))), wire)
    assert bytes_per_image(sent) == size
    assert bytes_per_image(decode(sent)) == size
    assert sent.features.element_size() * 24 + 4 * (wire == "int8") == size


def test_changing_format_starts_from_the_values_not_the_levels():
    once = encode(leak_of([[1.0, -0.25, 0.5]]), "int8")
    twice = encode(once, "fp32")
    assert torch.equal(twice.features, decode(once).features)
    assert twice.header.scale is None
    again = encode(once, "int8")
    assert torch.equal(again.features, once.features)


def test_decoding_twice_changes_nothing():
    once = decode(encode(leak_of([[1.0, -0.25]]), "int8"))
    assert torch.equal(decode(once).features, once.features)


def test_header_and_names_travel_along():
    leak = Leak(torch.ones(2, 3), HEADER, ("a", "b"))
    sent = encode(leak, "int8")
    assert sent.ids == ("a", "b")
    assert (sent.header.victim, sent.header.layer, sent.header.wire) == ("module/toy", "body", "int8")
    assert leak.header.wire == "fp32"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_hidden(value):
    leak = leak_of([[1.0, value]])
    for wire in ("fp32", "fp16", "bf16"):
        assert not torch.isfinite(decode(encode(leak, wire)).features).all()
    with pytest.raises(SeepageError, match="int8 cannot hold NaN"):
        encode(leak, "int8")


def test_overflow_is_refused_with_what_works():
    with pytest.raises(SeepageError, match=r"fp16 cannot hold a feature of 7e\+04; fp32 can"):
        encode(leak_of([[70000.0]]), "fp16")
    with pytest.raises(SeepageError, match="bf16 cannot hold"):
        encode(leak_of([[torch.finfo(torch.float32).max]]), "bf16")
    with pytest.raises(SeepageError, match="no wire format is called 'fp8'; known: fp32, fp16, bf16, int8"):
        encode(leak_of([[1.0]]), "fp8")
