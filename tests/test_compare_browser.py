"""The comparison of receipts in a real browser: it draws, fits, sorts, asks for nothing, and runs no script but its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import chromium
import numpy as np
import pytest
from compare_world import write

import fastforget as ff

pytestmark = pytest.mark.skipif(chromium.BINARY is None, reason=chromium.MISSING)
NAMES = ("again", "finetune", "sweep", "changed", "other_class", "no_reference")
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"
COUNTS = {"one": 1, "three": 3, "twelve": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("compare"))
    for page, count in COUNTS.items():
        ff.audit.compare([folder / f"{NAMES[i % len(NAMES)]}.json" for i in range(count)]).to_html(folder / f"{page}.html")
    return folder


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[chromium.Browser]:
    with chromium.browser(folder) as started:
        yield started


def open_page(browser: chromium.Browser, page: Path, width: int = 1280, **options) -> chromium.Tab:
    return chromium.Tab(browser, page, width, 900, **options)


def column(tab: chromium.Tab, head: str) -> list[list[str]]:
    """A column's texts from top to bottom, a list for each heading; without the small figures."""
    return tab.evaluate(
        "(at => [...document.querySelectorAll('.compare tbody')]"
        ".map(b => [...b.rows].slice(1).map(r => r.cells[at].firstChild.data.trim())))"
        f"([...document.querySelectorAll('.compare thead th')].findIndex(h => h.textContent == {json.dumps(head)}))"
    )


def press(tab: chromium.Tab, head: str) -> None:
    tab.evaluate(f"[...document.querySelectorAll('thead button')].find(b => b.textContent == {json.dumps(head)}).click()")


@pytest.mark.parametrize("page", COUNTS)
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, False), (390, True), (1280, True), (1600, False)])
def test_it_draws_and_fits_with_the_network_off(browser, folder: Path, page: str, width: int, dark: bool) -> None:
    tab = open_page(browser, folder / f"{page}.html", width, dark=dark)
    assert tab.complaints() == [] and tab.requests() == []
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    shot = chromium.pixels(tab.screenshot())[..., :3].astype(int)
    paper = shot[2, 2]
    assert (paper.sum() < 150) if dark else (paper.sum() > 700)
    boxes = tab.evaluate(
        "[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect()).map(r => [r.x, r.y + scrollY, r.width, r.height]"
        ".map(Math.round))"
    )
    assert len(boxes) == {"one": 1, "three": 2, "twelve": 3}[page]
    for x, y, w, h in boxes:
        assert len(np.unique(shot[y : y + h, x : x + w].reshape(-1, 3), axis=0)) > 3, f"the picture at {x}, {y} is blank"


def test_the_figures_fit_a_desk_and_scroll_on_a_phone(browser, folder: Path) -> None:
    widths = "(b => [b.scrollWidth, b.clientWidth])(document.querySelector('.scroll'))"
    inside, box = open_page(browser, folder / "twelve.html", 1360).evaluate(widths)
    assert inside <= box
    tab = open_page(browser, folder / "twelve.html", 390)
    inside, box = tab.evaluate(widths)
    assert inside > box + 100
    left = "Math.round(document.querySelector('.compare tbody th[scope=row]').getBoundingClientRect().left)"
    before = tab.evaluate(left)
    tab.evaluate("document.querySelector('.scroll').scrollLeft = 1e5")
    assert tab.evaluate(left) == before  # which receipt it is stays in view


