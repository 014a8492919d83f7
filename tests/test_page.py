"""What the page shows of an audit: each thing when it is there, nothing when it is not; no browser needed."""

from __future__ import annotations

import copy
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from page_world import CLASS, CONTROLS, METHODS, MODELS, full_report

import fastforget as ff
from fastforget._text import number, percent
from fastforget.auditing.measure.exposure import MOST
from fastforget.auditing.show import svg
from fastforget.auditing.show.layout import style_sheet
from fastforget.auditing.show.lines import Cell
from fastforget.auditing.show.wording import ends, plain

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


def table(page: str) -> dict[str, dict[str, list[str]]]:
    """Each figure's cells as the page has them, intervals in brackets, by group and label."""
    groups: dict[str, dict[str, list[str]]] = {}
    (inner,) = re.findall(r'<table class="figures[^>]*>(.*?)<tfoot>', page, flags=re.S)
    for body in re.findall(r"<tbody>(.*?)</tbody>", inner, flags=re.S):
        (group,) = re.findall(r'class="group"[^>]*><span>([^<]*)</span>', body)
        for row in re.findall(r'<tr><th scope="row">(.*?)</tr>', body):
            label, _, cells = row.partition("</th>")
            pairs = re.findall(r"<td>([^<]*)(?:<small>([^<]*)</small>)?</td>", cells)
            texts = [f"{text} [{', '.join(small.split('–'))}]" if small else text for text, small in pairs]
            groups.setdefault(html.unescape(group), {})[html.unescape(label)] = [html.unescape(text) for text in texts]
    return groups


def test_the_page_and_the_text_show_the_same_figures(whole, tmp_path: Path) -> None:
    report, _ = whole
    on_page, text = table(shown(report, tmp_path)), str(report)
    shown_labels = [(group, label) for group, labels in on_page.items() for label in labels]
    assert shown_labels == [(group, label) for label, _, group in report.table()]
    for label, cells, group in report.table():
        assert len(cells) == len(MODELS) and on_page[group][label][: len(MODELS)] == cells
        (line,) = [line for line in text.partition(f"\n{group}\n")[2].splitlines() if line.startswith(f"  {label}  ")][:1]
        assert line.split("  ", 1)[1].split() == [*label.split(), *" ".join(cells).split()]
    controls = [on_page["accuracy"]["forget set"][len(MODELS) :], on_page["LiRA, forget against unseen"]["AUC"][len(MODELS) :]]
    for row, accuracy, auc in zip(report.control_rows, *controls, strict=True):
        figures = row["attacks"]["forget_vs_test"]["lira"]
        assert accuracy == f"{percent(row['accuracy']['forget'])} [{', '.join(ends(row['accuracy_intervals']['forget'], percent))}]"
        assert auc == f"{number(figures['auc'])} [{', '.join(ends(figures['auc_interval'], number))}]"


def test_the_tiles_say_whose_figures_they_are(whole, tmp_path: Path) -> None:
    first = whole[0].judged()[0]
    assert len(whole[0].judged()) > 1
    assert f"|{first['model']}: Test accuracy, forgotten classes|" in texts(shown(whole[0], tmp_path))


