"""What the benchmarks of PEEL compute: the restarted walk, and the verdicts on claims."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_peel import SHAPE, Bottleneck, Walked, images, network, pictures, psnr, stem, walk

from seepage.attacks.peel import Peel
from seepage.schema import Cell, Spec
from seepage.types import SplitModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Import a benchmark by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def split_of(prefix: Walked) -> SplitModel:
    return SplitModel("module/tiny", "block", SHAPE, prefix, torch.nn.Identity(), lambda file: file, "0" * 64, "none")


def test_a_restart_is_blind_to_all_but_the_first_stage(benchmark):
    """Whatever the depth, its picture is that of the first stage's leak, and every segment has an error of its own."""
    restart = benchmark("peel_restart").restart
    truth = pictures(2)
    shallow = restart(split_of(network(0)), truth, 200)
    deep = restart(split_of(network(3)), truth, 200)
    assert torch.allclose(deep.images, shallow.images, atol=1e-6)
    assert list(deep.errors) == ["block.0", "block.1", "block.2", "block.3"]
    assert max(deep.errors["block.2"]) < 1e-4
    assert torch.equal(deep.inputs["block.0"], deep.images)
    assert psnr(deep.images, truth).min() > 45


def test_a_restart_forgives_what_a_chain_carries_on(benchmark):
    """A middle block that keeps nothing ends the chain; the restart, told the true activation, does not notice."""
    deaf = torch.nn.Conv2d(16, 16, 1)
    deaf.weight.data.zero_()
    prefix, truth = Walked(("stem", stem()), ("conv", deaf)), pictures(2)
    told = benchmark("peel_restart").restart(split_of(prefix), truth, 100)
    chained = walk(prefix, prefix.leak(truth), Peel(passes=100))
    assert psnr(told.images, truth).min() > 40
    assert psnr(images(chained), truth).max() < 20
    assert min(told.errors["block.1"]) > 0.5


def test_constrained_walks_back_through_a_network():
    blocks = ("linear-bottleneck", Bottleneck(8, 4, 0.3)), ("linear-bottleneck", Bottleneck(8, 5, 0.3))
    prefix, truth = Walked(("stem", stem(channels=8)), *blocks), pictures(1)
    leak = prefix.leak(truth)
    near = walk(prefix, leak, Peel(form="constrained", passes=240))
    untouched = walk(Walked(("stem", prefix.parts[0])), leak, Peel(passes=240))
    assert psnr(near, truth).item() > psnr(untouched, truth).item() + 10
    stem_gave = prefix.parts[0](truth)
    assert (near.trace[-1] - stem_gave).norm() < (leak.features - stem_gave).norm() / 10


def cell(attack: str, mean: float, spread: float = 0.1, control: float | None = 0.5, **more: tuple) -> dict:
    figures = {"mse": (mean, mean * (1 - spread), mean * (1 + spread)), "psnr": (20.0, 19.0, 21.0), **more}
    return {
        "row": "a/1",
        "group": "a",
        "layer": "1",
        "attack": attack,
        "status": "done",
        "figures": figures,
        "control_mse": control,
    }


def tables(*cells: dict) -> dict:
    return {"peel_tables": {"rows": list(cells)}}


def test_a_claim_without_figures_is_not_tested(benchmark):
    claims = benchmark("claims")
    told = [(claim, test({})) for claim, test in claims.CLAIMS]
    told += claims.factor_claims.told({}) + claims.caption_claims.told({})
    assert {verdict.verdict for _, verdict in told} == {"not tested"}
    assert claims.page({}).count("| not tested |") == len(told) > len(claims.CLAIMS)


def test_an_order_of_magnitude_is_a_tenth_with_intervals_apart(benchmark):
    claims = benchmark("claims")

    def verdict(*cells: dict) -> str:
        return claims.order_of_magnitude(tables(*cells), claims.CHAINS, claims.BASELINES).verdict

    assert verdict(cell("peel", 0.001), cell("rmle", 0.02)) == "reproduced"
    assert verdict(cell("peel", 0.001), cell("rmle", 0.02), cell("joint", 0.0001)) == "contradicted"
    assert verdict(cell("peel", 0.0019), cell("rmle", 0.02)) == "contradicted", "a tenth, but not beyond doubt"
    other = cell("joint", 1e-5) | {"row": "b/1"}
    assert verdict(cell("peel", 0.001), cell("rmle", 0.02), cell("peel", 0.1) | {"row": "b/1"}, other) == "partly"
    failed = cell("rmle", 0.02) | {"status": "failed"}
    assert verdict(cell("peel", 0.001), failed) == "not tested"


def test_other_claims_are_read_off_the_same_cells(benchmark):
    claims = benchmark("claims")
    near = tables(cell("peel", 0.1, knn_distance=(1.0, 0.9, 1.1)), cell("gan", 0.3, knn_distance=(0.5, 0.4, 0.6)))
    assert claims.ahead(near, "gan", "mse").verdict == "reproduced"
    assert claims.ahead(near, "gan", "knn_distance").verdict == "contradicted"
    alike = tables(cell("peel", 0.1, knn_distance=(1.0, 0.9, 1.1)), cell("gan", 0.3, knn_distance=(1.0, 0.9, 1.1)))
    assert claims.ahead(alike, "gan", "knn_distance").verdict == "not shown", "nothing tells them apart"
    assert claims.ahead(tables(cell("peel", 0.1), near["peel_tables"]["rows"][1]), "gan", "knn_distance").verdict == (
        "not tested"
    )
    assert claims.above_control(near).verdict == "reproduced"
    assert claims.above_control(tables(cell("peel", 0.49), cell("rmle", 0.1))).verdict == "contradicted"
    block = {"solver": "PyGRANSO, 9 iterations", "relative": [0.002, 0.004], "norm": [1.0], "count": [0.3]}
    assert claims.solved({"peel_block": {"rows": [block]}}).verdict == "reproduced"
    assert claims.solved({"peel_block": {"rows": [block | {"relative": [0.2]}]}}).verdict == "partly"
    assert claims.maps({"peel_figures": {"errors": {"chain": {"relu": 0.9, "layer1": 0.2}}}}).verdict == "partly"


