"""Receipts side by side: what the page says is what the files hold, what may not be compared stands apart, and bad files are named."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from compare_world import RETRAINING, write

import fastforget as ff
from fastforget.__main__ import main
from fastforget.auditing.show.scatter import Point, _span, scatter

HOSTILE = "<script>alert(1)</script>"
ORDER = ("again", "finetune", "sweep", "changed", "no_reference", "other_class", "other_test")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def page(place: Path) -> str:
    ff.audit.compare([place / f"{name}.json" for name in ORDER]).to_html(place / "page.html")
    return (place / "page.html").read_text().replace("\u00a0", " ")


def receipt(place: Path, name: str) -> dict[str, Any]:
    return json.loads((place / f"{name}.json").read_text())


def table(page: str) -> tuple[list[str], dict[str, list[list[str]]]]:
    """The columns, and the cells of every line by its heading: first the file, then each cell as "text|small text"."""
    (inner,) = re.findall(r'<table class="many compare[^>]*>(.*?)</table>', page, flags=re.S)
    columns = [html.unescape(name) for name in re.findall(r'<th scope="col">(.*?)</th>', inner)]
    groups: dict[str, list[list[str]]] = {}
    for body in re.findall(r"<tbody>(.*?)</tbody>", inner, flags=re.S):
        (heading,) = re.findall(r'class="group"[^>]*><span>(.*?)</span>', body)
        lines = groups.setdefault(html.unescape(heading), [])
        for row in re.findall(r'<tr><th scope="row"(.*?)</tr>', body):
            (file,) = re.findall(r"</b> (.*?)<small>", row)
            cells = re.findall(r"<td[^>]*>(.*?)(?:<small><span class=\"unseen\">[^<]*</span>(.*?)</small>)?</td>", row)
            lines.append([file.strip(), *(html.unescape("|".join(cell)) for cell in cells)])
    return columns, groups


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def test_every_cell_is_what_the_receipt_holds(page: str, place: Path) -> None:
    columns, groups = table(page)
    assert columns == [
        *("receipt", "method", "verdict", "holds"),
        *("accuracy, forget set", "unseen, forgotten classes", "test accuracy, kept"),
        *("loss attack, AUC", "class told by its logit, AUC", "class told by a linear probe, AUC", "points lost"),
        *("time", "sample passes", "times as fast as retraining"),
    ]
    shown = {line[0]: line for lines in groups.values() for line in lines}
    assert list(shown) == [f"{name}.json" for name in ORDER]
    for name in ("again", "finetune", "sweep"):
        held, line = receipt(place, name), dict(zip(columns, shown[f"{name}.json"], strict=True))
        rows = {row["model"]: row for row in held["rows"]}
        own, retrained = rows["unlearned"], rows["retrained"]
        assert line["holds"] == "yes|" and line["verdict"].startswith(held["verdict"]["status"])
        for label, part in zip(columns[4:7], ("forget", "test_forget", "test_retain"), strict=True):
            assert line[label] == f"{percent(own['accuracy'][part])}|{percent(retrained['accuracy'][part])}"
        assert line["loss attack, AUC"] == "|".join(f"{row['attacks']['forget_vs_test']['loss']['auc']:.3f}" for row in (own, retrained))
        logit = [row["probes"]["class_logit_auc"]["value"] for row in (own, retrained)]
        assert line["class told by its logit, AUC"] == "|".join(f"{auc:.3f}" for auc in logit)
        assert line["class told by a linear probe, AUC"] == "|".join(f"{row['below']['probe_auc']:.3f}" for row in (own, retrained))
        assert line["points lost"] == f"{100 * (retrained['accuracy']['test_retain'] - own['accuracy']['test_retain']):.1f}|"
        if name == "again":
            assert (line["method"], line["time"], line["times as fast as retraining"]) == ("not said|class 2", "-|50.0 s", "-|")
            continue
        seconds, passes = held["method"]["seconds"], held["method"]["cost"]["passes"]
        assert line["method"] == f"{name}|class 2"
        assert line["time"] == f"{1000 * seconds:.0f} ms|50.0 s" and line["sample passes"] == f"{passes:,}|36,000"
        assert line["times as fast as retraining"] == f"{RETRAINING['seconds'] / seconds:.1f}|"


def test_a_verdict_has_its_first_reason_in_words(page: str, place: Path) -> None:
    for line in (line for lines in table(page)[1].values() for line in lines):
        held = receipt(place, line[0].removesuffix(".json"))
        status, _, why = line[2].partition("|")
        against = [text for text in held["rows"][1]["reasons"] if text.startswith(f"{held['verdict']['status']}: ")]
        if line[0] == "changed.json":
            assert status == "says PARTIAL" and why.startswith("sha256: it was changed after it was written")
        elif held["verdict"]["status"] == "PASS":
            assert why == "every check holds"
        elif held["verdict"]["status"] in ("PARTIAL", "FAIL"):
            first = against[0].split(": ")[1]
            assert why == first + (f"; and {len(against) - 1} more" if len(against) > 1 else "")
        else:
            assert status == "NO REFERENCE" and why.startswith('no model named "retrained" was given')


def test_only_what_shares_model_and_data_stands_together(page: str, place: Path) -> None:
    groups = {heading: [line[0] for line in lines] for heading, lines in table(page)[1].items()}
    first, other_class, other_test = groups
    assert groups[first] == [f"{name}.json" for name in ("again", "finetune", "sweep", "changed", "no_reference")]
    held = receipt(place, "again")
    original, forget = held["models"]["original"]["weights_sha256"][:12], held["forget_set"]["samples_sha256"][:12]
    assert first == f"A: class 2. The same original {original}…, forget set {forget}…, sizes 100 to forget, 300 to keep, 400 unseen"
    assert groups[other_class] == ["other_class.json"] and other_class.startswith("B: class 1. ")
    assert groups[other_test] == ["other_test.json"] and "other samples to keep or unseen ones" in other_test
    assert "The headings A, B, C differ in the original model or in its data: not compared." in page


def test_another_original_or_one_that_is_not_known_stands_apart(place: Path) -> None:
    one, other, unknown = (receipt(place, "again") for _ in range(3))
    other["models"]["original"]["weights_sha256"] = "0" * 64
    del unknown["models"]["original"]
    groups = ff.audit.compare([one, other, unknown, unknown]).groups
    assert [len(group.entries) for group in groups] == [1, 1, 1, 1]
    first = one["models"]["original"]["weights_sha256"]
    assert [group.shared["original"] for group in groups] == [first, "0" * 64, "unknown", "unknown"]
    assert groups[2].apart == "its original or forget set is unknown: not compared with others"


def test_rounding_of_another_machine_is_no_other_test_set(place: Path) -> None:
    one, other = receipt(place, "again"), receipt(place, "again")
    other["rows"][0]["mean_loss"]["test"] *= 1.001
    assert len(ff.audit.compare([one, other]).groups) == 1
    other["rows"][0]["mean_loss"]["test"] *= 1.05
    assert len(ff.audit.compare([one, other]).groups) == 2
    other = receipt(place, "again")
    other["rows"][0]["accuracy"]["retain"] -= 2 / 300
    assert len(ff.audit.compare([one, other]).groups) == 2


def test_what_does_not_hold_is_told_and_not_drawn(page: str) -> None:
    assert '<p class="warning FAIL" role="note">4, changed.json, doesn&#39;t hold: sha256: it was changed' in page
    assert "Not drawn, since it doesn&#39;t hold: 4." in page
    points = re.findall(r"<title>(\d), ", page)
    # 5 has no retrained model, and what 1 cost is not said; what stands alone under its heading has no picture
    assert points == ["2", "3", "1", "2", "3"] and "class 2. Cost not said: 1. Not drawn" in page
    assert "4, changed.json: <span" in page and "says PARTIAL" in page


def test_points_lie_where_their_figures_say(page: str, place: Path) -> None:
    """The dots of the second picture, in its own units, by two ticks of each axis."""
    drawing = next(d for d in re.findall(r"<svg.*?</svg>", page, flags=re.S) if "A: accuracy lost against the attack" in d)
    texts = re.findall(r'<text class="tick" x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">([-\d.]+)</text>', drawing)
    ticks_x = [(float(x), float(value)) for x, _, anchor, value in texts if anchor == "middle"]
    ticks_y = [(float(y) - 4, float(value)) for _, y, anchor, value in texts if anchor == "end"]

    def unit(at: float, ticks: list[tuple[float, float]]) -> float:
        (a, low), (b, high) = ticks[0], ticks[-1]
        return low + (at - a) / (b - a) * (high - low)

    dots = re.findall(r'<circle class="dot (\w+)" cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+"><title>(\w+)', drawing)
    assert [(kind, label) for kind, _, _, label in dots] == [("original", "original"), ("PASS", "1"), ("FAIL", "2"), ("PARTIAL", "3")]
    for (_, cx, cy, label), name in zip(dots, ("again", "again", "finetune", "sweep"), strict=True):
        rows = {row["model"]: row for row in receipt(place, name)["rows"]}
        own, retrained = rows["original" if label == "original" else "unlearned"], rows["retrained"]
        auc = [row["attacks"]["forget_vs_test"]["loss"]["auc"] for row in (own, retrained)]
        lost = 100 * (retrained["accuracy"]["test_retain"] - own["accuracy"]["test_retain"])
        assert unit(float(cx), ticks_x) == pytest.approx(auc[0] - auc[1], abs=2e-3)
        assert unit(float(cy), ticks_y) == pytest.approx(lost, abs=0.02)


def test_the_cost_is_drawn_as_a_share_of_retraining(place: Path, tmp_path: Path) -> None:
    def drawn(names: list[str]) -> str:
        ff.audit.compare([place / f"{name}.json" for name in names]).to_html(tmp_path / "p.html")
        return (tmp_path / "p.html").read_text()

    passes = receipt(place, "sweep")["method"]["cost"]["passes"]
    assert f"3, sweep: {100 * passes / 36_000:.3g} cost in % of retraining&#x27;s sample passes" not in drawn(["finetune", "sweep"])
    assert f"2, sweep: {100 * passes / 36_000:.3g} cost in % of retraining&#x27;s sample passes" in drawn(["finetune", "sweep"])
    page = drawn(["again"])  # what it cost is not said
    assert "accuracy lost against cost" not in page and "accuracy lost against the attack" in page


def test_the_page_is_closed_but_for_its_own_script(page: str, place: Path) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "url(" not in page and "@import" not in page
    assert "script" not in re.sub(r"<style>.*?</style>", "", (place / "again.html").read_text(), flags=re.S)  # a receipt's page has none


def test_one_receipt_is_a_page_too(place: Path, tmp_path: Path) -> None:
    compared = ff.audit.compare([place / "finetune.json"])
    compared.to_html(tmp_path / "p.html", title="Class 2")
    page = (tmp_path / "p.html").read_text()
    assert "<h1>Class 2</h1>" in page and "sortable" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    assert page.count("<svg") == 2


def test_several_models_in_one_receipt_are_several_lines(place: Path) -> None:
    from audit_world import World

    world = World()
    models = {"original": world.original, "one": world.retrained_again, "two": world.original, "retrained": world.retrained}
    sets = {"forget": world.forget, "retain": world.retain, "test": world.test}
    report = ff.audit(models, **sets, intervals=False)
    entries = ff.audit.compare([report.receipt(), place / "again.json"]).entries
    assert [(e.file, e.status) for e in entries] == [("receipts[0]: one", "PASS"), ("receipts[0]: two", "FAIL"), ("again.json", "PASS")]
    assert [e.method for e in entries] == ["one", "two", ""]


def test_the_same_receipt_twice_is_said(place: Path, tmp_path: Path) -> None:
    ff.audit.compare([place / "again.json", place / "again.json"]).to_html(tmp_path / "p.html")
    assert "2 is the same receipt as 1." in (tmp_path / "p.html").read_text()


# ------------------------------------------------------------------ the command


def run(place: Path, *names: str, page: Path | None = None) -> int:
    return main(["compare", *(str(place / name) for name in names), *(["--html", str(page)] if page else [])])


def test_the_command_prints_and_writes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "again.json", "sweep.json", page=tmp_path / "p.html") == 0
    printed = capsys.readouterr()
    held = receipt(place, "sweep")
    assert f"   2  sweep.json  sweep         {held['verdict']['status']}" in printed.out and printed.err == ""
    assert f"accuracy, forget set {percent(held['rows'][1]['accuracy']['forget'])} (retrained 0.0 %)" in printed.out
    assert (tmp_path / "p.html").read_text().endswith("</html>\n")


def test_a_receipt_that_does_not_hold_ends_with_1(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "again.json", "changed.json", page=tmp_path / "p.html") == 1
    printed = capsys.readouterr()
    assert "DOESN'T HOLD" in printed.out and "doesn't hold: changed.json: sha256" in printed.err and (tmp_path / "p.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "missing.json: No such file"),
        ("cut.json", lambda text: text[: len(text) // 2], "cut.json: not whole, or not JSON"),
        ("list.json", lambda text: "[1]", "list.json: not a fastforget receipt"),
        ("report.json", lambda text: text.replace("fastforget receipt 1", "fastforget report 1"), "report.json: not a fastforget receipt"),
        ("new.json", lambda text: text.replace("receipt 1", "receipt 9"), "this version reads 'fastforget receipt 1'"),
        ("lacks.json", lambda text: text.replace('"sizes"', '"seizes"', 1), "sizes: the entry is missing); leave it out, or write"),
        ("other.json", lambda text: text.replace('"request": "class-wise"', '"request": 3'), "request: it is not among what it may be"),
        ("alone.json", lambda text: text.replace('"unlearned"', '"retrained, again"'), "it is about no model but the original"),
    ],
)
def test_a_file_that_can_not_be_used_is_named_and_no_page_is_left(place: Path, tmp_path: Path, capsys, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_text(content((place / "again.json").read_text()))
    shutil.copy(place / "sweep.json", tmp_path)
    page = tmp_path / "p.html"
    page.write_text("as it was")
    assert run(tmp_path, "sweep.json", name, page=page) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and name in printed.err and message in printed.err, printed.err
    assert page.read_text() == "as it was"
    with pytest.raises(ValueError, match=re.escape(name)):
        ff.audit.compare([tmp_path / "sweep.json", tmp_path / name])


def test_a_page_is_written_whole_or_not_at_all(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "again.json", page=tmp_path / "no" / "p.html") == 2
    assert "could not write" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_what_is_no_list_of_receipts_is_refused() -> None:
    with pytest.raises(TypeError, match="receipts: got one str; accepted is a list of files"):
        ff.audit.compare("receipt.json")
    with pytest.raises(TypeError, match=r"receipts\[0\]: got int; accepted is a file's path"):
        ff.audit.compare([3])
    with pytest.raises(ValueError, match="receipts: got none"):
        ff.audit.compare([])


def test_names_from_outside_stay_text(place: Path, tmp_path: Path) -> None:
    held = receipt(place, "sweep")
    held["method"]["method"] = HOSTILE
    (tmp_path / f"{HOSTILE.replace('/', '')}.json").write_text(json.dumps(held))
    ff.audit.compare([next(tmp_path.glob("*.json"))]).to_html(tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert page.count("<script>") == 0 and "&lt;script&gt;" in page


# ------------------------------------------------------------------ the drawing


def test_axes_hold_zero_and_every_point() -> None:
    for values in ([0.2, 3.7], [-0.25, 0.1], [-7.0], [1e-9], [0.0], [1234.0, 5.0], [-3.0, -2.0]):
        low, high, step = _span(values)
        assert low <= min(0.0, *values) and high >= max(0.0, *values) and low < high
        assert 2 <= round((high - low) / step) <= 8 and abs(low / step - round(low / step)) < 1e-9


def test_labels_of_equal_points_do_not_cover_each_other() -> None:
    chart = scatter("t", [*(Point("PASS", str(i), "tip", 1.0, 1.0) for i in range(8)), Point("FAIL", "", "tip", 2.0, 2.0)], "x", "y")
    places = re.findall(r'<text class="tick point" x="([\d.]+)" y="([\d.]+)"', chart)
    boxes = [(float(x) - 3.5, float(y) - 10, float(x) + 3.5, float(y) + 2) for x, y in places]
    assert len(boxes) == 8
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] + 1e-3 or b[2] <= a[0] + 1e-3 or a[3] <= b[1] + 1e-3 or b[3] <= a[1] + 1e-3
