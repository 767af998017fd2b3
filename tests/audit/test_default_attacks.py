"""What an audit runs where no attack is named."""

from __future__ import annotations

import pytest

from seepage import registry
from seepage.audit.plan import jobs
from seepage.audit.request import DEFAULT_ATTACKS, Request
from seepage.audit.workbench import Workbench
from seepage.registry import PluginError
from seepage.studies.depth import bench_of


def test_an_audit_without_an_attack_runs_the_default_ones_alone() -> None:
    found = [text.partition(":")[0] for text in Workbench(Request("zoo/cifar_resnet20")).attacks]
    assert found == ["joint", "peel", "rmle"] == list(DEFAULT_ATTACKS)
    assert set(found) <= set(registry.names("attack"))


def test_what_ships_trained_for_the_victim_is_run_as_well() -> None:
    *plain, captioner = Workbench(Request()).attacks
    assert [text.partition(":")[0] for text in plain] == list(DEFAULT_ATTACKS)
    assert captioner.startswith("caprecover:")
    assert "adapter=zoo/mobilenet_v2,through=features.17" in captioner
    # Nobody asked for words, or it was trained at another size of picture.
    for request in (Request(metrics=("psnr",)), Request(size=96)):
        assert [text.partition(":")[0] for text in Workbench(request).attacks] == list(DEFAULT_ATTACKS)


def test_an_attack_that_does_not_say_what_it_recovers_is_refused() -> None:
    registry.names("attack")
    for recovers in (None, "sounds"):
        registry.register("attack", "extra")(type("Extra", (), {"efforts": {}, "recovers": recovers}))
        try:
            with pytest.raises(PluginError, match=r"'extra' does not say what it recovers.*'captions'"):
                _ = Workbench(Request(attacks=("extra",))).recovered
        finally:
            del registry._components["attack"]["extra"]


def test_what_is_named_takes_their_place() -> None:
    (text,) = Workbench(Request(attacks=("rmle:steps=7",))).attacks
    assert text.startswith("rmle:steps=7,")


def test_a_registered_attack_is_not_run_unasked() -> None:
    registry.names("attack")
    registry.register("attack", "extra")(type("Extra", (), {"efforts": {}}))
    try:
        assert not [text for text in Workbench(Request()).attacks if text.startswith("extra")]
    finally:
        del registry._components["attack"]["extra"]


def test_an_attack_is_run_at_the_cuts_that_it_is_made_for() -> None:
    class Extra:
        efforts: dict[str, dict[str, int]] = {}  # noqa: RUF012  as attacks have it
        recovers, access, auxiliary, budget = "images", "black-box", "none", 0

        def fit(self, knowledge, generator, *, workdir=None, progress=None):
            raise NotImplementedError

        def load(self, path, knowledge):
            raise NotImplementedError

        def places(self) -> tuple[str, ...]:
            return "features.10", "features.17", "of.another"

    registry.names("attack")
    registry.register("attack", "extra")(Extra)
    usual = Workbench(Request()).layers
    try:
        bench = Workbench(Request(attacks=("extra",)))
        assert bench.layers == tuple(sorted({*usual, "features.10"}, key=lambda name: int(name.split(".")[1])))
        assert [job.spec.layer for job in jobs(bench)] == ["features.10", "features.17"]
        assert Workbench(Request(attacks=("extra",), layers=("features.3",))).layers == ("features.3",)
    finally:
        del registry._components["attack"]["extra"]


def test_depth_reads_words_where_they_are_cut_as_well() -> None:
    def captioners(request: Request) -> list[str]:
        texts = bench_of(request).attacks
        return [text.partition("adapter=")[2].partition(",")[0] for text in texts if text.startswith("caprecover")]

    late, by_depth = "zoo/mobilenet_v2", "zoo/mobilenet_v2_by_depth"
    assert captioners(Request()) == [late, by_depth]
    assert captioners(Request(layers=("features.3", "features.13"))) == [late, by_depth]
    assert captioners(Request(layers=("features.3", "features.4", "features.13"))) == [late]
    assert captioners(Request(size=96)) == []
