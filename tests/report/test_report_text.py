from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from seepage.report import text
from seepage.report.glossary import measure, ordered


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200b", "\n", "\x00", "\x1b", "\ud83d", "\ufeff"])
def test_characters_that_hide_or_reorder_are_written_out(character: str) -> None:
    assert text.plain(f"a{character}b") == f"a\\u{ord(character):04x}b"


def test_plain_leaves_readable_text_alone() -> None:
    assert text.plain("Grüße, 写真 <b> é.png") == "Grüße, 写真 <b> é.png"


@given(st.text())
def test_plain_text_can_always_be_encoded_and_has_no_line_breaks(value: str) -> None:
    shown = text.plain(value)
    shown.encode()
    assert len(shown.splitlines()) < 2


@pytest.mark.parametrize(
    "value",
    [
        "<script>alert(1)</script>",
        "[click](javascript:alert(1))",
        "![x](https://example.org/x.png)",
        "https://example.org and www.example.org",
        "<https://example.org>",
        "*bold* _it_ `code` ~~gone~~ $x$",
        "a|b",
        "# heading",
        "- item",
        "1. item",
        "1) item",
        "&lt; &amp;",
        "back\\slash",
        "=cmd",
    ],
)
def test_markdown_shows_text_letter_by_letter(value: str) -> None:
    parser = MarkdownIt("gfm-like", {"linkify": False})
    (block, inline, end) = parser.parse(text.markdown(value))
    assert (block.type, end.type) == ("paragraph_open", "paragraph_close")
    assert {token.type for token in inline.children or []} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children or []) == value


def test_markdown_keeps_a_table_row_whole() -> None:
    table = f"| a | b |\n| --- | --- |\n| {text.markdown('x|y' + chr(10) + 'z')} | 2 |"
    page = MarkdownIt("gfm-like", {"linkify": False}).render(table)
    assert page.count("<td>") == 2
    assert "<td>x|y\\u000az</td>" in page


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1"])
def test_a_spreadsheet_sees_no_formula(value: str) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerow([text.spreadsheet(value)])
    (read,) = next(csv.reader(io.StringIO(stream.getvalue())))
    assert read[0] in "'\\"
    assert text.spreadsheet("features.1") == "features.1"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (-1.25, "−1.25"),
        (-0.001, "0.00"),
        (12345.678, "12\u202f345.68"),
    ],
)
def test_numbers_keep_what_is_no_number_visible(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


def test_small_quantities_are_not_rounded_to_nothing_or_all() -> None:
    assert text.significant(0.000012) == "1.2e−05"
    assert text.significant(0.03) == "0.030"
    assert text.share(0.0004) == "<\u202f0.1\u202f%"
    assert text.share(0.999) == "99.9\u202f%"
    assert text.share(0.0) == "0\u202f%"
    assert text.recovery(0.996) == "99.6\u202f%"
    assert text.recovery(1 - 1e-9) == ">\u202f99.9\u202f%"
    assert text.residual(0.0924) == "9.2\u202f%"
    assert text.residual(0.0000012) == "0.00012\u202f%"
    assert text.recovery(1.0) == "100\u202f%"
    assert text.recovery(-0.19) == "−19\u202f%"


def test_units_fit_the_quantity() -> None:
    assert text.size(999) == "999\u202fB"
    assert text.size(802_816) == "803\u202fkB"
    assert text.size(1_240_000_000) == "1.2\u202fGB"
    assert text.size(None) == "–"
    assert text.duration(2.34) == "2.3\u202fs"
    assert text.duration(240.0) == "4\u202fmin"
    assert text.duration(9 * 3600.0) == "9.0\u202fh"


def test_lists_read_as_sentences() -> None:
    assert text.listing([]) == ""
    assert text.listing(["a"]) == "a"
    assert text.listing(["a", "b", "c"]) == "a, b and c"
    assert text.counted(1, "picture") == "1 picture"
    assert text.counted(0, "picture") == "0 pictures"


def test_metrics_stand_in_a_reader_s_order_and_unknown_ones_last() -> None:
    assert ordered({"mse", "zeta", "psnr", "alpha", "ssim"}) == ("psnr", "ssim", "mse", "alpha", "zeta")
    assert measure("zeta").label == "zeta"


def test_nan_never_leaks_more() -> None:
    for key in ("psnr", "mse"):
        assert not measure(key).leaks_more(math.nan, 1.0)
        assert measure(key).leakage(math.nan) == -math.inf
    assert measure("mse").leaks_more(0.1, 0.2)
    assert measure("psnr").leaks_more(20.0, 10.0)
