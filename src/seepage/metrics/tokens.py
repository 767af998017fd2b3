"""A caption's words, by the rules that published caption scores are computed with."""

from __future__ import annotations

import functools
import re
from itertools import islice

MOST_WORDS = 1000
MOST_CHARACTERS = 100_000
"""What lies beyond a caption's first so many words or characters is not read: no score of it may take for ever."""

# What the Penn Treebank's escapes make of a sign, and the brackets' names, lower-cased like all else.
_SIGNS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "€": "$",
    "£": "#",
    "¢": "cents",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
}
_QUOTES = str.maketrans({"‘": "'", "’": "'", "‛": "'", "\u200b": " ", "\xad": None})

_MONTHS = "jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri"
_STATES = (
    "ala ariz calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc? wyo"
)
_TITLES = (
    "mrs? ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt mt capt ste? ave pres "
    "lieut hon brig cmdr comdr pfc spc supts? det jr sr bros alex wm jos mlle mme esq insp"
)
_FIRMS = "inc cos? corp pty ltd plc rt bancorp dept bhd assn univ intl sys natl cie"
_OTHERS = "ph tel est ext sq ft etc al seq blvd rd bldg vs cf"
_ABBREVIATIONS = "|".join(" ".join((_MONTHS, _STATES, _TITLES, _FIRMS, _OTHERS)).split())

_LETTER, _SIGN = r"[^\W\d_]", r"[^\W_]"
_WORD = rf"{_SIGN}+(?:[-_/]{_SIGN}+)*"
_PATH, _PATH_END = r"[^\s\"<>|()]", r"[^\s\"<>|().,!?;:'-]"
_END = rf"(?!{_SIGN}|[-_/]{_SIGN})"

# The first that fits at a place is taken, so the special stand before the general. What fits nothing is left out.
_TOKEN = re.compile(
    "|".join(
        (
            rf"(?i:https?://{_PATH}{{1,99}}\.{_PATH}{{0,99}}{_PATH_END})",
            rf"(?i:(?:[a-z0-9-]{{1,63}}\.){{1,5}}(?:com|net|org|edu)\b(?:/{_PATH}{{0,99}}{_PATH_END})?)",
            r"[\w.+-]{1,63}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}",
            r"[@#][A-Za-z_]\w*",
            r"</?[A-Za-z!?][^<>\n]{0,999}>",
            rf"[:;=][-o*]?(?:[()]|[DPdpO](?!{_SIGN}))",
            # can·not, gon·na, 't·is, do·n't
            rf"(?i:can(?=not{_END})|gon(?=na{_END})|got(?=ta{_END})|wan(?=na{_END})|gim(?=me{_END})|lem(?=me{_END}))",
            rf"(?i:'t(?=(?:is|was){_END}))",
            rf"(?i:{_LETTER}+(?=n't{_END})|n't{_END})",
            rf"(?i:'n'|(?:[dlo]'{_LETTER}{{2,}}|n?e'er|ma'am|c'mon|ol'|'(?:em|til|cause|n)){_END}|y'(?=all))",
            rf"(?i:'(?:s|m|d|re|ve|ll)(?!{_SIGN}))",
            rf"(?<!{_SIGN})'\d\ds?{_END}",
            # initials, abbreviations, words that a full stop joins, words before ".,"
            r"[A-Za-z](?:\.[A-Za-z])+\.(?![A-Za-z])",
            r"(?i:ph\.d\.)",
            rf"(?:{_LETTER}+\.)+{_LETTER}+",
            rf"{_LETTER}+[!?]{_LETTER}+",
            r"[A-Z]+&[A-Z]+\b",
            rf"(?i:(?:{_ABBREVIATIONS})\.)|(?:Miss|Az|Ark|Del|Ill|La|Mass|Ore|Pa|Tex|Wash)\.",
            r"(?i:(?:nos?|prop|figs?|art|pp|ca)\.(?=\s*\d))",
            rf"{_LETTER}\.(?!{_LETTER})",
            rf"{_WORD}\.(?=[,;:])",
            # numbers: signed, of parts, in words
            r"\d+:\d\d",
            rf"[+-]?(?:\d+(?:[.,:]\d+)+|\.\d+|\d+){_END}",
            r"\d+(?:[.,:]\d+)+",
            r"(?:US|C|A|HK)?\$",
            _WORD,
            r"[!?]+|\.{2,}|\*+|-+",
            r"[^\s\w]|_+",
        )
    )
)
_DROPPED = {"'", "`", '"', "“", "”", "«", "»", "‹", "›", ".", "?", "!", ",", ":", ";", "…", "–", "—"}


@functools.lru_cache(maxsize=1 << 13)
def words(caption: str) -> tuple[str, ...]:
    """Return a caption's words: lower case, clitics apart (do n't, dog 's), without quotes and single punctuation.

    The rules are those of the Stanford tokenizer in the Penn Treebank's style as pycocoevalcap runs it: hyphened words
    and abbreviations stay whole, brackets are words (-lrb-), `!!` is one and `!` is none. All 40,455 captions of
    Flickr8k come out the same as from it. At most `MOST_WORDS` words and `MOST_CHARACTERS` characters are read, and a
    caption may have none. What is no printable sign, broken encoding included, is left out.

    Source: `PTBTokenizer -lowerCase` of Stanford CoreNLP 3.4.1, and the list of dropped signs of Chen et al. 2015
    (Microsoft COCO Captions).
    """
    found = (match.group() for match in _TOKEN.finditer(caption[:MOST_CHARACTERS].translate(_QUOTES)))
    kept = ("".join(_SIGNS.get(sign, sign.lower()) for sign in token) for token in found if not _is_dropped(token))
    return tuple(islice((word for token in kept for word in token.split()), MOST_WORDS))


def _is_dropped(token: str) -> bool:
    # The Stanford tokenizer knows no sign beyond the 16 bits of Java's characters.
    return token in _DROPPED or not token.strip(".-") or token > "\uffff" or not token.isprintable()