def test_a_press_on_a_head_sorts_within_each_heading(browser, folder: Path) -> None:
    tab = open_page(browser, folder / "twelve.html")
    heads, first = tab.evaluate("[...document.querySelectorAll('thead th')].map(h => h.textContent)"), column(tab, "loss attack, AUC")
    assert len(heads) == tab.evaluate("document.querySelectorAll('thead button').length")
    press(tab, "loss attack, AUC")
    up = column(tab, "loss attack, AUC")
    assert [sorted(group, key=float) for group in first] == up != first and len(up) == 2
    assert tab.evaluate("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "ascending"
    press(tab, "loss attack, AUC")
    assert column(tab, "loss attack, AUC") == [group[::-1] for group in up]
    # A missing figure stands last both ways, and a file goes with its figures.
    for _ in range(2):
        press(tab, "sample passes")
        group = column(tab, "sample passes")[0]
        missing = group.count("-")
        assert missing == 4 and group[-missing:] == ["-"] * missing
    press(tab, "receipt")
    numbers = tab.evaluate("[...document.querySelectorAll('tbody th b')].map(e => +e.textContent)")
    assert numbers == sorted(numbers) and column(tab, "loss attack, AUC") == first
    assert tab.evaluate("document.querySelectorAll('[aria-sort]').length") == 1
    assert tab.complaints() == []


def test_the_keyboard_sorts_too(browser, folder: Path) -> None:
    tab = open_page(browser, folder / "twelve.html")
    tab.evaluate("document.querySelectorAll('thead button')[2].focus()")
    for kind, text in (("keyDown", "\r"), ("keyUp", "")):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text=text)
    assert tab.evaluate("document.querySelector('[aria-sort]').textContent") == "verdict"


@pytest.mark.skipif(not shutil.which("pdftoppm"), reason="pdftoppm (poppler-utils) is not installed")
def test_it_prints(browser, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "page.pdf").write_bytes(open_page(browser, folder / "twelve.html", dark=True).pdf())
    subprocess.run(["pdftoppm", "-r", "60", "-png", tmp_path / "page.pdf", tmp_path / "page"], check=True)
    sheets = [chromium.pixels(path.read_bytes())[..., :3].astype(int) for path in sorted(tmp_path.glob("page-*.png"))]
    assert 3 <= len(sheets) <= 12
    for sheet in sheets:
        assert (sheet[:10] > 240).all() and (sheet < 128).all(-1).sum() > 100 and (sheet[:, -20:] > 240).all()


def test_no_other_script_runs(browser, folder: Path) -> None:
    """Names with markup stay text, and the policy holds though somebody wrote a script into the page."""
    held = json.loads((folder / "sweep.json").read_text())
    held["method"]["method"] = held["facts"]["x"] = ATTACK
    compared = ff.audit.compare([held, held])
    compared.to_html(folder / "hostile.html", title=ATTACK)
    tab = open_page(browser, folder / "hostile.html", 390)
    assert tab.complaints() == [] and tab.requests() == []
    assert tab.evaluate("document.querySelector('h1').textContent") == ATTACK
    text = (folder / "hostile.html").read_text()
    (folder / "injected.html").write_text(text.replace("<main>", "<main><script>document.title = 'taken'</script>"))
    tab = open_page(browser, folder / "injected.html")
    assert tab.evaluate("document.title") == ATTACK and "violates" in " ".join(tab.complaints())
    assert tab.evaluate("document.querySelectorAll('thead button').length") > 10  # its own script runs all the same


def test_headings_and_names_for_screen_readers(browser, folder: Path) -> None:
    tab = open_page(browser, folder / "twelve.html")
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert tab.evaluate("[...document.querySelectorAll('svg')].every(e => e.getAttribute('role') == 'img' && e.ariaLabel)")
    assert tab.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex == 0 && e.ariaLabel)")
    assert tab.evaluate("[...document.querySelectorAll('th')].every(e => e.scope)")
    label = tab.evaluate("document.querySelectorAll('svg')[1].ariaLabel")
    assert re.search(r"2, finetune: .*, FAIL; ", label)  # what the dots show is told in words
    cell = tab.evaluate("document.querySelector('.compare tbody td:nth-of-type(4)').textContent")
    assert re.fullmatch(r"[\d.]+\s% ?retrained [\d.]+\s%", cell), cell


def test_text_on_a_phone_is_large_enough(browser, folder: Path) -> None:
    tab = open_page(browser, folder / "twelve.html", 360)
    sizes = tab.evaluate(
        "[...document.querySelectorAll('svg text, main *')].filter(e => e.getClientRects().length && e.childNodes.length &&"
        " [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())).map(e => [e.textContent.slice(0, 20), parseFloat("
        "getComputedStyle(e).fontSize) * (e.ownerSVGElement ? e.ownerSVGElement.getScreenCTM().a : 1)])"
    )
    assert len(sizes) > 300 and not [(text, round(size, 1)) for text, size in sizes if size < 9.5]
