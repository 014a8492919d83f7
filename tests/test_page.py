"""What the page shows of an audit: each thing when it is there, nothing when it is not; no browser needed."""

from __future__ import annotations

import copy
import html
import re
from pathlib import Path
from typing import Any

import pytest
from page_world import CLASS, CONTROLS, full_report

import fastforget as ff
from fastforget.audit import lines, svg
from fastforget.audit.markup import plain
from fastforget.audit.report import number, percent
from fastforget.audit.style import CSS

SECTIONS = ("Can this audit fail?", "Which samples are most exposed?")


@pytest.fixture(scope="module")
def whole() -> tuple[ff.audit.AuditReport, dict[str, Any]]:
    return full_report()


def shown(report: ff.audit.AuditReport, folder: Path, **options: Any) -> str:
    path = folder / "r.html"
    report.to_html(path, **options)
    return path.read_text().replace("\u00a0", " ")


def texts(page: str) -> str:
    """The page's text, without styles and tags."""
    return html.unescape(re.sub(r"<[^>]*>", "|", re.sub(r"<style>.*?</style>", "", page, flags=re.S)))


def bare(report: ff.audit.AuditReport) -> ff.audit.AuditReport:
    """The same audit, had only the plain figures been measured."""
    report = copy.deepcopy(report)
    further = lines.further(report)
    report.settings["attacks"] = [a for a in report.settings["attacks"] if a not in further]
    for setting in ("conventions_used", "intervals", "exposed_by"):
        report.settings.pop(setting, None)
    report.curves.pop("exposed")
    report.rows = [row for row in report.rows if not row["control"]]
    for name in ("controls", "control_rows"):
        vars(report).pop(name, None)
    for row in report.rows:
        for key in [key for key in row if "interval" in key or key in ("control", "probes", "class_thresholds")]:
            row.pop(key)
        for duel in row["attacks"]:
            for attack in further:
                row["attacks"][duel].pop(attack)
                report.curves["roc"][duel].pop(attack, None)
        for figures in (f for of in row["attacks"].values() for f in of.values()):
            for key in [key for key in figures if key.endswith("_interval")]:
                figures.pop(key)
    return report


def test_all_of_it_is_shown(whole, tmp_path: Path) -> None:
    report, sets = whole
    page = shown(report, tmp_path, images={"forget": sets["forget"][0]})
    text = texts(page)
    for section in SECTIONS:
        assert section in text
    for row in report.rows:
        for key, show in (("accuracy_intervals", percent),):
            assert all(lines.interval(ends, show) in text for ends in row[key].values())
        for figures in row["attacks"]["forget_vs_test"].values():
            assert lines.interval(figures["auc_interval"], number) in text and number(figures["auc"]) in text
        for probe in row["probes"].values():
            assert plain(probe["value"]) in text and probe["convention"] in text
    assert "feature drift undefined: the model is the yardstick itself" in text
    groups = re.findall(r'class="group"[^>]*><span>([^<]*)</span>', page)
    assert groups[0] == "accuracy"
    assert groups[1:5] == [f"{name}, forget against unseen" for name in ("LiRA", "RMIA", "attack P", "loss attack")]
    assert "probes" in groups
    figures = re.findall(r"<figcaption>([^<]*)<", page)
    assert figures[:5] == ["LiRA", "RMIA", "Attack P", "Loss attack", "Loss attack"]


def test_what_is_absent_leaves_no_trace(whole, tmp_path: Path) -> None:
    page = shown(bare(whole[0]), tmp_path)
    text = texts(page)
    assert not any(section in text for section in SECTIONS)
    assert "Small figures" not in text and "<small></small>" not in page and "probes" not in text
    assert "with-controls" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S) and "LiRA, forget" not in text
    assert 'class="control' not in page and "<th" in page


def test_lines_that_the_report_knows_better(whole, monkeypatch) -> None:
    """A report that words its probes itself, with intervals in the text: they still get their group and their small figures."""
    of = type(whole[0])._lines

    def worded(report: ff.audit.AuditReport) -> list[Any]:
        def read(row: dict[str, Any]) -> str:
            return "> 12 [9, 15]" if row.get("probes", {}).get("steps_to_relearn") else "-"

        own = of(report)
        return [*own[:-2], ("memory of the forget set", "relearn time, steps", read), *own[-2:]]

    monkeypatch.setattr(type(whole[0]), "_lines", worded)
    found = lines.lines(whole[0])
    assert (
        [line for line in found if line.group == "probes"]
        == [lines.Line("probes", "relearn time, steps", ["> 12"] * 9, ["9–15"] * 9)]
        == found[-1:]
    )


def test_controls_of_their_own_rows(whole, tmp_path: Path) -> None:
    """Controls may come beside the rows and without curves; they still get their columns, and no charts that don't exist."""
    report = copy.deepcopy(whole[0])
    report.control_rows = [row for row in report.rows if row["control"]]
    report.rows = [row for row in report.rows if not row["control"]]
    for curves in (*(of for duel in report.curves["roc"].values() for of in duel.values()), report.curves["loss"]["share"]):
        for name in CONTROLS:
            curves.pop(name)
    page = shown(report, tmp_path)
    head = re.search(r'<table class="figures.*?</thead>', page, flags=re.S)[0]
    names = re.findall(r"</span>([^<]*)</th>", head)
    assert names == ["original", "unlearned", "forsaken", "lightweight", "retrained", *CONTROLS]
    assert page.count('<figure class="control">') == len(CONTROLS)


