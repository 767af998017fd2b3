"""The table of block types names classes that exist in the libraries as they are installed."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from seepage.victims.kinds import _BY_TYPE, RESIDUAL, kind_of

HOMES = {
    "seepage": ("seepage.victims.{file}",),
    "torch": ("torch.nn.modules.{file}",),
    "torchvision": ("torchvision.models.{file}", "torchvision.ops.{file}"),
    "timm": ("timm.models.{file}", "timm.layers.{file}"),
    "open_clip": ("open_clip.{file}",),
    "transformers": ("transformers.models.{model}.{file}",),
}


def home(package: str, file: str) -> ModuleType:
    for pattern in HOMES[package]:
        name = pattern.format(file=file, model=file.removeprefix("modeling_"))
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise AssertionError(f"no {file} in {package}")


@pytest.mark.parametrize("name", sorted(_BY_TYPE))
def test_a_known_type_exists_under_its_name(name: str) -> None:
    package, file, cls = name.split(".")
    found = getattr(home(package, file), cls)
    # The name that the table is searched by is made from the class, wherever it was imported from.
    assert found.__module__.split(".")[0] == package
    assert found.__module__.split(".")[-1] == file


def test_residual_kinds_are_kinds() -> None:
    assert set(RESIDUAL) <= set(_BY_TYPE.values())


def test_a_class_of_the_same_name_elsewhere_is_not_taken_for_it() -> None:
    from torch import nn

    class BasicBlock(nn.Module):
        pass

    assert kind_of(BasicBlock()) is None
