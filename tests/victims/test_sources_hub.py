"""A hub on the loopback: what is fetched from it is what the victim holds, once, and then without a network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from seepage import victims

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `files` by "repository/file" at one commit, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = self.server.files.get(f"{repository}/{name}")
        if self.path == "/" or (content is not None and revision in ("main", COMMIT)):
            content = content or b""
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        else:
            content = b""
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        huggingface_hub.close_session()
        yield server
        server.shutdown()
        huggingface_hub.close_session()


def test_a_timm_tag_comes_from_the_hub_once(hub: Hub) -> None:
    random = victims.load("timm/test_resnet@random:3")
    hub.files["timm/test_resnet.r160_in1k/model.safetensors"] = save(random.model.state_dict())
    victim = victims.load("timm/test_resnet")
    assert victim.name == "timm/test_resnet.r160_in1k"
    assert victim.weights_sha256 == random.weights_sha256
    assert victim.classes is not None
    assert len(victim.classes) == 1000
    hub.asked.clear()
    assert victims.load("timm/test_resnet@r160_in1k").weights_sha256 == random.weights_sha256
    assert hub.asked == []


def test_an_open_clip_tag_comes_from_the_hub(hub: Hub) -> None:
    name = "open_clip/ViT-B-32:layers=1,width=64"
    random = victims.load(f"{name}@random:3")
    state = {f"visual.{key}": value for key, value in random.model.state_dict().items()}
    hub.files["timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors"] = save(state)
    victim = victims.load(f"{name}@openai")
    assert victim.name == f"{name}@openai"
    assert victim.weights_sha256 == random.weights_sha256


def test_a_hub_id_brings_its_config_weights_and_processor(hub: Hub, tmp_path: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=1, image_size=32, patch_size=16
    )
    torch.manual_seed(1)
    model = CLIPVisionModel(config).eval()
    hub.files["me/tower/config.json"] = json.dumps(config.to_dict()).encode()
    processor = CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]
    )
    hub.files["me/tower/preprocessor_config.json"] = processor.to_json_string().encode()
    with pytest.raises(victims.WeightsError, match=r"me/tower: model\.safetensors or .* cannot be fetched"):
        victims.load("hf/me/tower")
    hub.files["me/tower/model.safetensors"] = save(model.state_dict())
    victim = victims.load("hf/me/tower")
    assert victim.name == "hf/me/tower@main"
    assert victim.image_shape == (3, 32, 32)
    torch.testing.assert_close(victim.normalise.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(victim.model(pixels), model(pixels).pooler_output)
    hub.asked.clear()
    assert victims.load("hf/me/tower@main").weights_sha256 == victim.weights_sha256
    assert hub.asked == []
    assert victims.load("hf/me/tower@random").name == "hf/me/tower@random:0"
    with pytest.raises(victims.WeightsError, match="me/tower"):
        victims.load("hf/me/tower@no-such-revision")


def test_what_the_hub_lacks_is_one_line_and_leaves_no_torn_file(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(victims.WeightsError) as caught:
        victims.load("timm/test_resnet")
    assert "timm/test_resnet.r160_in1k" in str(caught.value)
    assert "has no such file" in str(caught.value)
    assert "timm/test_resnet.r160_in1k@random" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(path.is_file() and path.stat().st_size for path in (tmp_path / "hub").rglob("*"))
    # Asked about each possible file once: no storm of retries.
    assert len(hub.asked) <= 4
