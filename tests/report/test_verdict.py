from __future__ import annotations

import math

import pytest
from report_cells import judged, spec, stats

from seepage.report import verdict, words
from seepage.schema import Cell, Cut, Stats
from seepage.thresholds import RECOGNISABLE, RECOGNISABLE_SMALL, Threshold

LIMIT = Threshold("ssim", 0.5, 0.5, 0.5, "made up")


def one(*cells: Cell) -> verdict.Verdict:
    """The only verdict on these cells."""
    (found,) = verdict.verdicts(cells, LIMIT)
    return found


def states(*cells: Cell) -> list[str]:
    return [layer.state for layer in one(*cells).layers]


@pytest.mark.parametrize(
    ("ssim", "control", "state"),
    [
        ([0.9, 0.8], 0.2, "recognisable"),
        ([0.5, 0.5], 0.2, "recognisable"),
        ([0.9, 0.05], 0.2, "partly"),
        ([0.4, 0.49], 0.2, "hidden"),
        ([0.1, 0.15], 0.2, "control"),
        ([0.9, 0.8], 0.95, "control"),
    ],
)
def test_a_layer_is_judged_by_threshold_and_control(ssim: list[float], control: float, state: str) -> None:
    assert states(judged(ssim, control)) == [state]


def test_a_score_that_a_control_reaches_is_no_leakage_whatever_it_is() -> None:
    cell = judged([0.9, 0.9], 0.2)
    shared = {**cell.controls, "shuffled": {"ssim": stats([0.95, 0.95]), "mse": stats([0.5, 0.5], False)}}
    assert states(cell.model_copy(update={"controls": shared})) == ["hidden"]


def test_an_interval_of_the_recovery_that_reaches_zero_is_no_leakage() -> None:
    cell = judged([0.9, 0.9], 0.2)
    mse = cell.summary["mse"].model_copy(update={"recovery_low": 0.0})
    assert states(cell.model_copy(update={"summary": {**cell.summary, "mse": mse}})) == ["control"]


def test_without_controls_the_threshold_decides_and_the_lack_is_said() -> None:
    cell = judged([0.9, 0.9]).model_copy(update={"controls": {}})
    assert states(cell) == ["recognisable"]
    assert "No control was recorded" in words.evidence(one(cell))


def test_layers_stand_in_the_order_of_the_model_not_of_the_records() -> None:
    found = one(judged([0.3, 0.3], layer="x.13"), judged([0.9, 0.9], layer="x.2"))
    assert [layer.layer for layer in found.layers] == ["x.2", "x.13"]


def test_the_strongest_attack_has_the_lowest_mse() -> None:
    weak, strong = judged([0.6, 0.6], attack="rmle"), judged([0.8, 0.8], attack="joint")
    for cells in ((weak, strong), (strong, weak)):
        assert one(*cells).layers[0].best is strong


def test_an_attack_that_makes_pictures_recognisable_outranks_a_lower_mse() -> None:
    smooth, sharp = judged([0.45, 0.45], attack="rmle"), judged([0.55, 0.55], attack="joint")
    better = {key: getattr(sharp.summary["mse"], key) / 2 for key in ("mean", "median", "min", "max", "worst")}
    low = smooth.summary["mse"].model_copy(update=better)
    smooth = smooth.model_copy(update={"summary": {**smooth.summary, "mse": low}})
    found = one(smooth, sharp)
    assert found.layers[0].best is sharp
    assert found.layers[0].state == "recognisable"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_mean_that_is_no_number_never_wins(value: float) -> None:
    good = judged([0.6, 0.6], attack="rmle")
    bad = judged([0.9, 0.9], attack="joint")
    broken = bad.summary["mse"].model_copy(update={"mean": value})
    bad = bad.model_copy(update={"summary": {"mse": broken, "ssim": bad.summary["ssim"]}})
    assert one(bad, good).layers[0].best is good


def test_a_nan_score_is_no_result() -> None:
    cell = judged([0.6, 0.6])
    ssim = cell.summary["ssim"].model_copy(update={"mean": math.nan})
    found = one(cell.model_copy(update={"summary": {**cell.summary, "ssim": ssim}}))
    assert [layer.state for layer in found.layers] == ["unknown"]
    assert "was not judged" in words.headline(found)


def test_without_the_deciding_metric_the_controls_still_count() -> None:
    better, worse = judged([0.9, 0.9], layer="l.1"), judged([0.1, 0.1], layer="l.2")
    cells = [cell.model_copy(update={"summary": {"mse": cell.summary["mse"]}}) for cell in (better, worse)]
    assert words.headline(one(*cells)) == (
        "Whether pictures are recognisable was not judged: it takes MS-SSIM or SSIM. By MSE the recoveries are better "
        "than every control at l.1, and no better than a control at l.2."
    )