def test_a_control_that_passed_spoils_the_verdict(whole, tmp_path: Path) -> None:
    report = copy.deepcopy(whole[0])
    report.controls["fine_tuned"]["behaved"] = False
    report.controls["random"]["behaved"] = None
    report.reasons.insert(0, "control fine_tuned: FAIL: it is PASS, but must not pass")
    text = texts(shown(report, tmp_path))
    assert "Don't trust this verdict:| fine_tuned did not behave as it must." in text
    assert "control fine_tuned: FAIL: it is PASS" in text and "not judged" in text and "|NO|" in text


def test_a_single_list_of_exposed_samples(whole, tmp_path: Path) -> None:
    report = copy.deepcopy(whole[0])
    report.curves["exposed"] = report.curves["exposed"]["unlearned"]
    report.settings["exposed_by"] = "lira"
    page = shown(report, tmp_path)
    assert "to an attacker (LiRA)" in page and page.count('<table class="narrow">') == 1 and page.count("<img") == 0
    first = report.curves["exposed"][0]
    row = re.search(r'<table class="narrow">.*?<tbody><tr>(.*?)</tr>', page, flags=re.S)[1]
    judged = ("original", "unlearned", "forsaken", "lightweight", "retrained")
    assert re.findall(r">([^<]+)<", row) == [str(first["index"]), str(CLASS), *(plain(first["score"][m]) for m in judged)]


def test_pictures_are_those_of_the_samples(whole, tmp_path: Path) -> None:
    from fastforget.audit.png import as_pictures

    report, sets = whole
    images = sets["forget"][0]
    page = shown(report, tmp_path, images={"forget": images})
    for samples in report.curves["exposed"].values():
        for sample in samples[:12]:
            (uri,) = as_pictures(images[sample["index"]][None])
            assert f'<img src="{uri}" alt="forget sample {sample["index"]}">' in page
    with pytest.raises(ValueError, match=r"images\[\"forget\"\]: got shape \(3, 1, 8, 8\); accepted is \[146, channels"):
        shown(report, tmp_path, images={"forget": images[:3]})
    with pytest.raises(ValueError, match="images: got the key 'test'; accepted is \"forget\""):
        shown(report, tmp_path, images={"test": images})
    with pytest.raises(TypeError, match=r"images\[\"forget\"\]: got list; accepted is a tensor"):
        shown(report, tmp_path, images={"forget": [1]})


def test_a_missing_reference_stands_before_the_controls(whole, tmp_path: Path) -> None:
    report = copy.deepcopy(whole[0])
    report.settings["reference"] = None
    report.rows = [row for row in report.rows if row["model"] != "retrained"]
    page = shown(report, tmp_path)
    row = re.search(r'<tr><th scope="row">forget set</th>(.*?)</tr>', page)[1]
    cells = re.findall(r"<td[^>]*>([^<]*)", row)
    assert len(cells) == 9 and cells[4] == "no reference"


def test_figures_of_any_size() -> None:
    assert [plain(v) for v in (None, float("nan"), 0.5, 4.1e-5, 12.0, 12.5, float("inf"))] == [
        *("-", "-", "0.500", "4.1e-5"),
        *("12", "12.500", "∞"),
    ]
    assert lines.interval([float("nan"), 0.5], number) == "" and lines.interval([0.9412, 0.9431], number) == "0.941–0.943"


def test_equal_dots_lie_side_by_side() -> None:
    chart = svg.dots("t", ["layer"], [("a", "m", [1.0]), ("b", "n", [1.0]), ("control c1", "o", [9.0])], "x", reach=1.0)
    places = re.findall(r'<circle class="dot ([^"]*)" cx="([0-9.]+)" cy="([0-9.]+)"', chart)
    assert len({cy for kind, _, cy in places if kind != "control c1"}) == 2 and len({cx for _, cx, _ in places}) == 1


# ------------------------------------------------------------------ colours


def light(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    colour = "".join(2 * c for c in colour) if len(colour) == 3 else colour
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_curves_stand_out(which: int) -> None:
    block = re.findall(r":root \{(.*?)\}", CSS, flags=re.S)[which]
    colours = dict(re.findall(r"--([a-z0-9]+):\s*#([0-9a-f]{6}|[0-9a-f]{3});", block))
    text = ("ink", "soft", "pass", "partial", "fail", "none", "forget")
    lines_of = ("original", "unlearned", "retrained", *(f"{k}{i}" for k in ("other", "control") for i in range(1, 5)), "retain", "test")
    for ground in ("paper", "card"):
        assert {n: c for n in text if (c := round(contrast(colours[n], colours[ground]), 2)) < 4.5} == {}
        assert {n: c for n in lines_of if (c := round(contrast(colours[n], colours[ground]), 2)) < 3} == {}
    assert contrast("000", "ffffff") == pytest.approx(21) and contrast("767676", "fff") == pytest.approx(4.54, abs=0.01)
