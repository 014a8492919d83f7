"""The page in a real browser: it draws, fits, asks for nothing, complains of nothing, and names stay text."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import chromium
import numpy as np
import pytest
import torch
from page_world import CLASS, CONTROLS, full_report

import fastforget as ff
from fastforget.auditing.figures import ControlOutcome, Probe
from fastforget.auditing.show.layout import style_sheet

pytestmark = pytest.mark.skipif(chromium.BINARY is None, reason=chromium.MISSING)
WIDTHS = (360, 390, 1280)
ATTACK = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[chromium.Browser]:
    with chromium.browser(folder) as started:
        yield started


def write(path: Path, report: ff.audit.AuditReport, sets: dict, **more) -> Path:
    noise = {"class 3": torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))}
    more = {"title": "Forgetting class 3 of 8x8 digits", "class_names": [str(i) for i in range(10)], **more}
    timing = {"train": 3.0, "unlearn": 0.5, "retrain": 2.5}
    report.to_html(path, noise=noise, timing=timing, images={"forget": sets["forget"][0]}, **more)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return write(folder / "report.html", *full_report())


@pytest.fixture(scope="module")
def hostile(folder: Path) -> Path:
    names = {"forsaken": ATTACK, "lightweight": "long" * 60, "random": f"{ATTACK}<img src=x onerror=alert(2)>"}
    report, sets = full_report(names)
    report.control_outcomes[names["random"]] = ControlOutcome(ATTACK, behaved=False)
    report.settings["conventions_used"] |= {ATTACK: ATTACK, "lira": ATTACK}
    report.figures[1].probes["zrf"] = Probe(math.nan, reason=ATTACK, convention=ATTACK)
    return write(folder / "hostile.html", report, sets, title=ATTACK * 3, class_names=[ATTACK] * 10, facts={ATTACK: ATTACK})


def open_page(browser: chromium.Browser, page: Path, width: int, **options) -> chromium.Tab:
    return chromium.Tab(browser, page, width, 900, **options)


def assert_quiet(tab: chromium.Tab) -> None:
    assert tab.complaints() == [] and tab.requests() == []


def overflow(tab: chromium.Tab) -> int:
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


# ------------------------------------------------------------------ the page itself


@pytest.mark.parametrize(("width", "dark"), [(360, False), (390, False), (1280, False), (390, True), (1280, True)])
def test_it_draws_and_fits_with_the_network_off(browser, page, width: int, dark: bool) -> None:
    tab = open_page(browser, page, width, dark=dark)
    assert_quiet(tab)
    assert overflow(tab) == 0
    shot = chromium.pixels(tab.screenshot())[..., :3].astype(int)
    assert shot.shape[1] == width and shot.shape[0] > 3000
    paper = shot[2, 2]
    assert (paper.sum() < 150) if dark else (paper.sum() > 700)
    blank = [i for i in range(0, len(shot) - 300, 300) if not (np.abs(shot[i : i + 300] - paper).sum(-1) > 90).any()]
    assert not blank, f"nothing but paper in the 300 lines from {blank}"
    boxes = tab.evaluate(
        "[...document.querySelectorAll('svg, img')].map(e => [e, e.getBoundingClientRect()]).filter(([e, r]) => e.checkVisibility())"
        ".map(([e, r]) => [e.tagName.toLowerCase(), ...[r.x, r.y + scrollY, r.width, r.height].map(Math.round)])"
    )
    assert sum(box[0] == "svg" for box in boxes) == 3 + 2 + 5 + 5 + 2  # strong and loss ROCs, losses, predictions, cost
    assert sum(box[0] == "img" for box in boxes) == 12 + 12  # noise, exposed samples
    for kind, x, y, w, h in boxes:
        part = shot[y : y + h, max(0, x) : x + w]
        # What scrolls out of the window is not in the picture.
        if part.size and x + w <= width:
            assert len(np.unique(part.reshape(-1, 3), axis=0)) > 3, f"{kind} at {x}, {y} is blank"


def test_curves_have_their_colours(browser, page) -> None:
    tab = open_page(browser, page, 1280)
    place = "(r => [r.x, r.y + scrollY, r.width, r.height].map(Math.round))(document.querySelector('svg').getBoundingClientRect())"

    def pixels_near(names: tuple[str, ...]) -> dict[str, int]:
        x, y, w, h = tab.evaluate(place)
        part = chromium.pixels(tab.screenshot())[y : y + h, x : x + w, :3].astype(int)
        colours = {name: [int(c, 16) for c in re.findall("..", re.search(rf"--{name}: #(\w+)", style_sheet())[1])] for name in names}
        return {name: int((np.abs(part - colour).max(-1) < 12).sum()) for name, colour in colours.items()}

    drawn = ("original", "unlearned", "other1", "other2", "retrained")
    controls = ("control1", "control2")
    before = pixels_near((*drawn, *controls))
    assert all(before[name] > 40 for name in drawn), before
    tab.evaluate("document.getElementById('with-controls').click()")
    after = pixels_near(controls)
    # The untouched control is the original's curve, and seen between its dashes.
    assert after["control1"] > before["control1"] + 40 and after["control2"] > before["control2"] + 100, (before, after)


def test_controls_are_drawn_when_asked_for(browser, page) -> None:
    tab = open_page(browser, page, 1280)
    count = "[...document.querySelectorAll('figure.control, svg .control, .legend .control')].filter(e => e.getClientRects().length).length"
    figures = "[...document.querySelectorAll('figure')].filter(e => e.getClientRects().length).length"
    assert tab.evaluate(count) == 0
    before = tab.evaluate(figures)
    tab.evaluate("document.getElementById('with-controls').click()")
    assert tab.evaluate(figures) == before + 2 * len(CONTROLS)
    assert tab.evaluate(count) > 20
    assert overflow(tab) == 0
    assert_quiet(tab)


def test_the_wide_table_scrolls_in_its_own_box(browser, page) -> None:
    tab = open_page(browser, page, 390)
    inside, box = tab.evaluate("(b => [b.scrollWidth, b.clientWidth])(document.querySelector('.scroll:has(.figures)'))")
    assert inside > box + 100
    # The labels stay in view, and the last column, a control, is reached.
    left = "Math.round(document.querySelector('.figures tbody th[scope=row]').getBoundingClientRect().left)"
    before = tab.evaluate(left)
    tab.evaluate("document.querySelector('.scroll:has(.figures)').scrollLeft = 1e5")
    assert tab.evaluate(left) == before
    right = tab.evaluate("document.querySelector('.figures thead th:last-child').getBoundingClientRect().right")
    assert right <= 390


def test_text_on_a_phone_is_large_enough(browser, page) -> None:
    tab = open_page(browser, page, 360)
    sizes = tab.evaluate(
        "[...document.querySelectorAll('svg text, main *')].filter(e => e.getClientRects().length && e.childNodes.length &&"
        " [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())).map(e => [e.textContent.slice(0, 20), parseFloat("
        "getComputedStyle(e).fontSize) * (e.ownerSVGElement ? e.ownerSVGElement.getScreenCTM().a : 1)])"
    )
    small = [(text, round(size, 1)) for text, size in sizes if size < 9.5]
    assert len(sizes) > 500 and not small, small[:10]


def test_names_are_text(browser, hostile) -> None:
    for width in WIDTHS:
        tab = open_page(browser, hostile, width)
        assert_quiet(tab)
        assert overflow(tab) == 0
    assert tab.evaluate("document.querySelectorAll('script, img[onerror]').length") == 0
    assert tab.evaluate("document.querySelector('h1').textContent") == ATTACK * 3
    heads = tab.evaluate("[...document.querySelectorAll('.figures thead th')].map(e => e.textContent)")
    assert heads[2] == ATTACK
    # The escaping holds without the policy, which is a second line of defence.
    bare = hostile.with_name("bare.html")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", hostile.read_text())
    assert len(text) < len(hostile.read_text())
    bare.write_text(text)
    assert_quiet(open_page(browser, bare, 390))


def test_a_control_that_passed_is_told(browser, hostile, page) -> None:
    warning = "document.querySelector('.warning')?.innerText ?? ''"
    assert "Don't trust this verdict" in open_page(browser, hostile, 1280).evaluate(warning)
    assert open_page(browser, page, 1280).evaluate(warning) == ""


@pytest.mark.skipif(not shutil.which("pdftoppm"), reason="pdftoppm (poppler-utils) is not installed")
def test_it_prints(browser, page, tmp_path: Path) -> None:
    (tmp_path / "page.pdf").write_bytes(open_page(browser, page, 1280, dark=True).pdf())
    subprocess.run(["pdftoppm", "-r", "60", "-png", tmp_path / "page.pdf", tmp_path / "page"], check=True)
    sheets = [chromium.pixels(path.read_bytes())[..., :3].astype(int) for path in sorted(tmp_path.glob("page-*.png"))]
    assert 5 <= len(sheets) <= 16
    for sheet in sheets:
        # Black on white, whatever the screen is; nothing runs off the paper.
        assert (sheet[:10] > 240).all() and (sheet < 128).all(-1).sum() > 100
        assert (sheet[:, -20:] > 240).all()


def test_headings_and_names_for_screen_readers(browser, page) -> None:
    tab = open_page(browser, page, 1280)
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert tab.evaluate("[...document.querySelectorAll('svg')].every(e => e.getAttribute('role') == 'img' && e.ariaLabel)")
    assert tab.evaluate("[...document.images].every(e => e.alt)")
    assert tab.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex == 0 && e.ariaLabel)")
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert "AUC original 0." in tab.evaluate("document.querySelector('svg').ariaLabel")
    assert tab.evaluate("[...document.querySelectorAll('th')].every(e => e.scope)")


# ------------------------------------------------------------------ the tests' own eyes


def test_the_helper_sees_what_is_wrong(browser, tmp_path: Path) -> None:
    """A page with each fault: a dialog, a console message, an uncaught error, a request, and too wide."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><body style='margin:0'><div style='width:2000px'>wide</div>"
        f"{ATTACK}<script>console.error('told')</script><script>undefinedFunction()</script><img src='http://example.invalid/x.png'>"
    )
    tab = open_page(browser, bad, 390)
    complaints = " ".join(tab.complaints())
    assert "dialog: 1" in complaints and "told" in complaints and "Uncaught" in complaints
    assert tab.requests() == ["http://example.invalid/x.png"]
    assert overflow(tab) > 1000 or tab.evaluate("document.documentElement.scrollWidth") == 2000


