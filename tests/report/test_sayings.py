"""What a report says of captions and labels: sentences, cards, gallery, tables and the matrix of labels."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from report_cells import ATTACKS, ids, judged, spec, stats, whole
from said_cells import CAPTIONS, LAYERS, REFERENCES, named, said

from seepage import report
from seepage.report import confusion, findings, gallery, sayings, tables, verdict
from seepage.schema import Cell, Sample, Shown


def one(*cells: Cell) -> verdict.Verdict:
    (found,) = verdict.verdicts(cells)
    return found


def only(*cells: Cell) -> findings.Finding:
    (found,) = findings.findings(one(*cells))
    return found


def texts(folder: Path) -> tuple[str, str]:
    return (folder / "report.html").read_text(encoding="utf-8"), (folder / "report.md").read_text(encoding="utf-8")


def test_a_cell_is_of_what_it_brought_back(tmp_path: Path) -> None:
    picture = whole(tmp_path, layers=LAYERS[:1], attacks=ATTACKS[:1], caption="a dog", files=False)[0]
    cells = {"captions": said(tmp_path), "labels": named(tmp_path), "images": picture}
    for kind, cell in cells.items():
        assert findings.kind(cell) == kind
        bare = [sample.model_copy(update={"recovered": None, "truth": None}) for sample in cell.samples]
        assert findings.kind(cell.model_copy(update={"samples": tuple(bare)})) == kind
    for kind, metrics in (("captions", ("bleu1", "nll")), ("labels", ("top1",)), ("images", ("mse", "top1"))):
        assert findings.kind(Cell(key="n", status="not_run", spec=spec(metrics=metrics))) == kind
    assert findings.kind(judged([0.5])) == "images"


def test_cider_decides_from_fifty_pictures_on(tmp_path: Path) -> None:
    assert only(said(tmp_path, names=ids(50), files=False)).key == "cider"
    assert only(said(tmp_path, names=ids(49), files=False)).key == "rouge_l"
    assert only(said(tmp_path, references=False, files=False)).key == "nll_gap"


def test_told_is_what_beats_every_control_chance_allowed_for(tmp_path: Path) -> None:
    cells = [
        said(tmp_path, layer, strength, ids(60), files=False) for layer, strength in zip(LAYERS, (-0.05, 0.2, 0.8))
    ]
    found = only(*cells)
    assert [layer.told for layer in found.layers] == [False, True, True]
    # By CIDEr-D there is no recovery: the intervals must lie apart.
    best = cells[2].summary["cider"]
    near = {**cells[2].controls, "constant": {"cider": stats([best.ci_low + 0.01] * 2)}}
    assert not only(cells[2].model_copy(update={"controls": near})).layers[0].told
    gaps = [said(tmp_path, strength=value, references=False, files=False) for value in (0.8, 0.1)]
    assert [only(cell).layers[0].told for cell in gaps] == [True, False]
    assert not only(named(tmp_path, right=0.3, files=False)).layers[0].told
    assert only(named(tmp_path, right=0.8, files=False)).layers[0].told


def test_the_headline_names_the_layers(tmp_path: Path) -> None:
    some = [said(tmp_path, layer, value, files=False) for layer, value in zip(LAYERS, (0.3, 0.6, 0.8))]
    assert sayings.headline(only(*some)) == (
        "Recovered captions tell of what the pictures show at features.13 and features.17; at features.3 no more than "
        "a sentence that fits any picture."
    )
    assert sayings.headline(only(*some[1:])).endswith("at every layer audited, features.13 to features.17.")
    assert "no more than a sentence" in sayings.headline(only(some[0]))
    labels = [named(tmp_path, layer, value, files=False) for layer, value in zip(LAYERS, (0.25, 0.5, 0.75))]
    assert sayings.headline(only(*labels)) == (
        "The label of up to 75\N{NARROW NO-BREAK SPACE}% of the pictures is read from the features at features.13 and "
        "features.17; at features.3 no more often than without the features."
    )
    assert sayings.headline(only(labels[0])).startswith("No label is read")
    absent = Cell(key="n", status="not_run", spec=spec(metrics=("top1",)))
    assert sayings.headline(only(absent)) == "Whether labels can be read was not judged."


def test_the_evidence_gives_figures_controls_and_the_persons(tmp_path: Path) -> None:
    cells = [said(tmp_path, layer, value, files=False) for layer, value in zip(LAYERS, (0.5, 0.6, 0.8))]
    text = sayings.evidence(only(*cells), one(*cells))
    assert text.startswith("On 4 pictures, ROUGE-L 0.385 (95\N{NARROW NO-BREAK SPACE}% interval")
    assert "at features.17 with caprecover and 0.235 (" in text
    assert "Without the features it would be 0.180 at best (constant)." in text
    assert "A person who sees the picture reaches 0.470." in text
    assert "features.13" not in text
    assert sayings.advice(only(*cells)).endswith("features.17, the deepest layer audited: protect what is sent.")


def test_reading_stands_beside_rebuilding(tmp_path: Path) -> None:
    picture = judged([0.9, 0.8], layer="features.17")
    scored = picture.model_copy(
        update={
            "summary": {**picture.summary, "top1": stats([0.0, 1.0])},
            "ceilings": {"original": {"top1": stats([1.0])}},
        }
    )
    cells = (scored, named(tmp_path, files=False))
    text = sayings.evidence(only(*cells), one(*cells))
    space = "\N{NARROW NO-BREAK SPACE}"
    assert f"that joint rebuilds there the judge gives the label of 50{space}%, of the originals 100{space}%." in text
    assert "rebuilds" not in sayings.evidence(only(cells[1]), one(cells[1]))


def test_the_verdict_on_pictures_does_not_change_beside_words(tmp_path: Path) -> None:
    pictures = whole(tmp_path, layers=LAYERS, attacks=ATTACKS[:2])
    report.write(pictures, tmp_path)
    alone = texts(tmp_path)[1].split("\n\n")[2:4]
    layer = "features.1"  # where no picture was recovered
    report.write([*pictures, said(tmp_path), named(tmp_path), named(tmp_path, layer)], tmp_path)
    page, markdown = texts(tmp_path)
    assert markdown.split("\n\n")[2:4] == alone
    assert "Nothing is known of" not in page
    assert page.index("The attacks recover") < page.index("Recovered captions") < page.index("The label of")


def test_the_page_shows_reference_and_recovered_sentence(tmp_path: Path) -> None:
    report.write([said(tmp_path, layer) for layer in LAYERS], tmp_path)
    page, _ = texts(tmp_path)
    for index in range(3):
        assert page.count(f">{CAPTIONS[index]}<") >= len(LAYERS)
        assert f'<span class="caption"><bdi>{REFERENCES[index]}<' in page
    assert "What captions decide" in page
    assert "What recognisable means" not in page
    assert "ranked by ROUGE-L" in page
    assert "told in words" in page


def test_the_page_shows_true_and_recovered_labels(tmp_path: Path) -> None:
    report.write([named(tmp_path, names=ids(4))], tmp_path)
    page, markdown = texts(tmp_path)
    assert page.count("true label: <bdi>") == 4
    assert page.count("<b>right</b>") == 3
    assert page.count("<b>wrong</b>") == 1
    assert "Which label is taken for which" in page
    assert "What labels decide" in markdown


def test_whatever_the_order_of_the_records_pictures_come_first(tmp_path: Path) -> None:
    pictures = whole(tmp_path, layers=LAYERS[2:], attacks=ATTACKS[:2])
    cells = [named(tmp_path, names=ids(4)), said(tmp_path), *pictures]
    found = gallery.gallery(verdict.verdicts(cells), [""], tmp_path)
    for row in found.rows:
        assert row.label == "tabby cat"
        assert row.true in ("cat", "dog", "owl")
        assert row.caption in REFERENCES
        ((*group,),) = row.recovered
        assert [item.attack for item in group if item.best] == ["rmle", "caprecover", "probe"]
        assert [item.said.kind if item.said else "images" for item in group] == ["images"] * 2 + ["captions", "labels"]


def test_redacted_nothing_is_quoted(tmp_path: Path) -> None:
    report.write([said(tmp_path), named(tmp_path, classes=("tabby", "beagle", "owlet"))], tmp_path, redact=True)
    for text in (*texts(tmp_path), (tmp_path / "results.csv").read_text(encoding="utf-8")):
        assert not any(word in text for word in (*CAPTIONS, *REFERENCES, "tabby", "beagle", "owlet", "picture-0"))
        assert "Recovered captions" in text or "caprecover" in text


def test_the_strongest_of_each_kind_carries_a_star(tmp_path: Path) -> None:
    pictures = whole(tmp_path, layers=LAYERS[2:], attacks=ATTACKS[:2], files=False)
    cells = [
        *pictures,
        said(tmp_path, files=False),
        named(tmp_path, right=0.5, kind="mlp", files=False),
        named(tmp_path, right=0.75, kind="conv", files=False),
    ]
    _, rows = tables.rows(cells)
    assert sorted(row[1] for row in rows if "★" in row[1]) == ["caprecover ★", "probe kind=conv ★", "rmle ★"]
    titles, shown = tables.rows([said(tmp_path, names=ids(60), files=False)])
    assert titles[2].startswith("CIDEr-D")
    assert shown[0][2].startswith("0.900 [")
    report.write(cells, tmp_path)
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["top1.mean"] for line in lines if line["top1.mean"]] == ["0.5", "0.75"]


def labelled(*pairs: tuple[str, str]) -> Cell:
    samples = tuple(
        Sample(
            id=str(number),
            image_sha256="0" * 64,
            status="stopped",
            metrics={"top1": float(true == got)},
            recovered=Shown(label=got),
            truth=Shown(label=true),
        )
        for number, (true, got) in enumerate(pairs)
    )
    hits = [sample.metrics["top1"] for sample in samples]
    return Cell(key="l", status="done", spec=spec(metrics=("top1",)), samples=samples, summary={"top1": stats(hits)})


def test_labels_are_counted_by_hand() -> None:
    pairs = [("cat", "cat")] * 3 + [("cat", "dog")] + [("dog", "dog")] * 2 + [("owl", "cat"), ("dog", "bee")]
    (matrix,) = confusion.confusions(one(labelled(*pairs)))
    assert matrix.names == ("cat", "dog", "owl", "bee")
    counts = {line.name: [item.count for item in line.counts] for line in matrix.lines}
    assert counts == {"cat": [3, 1, 0, 0], "dog": [0, 2, 0, 1], "owl": [1, 0, 0, 0]}
    assert [line.right for line in matrix.lines] == pytest.approx([3 / 4, 2 / 3, 0])
    assert matrix.lines[0].counts[1].share == 0.25
    assert (matrix.n, matrix.grouped) == (8, 0)


def test_beyond_twenty_classes_the_rest_is_one() -> None:
    pairs = [(f"c{index:02d}", f"c{index:02d}") for index in range(23) for _ in range(30 - index)]
    pairs += [("c21", "c22"), ("c00", "c22"), ("c22", "c00")]
    (matrix,) = confusion.confusions(one(labelled(*pairs)))
    assert matrix.names == (*(f"c{index:02d}" for index in range(20)), "3 other classes")
    last = matrix.lines[-1]
    assert (last.total, last.counts[20].count, last.counts[0].count) == (10 + 9 + 8 + 2, 28, 1)
    assert last.counts[20].kind == "grouped"
    assert last.right == pytest.approx(27 / 29)
    assert matrix.lines[0].counts[20].count == 1
    assert sum(item.count for line in matrix.lines for item in line.counts) == matrix.n == len(pairs)
