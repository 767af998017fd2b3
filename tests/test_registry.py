import dataclasses
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seepage import registry
from seepage.registry import BadParameterError, UnknownNameError


@dataclass(frozen=True)
class Every:
    """One parameter of each type."""

    efforts: ClassVar[dict[str, dict[str, int]]] = {}
    steps: int = 100
    rate: float = 1e-3
    quiet: bool = False
    mode: Literal["fast", "slow"] = "fast"
    order: Literal[1, 2] = 2
    name: str = "a"
    file: Path = Path("here")
    cap: float | None = None
    width: int | float = 3
    either: int | str = "auto"
    derived: int = dataclasses.field(default=0, init=False)


@pytest.fixture(autouse=True)
def _own_components():
    """Register for one test, and leave the registry as it was."""
    registry.names("dataset")
    before = {kind: dict(known) for kind, known in registry._components.items()}
    registry.register("dataset", "every")(Every)
    yield
    for kind, known in before.items():
        registry._components[kind].clear()
        registry._components[kind].update(known)


def built(text: str, defaults: dict[str, object] | None = None) -> Every:
    made = registry.build("dataset", text, defaults)
    assert type(made) is Every
    return made


def refused(text: str) -> str:
    with pytest.raises(BadParameterError) as caught:
        registry.build("dataset", text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parameters_of_every_type():
    text = "every:steps=7,rate=2.5e-4,quiet=yes,mode=slow,order=1,name=b c,file=/x/y,cap=3,width=0.5,either=12"
    assert built(text) == Every(7, 2.5e-4, True, "slow", 1, "b c", Path("/x/y"), 3.0, 0.5, 12)
    assert built("every") == Every()
    assert built(" every : steps = 7 , mode = slow ,") == Every(steps=7, mode="slow")
    assert built("every:cap=None,either=auto").cap is None
    assert type(built("every:rate=1").rate) is float
    assert type(built("every:width=3").width) is int


def test_the_text_wins_over_the_defaults():
    assert built("every:steps=7", {"steps": 5, "rate": 0.5}) == Every(steps=7, rate=0.5)


def test_wrong_values_say_what_is_wanted():
    assert refused("every:steps=many") == "every:steps is a whole number, got 'many'"
    assert refused("every:steps=1.5") == "every:steps is a whole number, got '1.5'"
    assert refused("every:rate=fast") == "every:rate is a number, got 'fast'"
    assert refused("every:quiet=maybe") == "every:quiet is true or false, got 'maybe'"
    assert refused("every:mode=slower") == "every:mode is one of fast, slow, got 'slower'"
    assert refused("every:order=3") == "every:order is one of 1, 2, got '3'"
    assert refused("every:cap=x") == "every:cap is none or a number, got 'x'"


def test_wrong_keys_and_wrong_grammar():
    assert refused("every:stepps=3").endswith("has no parameter 'stepps'; did you mean 'steps'?")
    assert "no parameter 'derived'" in refused("every:derived=3")
    assert "no parameter 'efforts'" in refused("every:efforts=3")
    assert "'steps' is set twice" in refused("every:steps=3,steps=4")
    assert "expected name:key=value" in refused("every:fast")
    assert "expected name:key=value" in refused("every:=3")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="no dataset is called 'evrey'; did you mean 'every'"):
        registry.build("dataset", "evrey")


def test_suggestions():
    assert registry.suggest("PSRN", ["psnr", "ssim"]) == "; did you mean 'psnr'?"
    assert registry.suggest("resnet50", ["ResNet50", "x"]) == "; did you mean 'ResNet50'?"
    assert registry.suggest("zzz", ["b", "a"]) == "; known: a, b"
    assert registry.suggest("zzz", []) == ""
    assert registry.suggest("zzz", [f"n{i:03}" for i in range(500)]).endswith("n019 and 480 more")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"'every' is registered twice: by .*Every and .*Path"):
        registry.register("dataset", "every")(Path)
    assert registry.get("dataset", "every") is Every
    registry.register("dataset", "every")(Every)
    registry.register("metric", "every")(Path)


def test_spec_is_in_the_order_of_the_fields_and_builds_the_same():
    made = Every(either=4, cap=0.1, quiet=True)
    text = registry.spec("dataset", made)
    expected = "every:steps=100,rate=0.001,quiet=true,mode=fast,order=2,name=a,file=here,cap=0.1,width=3,either=4"
    assert text == expected
    assert built(text) == made


