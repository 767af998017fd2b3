"""Words of captions: by hand, against the Stanford tokenizer, and of whatever somebody calls a caption."""

from __future__ import annotations

import csv
import importlib.util
import io
import random
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seepage.metrics.tokens import MOST_WORDS, words

PIECES = (  # noqa: SIM905 (as it reads)
    "a the two dog Dog dogs man's boys' don't isn't it's he'll they've cannot gonna black-and-white t-shirt 5 12 3.5 "
    "2,000 10:30 5-year-old 2nd #5 50% $5 $3.50 St. Mr. Ave. U.S. p.m. e.g. etc. rock'n'roll o'clock 'em O'Neil and/or "
    "A&W AT&T café \"quoted\" 'quoted' (two) [x] w/ 1/2 -- - ... .. ! !! ? ?! , . ; : & @ * + = / “curly” it’s — … 4x4 "
    "#tag @me T. dog's. hat.A girl,boy girl;boy girl:boy 10:30am v1.0 20-30 1990s '90s 50's girl-- dog- -dog sun. in. "
    "a.m., house., X-ray :) www.dogs.com"
).split()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A black-and-white dog's ball.", "a black-and-white dog 's ball"),
        ("He can't swim, but they're swimming!", "he ca n't swim but they 're swimming"),
        ('The sign reads "STOP" (twice) ...', "the sign reads stop -lrb- twice -rrb-"),
        ("At 3:30 p.m. Mr. Smith paid $2,000.", "at 3:30 p.m. mr. smith paid $ 2,000"),
        ("No. No. 5 - cannot be!!", "no no. 5 can not be !!"),
        ("two girls'dresses", "two girls dresses"),
    ],
)
def test_words_by_hand(caption: str, expected: str) -> None:
    assert " ".join(words(caption)) == expected


def stanford(captions: list[str], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    if shutil.which("java") is None:
        pytest.skip("there is no java on the PATH")
    if importlib.util.find_spec("pycocoevalcap") is None:
        pytest.skip("pycocoevalcap is not installed: pip install 'seepage[caption]'")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # Java reads files in the locale's encoding, and a test may run in any locale.
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    found = PTBTokenizer().tokenize({row: [{"caption": caption}] for row, caption in enumerate(captions)})
    return [tuple(found[row][0].split()) for row in range(len(captions))]


def test_stanford_tokenizer_agrees_on_random_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(0)
    captions = [" ".join(source.choices(PIECES, k=source.randint(1, 12))) + " end" for _ in range(400)]
    expected = stanford(captions, monkeypatch)
    wrong = [(caption, words(caption), right) for caption, right in zip(captions, expected) if words(caption) != right]
    assert not wrong


@pytest.mark.research_data
def test_stanford_tokenizer_agrees_on_flickr8k(research_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(research_data / "flickr8k_text.tgz") as archive:
        file = archive.extractfile("captions.csv")
        assert file is not None
        captions = [row["caption"] for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8"))]
    assert len(captions) == 40_455
    assert [words(caption) for caption in captions] == stanford(captions, monkeypatch)


@pytest.mark.parametrize("caption", ["", " \t\n", "...", "- ' \" !", "\x00\x01", "\ud83d", "🐶"])
def test_captions_without_words(caption: str) -> None:
    assert words(caption) == ()


def test_broken_encoding_leaves_the_words_around_it() -> None:
    assert words("a dog\udce9 and a cat\x00 run") == ("a", "dog", "and", "a", "cat", "run")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", ["dog ", "dog", "a.", "-.", "+-", "'n", "<a ", "http://.", "a@", "a-b/", "!", "(", "1:1", ":-o", "é'"]
)
def test_a_caption_of_a_million_pieces_ends(piece: str) -> None:
    assert len(words(piece * 1_000_000)) <= MOST_WORDS


@given(st.text(max_size=60))
def test_words_are_words_of_any_text(caption: str) -> None:
    found = words(caption)
    assert all(word and word == word.lower() and len(word.split()) == 1 and word.isprintable() for word in found)
    " ".join(found).encode()
