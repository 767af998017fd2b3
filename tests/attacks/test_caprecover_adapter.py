from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_language import BYTES, HEADER

from seepage.attacks.caprecover import adapter
from seepage.attacks.caprecover.adapter import AdapterError, Header, Seen, Storage
from seepage.attacks.caprecover.language import load
from seepage.attacks.caprecover.model import CapRecoverModel, ModelConfig, configured
from seepage.attacks.caprecover.qformer import QFormerConfig

LAYERS = {"early": (4, 12, 12), "late": (6, 4, 4)}
HASHES = [f"{number:064x}"[::-1] for number in range(1, 40)]


@pytest.fixture
def model() -> CapRecoverModel:
    language = load(BYTES)
    config = configured(ModelConfig(QFormerConfig(24, 2, 2, 4), classes=3), language)
    model = CapRecoverModel(config, LAYERS).eval()
    model.mapper("early").mean.copy_(torch.tensor([1e6, -1e-7, 3.3333333, 0.0]))
    return model


def header(model: CapRecoverModel) -> Header:
    return Header(
        HEADER.victim,
        HEADER.weights_sha256,
        LAYERS,
        model.config,
        load(BYTES).sha256,
        caption="a dög",
        label=2,
        classes=("cat, felis", "dog", "日本"),
        seed=2**62 + 1,
        trained_on="nothing much",
        scores={"cider": 0.25},
        train=Seen.of("11" * 32, HASHES[:30]),
        select=Seen.of("22" * 32, HASHES[30:35]),
    )


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = file.metadata()
        return found


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_there_and_back(model: CapRecoverModel, tmp_path: Path, storage: Storage) -> None:
    path, again = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    adapter.write(path, model, header(model), storage)
    read, said = adapter.read(path)
    assert said == header(model)
    assert adapter.read_header(path) == said
    assert not read.training
    assert not any(weight.requires_grad for weight in read.parameters())
    for name, value in model.state_dict().items():
        back = read.state_dict()[name]
        if storage == "fp32" or name.rpartition(".")[2] in ("mean", "spread"):
            assert torch.equal(back, value)
        elif storage == "fp16" or value.ndim < 2:
            assert torch.equal(back, value.half().float())
        else:
            step = value.flatten(1).abs().amax(1) / 127
            assert ((back - value).flatten(1).abs() <= 0.5001 * step[:, None]).all()
    adapter.write(again, read, said, storage)
    if storage != "int8":
        assert again.read_bytes() == path.read_bytes()
    else:
        twice, _ = adapter.read(again)
        for name, value in read.state_dict().items():
            assert torch.allclose(twice.state_dict()[name], value, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 2


def test_smaller_storage_is_smaller(model: CapRecoverModel, tmp_path: Path) -> None:
    sizes = []
    for storage in ("fp32", "fp16", "int8"):
        path = tmp_path / storage
        adapter.write(path, model, header(model), storage)
        tensors = load_file(path)
        sizes.append(sum(value.nbytes for value in tensors.values()))
    assert sizes[0] > 1.9 * sizes[1] > 1.9 * 1.5 * sizes[2]


def test_pictures_that_were_learned_from_are_known(model: CapRecoverModel) -> None:
    said = header(model)
    assert said.seen(HASHES) == tuple(HASHES[:35])
    assert said.seen(HASHES[35:]) == ()
    assert said.train.among(HASHES[28:33]) == tuple(HASHES[28:30])


def test_a_leak_of_something_else_is_refused(model: CapRecoverModel) -> None:
    said = header(model)
    good = replace(HEADER, layer="late")
    said.require(good, (6, 4, 4))
    for other, shape, words in (
        (replace(good, victim="tiny/other"), (6, 4, 4), r"trained on tiny/victim@random:0 .* of tiny/other"),
        (replace(good, weights_sha256="cd" * 32), (6, 4, 4), r"weights abab.*weights cdcd"),
        (replace(good, layer="middle"), (6, 4, 4), "trained at early, late, the leak is of middle"),
        (good, (4, 12, 12), r"shape \(4, 12, 12\), the adapter was trained on \(6, 4, 4\)"),
    ):
        with pytest.raises(AdapterError, match=words):
            said.require(other, shape)


def test_damaged_files_are_refused_in_one_line(model: CapRecoverModel, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    adapter.write(path, model, header(model))
    whole, tensors, said = path.read_bytes(), load_file(path), metadata(path)
    bad = tmp_path / "bad.safetensors"

    def refused(words: str) -> None:
        with pytest.raises(AdapterError, match=words) as caught:
            adapter.read(bad)
        assert "\n" not in str(caught.value)

    refused("no adapter .*seepage train caprecover makes one")
    for size in (0, 5, 2000, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:size])
        refused("damaged or no adapter")
    save_file(tensors, bad)
    refused("is no adapter of caprecover")
    save_file(tensors, bad, {"seepage-caprecover": "[]"})
    refused("a format that this version does not read")
    save_file(tensors, bad, {"seepage-caprecover": "{not json"})
    refused("damaged or no adapter")
    name = "meaning.weight"
    save_file(tensors | {name: tensors[name] * torch.nan}, bad, said)
    refused(f"the weight {name} holds NaN or infinity")
    save_file({key: value for key, value in tensors.items() if key != name}, bad, said)
    refused(f"another configuration than its header's: 1 differ, first {name}")
    save_file(tensors | {name: tensors[name][:-1].clone()}, bad, said)
    refused("another configuration")
    other = json.loads(said["seepage-caprecover"])
    other["config"]["qformer"]["queries"] = 5
    save_file(tensors, bad, {"seepage-caprecover": json.dumps(other)})
    refused(r"first qformer\.query \(\(1, 4, 24\), expected \(1, 5, 24\)\)")
    other["config"]["wide"] = 5
    save_file(tensors, bad, {"seepage-caprecover": json.dumps(other)})
    refused("a header that this version cannot read")


def test_weights_that_cannot_be_kept_are_not_written(model: CapRecoverModel, tmp_path: Path) -> None:
    for value in (torch.nan, 1e6):
        with torch.no_grad():
            model.meaning.weight[0, 0] = value
        with pytest.raises(AdapterError, match="not finite, or too large for fp16"):
            adapter.write(tmp_path / "one.safetensors", model, header(model))
    assert list(tmp_path.iterdir()) == []


def test_a_files_hash(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert adapter.sha256(tmp_path / "file").startswith("ba7816bf8f01cfea")
    with pytest.raises(AdapterError, match="no adapter"):
        adapter.sha256(tmp_path / "none")
