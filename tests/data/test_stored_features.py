import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seepage.data import (
    LeakFileError,
    check_leak,
    open_leak,
    read_features,
    read_header,
    read_leak,
    write_leak,
    writing_leak,
)
from seepage.files import OutputError
from seepage.types import Leak, LeakHeader, Prefix, Segment, SplitModel
from seepage.wire import FORMATS, decode, encode

HEADER = LeakHeader("module/toy", "ab" * 32, "body", "resize to 8", defenses=("noise:sigma=1",))


class Toy(Prefix):
    """From "b 3 8 8" to "b 4 4 2"."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1, stride=(2, 4))

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (Segment("body", None, self.body, (3, 8, 8), (4, 4, 2)),)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def never(file: object) -> Tensor:
    raise AssertionError("no picture is loaded here")


SPLIT = SplitModel(
    name="module/toy",
    layer="body",
    image_shape=(3, 8, 8),
    prefix=Toy(),
    suffix=nn.Identity(),
    load=never,
    weights_sha256="ab" * 32,
    preprocessing="resize to 8",
)


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def leak_of(n: int = 3) -> Leak:
    return Leak(features(n, 4, 4, 2), HEADER, tuple(f"{i}.png" for i in range(n)))


def assert_same(a: Leak, b: Leak) -> None:
    assert a.header == b.header
    assert a.ids == b.ids
    assert a.features.dtype == b.features.dtype
    assert torch.equal(a.features, b.features)


def refused(call: object, *arguments: object, error: type[Exception] = LeakFileError) -> str:
    with pytest.raises(error) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_written_in_parts_give_the_same_file(tmp_path: Path) -> None:
    for wire in ("fp32", "fp16", "bf16", "int8"):
        leak = encode(Leak(torch.randn(7, 3, 5), HEADER, tuple(f"{i}.png" for i in range(7))), wire)
        write_leak(leak, tmp_path / "whole")
        with writing_leak(tmp_path / "parts", leak.ids) as writer:
            for start in (0, 3, 5):
                writer.append(leak.rows(start, (3, 5, 7)[(0, 3, 5).index(start)]))
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
        with writing_leak(tmp_path / "fewer", ("zero", *leak.ids, "last")) as writer:
            writer.append(leak)
        found = read_leak(tmp_path / "fewer")
        assert found.ids == leak.ids
        assert found.header == leak.header
        assert torch.equal(found.features, leak.features)


def write_parts(path: Path, *parts: Leak) -> None:
    with writing_leak(path, 4) as writer:
        for part in parts:
            writer.append(part)


def test_parts_that_do_not_fit_leave_no_file(tmp_path: Path) -> None:
    first = Leak(torch.zeros(2, 3), HEADER)
    bad = torch.zeros(2, 3)
    bad[1, 0] = torch.nan
    for second, message in ((torch.zeros(2, 4), "rows from 2 on"), (bad, "row 3 of 4 holds NaN")):
        with pytest.raises(LeakFileError, match=message):
            write_parts(tmp_path / "leak", first, Leak(second, HEADER))
    with pytest.raises(LeakFileError, match="at least one row"):
        write_parts(tmp_path / "leak")
    assert not list(tmp_path.iterdir())


def test_a_scale_that_overflows_is_refused(tmp_path: Path) -> None:
    sent = encode(leak_of(), "int8")
    header = dataclasses.replace(sent.header, scale=(4e36, *sent.header.scale[1:]))
    assert "a scale is not a positive number" in refused(
        write_leak, dataclasses.replace(sent, header=header), tmp_path / "leak"
    )


@pytest.mark.parametrize("wire", FORMATS)
def test_a_leak_survives_its_file(tmp_path, wire):
    sent = encode(leak_of(), wire)
    write_leak(sent, tmp_path / "new" / "leak.safetensors")
    back = read_leak(tmp_path / "new" / "leak.safetensors")
    assert_same(back, sent)
    assert torch.equal(decode(back).features, decode(sent).features)
    header = read_header(tmp_path / "new" / "leak.safetensors")
    assert header == dataclasses.replace(sent.header, scale=None)
    assert os.listdir(tmp_path / "new") == ["leak.safetensors"]


def test_names_may_be_missing_or_strange(tmp_path):
    path = tmp_path / "leak"
    nameless = dataclasses.replace(leak_of(2), ids=None)
    write_leak(nameless, path)
    assert read_leak(path).ids is None
    strange = dataclasses.replace(leak_of(2), ids=("NaN", 'a"\n😀\\'))
    write_leak(strange, path)
    assert read_leak(path).ids == strange.ids


def test_others_read_the_file_without_seepage(tmp_path):
    sent = encode(leak_of(), "int8")
    write_leak(sent, tmp_path / "leak.safetensors")
    tensors = load_file(tmp_path / "leak.safetensors")
    assert tensors.keys() == {"features", "scale"}
    values = tensors["features"].float() * tensors["scale"].view(-1, 1, 1, 1)
    assert torch.equal(values, decode(sent).features)
    size = int.from_bytes((tmp_path / "leak.safetensors").read_bytes()[:8], "little")
    head = json.loads((tmp_path / "leak.safetensors").read_bytes()[8 : 8 + size])
    told = json.loads(head["__metadata__"]["seepage-leak"])
    assert told["version"] == 1
    assert told["layer"] == "body"
    assert told["wire"] == "int8"


def test_the_same_leak_gives_the_same_bytes(tmp_path):
    for name in "ab":
        write_leak(encode(leak_of(), "int8"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = os.umask(0o022)
    os.umask(other)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~other


def test_a_view_is_written_as_it_reads(tmp_path):
    turned = features(2, 4, 4, 3).permute(0, 3, 1, 2)[:, :, 1:]
    write_leak(dataclasses.replace(leak_of(2), features=turned), tmp_path / "leak")
    assert torch.equal(read_leak(tmp_path / "leak").features, turned)


def test_what_could_not_be_read_is_not_written(tmp_path):
    good = leak_of()
    bad = good.features.clone()
    bad[1, 0, 0, 0] = float("nan")
    header = good.header
    for leak, words in {
        "nan": (good.with_features(bad), r"row 1 (1.png) of 3 holds NaN or infinite"),
        "ids": (dataclasses.replace(good, ids=("a",)), "3 rows of features have 1 ids"),
        "dtype": (good.with_features(good.features.half()), "the header says 'fp32', the features are float16"),
        "wire": (dataclasses.replace(good, header=dataclasses.replace(header, wire="fp8")), "the header says 'fp8'"),
        "scale": (dataclasses.replace(good, header=dataclasses.replace(header, scale=(1.0,) * 3)), "come with scales"),
        "none": (Leak(torch.zeros(0, 4), HEADER), "at least one row"),
        "decoded": (decode(encode(good, "int8")), "the header says 'int8', the features are float32"),
    }.values():
        message = refused(write_leak, leak, tmp_path / "leak")
        assert words in message
        assert "cannot write" in message
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_line_and_no_half_file(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "leak", tmp_path / "folder"):
        assert f"cannot write {path}" in refused(write_leak, leak_of(), path, error=OutputError)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from seepage.data import write_leak
from seepage.files import OutputError
from seepage.types import Leak, LeakHeader
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_leak(Leak(torch.zeros(10, 1000), LeakHeader("v", "w", "l", "p")), sys.argv[1])
except OutputError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "leak"
    write_leak(leak_of(), path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {path}: ")
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["leak"]


def stored(path: Path, header: object, **tensors: Tensor) -> Path:
    """A file as another program, or a damaged one, may leave it."""
    metadata = (
        {"seepage-leak": header if isinstance(header, str) else json.dumps(header)} if header is not None else None
    )
    save_file(tensors, path, metadata=metadata)
    return path


GOOD = {"version": 1, "victim": "v", "weights_sha256": "w", "layer": "l", "preprocessing": "p", "wire": "fp32"}
INT8 = {**GOOD, "wire": "int8"}


@pytest.mark.parametrize(
    ("header", "tensors", "words"),
    [
        (None, {"features": torch.ones(2, 3)}, "does not say where it was cut: name its victim and layer"),
        ("{", {"features": torch.ones(2, 3)}, "a damaged header, which is no JSON"),
        ("[" * 99_999, {"features": torch.ones(2, 3)}, "a damaged header"),
        ([], {"features": torch.ones(2, 3)}, "a damaged header"),
        ({**GOOD, "version": 99, "new": 1}, {"features": torch.ones(2, 3)}, "version 99; this seepage reads up to 1"),
        ({**GOOD, "version": "1"}, {"features": torch.ones(2, 3)}, "a damaged header: version"),
        ({**GOOD, "layer": 3}, {"features": torch.ones(2, 3)}, "a damaged header: layer"),
        ({**GOOD, "wire": "fp8"}, {"features": torch.ones(2, 3)}, "a damaged header: wire"),
        ({**GOOD, "extra": 3}, {"features": torch.ones(2, 3)}, "a damaged header: extra"),
        ({"version": 1}, {"features": torch.ones(2, 3)}, "a damaged header: victim"),
        (GOOD, {"other": torch.ones(2, 3)}, "holds no tensor 'features', only: other"),
        (GOOD, {"features": torch.ones(3)}, "at least one row of features, this has shape (3,)"),
        (GOOD, {"features": torch.ones(0, 3)}, "at least one row"),
        (GOOD, {"features": torch.ones(2, 3).half()}, "the header says 'fp32', the features are float16"),
        (GOOD, {"features": torch.ones(2, 3), "scale": torch.ones(2)}, "fp32 features come with scales"),
        ({**GOOD, "ids": ["a"]}, {"features": torch.ones(2, 3)}, "2 rows of features have 1 ids"),
        (INT8, {"features": torch.ones(2, 3).to(torch.int8)}, "int8 features come without scales"),
        (INT8, {"features": torch.ones(2, 3).to(torch.int8), "scale": torch.ones(3)}, "have 3 scales"),
        (INT8, {"features": torch.ones(1, 3).to(torch.int8), "scale": torch.tensor([0.0])}, "not a positive number"),
        (INT8, {"features": torch.ones(1, 3).to(torch.int8), "scale": torch.tensor([float("nan")])}, "positive"),
        (GOOD, {"features": torch.tensor([[1.0], [float("inf")]])}, "row 1 of 2 holds NaN or infinite"),
        (
            {**GOOD, "ids": ["a", "b"]},
            {"features": torch.tensor([[float("nan")], [1.0]])},
            "row 0 (a) of 2 holds NaN",
        ),
    ],
)
def test_a_leak_that_does_not_fit_itself(tmp_path, header, tensors, words):
    path = stored(tmp_path / "leak.safetensors", header, **tensors)
    message = refused(read_leak, path)
    assert str(path) in message
    assert words in message


def test_a_bad_row_far_down_is_found(tmp_path):
    values = torch.ones(200, 2)
    values[157, 1] = float("nan")
    assert "row 157 of 200" in refused(read_leak, stored(tmp_path / "leak", GOOD, features=values))


def test_files_that_are_no_leaks(tmp_path):
    for name, content, words in [
        ("empty", b"", "damaged or truncated"),
        ("text", b"dear diary, today I wrote a text file", "damaged or truncated"),
        ("garbage", b"\xff" * 1000, "damaged or truncated"),
        ("features.npz", b"PK\x03\x04" + b"\0" * 50, "an archive (.npz, or torch's .pt)"),
        ("features.pkl", b"\x80\x04" + b"\0" * 50, "a pickle"),
    ]:
        (tmp_path / name).write_bytes(content)
        for call in (read_leak, read_header):
            message = refused(call, tmp_path / name)
            assert words in message
            assert name in message
    assert "there is no such file" in refused(read_leak, tmp_path / "nowhere")
    assert "there is no such file" in refused(read_leak, tmp_path)
    np.save(tmp_path / "raw.npy", np.ones((2, 3)))
    assert "does not say where it was cut" in refused(read_leak, tmp_path / "raw.npy")
    assert read_header(tmp_path / "raw.npy") is None
    assert read_header(stored(tmp_path / "raw.safetensors", None, x=torch.ones(2))) is None


def test_every_truncation_is_refused(tmp_path):
    write_leak(encode(leak_of(), "int8"), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:length])
        assert "cut" in refused(read_leak, tmp_path / "cut")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 0.999), value=st.integers(0, 255), wire=st.sampled_from(["fp32", "int8"]))
def test_a_damaged_byte_is_refused_or_harmless(tmp_path, place, value, wire):
    path = tmp_path / wire
    write_leak(encode(leak_of(), wire), path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = value
    (tmp_path / "damaged").write_bytes(content)
    try:
        leak = read_leak(tmp_path / "damaged")
    except LeakFileError:
        return
    assert torch.isfinite(decode(leak).features).all()
    assert leak.ids is not None
    assert len(leak.ids) == len(leak)


def test_a_leak_is_held_against_the_split(tmp_path):
    good = Leak(features(2, 4, 4, 2), dataclasses.replace(HEADER, defenses=()))
    check_leak(good, SPLIT)
    check_leak(dataclasses.replace(good, header=dataclasses.replace(good.header, victim="zoo/alias")), SPLIT)

    def other(**header: str) -> str:
        return refused(check_leak, dataclasses.replace(good, header=dataclasses.replace(good.header, **header)), SPLIT)

    weights = other(weights_sha256="cd" * 32)
    assert "module/toy (weights cdcdcdcdcdcd), not of module/toy (weights abababababab)" in weights
    assert "is of other/model (weights 00" in other(victim="other/model", weights_sha256="00" * 32)
    assert "cut at 'head', not at 'body'" in other(layer="head")
    assert "'resize to 9'" in other(preprocessing="resize to 9")
    shape = refused(check_leak, good.with_features(features(2, 4, 4, 3)), SPLIT)
    assert "(4, 4, 3)" in shape
    assert "(4, 4, 2)" in shape


def test_open_leak_takes_either(tmp_path):
    leak = leak_of()
    write_leak(leak, tmp_path / "leak.safetensors")
    assert_same(open_leak(tmp_path / "leak.safetensors", SPLIT), leak)
    np.save(tmp_path / "raw.npy", leak.features.numpy())
    raw = open_leak(tmp_path / "raw.npy", SPLIT)
    assert torch.equal(raw.features, leak.features)
    assert raw.ids is None
    elsewhere = dataclasses.replace(SPLIT, weights_sha256="cd" * 32)
    assert "name its own victim" in refused(open_leak, tmp_path / "leak.safetensors", elsewhere)
    # Handed over as a raw array, a leak file still has one tensor of this name.
    assert torch.equal(read_features(tmp_path / "leak.safetensors", SPLIT).features, leak.features)


@pytest.mark.parametrize(
    ("dtype", "wire"), [(torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")]
)
def test_raw_safetensors(tmp_path, dtype, wire):
    values = features(2, 4, 4, 2).to(dtype)
    leak = read_features(stored(tmp_path / "a.safetensors", None, whatever=values), SPLIT)
    assert leak.features.dtype == dtype
    assert torch.equal(leak.features, values)
    assert leak.header == LeakHeader("module/toy", "ab" * 32, "body", "resize to 8", wire)
    check_leak(leak, SPLIT)
    named = read_features(stored(tmp_path / "b", None, features=values, other=torch.ones(3)), SPLIT)
    assert torch.equal(named.features, values)
    two = stored(tmp_path / "two", None, b=values, a=values.clone())
    assert "holds tensors a, b; store one, or call one 'features'" in refused(read_features, two, SPLIT)
    assert "holds no tensor" in refused(read_features, stored(tmp_path / "none", None), SPLIT)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_raw_numpy(tmp_path, dtype, order):
    values = features(2, 4, 4, 2).half().numpy().astype(dtype, order=order)
    np.save(tmp_path / "a.npy", values)
    leak = read_features(tmp_path / "a.npy", SPLIT)
    expected = torch.float16 if dtype.endswith("f2") else torch.float32
    assert leak.features.dtype == expected
    assert leak.header.wire == ("fp16" if expected == torch.float16 else "fp32")
    assert (leak.features.double().numpy() == values).all()


def test_one_sample_without_a_batch(tmp_path):
    np.save(tmp_path / "one.npy", features(4, 4, 2).numpy())
    assert read_features(tmp_path / "one.npy", SPLIT).features.shape == (1, 4, 4, 2)


def test_the_file_is_not_written_to(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 4, 4, 2), dtype=np.float32))
    before = (tmp_path / "a.npy").read_bytes()
    read_features(tmp_path / "a.npy", SPLIT).features.zero_()
    assert (tmp_path / "a.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 4, 2, 4), "transpose by (0, 3, 1, 2)"),
        ((4, 2, 4), "transpose by (2, 0, 1)"),
        ((2, 2, 4, 4), "transpose by (0, 2, 3, 1)"),
        ((5, 32), "a row has as many numbers: reshape it"),
        ((2, 4, 4, 3), "(rows, 4, 4, 2)"),
        ((7,), "has shape (7,); body of module/toy gives (4, 4, 2) a picture"),
        ((), "has shape ()"),
        ((0, 4, 4, 2), "raw.npy"),
    ],
)
def test_a_wrong_shape_says_what_would_fit(tmp_path, shape, words):
    np.save(tmp_path / "raw.npy", np.ones(shape, dtype=np.float32))
    assert words in refused(read_features, tmp_path / "raw.npy", SPLIT)


def test_of_several_orders_that_fit_channels_last_is_named(tmp_path):
    prefix = Toy()
    prefix.body = nn.Conv2d(3, 4, 1, stride=(2, 1))
    square = dataclasses.replace(SPLIT, image_shape=(3, 12, 6), prefix=prefix)
    np.save(tmp_path / "nhwc.npy", np.ones((5, 6, 6, 4), dtype=np.float32))
    message = refused(read_features, tmp_path / "nhwc.npy", square)
    assert "gives (4, 6, 6) a picture" in message
    assert "transpose by (0, 3, 1, 2)" in message


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((2, 4, 4, 2), dtype=np.int8), "holds int8"),
        (np.ones((2, 4, 4, 2), dtype=np.complex64), "holds complex64"),
        (np.ones((2, 4, 4, 2), dtype="V2"), "raw bytes, as numpy stores bfloat16"),
        (np.array([{"a": 1}], dtype=object), "no plain .npy array"),
        (np.full((2, 4, 4, 2), 1e300), "row 0 of 2 holds NaN or infinite"),
        (np.full((2, 4, 4, 2), np.nan, dtype=np.float16), "row 0 of 2 holds NaN"),
    ],
)
def test_what_a_raw_array_may_not_hold(tmp_path, array, words):
    np.save(tmp_path / "raw.npy", array, allow_pickle=True)
    assert words in refused(read_features, tmp_path / "raw.npy", SPLIT)


def test_integer_tensors_have_no_known_scale(tmp_path):
    path = stored(tmp_path / "a", None, x=torch.ones(2, 4, 4, 2, dtype=torch.int8))
    assert "holds int8 values" in refused(read_features, path, SPLIT)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(length=st.integers(0, 1151), place=st.integers(0, 200), value=st.integers(0, 255))
def test_damaged_numpy_files_are_refused_or_harmless(tmp_path, length, place, value):
    np.save(tmp_path / "whole.npy", features(8, 4, 4, 2).numpy())
    whole = (tmp_path / "whole.npy").read_bytes()
    assert len(whole) == 1152
    (tmp_path / "cut.npy").write_bytes(whole[:length])
    assert "cut.npy" in refused(read_features, tmp_path / "cut.npy", SPLIT)
    content = bytearray(whole)
    content[place] = value
    (tmp_path / "damaged.npy").write_bytes(content)
    try:
        leak = read_features(tmp_path / "damaged.npy", SPLIT)
    except LeakFileError:
        return
    assert leak.features.shape[1:] == (4, 4, 2)
    assert torch.isfinite(leak.features).all()


def test_a_header_that_claims_more_than_there_is(tmp_path):
    with (tmp_path / "huge.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 4, 4, 2)}
        )
    assert "damaged or truncated" in refused(read_features, tmp_path / "huge.npy", SPLIT)


LARGE = """
import resource, sys
import torch
from torch import nn
from seepage.data import features
split = features.SplitModel("v", "l", (3, 64, 64), nn.Conv2d(3, 256, 1), nn.Identity(), None, "w", "p")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
leak = features.read_features(sys.argv[1], split)
with open("/proc/self/status") as status:
    held = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
print(len(leak), leak.rows(90, 91).features.sum().item(), held // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident memory from /proc")
@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_large_dump_is_not_copied_into_memory(tmp_path, kind):
    path = tmp_path / f"large.{kind}"
    shape = (100, 256, 64, 64)
    if kind == "npy":
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
    else:
        header = {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 400 << 20]}}
        text = json.dumps(header).encode()
        with path.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + (400 << 20))
    done = subprocess.run([sys.executable, "-c", LARGE, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, total, held = done.stdout.split()
    assert (rows, float(total)) == ("100", 0.0)
    # The file has 400 MiB; torch alone holds about 200.
    assert int(held) < 400
