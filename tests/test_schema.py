import json
import math
import subprocess
import sys

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seepage.schema import (
    SCHEMA_VERSION,
    Bound,
    Cell,
    Check,
    Cost,
    Cut,
    Environment,
    Judge,
    Protection,
    RecoveredRow,
    RecoveryRecord,
    Sample,
    Shown,
    Spec,
    Stats,
)

SPEC = Spec(
    victim="zoo/mobilenet_v2",
    weights_sha256="b0",
    layer="features.1",
    attack="joint:steps=3",
    data="samples/default",
    manifest_sha256="ef",
)

# A line as the first release wrote it: it must stay readable, whatever is added later.
GOLDEN = (
    '{"schema_version":1,"key":"k","status":"done","message":"","unavailable":{"lpips":"no weights"},'
    '"spec":{"victim":"zoo/mobilenet_v2","weights_sha256":"b0","layer":"features.1","size":null,"defenses":[],'
    '"wire":"fp32","attack":"joint:steps=3","adapter_sha256":null,"attacker":"none","effort":"standard","sends":1,'
    '"access":"white-box","auxiliary":"synthetic","data":"samples/default","manifest_sha256":"ef","public":null,'
    '"public_sha256":null,"gallery":null,"gallery_sha256":null,'
    '"metrics":["psnr"],"judges":{"label":{"name":"zoo/efficientnet_lite0","sha256":"57"}},"seed":0},'
    '"cut":{"index":1,"shape":[16,112,112],"macs_before":10,"macs_after":290},"protection":[],'
    '"environment":{"version":"0.1.0","git":null,"packages":{"torch":"2.15.0"},"device":"cpu"},'
    '"samples":[{"id":"NaN","image_sha256":"a1","status":"converged","message":"","residual":1e-7,'
    '"metrics":{"psnr":"Infinity","mse":0.0},"recovered":{"image":"images/0.png","caption":null,"label":null},'
    '"truth":null,"seconds":1.5}],'
    '"summary":{"psnr":{"mean":"NaN","median":30.25,"min":"-Infinity","max":"Infinity","worst":40.0,"ci_low":20.0,'
    '"ci_high":40.0,"n":1,"n_failed":0,"recovery":0.9,"recovery_low":null,"recovery_high":null,"corpus":null}},'
    '"controls":{},"ceilings":{},"utility":{"agreement":1.0},"bytes_per_image":802816,"bound":null,'
    '"checks":[{"name":"few","level":"warning","message":"1 picture"}],'
    '"cost":{"fit_seconds":0.5,"seconds":2.0,"passes":12,"peak_bytes":1}}'
)


