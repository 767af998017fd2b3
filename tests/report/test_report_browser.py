from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_cells import ATTACKS, LAYERS, ids, spec, whole
from said_cells import LAYERS as SAID_LAYERS
from said_cells import named, said

from seepage import report
from seepage.schema import Cell

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.pwned=1</script>.png",
    '"><img src=x onerror=window.pwned=1>.png',
    "' onclick='window.pwned=1' autofocus onfocus='window.pwned=1",
    "javascript:window.pwned=1",
    "</style></title><svg onload=window.pwned=1>",
    "{{ 7*7 }} ${7*7} <!-- ",
)

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] > 0.99) return color;
    }
    return rgba(getComputedStyle(document.documentElement).backgroundColor);
  };
  const worst = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || ['SCRIPT', 'title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    worst.push([ratio, `${element.tagName}.${element.getAttribute('class')}: ${element.textContent.trim()}`]);
  }
  return worst.sort((x, y) => x[0] - y[0]).slice(0, 3);
}"""

Open = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any) -> Iterator[Open]:
    """Open a page as a stranger would, offline; the test fails if it complains or asks for anything but itself."""
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, width: int = 1280, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: asked(request.url, path))
        page.goto(path.as_uri())
        return page

    def asked(url: str, path: Path) -> None:
        if url != path.as_uri() and not url.startswith("data:"):
            complaints.append(f"request: {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    """The report of an audit with a cell that was not run."""
    cells = whole(tmp_path)
    cells.append(Cell(key="n", status="not_run", message="needs public pictures", spec=spec(LAYERS[0], "decoder")))
    return report.write(cells, tmp_path)


def column(page: Any, title: str) -> int:
    titles = page.locator("#results thead button").all_inner_texts()
    return [text.strip() for text in titles].index(title)


def shown(page: Any, title: str) -> list[str]:
    """What a column shows, row by row, without second lines."""
    place = column(page, title)
    values = page.locator(f"#results tbody tr:visible > :nth-child({place + 1}) .value:visible > bdi")
    return [text.strip() for text in values.all_inner_texts()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_offline_readable_and_as_wide_as_the_window(
    opened: Open, page_file: Path, scheme: str, width: int
) -> None:
    page = opened(page_file, width, scheme)
    headline = page.locator(".headline")
    assert headline.is_visible()
    assert "recognisable pictures" in headline.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
    for ratio, what in page.evaluate(CONTRAST):
        assert ratio >= 4.5, what
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground.removeprefix("rgb(").split(",")[0]) > 128) == (scheme == "light")


def test_the_theme_can_be_chosen(opened: Open, page_file: Path) -> None:
    page = opened(page_file, scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    button = page.locator("#theme")
    seen = []
    for _ in range(3):
        button.click()
        seen.append((button.inner_text(), page.evaluate(ground)))
    assert [name for name, _ in seen] == ["Theme: light", "Theme: dark", "Theme: auto"]
    assert seen[0][1] == seen[2][1] == light
    assert seen[1][1] != light


def test_every_picture_is_drawn(opened: Open, page_file: Path) -> None:
    page = opened(page_file)
    widths = page.eval_on_selector_all("main img", "images => images.map((image) => image.naturalWidth)")
    assert len(widths) == 1 + len(LAYERS) + 4 * (1 + len(LAYERS) * len(ATTACKS))
    assert min(widths) > 0


def test_the_table_sorts_numbers_as_numbers_and_keeps_what_is_missing_last(opened: Open, page_file: Path) -> None:
    page = opened(page_file)
    header = page.locator("#results thead th").nth(column(page, "PSNR (dB)"))
    for direction, sign in (("descending", -1), ("ascending", 1)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == direction
        values = shown(page, "PSNR (dB)")
        numbers = [float(value) for value in values[:-1]]
        assert values[-1] == "–"
        assert numbers == sorted(numbers, key=lambda value: sign * value)
        assert len({len(str(int(value))) for value in numbers}) > 1
    layer = page.locator("#results thead th").nth(0)
    layer.locator("button").click()
    assert (layer.get_attribute("aria-sort"), header.get_attribute("aria-sort")) == ("ascending", "none")
    assert list(dict.fromkeys(shown(page, "Layer"))) == list(LAYERS)
    page.locator("#results thead th").nth(column(page, "Status")).locator("button").press("Enter")
    assert shown(page, "Status")[-1] == "not run"


def test_the_table_shows_other_statistics_and_filters(opened: Open, page_file: Path) -> None:
    page = opened(page_file)
    mean = shown(page, "PSNR (dB)")
    page.select_option("#statistic", "worst")
    worst = shown(page, "PSNR (dB)")
    assert all(float(a) >= float(b) for a, b in zip(worst[:-1], mean[:-1]) if "–" not in (a, b))
    assert worst != mean
    page.fill("#filter", "JOINT features.13")
    assert shown(page, "Layer") == ["features.13"]
    assert page.locator("#matches").inner_text() == "1 of 16"
    page.fill("#filter", "")
    assert len(shown(page, "Layer")) == 16


def test_a_picture_opens_large_beside_the_original(opened: Open, page_file: Path) -> None:
    page = opened(page_file)
    dialog, title = page.locator("#zoom"), page.locator("#zoom-title")
    first = page.locator(".shot:visible .zoomable").first
    first.click()
    assert dialog.is_visible()
    assert LAYERS[0] in title.inner_text()
    pictures = dialog.locator("img")
    truth = page.locator(".truth img").first.get_attribute("src")
    assert pictures.nth(0).get_attribute("src") == truth
    assert pictures.nth(1).get_attribute("src") == first.locator("img").get_attribute("src")
    assert pictures.nth(1).evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    before = title.inner_text()
    page.keyboard.press("ArrowRight")
    assert LAYERS[1] in title.inner_text()
    page.keyboard.press("ArrowDown")
    assert title.inner_text().split(",")[0] != before.split(",")[0]
    assert LAYERS[1] in title.inner_text()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == before
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    first.click()
    dialog.locator("form button").click()
    assert not dialog.is_visible()


def test_the_gallery_shows_each_attack(opened: Open, page_file: Path) -> None:
    page = opened(page_file)
    assert page.locator(".shot:visible").count() == 4 * len(LAYERS)
    best = page.locator(".shot:visible figcaption").first.inner_text()
    assert "dB" in best
    assert "SSIM" in best
    names = sorted(attack.partition(":")[0] for attack in ATTACKS)
    for name in names:
        page.locator("#shown button", has_text=name).click()
        captions = page.locator(".shot:visible figcaption").all_inner_texts()
        assert len(captions) == 4 * len(LAYERS)
        assert all(name in caption.splitlines() for caption in captions)
        assert page.locator("#shown [aria-pressed=true]").inner_text() == name


def test_the_chart_shows_one_metric_at_a_time_and_names_its_points(opened: Open, page_file: Path) -> None:
    page = opened(page_file)
    buttons = page.locator(".charts .switch button")
    assert {"PSNR", "SSIM"} <= set(buttons.all_inner_texts())
    for index in range(buttons.count()):
        buttons.nth(index).click()
        assert page.locator(".panel:visible").count() == 1
        chart = page.locator(".panel:visible svg.chart:visible")
        assert chart.count() == 1
        assert chart.locator(".line").count() == len(ATTACKS)
        assert chart.locator(".line .mark").count() == len(ATTACKS) * len(LAYERS)
        assert chart.locator(".control polyline").count() == 3
        assert "joint at features.1" in (chart.locator("desc").text_content() or "")
    box = page.locator(".panel:visible svg.chart:visible").bounding_box()
    for mark in page.locator(".panel:visible svg.chart:visible .mark").all():
        inner = mark.bounding_box()
        assert box["x"] <= inner["x"]
        assert box["y"] <= inner["y"]
        assert inner["y"] + inner["height"] <= box["y"] + box["height"]
        assert inner["x"] + inner["width"] <= box["x"] + box["width"]


def test_hostile_names_are_shown_and_do_nothing(opened: Open, tmp_path: Path) -> None:
    cells = []
    for number, word in enumerate(HOSTILE):
        everywhere = {"victim": word, "data": word, "defenses": (word,)}
        place, attack = [f"l{number} {word}"], [word.replace(":", "")]
        cells += whole(tmp_path, [word], place, attack, caption=word, label=word, **everywhere)
    cells.append(Cell(key="x", status="failed", message=HOSTILE[1], spec=spec(HOSTILE[0], HOSTILE[4])))
    page = opened(report.write(cells, tmp_path))
    page.eval_on_selector_all("button", "buttons => buttons.forEach((button) => button.click())")
    page.keyboard.press("Escape")
    page.fill("#filter", HOSTILE[0])
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 1
    assert set(page.locator(".truth .id").all_text_contents()) == set(HOSTILE)
    assert set(page.locator(".truth .caption").all_text_contents()) == set(HOSTILE)


def test_a_redacted_report_has_no_picture(opened: Open, tmp_path: Path) -> None:
    page = opened(report.write(whole(tmp_path, names=ids(3)), tmp_path, redact=True))
    assert page.locator("img").count() == 0
    assert "withheld" in page.locator("#gallery").inner_text()
    assert page.locator("#results tbody tr").count() == len(LAYERS) * len(ATTACKS)
    assert "picture-00" not in page.content()


def test_a_report_of_nothing_opens(opened: Open, tmp_path: Path) -> None:
    assert "Nothing was run" in opened(report.write([], tmp_path)).locator(".headline").inner_text()


def test_it_can_be_read_without_scripts(chromium: Any, page_file: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".headline").is_visible()
    assert page.locator(".panel:visible").count() == 1
    assert page.locator(".shot:visible").count() == 4 * len(LAYERS)
    assert not page.locator("#theme").is_visible()
    context.close()


@pytest.fixture
def said_file(tmp_path: Path) -> Path:
    """The report of an audit that recovered pictures, captions and labels."""
    names = ids(4)
    cells = whole(tmp_path, names, SAID_LAYERS, ATTACKS[:2])
    cells += [said(tmp_path, layer, names=names) for layer in SAID_LAYERS]
    cells += [named(tmp_path, layer, names=names, kind=kind) for layer in SAID_LAYERS for kind in ("linear", "mlp")]
    return report.write(cells, tmp_path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_words_and_labels_open_readable_and_as_wide_as_the_window(
    opened: Open, said_file: Path, scheme: str, width: int
) -> None:
    page = opened(said_file, width, scheme)
    assert page.locator(".headline").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for ratio, what in page.evaluate(CONTRAST):
        assert ratio >= 4.5, what
    # Colours over the matrix are mixed in, which the contrast above does not see.
    grounds = page.eval_on_selector_all(
        ".confusion td.right", "cells => cells.map((cell) => getComputedStyle(cell).backgroundColor)"
    )
    assert len(set(grounds)) > 1


def test_the_strongest_of_each_kind_stand_together(opened: Open, said_file: Path) -> None:
    page = opened(said_file)
    cell = page.locator(".shots tbody tr").first.locator("td").first
    assert cell.locator(".shot:visible").count() == 3
    assert cell.locator(".shot:visible .said").all_inner_texts()[0].strip("“”") == "a brown dog runs over the wet sand"
    page.locator("#shown button", has_text="caprecover").click()
    assert page.locator(".shot:visible .said.captions").count() == page.locator(".shot:visible").count() == 4 * 3
    boxes = [item.bounding_box() for item in page.locator(".shots tbody tr").first.locator(".said:visible").all()]
    assert all(left["x"] + left["width"] <= right["x"] for left, right in itertools.pairwise(boxes))


def test_the_matrix_of_labels_shows_one_layer_at_a_time(opened: Open, said_file: Path) -> None:
    page = opened(said_file)
    section = page.locator("#labels")
    buttons = section.locator(".switch button")
    assert buttons.all_inner_texts() == list(SAID_LAYERS)
    for index in range(buttons.count()):
        buttons.nth(index).click()
        assert section.locator(".panel:visible").count() == 1
        assert SAID_LAYERS[index] in section.locator(".panel:visible .axis").inner_text()
        numbers = section.locator(".panel:visible td:not(.sum)").all_inner_texts()
        assert sum(int(number) for number in numbers if number != "·") == 4


def test_hostile_captions_and_labels_are_shown_and_do_nothing(opened: Open, tmp_path: Path) -> None:
    cells = [said(tmp_path, captions=HOSTILE[:3], names=ids(3)), named(tmp_path, names=ids(6), classes=HOSTILE[:3])]
    page = opened(report.write(cells, tmp_path))
    page.eval_on_selector_all("button", "buttons => buttons.forEach((button) => button.click())")
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 1
    assert {text.strip() for text in page.locator(".confusion tbody th bdi").all_text_contents()} == set(HOSTILE[:3])
