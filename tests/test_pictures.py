import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seepage import pictures
from seepage.files import OutputError
from seepage.pictures import UnreadablePictureError, file_sha256, read_picture, write_png

RAMP = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels(file: object) -> np.ndarray:
    picture = read_picture(file)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def png(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_rgb_comes_back_exactly(tmp_path):
    truth = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(truth), "a.png")
    assert (pixels(path) == truth).all()
    assert (pixels(str(path)) == truth).all()
    assert (pixels(Image.fromarray(truth)) == truth).all()


def test_a_stream_or_picture_of_the_caller_stays_usable(tmp_path):
    path = saved(tmp_path, Image.fromarray(RAMP), "a.png")
    with path.open("rb") as stream, Image.open(path) as opened:
        first = pixels(stream)
        assert (pixels(stream) == first).all()
        assert (pixels(opened) == first).all()
        assert opened.mode == "L"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    deep = np.array([[0, 255, 256, 32768], [40000, 65535, 128, 129]], dtype=np.uint16)
    found = pixels(saved(tmp_path, Image.fromarray(deep), f"deep{suffix}"))
    assert (found[..., 0] == np.round(deep / 65535 * 255)).all()
    assert (found == found[..., :1]).all()


def test_sixteen_bit_portable_grey_map_is_scaled(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535))
    assert pixels(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 128, 255]


def test_the_transparent_level_of_sixteen_bit_grey_turns_white(tmp_path):
    deep = Image.fromarray(np.array([[7, 40000]], dtype=np.uint16))
    assert pixels(saved(tmp_path, deep, "a.png", transparency=7))[0, :, 0].tolist() == [255, 156]


def test_floats_are_read_in_their_unit_range_only(tmp_path):
    good = saved(tmp_path, Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), "good.tif")
    assert pixels(good)[0, :, 0].tolist() == [0, 128, 255]
    for value in (1.5, -0.1, float("nan")):
        bad = saved(tmp_path, Image.fromarray(np.array([[value]], dtype=np.float32)), "bad.tif")
        with pytest.raises(UnreadablePictureError, match=r"bad\.tif holds values outside \[0, 1\]"):
            read_picture(bad)


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    expected = [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    assert pixels(saved(tmp_path, Image.fromarray(rgba), "rgba.png"))[0].tolist() == expected
    la = Image.merge("LA", [Image.fromarray(rgba[..., 0]), Image.fromarray(rgba[..., 3])])
    assert pixels(saved(tmp_path, la, "la.png"))[0].tolist() == [[200] * 3, [255] * 3, [204] * 3]


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    expected = [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
    assert pixels(saved(tmp_path, image, "one.png", transparency=1))[0].tolist() == expected
    assert pixels(saved(tmp_path, image, "many.png", transparency=bytes([255, 0, 255])))[0].tolist() == expected
    assert pixels(saved(tmp_path, image, "opaque.png"))[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]


def test_grey_one_bit_and_cmyk(tmp_path):
    assert (pixels(saved(tmp_path, Image.fromarray(RAMP), "grey.png")) == RAMP[..., None]).all()
    bits = Image.fromarray(RAMP > 100)
    assert bits.mode == "1"
    assert (pixels(saved(tmp_path, bits, "bits.png"))[..., 0] == np.where(RAMP > 100, 255, 0)).all()
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(saved(tmp_path, red, "cmyk.jpg")).astype(int) - [255, 0, 0]).max() <= 2


def test_one_pixel(tmp_path):
    assert pixels(saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), "dot.png")).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = saved(tmp_path, frames[0], f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (pixels(path) == [255, 0, 0]).all()


UPRIGHT = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
# How a camera held each way stores the upright picture (EXIF 2.32, tag 0x0112).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(STORED[orientation])), "a.png", exif=exif)
    assert (pixels(path)[..., 0] == UPRIGHT).all()
    assert (pixels(read_picture(path))[..., 0] == UPRIGHT).all()


def test_a_damaged_exif_block_costs_the_orientation_not_the_picture(tmp_path):
    path = saved(tmp_path, Image.fromarray(RAMP), "a.png", exif=b"Exif\0\0nonsense")
    assert (pixels(path)[..., 0] == RAMP).all()


def unreadable(file: object) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadablePictureError) as caught:
            read_picture(file)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_that_is_no_picture(tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("dear diary\n")
    assert f"{text} is no picture" in unreadable(text)
    (tmp_path / "empty.png").touch()
    assert "empty.png is empty" in unreadable(tmp_path / "empty.png")
    assert "folder" in unreadable(tmp_path)
    assert "nowhere.png: there is no such file" in unreadable(tmp_path / "nowhere.png")
    assert "there is no such file" in unreadable(text / "below.png")


def test_a_named_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "no regular file" in unreadable(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".bmp", ".tif"])
def test_every_truncation_is_named(tmp_path, suffix):
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = saved(tmp_path, Image.fromarray(noise), f"whole{suffix}").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for share in (0.02, 0.3, 0.6, 0.9):
        cut.write_bytes(whole[: int(len(whole) * share)])
        assert cut.name in unreadable(cut)


@pytest.mark.parametrize("side", [10_001, 12_000, 20_000])
def test_a_bomb_is_refused_from_its_header(tmp_path, side):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(side, side))
    limit = Image.MAX_IMAGE_PIXELS
    assert "bomb.png has more than 100 million pixels" in unreadable(bomb)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_below_the_limit_pillow_does_not_warn(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    path = saved(tmp_path, Image.new("RGB", (9, 9), "teal"), "a.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_picture(path).size == (9, 9)
    assert not caught


def test_the_limit_also_holds_for_a_picture_in_hand(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 80)
    assert "the picture has more than" in unreadable(Image.new("L", (9, 9)))
    assert read_picture(Image.new("L", (8, 10))).size == (8, 10)


def test_a_hostile_file_name_stays_on_one_line(tmp_path):
    path = tmp_path / "a\nb\x1b[31m.jpg"
    path.write_text("x")
    assert r"a\nb\x1b[31m.jpg" in unreadable(path)


def test_threads_read_side_by_side(tmp_path):
    colours = [(i, 255 - i, 7) for i in range(16)]
    paths = [saved(tmp_path, Image.new("RGB", (20, 20), colour), f"{i}.png") for i, colour in enumerate(colours)]
    found: dict[int, tuple[int, ...]] = {}

    def read(i: int) -> None:
        found[i] = read_picture(paths[i]).getpixel((0, 0))

    filters = list(warnings.filters)
    threads = [threading.Thread(target=read, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict(enumerate(colours))
    assert warnings.filters == filters


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UnreadablePictureError, match="nowhere"):
        file_sha256(tmp_path / "nowhere")


def test_a_written_picture_is_read_back_to_half_a_level(tmp_path):
    image = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0))
    write_png(image, tmp_path / "new" / "a.png")
    back = torch.from_numpy(pixels(tmp_path / "new" / "a.png").copy()).permute(2, 0, 1) / 255
    assert (back - image).abs().max() <= 0.5 / 255 + 1e-6
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_what_lies_outside_is_clipped_when_written(tmp_path):
    image = torch.tensor([-1.0, 2.0, float("nan"), float("inf")]).view(1, 1, 4).expand(3, 1, 4)
    write_png(image, tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255, 0, 255]


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "taken.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "taken.png"):
        with pytest.raises(OutputError, match="cannot write"):
            write_png(torch.zeros(3, 2, 2), path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.png"]