def same(a: object, b: object) -> bool:
    """Equality in which NaN equals NaN."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_line_of_the_first_release_stays_readable():
    cell = Cell.parse(GOLDEN)
    assert cell.spec.layer == "features.1"
    assert cell.cut == Cut(index=1, shape=(16, 112, 112), macs_before=10, macs_after=290)
    assert cell.samples[0].id == "NaN"
    assert cell.samples[0].metrics == {"psnr": math.inf, "mse": 0.0}
    assert math.isnan(cell.summary["psnr"].mean)
    assert cell.summary["psnr"].min == -math.inf
    assert cell.checks == (Check(name="few", level="warning", message="1 picture"),)
    assert cell.cost == Cost(fit_seconds=0.5, seconds=2.0, passes=12, peak_bytes=1, defense_seconds=0)


def test_this_version_writes_what_it_read():
    written, golden = json.loads(Cell.parse(GOLDEN).line()), json.loads(GOLDEN)
    written["cost"] = {key: written["cost"][key] for key in golden["cost"]}
    written["summary"]["psnr"] = {key: written["summary"]["psnr"][key] for key in golden["summary"]["psnr"]}
    assert {key: written[key] for key in golden} == golden


numbers = st.floats(allow_nan=True, allow_infinity=True)
words = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["NaN", "Infinity", "-Infinity", "null"])
names = st.dictionaries(words, numbers, max_size=3)
stats = st.builds(Stats, **dict.fromkeys(["mean", "median", "min", "max", "worst", "ci_low", "ci_high"], numbers))
shown = st.none() | st.builds(Shown, image=st.none() | words, caption=st.none() | words, label=words)
samples = st.builds(
    Sample, id=words, image_sha256=words, message=words, residual=st.none() | numbers, metrics=names, recovered=shown
)
cells = st.builds(
    Cell,
    key=words,
    message=words,
    spec=st.builds(Spec, **dict.fromkeys(["victim", "layer", "attack", "data"], words), defenses=st.tuples(words)),
    samples=st.lists(samples, max_size=3).map(tuple),
    summary=st.dictionaries(words, stats, max_size=2),
    controls=st.dictionaries(words, st.dictionaries(words, stats, max_size=1), max_size=2),
    utility=names,
    bound=st.none() | st.builds(Bound, mse=st.none() | numbers, spectrum=st.lists(numbers, max_size=3).map(tuple)),
    protection=st.just((Protection(name="n", holder="sender", protects_from=("a",), epsilon=math.inf),)),
    environment=st.just(Environment(version="1", device="cpu")),
    cost=st.just(Cost(passes=3)),
)


@given(cells)
def test_a_record_survives_its_line(cell):
    line = cell.line()
    assert "\n" not in line
    assert "\r" not in line
    back = Cell.parse(line)
    assert same(back.model_dump(), cell.model_dump())
    assert back.line() == line


def test_a_line_is_plain_json_with_what_is_not_finite_as_words():
    sample = Sample(id="a", image_sha256="b", status="failed", metrics={"psnr": math.nan, "mse": math.inf})

    def refuse(word: str) -> float:
        raise AssertionError(f"bare {word}")

    raw = json.loads(Cell(key="k", status="done", spec=SPEC, samples=(sample,)).line(), parse_constant=refuse)
    assert raw["samples"][0]["metrics"] == {"psnr": "NaN", "mse": "Infinity"}


def test_a_cell_that_was_not_run_needs_its_spec_and_reason_only():
    cell = Cell(key="k", status="not_run", message="needs public pictures", spec=SPEC)
    assert Cell.parse(cell.line()) == cell
    with pytest.raises(pydantic.ValidationError):
        Cell(key="k", status="not_run", message="no spec")  # type: ignore[call-arg]


def changed(**values: object) -> str:
    return json.dumps({**json.loads(GOLDEN), **values})


def test_a_newer_schema_is_refused_by_its_number():
    with pytest.raises(ValueError, match=f"record of schema 99; this version reads up to {SCHEMA_VERSION}"):
        Cell.parse(changed(schema_version=99, unheard_of=3))


@pytest.mark.parametrize("line", ["", "{", "[1]", "3", '"x"', "null", "{}", '{"schema_version": "1"}'])
def test_what_is_no_record_is_a_value_error(line):
    with pytest.raises(ValueError):  # noqa: PT011  (the decoder's words differ by line)
        Cell.parse(line)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"unheard_of": 3}, "unheard_of"),
        ({"status": "nearly"}, "status"),
        ({"samples": [{"id": "a", "image_sha256": "b", "status": "done"}]}, r"samples\.0\.status"),
        ({"spec": {**json.loads(GOLDEN)["spec"], "sede": 1}}, r"spec\.sede"),
        ({"bytes_per_image": "many"}, "bytes_per_image"),
    ],
)
def test_unknown_keys_and_wrong_values_are_refused(values, where):
    with pytest.raises(ValueError, match=where):
        Cell.parse(changed(**values))


def test_records_do_not_change():
    with pytest.raises(pydantic.ValidationError):
        SPEC.seed = 3  # type: ignore[misc]


def test_a_recovery_survives_its_text():
    record = RecoveryRecord(
        **dict.fromkeys(["leak_sha256", "victim", "weights_sha256", "layer", "wire", "attack"], "x"),
        **dict.fromkeys(["effort", "access", "auxiliary"], "y"),
        seed=3,
        environment=Environment(version="1", device="cpu"),
        rows=(RecoveredRow(name="NaN", status="failed", residual=math.inf),),
        cost=Cost(),
    )
    assert RecoveryRecord.model_validate_json(record.model_dump_json()) == record
    assert Judge(name="a", sha256="b") == Judge.model_validate_json('{"name":"a","sha256":"b"}')


def test_records_need_no_torch():
    code = "import sys, seepage.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
