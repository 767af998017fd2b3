"""ORL faces and chest X-rays, from folders and archives of their layout."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seepage import data
from seepage.data.archive import folder_of
from seepage.pictures import read_picture
from seepage.types import SeepageError

PEOPLE, PICTURES = 12, 10
FINDINGS = {"Covid-19": 2, "No_findings": 3, "Pneumonia": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 3), shade, np.uint8)).save(path)


def faces(root: Path) -> Path:
    for person in range(1, PEOPLE + 1):
        for number in range(1, PICTURES + 1):
            picture(root / "att_faces" / f"s{person}" / f"{number}.pgm", 10 * person + number)
    (root / "att_faces" / "README").write_text("AT&T")
    return root / "att_faces"


def xrays(root: Path) -> Path:
    for finding, count in FINDINGS.items():
        for number in range(count):
            picture(root / finding / f"{number}.png", 40 * number)
    return root


def tarred(folder: Path, archive: Path, mode: str) -> Path:
    with tarfile.open(archive, mode) as out:
        for path in sorted(folder.parent.rglob("*")):
            out.add(path, path.relative_to(folder.parent), recursive=False)
    return archive


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.parent.rglob("*")):
            out.write(path, path.relative_to(folder.parent))
    return archive


def test_orl_faces_carry_their_person_and_every_person_comes_first(tmp_path: Path) -> None:
    source = data.open_source(f"orl/all@{faces(tmp_path / 'a')}")
    assert len(source) == PEOPLE * PICTURES
    assert source.name == "orl/all"
    assert source.known == {"identity"}
    assert [entry.id for entry in source.entries[:3]] == ["s1/1.pgm", "s2/1.pgm", "s3/1.pgm"]
    assert [entry.id for entry in source.entries[-2:]] == ["s11/10.pgm", "s12/10.pgm"]
    assert {entry.identity for entry in source.limit(PEOPLE).entries} == {f"s{one}" for one in range(1, PEOPLE + 1)}
    for entry in source.entries:
        person, number = entry.id.removesuffix(".pgm").removeprefix("s").split("/")
        assert entry.identity == f"s{person}"
        assert read_picture(entry.path).getpixel((0, 0)) == (10 * int(person) + int(number),) * 3


def test_the_gallery_and_the_probes_share_no_picture_and_all_people(tmp_path: Path) -> None:
    folder = faces(tmp_path / "a")
    gallery, probe = (data.open_source(f"orl/{split}@{folder}") for split in ("gallery", "probe"))
    assert {Path(entry.id).stem for entry in gallery.entries} == set("12345")
    assert {Path(entry.id).stem for entry in probe.entries} == {"6", "7", "8", "9", "10"}
    for source in (gallery, probe):
        assert len(source) == 5 * PEOPLE
        assert len({entry.identity for entry in source.entries}) == PEOPLE


@pytest.mark.parametrize(
    "pack",
    [
        lambda folder, path: tarred(folder, path / "x.tgz", "w:gz"),
        lambda folder, path: tarred(folder, path / "x.tar", "w"),
        lambda folder, path: zipped(folder, path / "x.zip"),
    ],
    ids=["tgz", "tar", "zip"],
)
def test_an_archive_is_the_folder_it_was_made_of(
    pack: Callable[[Path, Path], Path], tmp_path: Path, cache: Path
) -> None:
    people, findings = faces(tmp_path / "a"), xrays(tmp_path / "b" / "xray")
    for name, folder in (("orl", people), ("chestxray", findings)):
        archive = pack(folder, tmp_path)
        packed, plain = data.open_source(f"{name}/all@{archive}"), data.open_source(f"{name}/all@{folder}")
        assert packed.manifest_sha256() == plain.manifest_sha256()
        assert all(cache in entry.path.parents for entry in packed.entries)
        assert [entry.path.read_bytes() for entry in packed.entries] == [
            entry.path.read_bytes() for entry in plain.entries
        ]
        archive.unlink()
    assert len(list((cache / "pictures").iterdir())) == 2


def test_an_archive_is_unpacked_once_and_anew_when_it_changes(tmp_path: Path, cache: Path) -> None:
    folder = faces(tmp_path / "a")
    archive = tarred(folder, tmp_path / "x.tgz", "w:gz")
    first = data.open_source(f"orl/all@{archive}")
    before = first.entries[0].path.stat().st_mtime_ns
    assert data.open_source(f"orl/all@{archive}").entries == first.entries
    assert first.entries[0].path.stat().st_mtime_ns == before
    picture(folder / "s1" / "1.pgm", 200)
    tarred(folder, archive, "w:gz")
    again = data.open_source(f"orl/all@{archive}")
    assert again.entries[0].path != first.entries[0].path
    assert read_picture(again.entries[0].path).getpixel((0, 0)) == (200, 200, 200)


def test_an_archive_cannot_write_outside_the_cache(tmp_path: Path, cache: Path) -> None:
    image = io.BytesIO()
    Image.new("L", (2, 2)).save(image, "PNG")
    with tarfile.open(tmp_path / "x.tar", "w") as out:
        for name in ("../escaped.png", f"{tmp_path}/absolute.png", "a/ok.png", "a/.hidden.png", "a/notes.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(image.getvalue())
            out.addfile(member, io.BytesIO(image.getvalue()))
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        out.addfile(link)
    folder = folder_of(tmp_path / "x.tar", "toy/all", "a tar")
    assert [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()] == ["a/ok.png"]
    assert not (tmp_path / "absolute.png").exists()
    assert not list(cache.rglob("escaped.png"))


def test_chest_xrays_are_labelled_by_folder(tmp_path: Path) -> None:
    source = data.open_source(f"chestxray/all@{xrays(tmp_path / 'deep' / 'data')}")
    assert source.name == "chestxray/all"
    assert source.classes == tuple(FINDINGS)
    assert [entry.id for entry in source.entries][:3] == ["Covid-19/0.png", "Covid-19/1.png", "No_findings/0.png"]
    for entry in source.entries:
        assert source.classes[entry.label] == entry.id.split("/")[0]
    above = data.open_source(f"chestxray/all@{tmp_path / 'deep'}")
    assert above.manifest_sha256() == source.manifest_sha256()


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    people = faces(tmp_path / "a")
    (tmp_path / "text.tgz").write_text("no archive")
    cut = tarred(people, tmp_path / "cut.tgz", "w:gz")
    cut.write_bytes(cut.read_bytes()[:-200])
    picture(tmp_path / "flat" / "1.png", 1)
    picture(tmp_path / "odd" / "s1" / "one.png", 1)
    picture(tmp_path / "few" / "s1" / "1.png", 1)
    picture(tmp_path / "few" / "s2" / "2.png", 1)
    picture(tmp_path / "stray" / "A" / "1.png", 1)
    picture(tmp_path / "stray" / "1.png", 1)
    for first in ("1", "2"):
        picture(tmp_path / "twice" / first / "s1" / "1.pgm", 1)
    (tmp_path / "empty").mkdir()
    bare = zipped(tmp_path / "empty" / "nothing", tmp_path / "bare.zip")
    for name, words in {
        "orl/all": r"orl/all needs its pictures: write orl/all@PATH, where PATH is orl_faces.tgz or a folder",
        "orl/train@x": r"orl has no split 'train'; known: all, gallery, probe",
        f"orl/all@{tmp_path}/missing.tgz": r"there is no .*missing.tgz; expected orl_faces.tgz",
        f"orl/all@{tmp_path}/text.tgz": r"text.tgz is no folder, tar or zip; expected orl_faces.tgz",
        f"orl/all@{cut}": r"cut.tgz is a damaged archive",
        f"orl/all@{tmp_path}/empty": r"no picture in .*empty",
        f"orl/all@{bare}": r"bare.zip holds no picture; expected orl_faces.tgz",
        f"orl/all@{tmp_path}/odd": r"s1/one.png lies in no folder of a person; expected",
        f"orl/probe@{tmp_path}/few": r"orl/probe: nobody has a picture from 6 to 10",
        f"orl/all@{tmp_path}/twice": r"a person lies in .*twice twice",
        "chestxray/all": r"chestxray/all needs its pictures",
        "chestxray/test@x": r"chestxray has no split 'test'",
        f"chestxray/all@{tmp_path}/flat": r"1.png lies in no folder of a finding; expected chest_xray",
        f"chestxray/all@{tmp_path}/stray": r"chestxray/all: 1.png lies in no folder",
    }.items():
        with pytest.raises(SeepageError, match=words) as caught:
            data.open_source(name)
        assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tarred(faces(tmp_path / "a"), tmp_path / "x.tgz", "w:gz")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "file"))
    with pytest.raises(SeepageError, match="set SEEPAGE_HOME to a writable folder"):
        data.open_source(f"orl/all@{archive}")


@pytest.mark.research_data
def test_the_research_data_is_read(research_data: Path) -> None:
    people = data.open_source(f"orl/all@{research_data}/orl_faces.tgz")
    assert len(people) == 400
    assert len({entry.identity for entry in people.entries}) == 40
    assert read_picture(people.entries[0].path).size == (92, 112)
    findings = data.open_source(f"chestxray/all@{research_data}/chest_xray_224.tar")
    assert len(findings) == 562
    assert findings.classes == ("Covid-19", "No_findings", "Pneumonia")
    assert read_picture(findings.entries[0].path).size == (224, 224)
