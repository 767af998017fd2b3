"""What everybody shares who loads a pretrained model: whether a host answers, and a library that keeps quiet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CONNECT_SECONDS = 5.0


def unreachable(url: str) -> str | None:
    """Return why the host of a URL does not answer within five seconds, None where it does.

    In a thread, because the time that a name takes to resolve is under nobody's timeout.
    """
    import requests

    answer: list[str | None] = []

    def ask() -> None:
        try:
            requests.head(url, timeout=CONNECT_SECONDS)
            answer.append(None)
        except requests.RequestException as error:
            answer.append(f"{url} is not reachable: {type(error).__name__}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(CONNECT_SECONDS)
    return answer[0] if answer else f"{url} does not answer within {CONNECT_SECONDS:g} seconds"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the bars and load reports of transformers, and with global random state left alone.

    What matters of the reports is raised.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, its name where it says nothing."""
    return next(iter(str(getattr(error, "reason", error)).strip().splitlines()), type(error).__name__)
