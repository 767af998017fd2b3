"""What every test shares: run-time checks of tensor shapes, one thread, no network for model hubs."""

from __future__ import annotations

import os
import signal
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook("seepage", "runtime_types.check")

import pytest  # noqa: E402
import torch  # noqa: E402

# Started in the background of a script, this process and all it starts would ignore Ctrl-C, which tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _global_random_state(request: pytest.FixtureRequest) -> None:
    """Global random state is the test's own, whatever ran before it; SEEPAGE_TEST_SEED draws another for every test.

    Nothing in the package may depend on it and no test may pass by luck: the suite passes for any seed.
    """
    name = f"{os.environ.get('SEEPAGE_TEST_SEED', '')}{request.node.nodeid}"
    torch.manual_seed(zlib.crc32(name.encode()))


@pytest.fixture
def research_data() -> Path:
    """The research data's folder; a test that wants it skips where it is not set."""
    folder = os.environ.get("SEEPAGE_DATA")
    if not folder:
        pytest.skip("SEEPAGE_DATA does not name the research data")
    return Path(folder)
