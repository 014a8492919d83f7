"""The benchmark harness: a wrong result gets no time, rows have the documented fields, all bars are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import op_table
import pytest
import torch
from fastforget._bench.mask import elementwise, optim, select
from fastforget._bench.mask import rows as mask_rows
from fastforget._bench.membership import lira, rmia, roc, scores

from fastforget._bench import (
    bench,
    cases,
    gpu,
    noise,
    plot,
    report,
    rows,
    shapes,
    targets,
    timing,
    update,
)

BEST = timing.available_isas()[:1]


def options(**changes: Any) -> cases.Options:
    return cases.Options(**{"isas": BEST, "rounds": 2, "placements": 1, **changes})


def small_cases() -> list[cases.Case]:
    o = options()
    return [
        noise.random_bits("small", 1001, False),
        noise.normal("small", 1001, torch.float32, False),
        noise.add_normal("small", [(1001,)], torch.bfloat16, o, False),
        noise.add_normal("list", [(33, 3), (7,), (129,)], torch.float32, o, False),
        update.error_max_loss("small", 30, 10, o),
        update.distill_loss("small", 30, 10, o),
        update.gradient_products("list", [(33, 3), (7,)], o, False),
        update.error_max_step("small", (5, 3, 7, 7), o, False),
        elementwise.dampen("small", [(1001,)], o, False),
        elementwise.dampen("list", [(33, 3), (7,)], o, False),
        *(optim.matrix(form, (33, 101), form, 0.4, o, False) for form in ("rows", "bytes", "bits")),
        *(optim.step(op, "list", [(33, 3), (7,)], False) for op in ("masked_sgd_", "masked_adam_")),
        mask_rows.neuron_stats("small", (7, 33), 0, o, False),
        elementwise.accumulate_importance("small", 1001, o, False),
        elementwise.soft_threshold("small", 1001, o, False),
        select.saliency_mask("list", [(33, 3), (7,)], False),
        select.ratio_mask("list", [(33, 3), (7,)], o, False),
        scores.membership_scores("small", 100, 10, o, False),
        roc.roc_stats("small", 300, False),
        lira.lira("small", 16, 300, "mean", o, False),
        lira.lira("median small", 16, 300, "median", o, False),
        lira.loo("small", 16, 50, False),
        lira.update("small", 300, False),
        rmia.rmia_counts("small", 70, 90, o, False),
        rmia.rmia_vote("small", 5, 40, 50, False),
        roc.roc_bootstrap("small", 60, 7, False),
    ]


@pytest.mark.parametrize("case", gpu.cases(options(), gpu.SMALL), ids=lambda case: f"{case.op} {case.label}")
def test_the_rows_for_a_gpu_are_right_on_cpu_tensors(case):
    """What can be known of them without a GPU: they build, and every variant computes what it should."""
    work = case.prepare(cases.Place(0))
    assert timing.judge(work, timing.expand(work, BEST)) == []


def test_the_gpu_is_timed_on_every_op():
    timed = {op for op, row in op_table.TABLE.items() if row.timed}
    assert {case.op for case in gpu.cases(options(), gpu.BIG)} == timed



def spoil(value: Any) -> None:
    """Changes one number by a thousandth, or what the dtype can show."""
    x = value[0] if isinstance(value, (tuple, list)) else value
    flat = x.view(-1)
    if x.dtype.is_floating_point:
        flat[-1] += max(1e-3, 4 * torch.finfo(x.dtype).eps) * (1.0 + flat[-1].abs())
    else:
        flat[-1] = ~flat[-1]


@pytest.mark.parametrize("case", small_cases(), ids=lambda c: f"{c.op}{c.label}")
@pytest.mark.parametrize("index", [0, 3])
def test_every_variant_passes_its_own_judge(case: cases.Case, index: int) -> None:
    work = case.prepare(cases.Place(index))
    with torch.no_grad():
        timing.judge(work, timing.expand(work, BEST))


@pytest.mark.parametrize("case", small_cases(), ids=lambda c: f"{c.op}{c.label}")
def test_a_wrong_variant_is_refused_before_any_timing(
    case: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last element of ours is off by a thousandth (or one word by its bits)."""
    right, timed = case.prepare, []

    def wrong(place: cases.Place) -> cases.Work:
        buffers: list[torch.Tensor] = []
        hand_out = place.empty

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            buffers.append(hand_out(*shape, dtype=dtype))
            return buffers[-1]

        monkeypatch.setattr(place, "empty", empty)
        work = right(place)
        honest = work.run["ours"]
        in_place = case.op.endswith("_")  # the first buffer made is the one that changes

        def ours() -> Any:
            result = honest()
            spoil(buffers[0] if in_place else result)
            return result

        work.run["ours"] = ours
        return work

    monkeypatch.setattr(timing, "_block", lambda *_: timed.append(1) or 1.0)
    object.__setattr__(case, "prepare", wrong)
    with torch.no_grad(), pytest.raises(cases.WrongResult, match="ours"):
        timing.measure(case, options())
    assert not timed


