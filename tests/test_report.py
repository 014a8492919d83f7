"""The audit's files: written whole or not at all, strict JSON, a page that stands alone."""

from __future__ import annotations

import base64
import html.parser
import json
import math
import os
import re
import struct
import subprocess
import zlib

import pytest
import torch
from audit_world import World
from torch import nn

import fastforget as ff
from fastforget import _files as files
from fastforget.auditing.show import png, svg


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def report(world: World):
    return world.audit(unlearned=world.retrained_again)


def test_nothing_is_written_when_writing_fails(report, tmp_path, monkeypatch) -> None:
    target = tmp_path / "r.json"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write .*r\.json: No space left"):
        report.to_json(target)
    with pytest.raises(OSError, match="No space left"):
        report.to_html(tmp_path / "r.html")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"] and target.read_text() == "old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_device(report) -> None:
    with pytest.raises(OSError, match=r"could not write /dev/full"):
        report.to_json("/dev/full")
    assert os.path.exists("/dev/full")


def test_full_disk(report, tmp_path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs rights that this user lacks")
    try:
        with pytest.raises(OSError, match="could not write"):
            report.to_html(tmp_path / "r.html")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_unwritable_places(report, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="could not write"):
        report.to_json(tmp_path / "missing" / "r.json")
    with pytest.raises(IsADirectoryError, match="folder"):
        report.to_json(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_links_and_permissions_survive(report, tmp_path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    report.to_json(link)
    assert link.is_symlink() and json.loads(real.read_text())["verdict"] == "PASS"
    assert real.stat().st_mode & 0o777 == 0o640


def test_json_is_strict(report, tmp_path) -> None:
    report.to_json(tmp_path / "r.json")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    read = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert {row["model"] for row in read["rows"]} == {"original", "unlearned", "retrained"}
    assert read["conventions"]["auc"] and read["settings"]["rule"]


# ------------------------------------------------------------------ the page

HOSTILE = '<script>alert("x")</script>&\'"<img src=http://evil.example/x>'


class Reader(html.parser.HTMLParser):
    """Collects every tag, every attribute that could name another resource, and the open tags."""

    VOID = ("meta", "link", "img", "br", "input")
    NAMING = ("href", "src", "srcset", "data", "action", "poster", "xlink:href", "background", "formaction")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.named: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.named += [value or "" for name, value in attrs if name in self.NAMING]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


@pytest.fixture(scope="module")
def page(report, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    noise = {"class 2": torch.randn(5, 1, 8, 8), "colour": torch.randn(2, 3, 8, 8)}
    timing = {"train": 3.0, "unlearn": 0.5, "retrain": 2.5}
    report.to_html(path, title="Audit", facts={"data": "blobs"}, noise=noise, timing=timing)
    return path.read_text()


def test_page_names_no_other_resource(page: str) -> None:
    read = Reader(page)
    assert read.open == []
    assert all(value.startswith(("data:", "#")) for value in read.named), read.named
    assert not read.handlers
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(read.tags)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", page)
    assert "default-src 'none'" in page and 'name="viewport"' in page and "@media print" in page
    assert "prefers-color-scheme: dark" in page


def test_page_shows_everything(page: str, report) -> None:
    read = Reader(page)
    # ROC curves of the loss attack and, folded, of two others; loss histograms, predictions, accuracies, layers
    assert read.tags["svg"] == 2 + 2 + 3 + 3 + 1 + 1
    # the figures, and the most exposed samples, without pictures here: the images are the learned noise
    assert read.tags["img"] == 5 + 2 and read.tags["table"] == 2
    for group, label, cells in report.lines():
        for text in (label, group, *(cell.text for cell in cells)):
            assert text.replace(" %", "\u00a0%").replace(" *", "\u00a0*") in page
        assert all(f"<small>{'–'.join(cell.ends)}</small>" in page for cell in cells if cell.ends)
    assert sum(cell.ends is not None for line in report.lines() for cell in line.cells) > 50
    assert "PASS" in page and "Neither 0.5 nor 100" in page and "retraining 2.5 s" in page
    assert "nan" not in re.sub(r"<style>.*?</style>|base64,[^\"]*", "", page, flags=re.S).lower().split()


def test_hostile_names_are_text(world: World, tmp_path) -> None:
    report = ff.audit(
        {"original": world.original, HOSTILE: world.retrained_again, "retrained": world.retrained},
        forget=world.forget,
        retain=world.retain,
        test=world.test,
    )
    path = tmp_path / "r.html"
    report.to_html(
        path,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        noise={HOSTILE: torch.randn(1, 1, 4, 4)},
        class_names=[HOSTILE] * 4,
    )
    page = path.read_text()
    read = Reader(page)
    assert read.open == [] and "script" not in read.tags and read.tags["img"] == 1
    assert all(value.startswith(("data:", "#")) for value in read.named)
    assert "&lt;script&gt;" in page


def test_page_of_odd_reports(world: World, tmp_path) -> None:
    """One model, another architecture, many classes, a net without weights: still a page."""

    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(world.original(x), (0, 60), value=-math.inf)

    path = tmp_path / "r.html"
    for models in ({"a": world.original}, {"original": world.original, "wide": Wide()}):
        sets = {"forget": world.forget, "retain": world.retain, "test": world.test}
        ff.audit(models, **sets).to_html(path)
        assert Reader(path.read_text()).open == []


def test_png_is_what_the_standard_says() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 4) * 20
    for given, colours in ((image, 1), (torch.stack([image, image + 1, image + 2]), 3)):
        data = png.png(given)
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        chunks, at = {}, 8
        while at < len(data):
            (size,) = struct.unpack(">I", data[at : at + 4])
            body = data[at + 4 : at + 8 + size]
            assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(body),)
            chunks[body[:4]] = body[4:]
            at += 12 + size
        assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (4, 3, 8, 0 if colours == 1 else 2, 0, 0, 0)
        rows = zlib.decompress(chunks[b"IDAT"])
        stride = 1 + 4 * colours
        assert [rows[i * stride] for i in range(3)] == [0, 0, 0]
        values = b"".join(rows[i * stride + 1 : (i + 1) * stride] for i in range(3))
        expected = given[..., None] if colours == 1 else given.permute(1, 2, 0)
        assert list(values) == expected.flatten().tolist()
        assert base64.b64decode(png.data_uri(given).split(",")[1]) == data
    assert png.stretched(torch.tensor([[[[-1.0, math.nan], [1.0, 0.0]]]])).flatten().tolist() == [
        0,
        128,
        255,
        128,
    ]
    with pytest.raises(ValueError, match="uint8"):
        png.png(image.float())


def test_charts_put_values_where_they_belong() -> None:
    chart = svg.columns("t", ["a", "b"], [("k", "m", [0.5, math.nan])])
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([0-9.]+)"', chart)]
    (axis,) = re.findall(r'<line class="axis"[^>]* y1="([0-9.]+)"', chart)
    assert heights == pytest.approx([(float(axis) - 10) / 2], abs=0.1)
    curve = {"fpr": [0.0, 0.1, 1.0], "tpr": [0.0, 0.1, 1.0]}
    (points,) = re.findall(r'class="curve k" d="M([^"]*)"', svg.roc("t", [("k", "m", curve)], unseen=50))
    corners = [tuple(map(float, p.split())) for p in points.split("L")]
    (chance,) = re.findall(r'class="chance" d="M([^"]*)"', svg.roc("t", [], unseen=50))
    low, high = (tuple(map(float, p.split())) for p in chance.split("L"))
    assert corners[0] == low and corners[-1] == high
    middle = tuple(a + (b - a) / 2 for a, b in zip(low, high, strict=True))
    assert any(c == pytest.approx(middle, abs=0.1) for c in corners)
