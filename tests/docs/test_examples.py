"""The code that the pages show is run: they rot only together with this file."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.main import get_command

import seepage
from seepage import checks, registry, types
from seepage.audit.run import run_audit
from seepage.cli import app, run
from seepage.data import open_leak
from seepage.types import Attack
from seepage.wire import decode

DOCS = Path(__file__).parents[2] / "docs"
EXECUTED = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "{code-cell}" in path.read_text())
_BLOCK = re.compile(r"^```(?P<kind>[^\n]+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: its info string without braces, and its text."""

    kind: str
    code: str


def blocks(page: str) -> list[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [Block(match["kind"].strip("{} ").replace("}", ""), match["code"]) for match in _BLOCK.finditer(text)]


def cells(page: str) -> list[str]:
    """Return the executed cells of a page, without their options."""
    found = [block.code for block in blocks(page) if block.kind.startswith("code-cell")]
    return [re.sub(r"\A(:[^\n]*\n)+", "", code).strip("\n") for code in found]


def write_files(page: str) -> None:
    """Write the files that a page writes into the working folder."""
    for code in cells(page):
        head, _, body = code.partition("\n")
        if head.startswith("%%writefile "):
            Path(head.split()[1]).write_text(body + "\n", encoding="utf-8")


def execute(page: str) -> dict[str, Any]:
    """Run the cells of a page in order, as a notebook does, in the working folder; return their names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    write_files(page)
    for number, code in enumerate(cells(page)):
        head, _, body = code.partition("\n")
        if head == "%%bash":
            for line in filter(None, body.replace("\\\n", " ").splitlines()):
                shell(line)
        elif not head.startswith("%%"):
            exec(compile(code, f"{page}, cell {number}", "exec"), names)
    return names


def shell(line: str) -> None:
    """Run one line of a shell cell in this process."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "seepage", line
    assert run(arguments) == 0, line


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Run a page in a folder of its own; what it registers and imports is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for kind in ("attack", "defense", "metric", "victim", "dataset"):
        registry.names(kind)
    before = {kind: dict(known) for kind, known in registry._components.items()}
    modules = set(sys.modules)
    yield execute
    for kind, known in before.items():
        registry._components[kind].clear()
        registry._components[kind].update(known)
    for name in set(sys.modules) - modules:
        if not name.startswith(("seepage", "torch")) and str(tmp_path) in str(
            getattr(sys.modules[name], "__file__", "")
        ):
            del sys.modules[name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name.startswith("how-to") else pytest.mark.slow) for name in EXECUTED]
)
def test_every_cell_of_every_page_runs(
    name: str, page: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    page(name)
    assert capsys.readouterr().out.strip()


@pytest.mark.usefixtures("page")
def test_the_attack_in_thirty_lines_beats_its_controls(tmp_path: Path) -> None:
    write_files("how-to/attack.md")
    code = (tmp_path / "descent.py").read_text()
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 30
    importlib.import_module("descent")
    assert isinstance(registry.build("attack", "descent:budget=3"), Attack)
    cell, deeper = run_audit(
        seepage.Request(
            victim="torchvision/resnet18@random",
            size=32,
            layers=("relu", "maxpool"),
            attacks=("descent",),
            metrics=("mse",),
        ),
        tmp_path / "audit",
    )
    for found in (cell, deeper):
        assert found.status == "done", found.message
        assert len(found.controls) == 3
        assert all(found.summary["mse"].mean < 0.5 * control["mse"].mean for control in found.controls.values())
        assert found.summary["mse"].recovery_low > 0
    assert cell.summary["mse"].mean < deeper.summary["mse"].mean


def test_the_packaged_attack_is_found_by_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the page's package out as pip would, and ask the command line for its attacks."""
    monkeypatch.chdir(tmp_path)
    write_files("how-to/attack.md")
    (toml,) = (block.code for block in blocks("how-to/plug-in.md") if block.kind == "toml")
    project = tomllib.loads(toml)["project"]
    info = tmp_path / "seepage_descent-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    pairs = project["entry-points"]["seepage.plugins"]
    lines = [f"{name} = {module}" for name, module in pairs.items()]
    (info / "entry_points.txt").write_text("\n".join(["[seepage.plugins]", *lines]) + "\n")
    said = subprocess.run(
        [sys.executable, "-m", "seepage", "attacks", "--json"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (found,) = (row for row in json.loads(said.stdout) if row["name"] == "descent")
    assert (found["access"], found["recovers"]) == ("white-box", "images")
    assert found["parameters"] == "budget=200"


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference/python.md").read_text()
    documented = re.findall(r"^\.\. auto\w+:: seepage\.(\w+)", text, re.MULTILINE)
    assert sorted(documented) == sorted(set(seepage.__all__) - {"__version__"})


def test_every_contract_is_in_the_reference() -> None:
    text = "".join((DOCS / f"reference/{page}.md").read_text() for page in ("python", "contracts"))
    documented = set(re.findall(r"^\.\. auto\w+:: seepage\.(?:types\.)?(\w+)", text, re.MULTILINE))
    contracts = {
        name for name, item in vars(types).items() if isinstance(item, type) and item.__module__ == types.__name__
    }
    assert contracts <= documented


def test_the_checks_page_lists_the_checks_and_their_limits() -> None:
    page = (DOCS / "concepts/checks.md").read_text()
    package = Path(checks.__file__).parent
    names = {
        name for file in package.rglob("*.py") for name in re.findall(r'Check\(\s*name="([\w-]+)"', file.read_text())
    }
    names |= set(re.findall(r'name="([\w-]+)"', Path(checks.__file__).read_text()))
    assert {"few-pictures", "gallery", "resized"} <= names
    assert all(f"| `{name}` |" in page for name in names)
    assert f"fewer than {checks.FEW} pictures" in page
    assert f"over {checks.LARGE_RESIDUAL:.0%}".replace("%", " %") in page
    assert f"at most {checks.SMALL_RESIDUAL:.0%}".replace("%", " %") in page
    assert f"below {checks.IDENTIFIED}" in page


def test_the_threat_models_say_of_every_defense_whom_it_says_it_helps_against() -> None:
    page = (DOCS / "threat-models.md").read_text(encoding="utf-8")
    people = ("eavesdropper", "storage", "provider")
    known = {name: registry.get("defense", name) for name in registry.names("defense")}
    built_in = {name: one for name, one in known.items() if one.__module__.startswith("seepage.")}
    said = {}
    for line in page.splitlines():
        names, *columns = [column.strip() for column in line.strip("|").split("|")]
        for name in re.findall(r"`([\w-]+)`", names) if len(columns) == 4 else ():
            said[name] = {who for who, word in zip(people, columns) if word == "yes"}
    assert {name: said.get(name) for name in built_in} == {name: {*one.protects_from} for name, one in built_in.items()}


def test_commands_that_pages_show_have_the_options_they_use() -> None:
    """A console block is not run, so its commands and options are held against the program."""
    commands = get_command(app).commands
    shown = 0
    for path in DOCS.rglob("*.md"):
        for block in blocks(path.relative_to(DOCS).as_posix()):
            if block.kind != "console":
                continue
            for line in block.code.splitlines():
                if not line.startswith("$ seepage "):
                    continue
                words = shlex.split(line.removeprefix("$ seepage "), comments=True)
                command = commands[words[0]]
                command = command.commands[words[1]] if hasattr(command, "commands") else command
                known = {option for item in command.params for option in item.opts}
                assert {word for word in words if word.startswith("-")} <= known, line
                shown += 1
    assert shown


def test_a_leak_written_by_the_words_of_its_page_is_read(tmp_path: Path) -> None:
    """Another program, with nothing but the page's tables: numpy, hashlib and safetensors."""
    keys = re.findall(
        r"^\| `(\w+)` \| (?:integer|text|list of text)", (DOCS / "concepts/leaks.md").read_text(), re.MULTILINE
    )
    assert keys == ["version", "victim", "weights_sha256", "layer", "preprocessing", "wire", "defenses", "ids"]
    split = seepage.cut(seepage.load("torchvision/resnet18@random", size=32), "relu")
    digest = hashlib.sha256()
    for name, tensor in sorted(split.prefix.victim.model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode() + tensor.numpy().tobytes())
    features = np.random.default_rng(0).normal(size=(2, 64, 16, 16)).astype(np.float32)
    scale = np.abs(features).max(axis=(1, 2, 3)) / 127
    levels = np.rint(features / scale[:, None, None, None]).astype(np.int8)
    values = [1, split.name, digest.hexdigest(), "relu", split.preprocessing, "int8", [], ["a", "b"]]
    header = {"seepage-leak": json.dumps(dict(zip(keys, values)))}
    save_file({"features": levels, "scale": scale}, tmp_path / "leak.safetensors", metadata=header)
    leak = open_leak(tmp_path / "leak.safetensors", split)
    assert leak.ids == ("a", "b")
    received = decode(leak).features.numpy()
    assert np.abs(received - features).max() <= scale.max() * 0.501