def test_judge_holds_others_to_twice_the_plain_error() -> None:
    truth = torch.linspace(0.0, 1.0, 100, dtype=torch.float64)
    plain = truth.float() + 1e-4
    judge = cases.Judge([truth], lambda _name, result: [result])
    judge("eager", plain)
    judge("ours", truth.float() + 1.9e-4)
    with pytest.raises(cases.WrongResult, match="off by"):
        judge("ours", truth.float() + 2.1e-4)
    with pytest.raises(cases.WrongResult, match="finite"):
        judge("ours", torch.where(truth > 0.5, truth, torch.nan).float())
    with pytest.raises(cases.WrongResult, match="shape"):
        judge("ours", truth.float()[:50])
    with pytest.raises(cases.WrongResult, match="off by"):
        cases.Judge([truth], lambda _name, result: [result])("eager", truth.float() + 0.1)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    o = options(threads=1)
    found = []
    with timing.quiet(1):
        for case in (
            elementwise.dampen("64K", [(1001,)], o, False),
            elementwise.dampen("1M", [(4003,)], o, False),
        ):
            found += rows.build(case, timing.measure(case, o), timing.memory(case, o), o)
    facts = bench.machine.facts()
    return {
        "schema": 1,
        "machine": {**facts, "load_after": bench.machine.load()},
        "settings": {"threads": 1, "clock": "thread CPU time", "isas": list(BEST), "placements": 1},
        "rows": found,
        "refused": [],
        "noise_phase": [],
    }


def test_rows_have_the_documented_fields(measured: dict[str, Any]) -> None:
    json.dumps(measured)
    row = measured["rows"][0]
    assert tuple(row) == rows.FIELDS
    assert row["threads"] == 1 and row["device"] == "cpu" and row["elements"] == 1001
    assert row["ours"] > 0 and row["eager"] > 0 and row["published"] > 0 and row["compiled"] is None
    assert row["ratios"]["eager"] == pytest.approx(row["eager"] / row["ours"])
    assert row["ns_per_unit"] == pytest.approx(row["ours"] / 1001 * 1e9)
    for summary in row["spread"].values():
        assert summary["min"] <= summary["median"] <= summary["max"] and summary["blocks"] >= 2
    if timing.native():
        assert row["ratios"]["limit"] == pytest.approx(row["ours"] / row["limit"])
        assert row["met"] is all(bar["met"] for bar in row["targets"])
    for key in ("cpu", "torch", "compiler", "load_before", "load_after"):
        assert key in measured["machine"]


def test_the_page_and_the_plot_come_from_the_json(measured: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "results" / "cpu.json"
    source.parent.mkdir()
    source.write_text(json.dumps(measured))
    other = {**measured, "machine": {**measured["machine"], "cpu": "Another (family 1)"}, "rows": measured["rows"][:1]}
    (source.parent / "cpu-other.json").write_text(json.dumps(other))
    written = report.write_readme(json.loads(source.read_text()), source, folder=tmp_path)
    page, picture = (tmp_path / "README.md").read_text(), source.with_suffix(".svg").read_text()
    assert set(written) == {tmp_path / "README.md", source.with_suffix(".svg")}
    assert "results/cpu.svg" in page and measured["machine"]["cpu"] in page and "dampen_" in page
    assert picture.startswith("<svg") and "dampen_ vs published" in picture
    own, elsewhere = page.split("## On another machine: Another (family 1)")
    assert own.count("| dampen_ |") > 1 and elsewhere.count(f"| {measured['rows'][0]['op']} |") == 1
    assert report.text(measured)


def test_plot_places_larger_ratios_higher() -> None:
    base = {"family": "mask", "dtype": "float32", "isa": "avx512", "op": "dampen_"}
    data = [
        {**base, "shape": "1", "elements": 10**e, "ratios": {"eager": r}} for e, r in ((3, 2.0), (6, 30.0))
    ]
    svg = plot.ratios_by_size(data, {"mask": "Masking"})
    (path,) = [line for line in svg.splitlines() if line.startswith("<polyline")]
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in path.split('"')[1].split())
    assert x0 < x1 and y1 < y0


@pytest.mark.parametrize(
    ("op", "case", "vs", "bound", "avx2"),
    [
        ("add_normal_", "11.2M", "eager", 7.5, 4.5),
        ("error_max_step_", "256x3x32x32", "eager", 8.0, 8.0),
        ("error_max_step_", "256x3x32x32", "fused", 4.5, 4.5),
        ("membership_scores", "50000x10", "eager", 28.0, 22.0),
        ("membership_scores", "10000x1000", "eager", 25.0, 20.0),
        ("dampen_", "1M", "published", 60.0, 60.0),
    ],
)
def test_the_accepted_bars_are_in_the_table(op: str, case: str, vs: str, bound: float, avx2: float) -> None:
    (target,) = [t for t in targets.TARGETS[op, case] if t.vs == vs]
    assert (target.for_isa("avx512"), target.for_isa("avx2")) == (bound, avx2)
    assert target.source and (op, case, vs) in targets.ACCEPTANCE