def test_factors_are_compared_with_the_usual_network_alone(benchmark):
    claims = benchmark("claims")

    def row(factor: str, level: str, psnr: float, *, trained: bool = False, attack: str = "joint", layer: str = "4"):
        stats = {"mean": psnr, "ci_low": psnr - 1, "ci_high": psnr + 1}
        said = {"factor": factor, "level": level, "trained": trained, "attack": attack, "layer": f"stages.{layer}"}
        return said | {"psnr": stats}

    skip = [row("skip", "0", 14.0, trained=True), row("skip", "1", 22.0, trained=True)]
    found = claims.factor_claims.skip_leaks({"factors": skip})
    assert found.verdict == "reproduced"
    assert "14.0 [13.0, 15.0] without, 22.0 [21.0, 23.0] with" in found.ours
    near = [row("skip", "0", 21.5, attack="rmle"), row("skip", "1", 22.0, attack="rmle")]
    assert claims.factor_claims.skip_leaks({"factors": skip + near}).verdict == "partly"
    assert claims.factor_claims.skip_leaks({"factors": near}).verdict == "contradicted"
    assert claims.factor_claims.skip_leaks({"factors": skip[:1]}).verdict == "not tested"
    pools = [row("pooling", "stride", 20.0), row("pooling", "max", 17.0), row("pooling", "average", 20.5)]
    shallow = [row("pooling", "max", 90.0, layer="1"), row("pooling", "max", 90.0, attack="rmle")]
    found = claims.factor_claims.matters({"factors": pools + shallow}, "pooling", "stride")
    assert found.verdict == "partly"
    assert "in 1 of 2 others: max 17.0 [16.0, 18.0], average 20.5 [19.5, 21.5]" in found.ours


def test_the_hypothesis_is_read_off_the_blocks_of_trained_networks(benchmark):
    claims = benchmark("claims")
    starts = ((0.2, True), (0.8, True), (0.1, False))
    rows = [{"network": "ResNet-20", "start": start, "keeps_shape": kept} for start, kept in starts]
    verdict = claims.noisy_copy({"blocks": rows})
    assert verdict.verdict == "partly"
    assert "in 1 of 2" in verdict.ours
    assert claims.noisy_copy({"blocks": rows[:1]}).verdict == "reproduced"
    # A random network says nothing of trained ones.
    drawn = {"network": "ViT-B/16, random", "start": 0.1, "keeps_shape": True}
    assert claims.noisy_copy({"blocks": [*rows, drawn]}) == verdict


def test_the_page_names_the_judge_that_the_rows_were_asked_of(benchmark):
    claims, judge = benchmark("claims"), benchmark("face_judge")
    asked = cell("peel", 0.1, knn_distance=(1.0, 0.9, 1.1))
    own = f"{Path(judge.__file__).name}:{judge.network.__name__}"
    adapted = "on other people, a network that never saw the victim"
    assert adapted in claims.page(tables(asked | {"judge": own}, cell("rmle", 0.1)))
    for rows in ([asked], [asked | {"judge": own}, asked], [asked | {"judge": "efficientnet_lite0"}]):
        page = claims.page(tables(*rows))
        assert adapted not in page
        assert "as it comes, which is no face network" in page


def test_a_row_names_its_judge_without_a_path(benchmark):
    tables, judge = benchmark("peel_tables"), benchmark("face_judge")
    spec = {"victim": "v", "weights_sha256": "w", "layer": "l", "attack": "a", "data": "d", "manifest_sha256": "m"}
    group = tables.Group("faces", "faces", "v", ("l",), limit=4)
    for judges, expected in (
        ({"face": {"name": judge.name(), "sha256": "s"}}, "face_judge.py:network"),
        ({"face": {"name": "zoo/efficientnet_lite0@IMAGENET1K_V1:pool", "sha256": "s"}}, "efficientnet_lite0"),
        ({}, ""),
    ):
        found = tables._record(
            group, "l", "a", "quick", Cell(key="k", status="failed", spec=Spec(**spec, judges=judges))
        )
        assert found.judge == expected


def test_the_stamp_names_what_holds_for_every_row(benchmark):
    command = benchmark("peel_tables").command
    words = ["--rows", "a-b/c", "--limit", "4", "--beside", "--rows=x", "--generator", "faces=/home/me/f.safetensors"]
    assert command(words) == "python benchmarks/peel_tables.py --limit 4 --generator faces=f.safetensors"


def test_class_scores_are_no_stage_of_the_network(benchmark):
    claims = benchmark("claims")

    def stage(layer: str, psnr: float) -> dict:
        one = cell("rmle", 0.1)
        return {**one, "row": f"a/{layer}", "layer": layer, "figures": {"psnr": (psnr, psnr - 1, psnr + 1)}}

    falling = [stage("layer1", 30.0), stage("layer2", 20.0), stage("layer3", 10.0)]
    assert "1 of 1" in claims.fails_deep(tables(*falling)).ours
    assert claims.fails_deep(tables(*falling, stage("linear", 40.0))) == claims.fails_deep(tables(*falling))