def test_all_of_it_is_shown(whole, tmp_path: Path) -> None:
    report, sets = whole
    page = shown(report, tmp_path, images={"forget": sets["forget"][0]})
    text = texts(page)
    for section in SECTIONS:
        assert section in text
    for row in (*report.rows, *report.control_rows):
        for part, interval in row["accuracy_intervals"].items():
            assert f"{percent(row['accuracy'][part])}|{'–'.join(ends(interval, percent))}|" in text
        for figures in row["attacks"]["forget_vs_test"].values():
            assert f"{number(figures['auc'])}|{'–'.join(ends(figures['auc_interval'], number))}|" in text
    measured = {name for row in report.rows for name, probe in row["probes"].items() if probe["value"] == probe["value"]}
    assert measured >= {"zrf", "js_to_retrained", "class_logit_auc", "mia_efficacy", "relearn_time_golatkar"}
    for name in ("lira", "rmia", "attack_p", "js_to_retrained", "zrf", "relearn_time_golatkar"):
        assert report.settings["conventions_used"][name] in text
    assert "no figure (-) where it is the retrained model itself: JS divergence to the retrained, nats; JS divergence of" in text
    groups = list(table(page))
    assert groups[0] == "accuracy"
    assert groups[1:5] == [f"{name}, forget against unseen" for name in ("LiRA", "RMIA", "attack P", "loss attack")]
    assert groups[-2:] == ["probes of the forget set", "weights, relative distance"]
    figures = re.findall(r"<figcaption>([^<]*)<", page)
    assert figures[:5] == ["LiRA", "RMIA", "Attack P", "Loss attack", "Loss attack"]
    head = re.search(r'<table class="figures.*?</thead>', page, flags=re.S)[0]
    assert re.findall(r"</span>([^<]*)</th>", head) == [*MODELS, *CONTROLS]
    # Losses and predictions, one chart each a control, that only the switch shows.
    assert page.count('<figure class="control">') == 2 * len(CONTROLS)
    assert "[low, high]" not in text and page.count("Small figures") == 1


def test_a_mark_says_which_attacks_are_too_coarse(whole) -> None:
    notes = [note for note in whole[0].notes() if note.startswith("*")]
    assert len(notes) == 2 and notes[0].startswith("* 27 unseen samples") and notes[1].startswith("* attack P: 13 unseen samples")


def test_what_is_absent_leaves_no_trace(tmp_path: Path) -> None:
    """One model, plain figures only, as few as can be."""
    _, sets = full_report()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    report = ff.audit({"alone": net}, **sets, attacks=("loss",), intervals=False, progress=False)
    page = shown(report, tmp_path)
    text = texts(page)
    assert SECTIONS[0] not in text and "Small figures" not in text and "<small></small>" not in page and "interval over" not in text
    assert not any(name in text for name in ("LiRA,", "attack P", "relearn", "ZRF", "no teacher", "JS divergence to"))
    assert 'class="control' not in page and "with-controls" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    assert page.count("<figure>") == 2 + 1 + 1 + 1 + 1  # ROC, losses, predictions, exposed samples, accuracy by class
    report.curves.pop("exposed")
    assert SECTIONS[1] not in texts(shown(report, tmp_path))


def test_a_control_that_passed_spoils_the_verdict(whole, tmp_path: Path) -> None:
    report = copy.deepcopy(whole[0])
    report.control_outcomes["fine_tuned"].behaved = False
    report.control_outcomes["random"].behaved = None
    report.reasons.insert(0, "control fine_tuned: FAIL: it is PASS, but must not pass")
    text = texts(shown(report, tmp_path))
    assert "Don't trust this verdict:| fine_tuned did not behave as it must." in text
    assert "control fine_tuned: FAIL: it is PASS" in text and "not judged" in text and "|NO|" in text


def test_exposed_samples_have_the_scores_of_every_model(whole, tmp_path: Path) -> None:
    report, _ = whole
    page = shown(report, tmp_path)
    assert "to an attacker (LiRA)" in page and page.count('<table class="narrow">') == 1 and page.count("<img") == 0
    (body,) = re.findall(r'<table class="narrow">.*?<tbody>(.*?)</tbody>', page, flags=re.S)
    cells = [re.findall(r">([^<]+)<", row) for row in body.split("</tr>")[:-1]]
    samples = report.curves["exposed"]
    assert cells == [[str(s["index"]), str(CLASS), *(plain(s["score"][m]) for m in MODELS)] for s in samples] and len(cells) == MOST
    highest = [max(s["score"][m] for m in METHODS) for s in samples]
    assert highest == sorted(highest, reverse=True)