def test_pixels_read_every_filter(tmp_path: Path) -> None:
    import struct
    import zlib

    from fastforget.auditing.show import png

    image = torch.randint(0, 256, (3, 5, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    want = image.permute(1, 2, 0).numpy()
    assert (chromium.pixels(png.png(image)) == want).all()
    # Each line with a filter of its own, by the standard's formulas.
    raw = b""
    for row, kind in enumerate((0, 1, 2, 3, 4)):
        line = want[row].astype(int)
        above = want[row - 1].astype(int) if row else np.zeros_like(line)
        left, corner = (np.vstack([np.zeros((1, 3), int), v[:-1]]) for v in (line, above))
        p = left + above - corner
        near = [np.abs(p - left), np.abs(p - above), np.abs(p - corner)]
        paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner))
        guess = (np.zeros_like(line), left, above, (left + above) // 2, paeth)[kind]
        raw += bytes([kind]) + ((line - guess) % 256).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", 4, 5, 8, 2, 0, 0, 0)
    chunks = b"".join(png._chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")))
    assert (chromium.pixels(b"\x89PNG\r\n\x1a\n" + chunks) == want).all()


def test_the_class_stands_in_the_table_of_the_most_exposed(browser, page) -> None:
    tab = open_page(browser, page, 390)
    cells = tab.evaluate("[...document.querySelectorAll('table.narrow tbody tr')].map(e => [...e.children].map(c => c.textContent))")
    assert len(cells) == 12 and all(row[2] == str(CLASS) and len(row) == 3 + 5 for row in cells)
