"""Numbers and foreign words as they are shown: nothing a file name or a caption holds may act on its reader."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

NARROW = "\N{NARROW NO-BREAK SPACE}"
NONE = "–"

# Characters that hide, reorder or break text: control, bidirectional, zero-width and line-separating characters, and
# the lone surrogates that stand for undecodable bytes of a file name.
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufff9-\ufffb]"
)
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
# Also what makes a bare address a link, and what makes a line a list, a heading or a rule.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]|#~$@]|:(?=//)|(?<=www)\.|^\s*[-+=]|(?<=^\d)[.)](?=\s)")


def plain(text: str) -> str:
    """Return the text with every character that hides or reorders others written out, as `\\u202e`."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def markdown(text: str) -> str:
    """Return the text as Markdown that shows it letter by letter, in a table too."""
    marked = _MARKDOWN.sub(lambda match: "\\" + match[0], plain(text).strip())
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def spreadsheet(text: str) -> str:
    """Return the text as a CSV field that no spreadsheet takes for a formula."""
    shown = plain(text)
    return "'" + shown if shown.lstrip().startswith(_FORMULA) else shown


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with a true minus sign; NaN and infinity stay visible, None is a dash."""
    if value is None:
        return NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    shown = f"{value:,.{digits}f}".replace(",", NARROW)
    if float(f"{value:.{digits}f}") == 0:
        shown = shown.removeprefix("-")
    return shown.replace("-", "−")


def significant(value: float | None) -> str:
    """Return a number to two significant digits, for quantities that span decades."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:#.2g}".removesuffix(".").replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """Return a share of one as a percentage."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{number(100 * value, digits)}{NARROW}%"


def recovery(value: float | None) -> str:
    """Return a recovery as a percentage that says 100 only of what is whole."""
    if value is None or not 0.985 <= value < 1:
        return percent(value)
    return percent(value, 1) if value < 0.9995 else f">{NARROW}99.9{NARROW}%"


def residual(value: float | None) -> str:
    """Return a residual as a percentage to two significant digits: it spans decades."""
    return significant(value) if value is None or not math.isfinite(value) else f"{significant(100 * value)}{NARROW}%"


def share(value: float | None) -> str:
    """Return a share of one as a percentage in which what is little but not nothing does not read as nothing."""
    if value is None or not math.isfinite(value):
        return number(value)
    if 0 < value < 0.001:
        return f"<{NARROW}0.1{NARROW}%"
    return percent(value, 0 if value in (0, 1) or 0.0995 <= value < 0.995 else 1)


def size(count: int | None) -> str:
    """Return bytes in the largest decimal unit that leaves at least one of it."""
    if count is None:
        return NONE
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{number(value, 0 if unit == 'B' or value >= 100 else 1)}{NARROW}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def amount(count: float) -> str:
    """Return a count to three significant digits, with k, M or G where there are thousands and more."""
    value = count
    for unit in ("", "k", "M", "G"):
        if unit == "G" or float(f"{value:.3g}") < 1000:
            break
        value /= 1000
    shown = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"{shown}{NARROW if unit else ''}{unit}"


def multiply_adds(count: float) -> str:
    """Return a count of multiply-adds with its unit."""
    return f"{amount(count)} multiply-add{'' if count == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Return seconds as a person would say them."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 100:
        return f"{number(seconds, 1 if seconds < 10 else 0)}{NARROW}s"
    minutes = seconds / 60
    return f"{number(minutes, 0)}{NARROW}min" if minutes < 100 else f"{number(minutes / 60, 1)}{NARROW}h"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, to two significant digits where they are few."""
    value = 1000 * seconds
    return f"{significant(value) if 0 < value < 10 else number(value, 0)}{NARROW}ms"


def listing(words: Sequence[str], last: str = "and") -> str:
    """Return `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return `1 picture` or `4 pictures`."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def defenses(names: Sequence[str]) -> str:
    """Return defenses in the order in which they are applied, without the switches of theirs that are off."""
    shown = []
    for name, _, tail in (item.partition(":") for item in names):
        pairs = [pair for pair in tail.split(",") if pair and not pair.endswith("=false")]
        shown.append(f"{name}:{','.join(pairs)}" if pairs else name)
    return " + ".join(shown)