def test_one_attack_with_two_settings_is_two_attacks() -> None:
    cells = [judged([level, level], attack=f"joint:steps={n},tv=1") for level, n in ((0.6, 100), (0.9, 300))]
    found = one(*cells)
    assert [found.attack(cell) for cell in cells] == ["joint steps=100", "joint steps=300"]
    assert "the strongest of 2 attacks" in words.evidence(found)
    assert "at features.1 with joint steps=300" in words.evidence(found)
    alone = one(cells[0], judged([0.5, 0.5], attack="joint:steps=7,tv=1", layer="features.9"))
    assert {alone.attack(cell) for cell in alone.cells} == {"joint"}


def test_an_attacker_is_named_by_what_it_knows() -> None:
    cell = judged([0.9, 0.9], defenses=("noise",), attacker="repeated")
    cell = cell.model_copy(update={"spec": cell.spec.model_copy(update={"sends": 16})})
    assert one(cell).attacker(cell) == "joint (repeated ×16)"
    assert one(cell).attack(cell) == "joint"


def test_a_key_recorded_twice_counts_once() -> None:
    first = judged([0.3, 0.3])
    second = first.model_copy(update={"bytes_per_image": 7})
    assert one(first, second).cells == (second,)


@pytest.mark.parametrize("status", ["failed", "not_run"])
def test_what_did_not_finish_is_no_result(status: str) -> None:
    found = one(Cell(key="k", status=status, message="why", spec=spec()))  # type: ignore[arg-type]
    assert [layer.state for layer in found.layers] == ["unknown"]
    assert words.headline(found) == "No attack finished: nothing is known of what leaks."
    assert words.evidence(found) == ""
    assert words.advice(found) == ""


def test_a_lower_is_better_metric_is_read_the_other_way() -> None:
    cell = judged([0.9, 0.9]).model_copy(update={"controls": {}})
    samples = tuple(s.model_copy(update={"metrics": {"lpips": v}}) for s, v in zip(cell.samples, (0.1, 0.4)))
    for limit, state, passing in ((0.3, "recognisable", 1), (0.2, "partly", 1), (0.05, "hidden", 0)):
        changed = cell.model_copy(update={"samples": samples, "summary": {"lpips": stats([0.1, 0.4], False)}})
        (found,) = verdict.verdicts([changed], Threshold("lpips", limit, limit, limit, ""))
        assert (found.layers[0].state, found.layers[0].passing) == (state, passing)


def test_an_interval_that_spans_the_threshold_is_too_close_to_call() -> None:
    wide = one(judged([0.3, 0.9]))
    assert wide.layers[0].close
    assert "Too close to call at features.1" in " ".join(words.caveats(wide))
    assert not one(judged([0.8, 0.9])).layers[0].close


def test_a_threshold_that_is_itself_not_sure_is_too_close_to_call_around_it() -> None:
    loose = Threshold("ssim", 0.5, 0.4, 0.6, "made up")
    for level, close in ((0.39, False), (0.45, True), (0.55, True), (0.61, False)):
        (found,) = verdict.verdicts([judged([level, level])], loose)
        assert found.layers[0].close == close, level


def test_the_threshold_is_the_best_whose_metric_all_cells_have() -> None:
    one_metric = judged([0.9, 0.9], attack="rmle")
    both = judged([0.8, 0.8], attack="joint")
    both = both.model_copy(update={"summary": {**both.summary, "ms_ssim": stats([0.9, 0.9])}})
    assert [item.threshold for item in verdict.verdicts([both])] == [RECOGNISABLE]
    assert [item.threshold for item in verdict.verdicts([both, one_metric])] == [RECOGNISABLE_SMALL]
    assert [item.threshold for item in verdict.verdicts([Cell(key="k", status="failed", spec=spec())])] == [
        RECOGNISABLE
    ]


def test_settings_are_judged_apart_and_undefended_first() -> None:
    defended = judged([0.3, 0.3], defenses=("noise:sigma=1",), attacker="naive")
    found = verdict.verdicts([defended, judged([0.9, 0.9])], LIMIT)
    assert [item.layers[0].state for item in found] == ["recognisable", "hidden"]
    assert [words.setting_name(item, found) for item in found] == ["no defense", "noise:sigma=1"]
    assert words.setting_name(found[0], found[:1]) == ""


def layers(*levels: tuple[float, ...]) -> verdict.Verdict:
    return one(*(judged(list(ssim), layer=f"l.{number}") for number, ssim in enumerate(levels, 1)))