def test_pictures_are_those_of_the_samples(whole, tmp_path: Path) -> None:
    from fastforget.auditing.show.png import as_pictures

    report, sets = whole
    images = sets["forget"][0]
    page = shown(report, tmp_path, images={"forget": images})
    assert page.count("<img ") == MOST
    for sample in report.curves["exposed"]:
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
    report.figures = [row for row in report.figures if row.model != "retrained"]
    page = shown(report, tmp_path)
    row = re.search(r'<tr><th scope="row">forget set</th>(.*?)</tr>', page)[1]
    cells = re.findall(r"<td[^>]*>([^<]*)", row)
    assert len(cells) == 9 and cells[4] == "no reference"


def test_figures_of_any_size() -> None:
    assert [plain(v) for v in (None, float("nan"), 0.5, 4.1e-5, 12.0, 12.5, float("inf"))] == [
        *("-", "-", "0.500", "4.1e-5"),
        *("12", "12.500", "∞"),
    ]
    assert ends([float("nan"), 0.5], number) is None and ends([0.9412, 0.9431], number) == ("0.941", "0.943")
    assert ends([0.99995, 0.99999], number) == ("1.000", "1.000") and ends([0.0, 0.0], plain) == ("0.000", "0.000")
    assert ends([9.0, 15.0], number) == ("9", "15") and ends([3.0e-5, 5.2e-5], plain) == ("3e-5", "5.2e-5")
    assert str(Cell("12.0 %", ("10.1", "14.2"))) == "12.0 % [10.1, 14.2]" and str(Cell("-")) == "-"


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
    block = re.findall(r":root \{(.*?)\}", style_sheet(), flags=re.S)[which]
    colours = dict(re.findall(r"--([a-z0-9]+):\s*#([0-9a-f]{6}|[0-9a-f]{3});", block))
    text = ("ink", "soft", "pass", "partial", "fail", "none", "forget")
    lines_of = ("original", "unlearned", "retrained", *(f"{k}{i}" for k in ("other", "control") for i in range(1, 5)), "retain", "test")
    for ground in ("paper", "card"):
        assert {n: c for n in text if (c := round(contrast(colours[n], colours[ground]), 2)) < 4.5} == {}
        assert {n: c for n in lines_of if (c := round(contrast(colours[n], colours[ground]), 2)) < 3} == {}
    assert contrast("000", "ffffff") == pytest.approx(21) and contrast("767676", "fff") == pytest.approx(4.54, abs=0.01)


# ------------------------------------------------------------------ one model of several


def test_an_audit_of_one_model_of_several(whole) -> None:
    report, _ = whole
    part = report.of("forsaken")
    assert [row.model for row in part.figures] == ["original", "forsaken", "retrained"] and part.verdict == part.figures[1].status
    assert part.row("forsaken") == report.row("forsaken") and part.controls == report.controls
    assert set(part.settings["models"]) == {row.model for row in (*part.figures, *part.control_figures)}
    assert "lightweight" not in json.dumps([part.curves, part.reasons]) and "lightweight" in json.dumps(report.curves)
    assert [row.model for row in report.figures][1:4] == ["unlearned", "forsaken", "lightweight"]
    assert [one.model for one in report.of("unlearned", "forsaken").judged_figures()] == ["unlearned", "forsaken"]
    with pytest.raises(KeyError, match="'sweep' is not among"):
        report.of("sweep")


def test_a_page_about_one_model_of_several(whole, tmp_path: Path) -> None:
    report, _ = whole
    timing = {"train": 3.0, "unlearn": 0.5, "retrain": 2.5, "forsaken": 7.0}
    report.to_html(tmp_path / "r.html", about="unlearned", timing=timing, passes={"unlearn": 1234, "lightweight": 777})
    page = (tmp_path / "r.html").read_text().replace("\u00a0", " ")
    header, rest = page.partition("<body>")[2].split("</header>")
    assert "beside it: forsaken" in header and "beside it: lightweight" in header and "unlearned: " not in header
    assert "Time: seconds that each model took" in rest and "<title>forsaken: 7.0 s</title>" in rest
    assert "7.0 s" in rest and "1,234" in rest and "777" in rest
    with pytest.raises(KeyError):
        report.to_html(tmp_path / "r.html", about="sweep")
