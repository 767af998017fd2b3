from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from seepage import __version__
from seepage.schema import Cell, Environment, Judge, Sample, Spec
from seepage.store import SampleLine, Store, StoreError, cell_key


def spec(**changes: object) -> Spec:
    values = {"victim": "v", "weights_sha256": "w", "layer": "l", "attack": "a", "data": "d", "manifest_sha256": "m"}
    return Spec(**{**values, **changes})


def cell(layer: str = "l") -> Cell:
    asked = spec(layer=layer)
    return Cell(key=cell_key(asked), status="done", spec=asked)


def line(index: int) -> SampleLine:
    sample = Sample(id=f"{index}\u2028line.png", image_sha256="x", status="stopped", metrics={"psnr": float("inf")})
    return SampleLine(index=index, sample=sample, controls={"prior": {"psnr": 6.0}}, passes=3)


def test_key_depends_on_every_field_of_the_spec() -> None:
    changed = {
        "victim": "v2", "weights_sha256": "w2", "layer": "l2", "size": 32, "defenses": ("d",), "wire": "fp16",
        "attack": "a2", "adapter_sha256": "z", "attacker": "naive", "effort": "full", "sends": 2, "access": "black-box",
        "auxiliary": "public", "data": "d2", "manifest_sha256": "m2", "public": "p", "public_sha256": "q",
        "gallery": "g", "gallery_sha256": "h", "metrics": ("psnr",), "seed": 1,
        "judges": {"label": {"name": "j", "sha256": "s"}},
    }  # fmt: skip
    assert set(changed) == set(Spec.model_fields)
    keys = {cell_key(spec(**{name: value})) for name, value in changed.items()} | {cell_key(spec())}
    assert len(keys) == len(changed) + 1
    assert cell_key(spec()) == cell_key(spec())


def test_cells_come_back_in_order_and_a_later_line_replaces(tmp_path: Path) -> None:
    with Store(tmp_path).opened() as store:
        store.append(cell("a"))
        store.append(cell("b"))
        store.append(cell("a").model_copy(update={"message": "again"}))
    found = Store(tmp_path).cells()
    assert [c.spec.layer for c in found.values()] == ["b", "a"]
    assert found[cell("a").key].message == "again"


def measured(version: str = __version__) -> dict[str, Any]:
    """A finished record as it lies in the file."""
    environment = Environment(version=version, device="cpu")
    judge = Judge(name="j", sha256="s")
    asked = spec(metrics=("psnr",), judges={"face": judge})
    raw: dict[str, Any] = json.loads(
        Cell(key=cell_key(asked), status="done", spec=asked, environment=environment).line()
    )
    return raw


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"attack": "b"}, {"metrics": ["psnr", "mse"]}, {"judges": {}}, {"data": "elsewhere"}],
    ids=lambda change: next(iter(change)),
)
def test_a_spec_changed_by_hand_is_refused_by_its_line(tmp_path: Path, change: dict[str, Any]) -> None:
    changed = measured()
    changed["spec"] |= change
    store = Store(tmp_path)
    store.results.write_text(f"{cell('x').line()}\n{json.dumps(measured())}\n")
    assert len(store.cells()) == 2
    store.results.write_text(f"{cell('x').line()}\n{json.dumps(changed)}\n{cell().line()}\n")
    with pytest.raises(StoreError, match=r"results\.jsonl, line 2: its spec is not the one that its key") as caught:
        store.cells()
    assert "\n" not in str(caught.value)


def test_a_key_changed_by_hand_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(measured() | {"key": cell("x").key}) + "\n")
    with pytest.raises(StoreError, match="line 1"):
        Store(tmp_path).cells()


def test_what_another_version_wrote_keeps_its_key(tmp_path: Path) -> None:
    other = measured("0.0.1") | {"key": "of another version"}
    (tmp_path / "results.jsonl").write_text(json.dumps(other) + "\n")
    assert list(Store(tmp_path).cells()) == ["of another version"]


def test_a_record_of_before_a_field_was_added_is_read(tmp_path: Path) -> None:
    """Its key is the hash of the fields that there were; computed here on our own."""
    old = measured()
    del old["spec"]["gallery"], old["spec"]["gallery_sha256"]
    content = {"spec": old["spec"], "schema": old["schema_version"], "version": __version__}
    old["key"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (tmp_path / "results.jsonl").write_text(json.dumps(old) + "\n")
    assert list(Store(tmp_path).cells()) == [old["key"]]


@pytest.mark.parametrize("torn", [b'{"schema_version":1,"key":"half', b"\xff\xfe", b'{"a":1}' * 20000])
def test_torn_last_line_is_repaired(tmp_path: Path, torn: bytes) -> None:
    with Store(tmp_path).opened() as store:
        store.append(cell())
    whole = store.results.read_bytes()
    store.results.write_bytes(whole + torn)
    with Store(tmp_path).opened() as store:
        assert list(store.cells()) == [cell().key]
        store.append(cell("b"))
    assert store.results.read_bytes().startswith(whole)
    assert len(Store(tmp_path).cells()) == 2


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b'{"schema_version"')
    with Store(tmp_path).opened() as store:
        assert store.cells() == {}


def test_an_unreadable_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(f"{cell().line()}\nnot json\n{cell('b').line()}\n")
    with pytest.raises(StoreError, match="line 2"):
        Store(tmp_path).cells()


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path) -> None:
    with Store(tmp_path).opened() as store:
        store.append(cell())
    store.results.write_bytes(b"\xff\xfe\x00\n" + store.results.read_bytes())
    with pytest.raises(StoreError, match="line 1"):
        store.cells()


@pytest.mark.parametrize("damage", [b"@@@@\n", b"\xff\xfe\n", b"{}\n", b"\n"])
def test_a_damaged_sample_of_an_unfinished_cell_is_computed_anew(damage: bytes, tmp_path: Path) -> None:
    with Store(tmp_path).opened() as store:
        store.finish("key", line(0))
        (journal,) = (tmp_path / "partial").iterdir()
        journal.write_bytes(journal.read_bytes() + damage)
        store.finish("key", line(2))
        assert store.finished("key") == {0: line(0), 2: line(2)}


def test_finished_samples_survive_and_go_with_their_cell(tmp_path: Path) -> None:
    with Store(tmp_path).opened() as store:
        store.finish("k", line(2))
        store.finish("k", line(0))
    journal = tmp_path / "partial" / "k.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"index":1,"sam')
    with Store(tmp_path).opened() as store:
        assert store.finished("k") == {2: line(2), 0: line(0)}
        assert store.finished("other") == {}
        done = cell().model_copy(update={"key": "k"})
        store.append(done)
        assert store.finished("k") == {}
        store.close_journals()
    assert not (tmp_path / "partial").exists()


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with Store(tmp_path).opened(), pytest.raises(StoreError, match="another audit"), Store(tmp_path).opened():
        pass


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"), Store(tmp_path / "file").opened():
        pass


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """Under a file-size limit the write is cut short, as on a full disk: the line is taken back and said so."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from seepage.schema import Cell, Spec
        from seepage.store import Store, StoreError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        spec = Spec(victim="v", weights_sha256="w", layer="l", attack="a", data="d", manifest_sha256="m")
        with Store(Path(sys.argv[1])).opened() as store:
            store.append(Cell(key="1", status="done", spec=spec))
            size = store.results.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
            try:
                store.append(Cell(key="2", status="done", spec=spec))
            except StoreError as error:
                sys.stdout.write(str(error))
            assert store.results.stat().st_size == size
            assert list(store.cells()) == ["1"]
    """)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert "cannot write" in ran.stdout