HIGH, SOME, LOW, NULL = (0.9, 0.9), (0.1, 0.7), (0.3, 0.3), (0.1, 0.1)


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ((HIGH, HIGH, LOW, LOW), "The attacks recover recognisable pictures up to l.2, and none from l.3 on."),
        ((HIGH, LOW), "The attacks recover recognisable pictures at l.1, and none at l.2."),
        (
            (HIGH, SOME, LOW, NULL),
            "The attacks recover recognisable pictures at l.1, some at l.2 (1 of 2), and none from l.3 on.",
        ),
        ((HIGH, HIGH), "The attacks recover recognisable pictures from every layer audited, l.1 to l.2."),
        ((LOW, NULL), "The attacks recover no recognisable picture from any layer audited, l.1 to l.2."),
        ((SOME,), "The attacks recover some recognisable pictures at l.1 (1 of 2)."),
        ((SOME, LOW), "The attacks recover some recognisable pictures at l.1 (1 of 2), and none at l.2."),
        ((HIGH,), "The attacks recover recognisable pictures from l.1, the one layer audited."),
        (
            (HIGH, HIGH, LOW, HIGH),
            "The attacks recover recognisable pictures at l.1 and l.2, none at l.3, and again recognisable pictures "
            "at l.4.",
        ),
        ((LOW, SOME), "The attacks recover no recognisable picture at l.1, and some at l.2 (1 of 2)."),
    ],
)
def test_the_headline_says_where_pictures_are_recognisable(
    levels: tuple[tuple[float, ...], ...], sentence: str
) -> None:
    assert words.headline(layers(*levels)) == sentence


def test_the_headline_says_that_nothing_was_recovered() -> None:
    assert "no more than an attacker without the features reaches" in words.headline(layers(NULL, NULL))


def test_the_evidence_quotes_the_layers_at_which_the_verdict_turns() -> None:
    said = words.evidence(layers(HIGH, (0.6, 0.62), LOW, NULL))
    assert "0.610" in said
    assert "at l.2 with joint" in said
    assert "0.300" in said
    assert "0.900" not in said
    assert "Recognisable means SSIM of at least 0.5." in said
    assert "0.200 at best (mean picture)" in said


def test_few_pictures_are_an_indication_and_many_are_not() -> None:
    assert "an indication" in words.evidence(layers(HIGH))
    assert "an indication" not in words.evidence(one(judged([0.9] * 30)))


def test_the_advice_is_the_first_layer_behind_all_leaking_ones() -> None:
    assert words.advice(layers(HIGH, LOW, HIGH, LOW, NULL)).startswith("Cut at l.4 or deeper (10")
    assert words.advice(layers(HIGH, HIGH)).startswith("Cut deeper than the layers audited here")
    assert words.advice(layers(LOW, LOW)).startswith("None of these layers")


def test_a_label_that_is_still_read_off_is_said() -> None:
    cell = judged([0.3, 0.3])
    summary = {**cell.summary, "agreement": stats([1.0, 0.0])}
    control = {"mean_picture": {**cell.controls["mean_picture"], "agreement": stats([0.0, 0.0])}}
    changed = cell.model_copy(update={"summary": summary, "controls": control})
    assert "50" in words.advice(one(changed))
    equal = {"mean_picture": {**cell.controls["mean_picture"], "agreement": stats([1.0, 1.0])}}
    assert "label" not in words.advice(one(changed.model_copy(update={"controls": equal})))


def test_attackers_of_other_means_are_not_compared_in_silence() -> None:
    cells = (judged([0.9, 0.9], attack="rmle"), judged([0.8, 0.8], attack="decoder", auxiliary="public"))
    assert "white-box with public pictures" in " ".join(words.caveats(one(*cells)))
    assert "differ in means" not in " ".join(words.caveats(one(cells[0])))


def test_the_share_of_the_work_needs_multiply_adds() -> None:
    assert verdict.work_share(Cut(index=1, shape=(1,), macs_before=25, macs_after=75)) == 0.25
    assert verdict.work_share(Cut(index=1, shape=(1,), macs_before=0, macs_after=0)) is None
    assert verdict.work_share(None) is None


def test_the_strongest_control_is_the_one_that_says_most() -> None:
    nan = Stats(mean=math.nan, median=0, min=0, max=0, worst=0, ci_low=0, ci_high=0, n=1)
    cell = judged([0.9]).model_copy(
        update={"controls": {"a": {"ssim": stats([0.1])}, "b": {"ssim": stats([0.3])}, "c": {"ssim": nan}}}
    )
    found = verdict.strongest_control(cell, "ssim")
    assert found is not None
    assert found[0] == "b"
    assert verdict.strongest_control(cell, "psnr") is None
