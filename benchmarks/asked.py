"""What benchmarks of many rows are asked on the command line."""

from __future__ import annotations

import argparse


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of `--rows` and `--list`, for a script to add its own options to."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--rows", action="append", default=[], help="run the rows whose name holds this text")
    found.add_argument("--list", action="store_true", help="print the names of the rows")
    return found
