"""No network: each source refuses within seconds, says where it looked and what to type, and leaves nothing behind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from seepage import hubs, victims

NAMES = {
    "torchvision/resnet18": ("resnet18-f37072fd.pth", "torchvision/resnet18@random"),
    "timm/test_vit": ("model.safetensors", "timm/test_vit.r160_in1k@random"),
    "open_clip/ViT-B-32@openai": ("open_clip_model.safetensors", "open_clip/ViT-B-32@random"),
    "hf/openai/clip-vit-base-patch32": ("config.json", "@random"),
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a closed loopback port wherever a library would go."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, closed)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_cannot_be_had_fail_fast_in_one_line(name: str, nowhere: Path) -> None:
    victims.known()  # the libraries' imports are not what is timed
    began = time.monotonic()
    with pytest.raises(victims.WeightsError) as caught:
        victims.load(name)
    assert time.monotonic() - began < 8
    file, instead = NAMES[name]
    text = str(caught.value)
    assert file in text
    assert str(nowhere) in text
    assert instead in text
    assert "\n" not in text
    assert [path for path in nowhere.rglob("*") if path.is_file()] == []


def test_a_forbidden_network_is_not_asked(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(victims.WeightsError, match="HF_HUB_OFFLINE is set"):
        victims.load("timm/test_vit")


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        stop = threading.Event()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()


def test_a_host_that_never_answers_is_given_five_seconds(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr(hubs, "CONNECT_SECONDS", 0.5)
    began = time.monotonic()
    assert hubs.unreachable(silent) is not None
    assert time.monotonic() - began < 3