def test_every_bar_belongs_to_a_row_that_is_run() -> None:
    known = {(case.op, case.label) for module in bench.MODULES for case in module.cases(options())}
    assert set(targets.TARGETS) <= known


def test_a_missed_bar_is_a_miss() -> None:
    seconds = {"ours": 1e-3, "eager": 10e-3, "fused": 3e-3, "limit": 1e-3}
    bars = {
        b["vs"]: b["met"] for b in targets.judged("error_max_step_", "256x3x32x32", "avx512", seconds, 10)
    }
    assert bars == {"eager": True, "fused": False, "limit": True}
    assert targets.judged("error_max_step_", "256x3x32x32", "baseline", seconds, 10) == []


@pytest.mark.parametrize(
    ("eager", "limit", "fresh", "stands"),
    [
        (10e-3, 1e-3, None, rows.MET),
        (3e-3, 0.3e-3, 9.0, rows.MISSED),  # fused still misses
        (3e-3, 0.3e-3, None, rows.MISSED),  # the limit would reach 10x
        (3e-3, 0.9e-3, None, rows.OUT_OF_REACH),  # the limit would reach 3.3x
    ],
)
def test_a_bar_stands_where_its_figures_say(eager: float, limit: float, fresh: float | None, stands: str) -> None:
    seconds = {"ours": 1e-3, "eager": eager, "fused": 5e-3 if fresh is None else 2e-3, "limit": limit}
    bars = targets.judged("error_max_step_", "256x3x32x32", "avx512", seconds, 10)
    row = {"targets": [b for b in bars if b["vs"] != "limit"], "fresh_pages": {"ratios": {"eager": fresh}} if fresh else {}}
    assert rows.row_standing(row) == stands
    if fresh:
        assert rows.standing(row["targets"][0], row) == rows.FRESH
    assert "1 rows with bars" in rows.tally([row])


def test_parameter_lists_have_the_published_sizes() -> None:
    assert (len(shapes.RESNET18), shapes.numel(shapes.RESNET18)) == (62, 11_173_962)
    assert (len(shapes.RESNET50), shapes.numel(shapes.RESNET50)) == (161, 25_557_032)


@pytest.mark.skipif(
    timing.extra_memory(lambda: None) is None, reason="/proc/self/clear_refs is not to be had here"
)
def test_peak_memory_sees_a_temporary() -> None:
    x = torch.zeros(1 << 22)
    peak = timing.extra_memory(lambda: (x + 1.0).sum())
    assert peak is not None and 16e6 < peak < 20e6
    assert (timing.extra_memory(lambda: x.add_(1.0)) or 0) < 1e6


@pytest.mark.parametrize(
    "argv",
    [["--op", "nonsense"], ["--threads", "0"], ["--rounds", "3"], ["--isa", "sse9"]],
    ids=lambda a: a[0],
)
def test_bad_arguments_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        bench.main(argv)
    assert stop.value.code == 2
    assert argv[1] in capsys.readouterr().err


def test_a_check_that_misses_ends_with_one(
    measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "cpu.json"
    for met, status in ((True, 0), (False, 1)):
        for row in measured["rows"]:
            row["met"] = met
        source.write_text(json.dumps(measured))
        assert bench.main(["--from-json", str(source), "--check"]) == status
        assert bench.main(["--from-json", str(source)]) == 0
    assert "dampen_" in capsys.readouterr().out


def test_a_refused_case_ends_the_command_with_two(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(case: cases.Case, _options: cases.Options, _dropped: list[str]) -> None:
        raise cases.WrongResult(f"{case.op} {case.label}: off")

    monkeypatch.setattr(timing, "measure", measure)
    out = tmp_path / "cpu.json"
    assert bench.main(["--op", "dampen_", "--quick", "--allocator", "settled", "--json", str(out)]) == 2
    assert "dampen_ 64K: off" in capsys.readouterr().err
    assert json.loads(out.read_text())["rows"] == []


def test_a_wrong_rival_loses_its_time_only() -> None:
    case = elementwise.dampen("small", [(1001,)], options(), False)
    right = case.prepare

    def prepare(place: cases.Place) -> cases.Work:
        work = right(place)
        work.run["compiled"] = lambda: None  # changes nothing
        return work

    object.__setattr__(case, "prepare", prepare)
    dropped: list[str] = []
    with torch.no_grad():
        samples = timing.measure(case, options(), dropped)
    assert "compiled" not in samples and {"eager", "published"} <= set(samples)
    assert len(dropped) == 1 and "compiled" in dropped[0]


def test_the_second_run_stands_beside_the_first(measured: dict[str, Any]) -> None:
    first = json.loads(json.dumps(measured["rows"]))
    second = json.loads(json.dumps(measured["rows"][:1]))
    second[0]["ratios"]["published"] = 99.0
    rows.add_fresh_pages(first, second)
    assert first[0]["fresh_pages"]["ratios"]["published"] == 99.0 and first[1]["fresh_pages"] == {}
    assert not timing.native() or "99x" in rows.bars(first[0])
