import json
import os
from pathlib import Path

import pytest
from PIL import Image

from seepage import data
from seepage.data.source import PictureSource
from seepage.types import SeepageError


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), "red").save(folder / name, format="PNG")


def describe(folder: Path, *lines: object) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")


def ids(source: PictureSource) -> list[str]:
    return [entry.id for entry in source.entries]


def labels(source: PictureSource) -> dict[str, str | int | None]:
    classes = source.classes
    return {e.id: e.label if e.label is None or classes is None else classes[e.label] for e in source.entries}


def refused(folder: Path) -> str:
    with pytest.raises(SeepageError) as caught:
        data.open_source(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_by_extension_sorted_by_id(tmp_path):
    put(tmp_path, "b.PNG", "a.jpg", "Z.webp", "c.jpeg", "d.tiff", "e.gif", "f.bmp", ".hidden.png", ".git/x.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "raw.npy").write_text("x")
    source = data.open_source(str(tmp_path))
    assert ids(source) == ["Z.webp", "a.jpg", "b.PNG", "c.jpeg", "d.tiff", "e.gif", "f.bmp"]
    assert source.name == tmp_path.name
    assert source.root == tmp_path
    assert all(entry.path == tmp_path / entry.id for entry in source.entries)
    assert source.classes is None
    assert source.known == frozenset()


def test_subfolders_are_classes(tmp_path):
    put(tmp_path, "dog/1.png", "cat/2.png", "cat/deep/3.png", "top.png")
    source = data.open_source(tmp_path)
    assert ids(source) == ["cat/2.png", "cat/deep/3.png", "dog/1.png", "top.png"]
    assert source.classes == ("cat", "dog")
    assert labels(source) == {"cat/2.png": "cat", "cat/deep/3.png": "cat", "dog/1.png": "dog", "top.png": None}


def test_a_subfolder_that_all_share_is_no_class(tmp_path):
    put(tmp_path, "unpacked/faces/s1/1.png", "unpacked/faces/s2/1.png")
    assert labels(data.open_source(tmp_path)) == {"unpacked/faces/s1/1.png": "s1", "unpacked/faces/s2/1.png": "s2"}
    (tmp_path / "unpacked/faces/s2/1.png").unlink()
    assert data.open_source(tmp_path).classes is None


def test_metadata_is_read(tmp_path):
    put(tmp_path, "a.png", "b.png", "sub/c.png")
    describe(
        tmp_path,
        {"file_name": "b.png", "captions": ["a dog", "ein Hündchen"], "label": "dog", "identity": "rex", "split": "x"},
        "",
        {"file_name": "./sub/c.png", "label": "cat", "captions": None},
    )
    source = data.open_source(tmp_path)
    a, b, c = source.entries
    assert (a.label, a.captions, a.identity) == (None, (), None)
    assert (b.captions, b.identity) == (("a dog", "ein Hündchen"), "rex")
    assert source.classes == ("cat", "dog")
    assert (b.label, c.label) == (1, 0)
    assert source.known == {"label", "captions", "identity"}


def test_labels_by_number_keep_their_numbers(tmp_path):
    put(tmp_path, "x/a.png", "y/b.png")
    describe(tmp_path, {"file_name": "x/a.png", "label": 207})
    source = data.open_source(tmp_path)
    assert source.classes is None
    assert labels(source) == {"x/a.png": 207, "y/b.png": None}


def test_subfolders_name_the_classes_where_metadata_gives_none(tmp_path):
    put(tmp_path, "x/a.png", "y/b.png")
    describe(tmp_path, {"file_name": "x/a.png", "captions": ["one"]})
    assert labels(data.open_source(tmp_path)) == {"x/a.png": "x", "y/b.png": "y"}


def test_metadata_brings_in_files_of_any_name(tmp_path):
    put(tmp_path, "scan.dat", ".hidden.png", "a.png")
    describe(tmp_path, {"file_name": "scan.dat"}, {"file_name": ".hidden.png"})
    assert ids(data.open_source(tmp_path)) == [".hidden.png", "a.png", "scan.dat"]


def test_windows_line_ends_and_a_byte_order_mark(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.png", "label": "x"}\r\n\r\n')
    assert labels(data.open_source(tmp_path)) == {"a.png": "x"}


GOOD = {"file_name": "a.png"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file_name": ', "expected one JSON object"),
        ("[1, 2]", "expected one JSON object"),
        ("hello", "expected one JSON object"),
        ("[" * 100_000, "expected one JSON object"),
        ({"captions": ["x"]}, "file_name is missing"),
        ({"file_name": 3}, "file_name is a path relative to the folder, got 3"),
        ({"file_name": ""}, 'file_name is a path relative to the folder, got ""'),
        ({"file_name": "b.png", "captions": "a dog"}, 'captions is a list of sentences, got "a dog"'),
        ({"file_name": "b.png", "captions": ["a dog", 3]}, "captions is a list of sentences, got 3"),
        ({"file_name": "b.png", "captions": [" "]}, "captions is a list of sentences"),
        ({"file_name": "b.png", "captions": ["x", "y " * 10**6]}, "captions takes at most 10,000 characters at a time"),
        ({"file_name": "b.png", "label": 1.5}, "label is the name of a class, or its number from 0, got 1.5"),
        ({"file_name": "b.png", "label": True}, "label is the name of a class, or its number from 0, got true"),
        ({"file_name": "b.png", "label": -1}, "label is the name of a class"),
        ({"file_name": "b.png", "identity": ["x"]}, "identity is a name"),
        ({"file_name": "b.png", "split": 3}, "split is a name"),
        ({"file_name": "b.png", "caption": ["x"]}, "there is no field 'caption'; did you mean 'captions'"),
        ({"file_name": "nope.png"}, "there is no file 'nope.png'"),
        ({"file_name": "bb.png"}, "did you mean 'b.png'"),
        ({"file_name": "../a.png"}, "lies outside the folder"),
        ({"file_name": "/etc/passwd"}, "lies outside the folder"),
        ({"file_name": "./a.png"}, "was described already, in .*metadata.jsonl, line 1"),
        ({"file_name": "a\0.png"}, "there is no file"),
        ('{"file_name": "b.png", "label": "\\ud800"}', "expected one JSON object"),
    ],
)
def test_a_wrong_line_is_named_by_number(tmp_path, line, words):
    put(tmp_path, "a.png", "b.png")
    describe(tmp_path, GOOD, "", line)
    message = refused(tmp_path)
    assert f"{tmp_path / 'metadata.jsonl'}, line 3" in message
    with pytest.raises(SeepageError, match=words):
        data.open_source(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_named(tmp_path, encoding):
    put(tmp_path, "a.png")
    text = json.dumps({"file_name": "a.png", "label": "Hündchen"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(text.encode(encoding))
    assert "line 1 is not UTF-8" in refused(tmp_path)


def test_names_and_numbers_do_not_mix(tmp_path):
    put(tmp_path, "a.png", "b.png")
    describe(tmp_path, {"file_name": "a.png", "label": 3}, {"file_name": "b.png", "label": "dog"})
    message = refused(tmp_path)
    assert "line 2 labels by name" in message
    assert "line 1 by number" in message


def test_a_split_of_a_folder(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png")
    describe(
        tmp_path,
        {"file_name": "a.png", "split": "train", "label": "x"},
        {"file_name": "b.png", "split": "test", "label": "y"},
    )
    source = data.open_source(f"folder/test@{tmp_path}")
    assert ids(source) == ["b.png"]
    assert source.name == f"{tmp_path.name}/test"
    assert labels(source) == {"b.png": "y"}
    assert source.classes == ("x", "y")
    assert len(data.open_source(tmp_path)) == 3
    for text, words in {
        f"folder/tset@{tmp_path}": "has no split 'tset'; did you mean 'test'",
        "folder/test": "write folder/test@PATH",
        "folder/test@/no/such": "write folder/test@PATH",
    }.items():
        with pytest.raises(SeepageError, match=words):
            data.open_source(text)


def test_nothing_to_see(tmp_path):
    message = refused(tmp_path)
    assert "no picture in" in message
    assert ".jpg" in message
    assert "no files at all" in message
    for name in ("README", "c.heic", "a.txt", "b.txt"):
        (tmp_path / name).touch()
    assert refused(tmp_path).endswith("other files seen: 4 (2 .txt, 1 without extension, 1 .heic)")
    put(tmp_path, ".only/hidden.png")
    assert "no picture in" in refused(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path):
    put(tmp_path, "real/a.png", "photos/b.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "photos" / "linked.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "dangling.png").symlink_to(tmp_path / "nowhere")
    source = data.open_source(tmp_path / "photos")
    assert ids(source) == ["b.png", "dangling.png", "linked.png", "linked/a.png"]


def test_names_that_are_not_utf8_stay_usable(tmp_path):
    put(tmp_path, "good.png")
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.link(tmp_path / "good.png", raw)
    source = data.open_source(tmp_path)
    assert ids(source) == ["caf\\xe9.png", "good.png"]
    assert source.entries[0].path.exists()
    assert json.dumps(ids(source)).encode()
    assert source.entries[0].file_sha256 == source.entries[1].file_sha256


def test_strange_names_are_ids_as_they_are(tmp_path):
    name = "<script>alert(1)</script>\n\u202e.png".replace("/", "∕")
    put(tmp_path, name, "späß 😀.png")
    assert sorted(ids(data.open_source(tmp_path))) == sorted([name, "späß 😀.png"])


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    put(tmp_path, "b/1.png", "a/2.png", "c.png")
    expected = ids(data.open_source(tmp_path))
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with scandir(path) as found:
                self.found = iter(list(found)[::-1])

        def __enter__(self):
            return self.found

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self):
            return self.found

        def __next__(self):
            return next(self.found)

        def close(self) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert ids(data.open_source(tmp_path)) == expected == ["a/2.png", "b/1.png", "c.png"]