@given(
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none() | st.floats(allow_nan=False),
    st.integers() | st.floats(allow_nan=False),
)
def test_every_number_survives_its_text_exactly(steps, rate, quiet, cap, width):
    made = Every(steps=steps, rate=rate, quiet=quiet, cap=cap, width=width)
    back = built(registry.spec("dataset", made))
    assert back == made
    assert registry.spec("dataset", back) == registry.spec("dataset", made)


def test_equal_values_have_one_text():
    assert registry.spec("dataset", Every(rate=1)) == registry.spec("dataset", Every(rate=1.0))
    assert registry.spec("dataset", Every(rate=-0.0)) == registry.spec("dataset", Every(rate=0))
    assert "rate=nan" in registry.spec("dataset", Every(rate=math.nan))


@pytest.mark.parametrize("name", ["a,b", " a", "a "])
def test_a_value_without_a_text_is_refused_rather_than_garbled(name):
    with pytest.raises(BadParameterError, match="cannot be written as text"):
        registry.spec("dataset", Every(name=name))


def test_a_type_without_a_text_is_refused():
    @dataclass(frozen=True)
    class Nested:
        inner: Every = dataclasses.field(default_factory=Every)

    Nested.__annotations__["inner"] = Every
    registry.register("dataset", "nested")(Nested)
    assert "nested:inner is of" in refused("nested:inner=3")
    with pytest.raises(BadParameterError, match="nested:inner"):
        registry.spec("dataset", Nested())


def test_components_without_parameters():
    class Plain:
        pass

    def make(split: str) -> str:
        return split

    registry.register("dataset", "plain")(Plain)
    registry.register("dataset", "function")(make)
    assert type(registry.build("dataset", "plain")) is Plain
    assert registry.build("dataset", "function")("x") == "x"
    assert registry.spec("dataset", Plain()) == "plain"
    assert "'plain' takes no parameters, got steps" in refused("plain:steps=3")
    with pytest.raises(UnknownNameError, match="Path is not a registered dataset"):
        registry.spec("dataset", Path())


def test_what_a_constructor_objects_to_is_told():
    @dataclass(frozen=True)
    class Strict:
        steps: int = 1

        def __post_init__(self) -> None:
            if self.steps < 1:
                raise ValueError("steps must be positive")

    registry.register("dataset", "strict")(Strict)
    assert refused("strict:steps=0") == "dataset 'strict:steps=0': steps must be positive"
    with pytest.raises(BadParameterError, match="unknown"):
        registry.build("dataset", "strict", {"unknown": 3})


def install(site: Path, module: str, source: str) -> None:
    """Lay out what an installer leaves behind: a module and its distribution's metadata."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[seepage.plugins]\n{module} = {module}\n")


PLUGIN = """
from dataclasses import dataclass
from seepage.registry import register

@register("dataset", "guess")
@dataclass(frozen=True)
class Guess:
    steps: int = 3
"""
ASK = """
from seepage import registry
from seepage.types import SeepageError
try:
    print(registry.spec("dataset", registry.build("dataset", "guess:steps=5")), "guess" in registry.names("dataset"))
except SeepageError as error:
    print(type(error).__name__, error)
"""


def asked(site: Path, code: str = ASK) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_installed_plug_in_registers_itself(tmp_path):
    install(tmp_path, "toy_plugin", PLUGIN)
    assert asked(tmp_path) == "guess:steps=5 True"


def test_a_plug_in_that_cannot_be_imported_is_named(tmp_path):
    install(tmp_path, "broken_plugin", "import no_such_module")
    told = asked(tmp_path)
    assert told.startswith("PluginError plug-in 'broken_plugin' of broken_plugin (broken_plugin) cannot be loaded: ")
    assert "no_such_module" in told


def test_two_plug_ins_of_one_name_are_refused(tmp_path):
    install(tmp_path, "first_plugin", PLUGIN)
    install(tmp_path, "second_plugin", PLUGIN)
    told = asked(tmp_path)
    assert told.startswith("PluginError")
    assert "'guess' is registered twice" in told


@pytest.mark.parametrize("kind", ["attack", "metric", "inverse"])
def test_every_built_in_component_builds_and_survives_its_text(kind):
    for name in registry.names(kind):
        component = registry.get(kind, name)
        if isinstance(component, type):
            text = registry.spec(kind, registry.build(kind, name))
            assert registry.spec(kind, registry.build(kind, text)) == text
