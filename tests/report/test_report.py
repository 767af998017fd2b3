from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import report_cells
from markdown_it import MarkdownIt
from report_cells import ATTACKS, LAYERS, ids, judged, spec, stats, whole

from seepage import report
from seepage.report import gallery, method, tables
from seepage.schema import Cell, Check, Sample, Shown

HOSTILE = (
    "<script>window.pwned=1</script>.png",
    '"onerror="window.pwned=1" x=".png',
    "javascript:window.pwned=1",
    "\u202egpj.exe",
    "=cmd|' /C calc'!A0",
    "]]><svg onload=window.pwned=1>",
    "a|b [x](javascript:1) `c` *d*.png",
)


def outputs(folder: Path) -> str:
    return "".join((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md", "results.csv"))


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_is_made_without_torch(tmp_path: Path) -> None:
    records = [cell.line() for cell in whole(tmp_path, attacks=ATTACKS[:1], layers=LAYERS[:2])]
    (tmp_path / "results.jsonl").write_text("\n".join(records))
    code = (
        "import sys, pathlib\n"
        "from seepage import report\n"
        "from seepage.schema import Cell\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "report.write([Cell.parse(line) for line in (folder / 'results.jsonl').read_text().splitlines()], folder)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
    assert (tmp_path / "report.html").exists()


def test_the_path_returned_is_the_page_and_nothing_is_left_behind(tmp_path: Path) -> None:
    cells = whole(tmp_path)
    assert report.write(cells, tmp_path) == tmp_path / "report.html"
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md", "results.csv", "images"}


def test_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    cells = whole(tmp_path)
    report.write(cells, tmp_path)
    first = outputs(tmp_path)
    report.write(cells, tmp_path)
    assert outputs(tmp_path) == first


def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = whole(tmp_path, attacks=ATTACKS[:1], layers=LAYERS[:1])
    report.write(cells, tmp_path)
    before = outputs(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        report.write(cells[:0], tmp_path)
    assert outputs(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_the_page_loads_nothing_and_forbids_it(tmp_path: Path) -> None:
    page = report.write(whole(tmp_path), tmp_path).read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in page
    for needle in ('src="http', 'href="http', "url(", "@import", '<link rel="stylesheet', "fetch("):
        assert needle not in page


def test_the_verdict_stands_first_and_rests_on_the_numbers(tmp_path: Path) -> None:
    cells = [judged([0.9, 0.8]), judged([0.3, 0.2], layer="features.3")]
    page = report.write(cells, tmp_path).read_text(encoding="utf-8")
    headline = "The attacks recover recognisable pictures at features.1, and none at features.3."
    assert page.index("zoo/mobilenet_v2") < page.index(headline) < page.index("Leakage by depth")
    order = ['id="verdict"', 'id="depth"', 'id="gallery"', 'id="cells"', 'id="method"']
    assert sorted(order, key=page.index) == order
    assert headline in (tmp_path / "report.md").read_text(encoding="utf-8").replace("\\", "")


def test_nothing_run_is_said(tmp_path: Path) -> None:
    page = report.write([], tmp_path).read_text(encoding="utf-8")
    assert "Nothing was run" in page
    assert "Nothing was run" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert read_csv(tmp_path) == []
    assert report.rows([])[1] == ()


def test_what_failed_and_what_was_not_run_is_named_with_its_reason(tmp_path: Path) -> None:
    cells = whole(tmp_path, attacks=ATTACKS[:1], layers=LAYERS[:2])
    bad = Sample(id="torn.jpg", image_sha256="0" * 64, status="failed", message="truncated after 12 bytes")
    cells[0] = cells[0].model_copy(update={"samples": (*cells[0].samples, bad)})
    cells.append(Cell(key="f", status="failed", message="NaN in the loss", spec=spec("features.6", "joint")))
    cells.append(Cell(key="n", status="not_run", message="needs public pictures", spec=spec("features.6", "decoder")))
    report.write(cells, tmp_path)
    for name in ("report.html", "report.md"):
        said = (tmp_path / name).read_text(encoding="utf-8").replace("\\", "")
        for needle in ("torn.jpg", "truncated after 12 bytes", "NaN in the loss", "needs public pictures"):
            assert needle in said, (name, needle)
        assert "not run: decoder at features.6" in said
        assert "failed: joint at features.6" in said
    statuses = [line["status"] for line in read_csv(tmp_path)]
    assert statuses == ["done", "done", "failed", "not_run"]


def test_a_reason_shared_by_many_cells_is_said_once() -> None:
    cells = [Cell(key=str(n), status="not_run", message="why", spec=spec(f"l.{n}", "peel")) for n in range(40)]
    ((what, why),) = method.missing(report.verdicts(cells))
    assert what.startswith("not run: peel at l.0, peel at l.1")
    assert what.endswith("and 28 more")
    assert why == "why"


def test_warnings_are_grouped_and_the_gravest_come_first() -> None:
    few = Check(name="few-pictures", level="warning", message="n = 1")
    note = Check(name="a-note", level="info", message="so it is")
    one = judged([0.9], layer="l.1", checks=(note, few))
    two = judged([0.8], layer="l.2", checks=(few, Check(name="odd", level="error", message="bad")))
    weaker = judged([0.3], layer="l.2", attack="rmle", checks=(few,))
    found = method.warnings(report.verdicts([one, two, weaker]))
    assert [(item.name, item.cells, item.strongest) for item in found] == [
        ("odd", 1, 1),
        ("few pictures", 3, 2),
        ("a note", 1, 1),
    ]


def test_nan_and_infinity_stay_visible(tmp_path: Path) -> None:
    cells = whole(tmp_path, attacks=ATTACKS[:1], layers=LAYERS[:2])
    broken = {
        **cells[0].summary,
        "psnr": stats([math.nan, 1.0]),
        "ssim": stats([1.0]).model_copy(update={"max": math.inf}),
    }
    cells[0] = cells[0].model_copy(update={"summary": broken})
    report.write(cells, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">NaN<" in page
    assert "∞" in page
    line = read_csv(tmp_path)[0]
    assert (line["psnr.mean"], line["ssim.max"]) == ("NaN", "Infinity")
    assert "NaN" in report.rows(cells)[1][0][2]


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "folder"])
def test_a_picture_that_cannot_be_shown_is_a_placeholder(tmp_path: Path, damage: str) -> None:
    cells = whole(tmp_path, attacks=ATTACKS[:1], layers=LAYERS[:1])
    for path in (tmp_path / "images").rglob("*.png"):
        content = path.read_bytes()
        path.unlink()
        if damage == "text":
            path.write_text("no picture")
        elif damage == "truncated":
            path.write_bytes(content[:60])
        elif damage == "folder":
            path.mkdir()
    page = report.write(cells, tmp_path).read_text(encoding="utf-8")
    assert "picture-000.png" in page
    if damage != "truncated":
        assert "picture file" in page


def test_a_record_cannot_pull_other_files_into_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    cells = whole(folder, names=ids(1), attacks=ATTACKS[:1], layers=LAYERS[:1])
    secret = next((folder / "images" / "truth").iterdir()).rename(tmp_path / "secret.png")
    (folder / "images" / "link.png").symlink_to(secret)
    for path in ("../secret.png", str(secret), "images/link.png", "images/../../secret.png", "\x00"):
        shown = cells[0].samples[0].model_copy(update={"truth": Shown(image=path), "recovered": None})
        page = report.write([cells[0].model_copy(update={"samples": (shown,)})], folder).read_text(encoding="utf-8")
        assert "data:image" not in page


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    cells = []
    for number, word in enumerate(HOSTILE):
        everywhere = {"victim": word, "data": word, "defenses": (word,)}
        place, attack = [f"l{number}.{word}"], [word.replace(":", "")]
        cells += whole(tmp_path, [word], place, attack, caption=word, label=word, **everywhere)
    cells.append(Cell(key="x", status="failed", message=HOSTILE[0], spec=spec(HOSTILE[5])))
    report.write(cells, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>window" not in page
    assert "<svg onload" not in page
    assert "\u202e" not in outputs(tmp_path)
    assert page.count("<script>") == 1
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert "<a " not in rendered
    assert "<script" not in rendered
    assert "<svg" not in rendered
    assert all(value[:1] not in "=+@" or not value for line in read_csv(tmp_path) for value in line.values())


def test_redaction_leaves_no_trace_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    names = ["alice smith.jpg", "ward 7/bob.png", "carol.dcm", "d"]
    secrets = ["alice", "bob", "carol", "ward 7", "patients", "a lonely lighthouse", "lighthouse keeper", "data:image"]
    cells = whole(
        folder, names=names, attacks=ATTACKS[:1], layers=LAYERS[:2], caption="a lonely lighthouse",
        label="lighthouse keeper", data="/srv/patients", public="/srv/patients-old", manifest_sha256="f" * 64,
        public_sha256="e" * 64, gallery="/srv/patients-faces", gallery_sha256="d" * 64,
        victim="module//srv/alice/net.py:build", judges={"label": {"name": "module/alice/j.py:f", "sha256": "0" * 64}},
    )  # fmt: skip
    bad = Sample(id="ward 7/bob.png", image_sha256="0" * 64, status="failed", message="cannot read ward 7/bob.png")
    checks = (
        Check(name="failed-samples", level="error", message="1 of 5 samples failed, the first because: " + bad.message),
        Check(name="other", level="info", message="see /srv/patients/x.png and alice smith.jpg"),
    )
    cells[0] = cells[0].model_copy(
        update={"samples": (*cells[0].samples, bad), "checks": checks, "unavailable": {"lpips": "no /srv/alice/w.pth"}}
    )
    cells.append(
        Cell(key="f", status="failed", message="OSError: /srv/patients/bob.png", spec=spec(data="/srv/patients"))
    )
    page = report.write(cells, folder, redact=True)
    written = outputs(folder)
    for secret in secrets:
        assert secret not in written, secret
    for sample in cells[0].samples[:4]:
        assert sample.image_sha256 not in written
    for digit in "fed":
        assert digit * 64 not in written
    assert "Pictures are withheld" in page.read_text(encoding="utf-8")
    assert "net.py:build" in written
    assert "failed picture <bdi>2</bdi>" in page.read_text(encoding="utf-8")


def test_redaction_keeps_the_numbers(tmp_path: Path) -> None:
    cells = whole(tmp_path, attacks=ATTACKS[:1])
    report.write(cells, tmp_path)
    plain = [{k: v for k, v in line.items() if k not in ("data", "manifest_sha256")} for line in read_csv(tmp_path)]
    report.write(cells, tmp_path, redact=True)
    hidden = [{k: v for k, v in line.items() if k not in ("data", "manifest_sha256")} for line in read_csv(tmp_path)]
    assert hidden == plain


def test_the_csv_holds_every_statistic_unrounded(tmp_path: Path) -> None:
    cells = whole(tmp_path)
    report.write(cells, tmp_path)
    lines = read_csv(tmp_path)
    assert len(lines) == len(cells)
    for line, cell in zip(lines, cells):
        for key, item in cell.summary.items():
            for name in ("mean", "median", "min", "max", "worst", "ci_low", "ci_high"):
                assert float(line[f"{key}.{name}"]) == getattr(item, name)
        assert float(line["control.mean_picture.mse.mean"]) == cell.controls["mean_picture"]["mse"].mean
        assert line["layer_index"] == str(cell.cut.index if cell.cut else "")


def test_rows_are_what_a_terminal_shows(tmp_path: Path) -> None:
    cells = whole(tmp_path, files=False)
    columns, rows = report.rows(cells)
    assert columns[:2] == ("layer", "attack")
    assert [row[0] for row in rows] == [layer for layer in LAYERS for _ in ATTACKS]
    assert all(len(row) == len(columns) for row in rows)
    stars = [row for row in rows if row[1].endswith("★")]
    assert [row[0] for row in stars] == list(LAYERS)
    best = min((cell for cell in cells if cell.spec.layer == LAYERS[0]), key=lambda cell: cell.summary["mse"].mean)
    assert stars[0][1] == f"{best.spec.attack.partition(':')[0]} ★"
    assert stars[0][2].startswith(f"{best.summary['psnr'].mean:.1f} [")


def test_the_table_sorts_layers_by_depth_and_keeps_what_varies_in_front(tmp_path: Path) -> None:
    cells = whole(tmp_path, files=False)
    titles = [column.title for column in tables.table(report.verdicts(cells)).columns]
    assert titles[:3] == ["Layer", "Attack", "PSNR (dB)"]
    cells += whole(tmp_path, files=False, defenses=("noise:s=1",), attacker="naive")
    made = tables.table(report.verdicts(cells))
    assert [column.title for column in made.columns][:5] == ["Layer", "Attack", "Attacker", "Defense", "PSNR (dB)"]
    assert [row.fields[0][0].sort for row in made.rows[:15:3]] == [1, 2, 3, 4, 5]
    assert sum(row.best for row in made.rows) == 2 * len(LAYERS)


def test_how_it_was_measured_names_everything_that_is_needed_to_repeat_it(tmp_path: Path) -> None:
    cells = whole(tmp_path)
    page = report.write(cells, tmp_path).read_text(encoding="utf-8")
    needles = [
        cells[0].spec.weights_sha256,
        cells[0].spec.manifest_sha256,
        "0123456789ab",
        "2.15.0",
        "zoo/efficientnet_lite0",
    ]
    needles += [
        "lm_steps = 12",
        "no weights on disk",
        "the very recoveries, each scored against another picture",
        "norm = 1e-06",
    ]
    for needle in needles:
        assert needle in page, needle


def test_at_most_a_few_pictures_are_shown_from_the_best_to_the_worst(tmp_path: Path) -> None:
    cells = whole(tmp_path, names=ids(100), attacks=ATTACKS[:1], layers=LAYERS[:1], size=16)
    judgement = report.verdicts(cells)
    shown = gallery.gallery(judgement, [""], tmp_path)
    psnr = {sample.id: sample.metrics["psnr"] for sample in cells[0].samples}
    values = [psnr[row.id] for row in shown.rows]
    assert len(values) == gallery.MOST_PICTURES
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (max(psnr.values()), min(psnr.values()))
    page = report.write(cells, tmp_path).read_text(encoding="utf-8")
    assert "24 of 100 pictures" in page
    assert "the other 76 count in every number" in page


def test_pictures_are_compressed_then_left_out_to_keep_the_file_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = whole(tmp_path, names=ids(12), attacks=ATTACKS[:2], layers=LAYERS[:2], size=64)
    judgement = report.verdicts(cells)
    whole_size = sum(path.stat().st_size for path in (tmp_path / "images").rglob("*.png"))
    everything = gallery.gallery(judgement, [""], tmp_path)
    assert (len(everything.rows), everything.recoded) == (12, False)
    monkeypatch.setattr(gallery, "BUDGET", int(whole_size * 0.9))
    recoded = gallery.gallery(judgement, [""], tmp_path)
    assert (len(recoded.rows), recoded.recoded) == (12, True)
    monkeypatch.setattr(gallery, "BUDGET", 30_000)
    fewer = gallery.gallery(judgement, [""], tmp_path)
    assert fewer.recoded
    assert 1 < len(fewer.rows) < 12
    uris = [item.picture.uri for row in fewer.rows for group in row.recovered for item in group]
    uris += [row.original.uri for row in fewer.rows]
    assert sum(len(uri) for uri in uris) * 3 / 4 < 30_500
    assert fewer.rows[0].id == everything.rows[0].id
    assert fewer.rows[-1].id == everything.rows[-1].id


@pytest.mark.slow
def test_five_hundred_pictures_by_thirty_cells_still_make_a_small_file(tmp_path: Path) -> None:
    layers = [f"features.{n}" for n in range(10)]
    cells = whole(tmp_path, names=ids(4), layers=layers, size=128)
    shared = [cell.samples for cell in cells]
    many = [
        cell.model_copy(
            update={
                "samples": tuple(
                    sample.model_copy(update={"id": f"{copy}-{sample.id}"}) for copy in range(125) for sample in samples
                )
            }
        )
        for cell, samples in zip(cells, shared)
    ]
    path = report.write(many, tmp_path)
    assert len(many[0].samples) == 500
    assert path.stat().st_size < 15_000_000


def test_a_record_read_back_makes_the_same_report(tmp_path: Path) -> None:
    cells = whole(tmp_path, attacks=ATTACKS[:1])
    report.write(cells, tmp_path)
    first = outputs(tmp_path)
    report.write([Cell.parse(json.dumps(json.loads(cell.line()))) for cell in cells], tmp_path)
    assert outputs(tmp_path) == first


def test_cells_without_multiply_adds_cuts_or_costs_are_shown(tmp_path: Path) -> None:
    bare = [cell.model_copy(update={"cut": None, "cost": None, "environment": None}) for cell in whole(tmp_path)]
    assert "features.17" in report.write(bare, tmp_path).read_text(encoding="utf-8")


def test_helpers_make_what_they_say() -> None:
    assert report_cells.judged([0.5, 0.7]).summary["ssim"].mean == pytest.approx(0.6)
