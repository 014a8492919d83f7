"""The pieces of HTML that the page's sections share."""

from __future__ import annotations

from html import escape
from typing import Any

from ..report import AuditReport

CURVES = 4  # colours for models of other names, and for controls


def esc(text: str) -> str:
    """Safe inside an element or a quoted attribute; a number stays on one line with its % sign, a mark with its word."""
    return escape(text, quote=True).replace(" %", "\u00a0%").replace(" *", "\u00a0*")


def ordered(report: AuditReport) -> list[dict[str, Any]]:
    """All rows, the controls last: whether they are drawn or not, the others keep their places."""
    return [*report.rows, *report.control_rows]


def styles(report: AuditReport) -> dict[str, str]:
    """Each model's style classes; never its name, which comes from outside. Charts hide ``control`` until asked."""
    own = ("original", "unlearned", "retrained")
    others = [row["model"] for row in report.rows if row["model"] not in own]
    found = {row["model"]: row["model"] for row in report.rows}
    found |= {name: f"other{i % CURVES + 1}" for i, name in enumerate(others)}
    return found | {row["model"]: f"control c{i % CURVES + 1}" for i, row in enumerate(report.control_rows)}


def tone(status: str) -> str:
    return status if status in ("PASS", "PARTIAL", "FAIL") else "NONE"


def legend(report: AuditReport) -> str:
    """The models' colours; the controls' are hidden as they are in the charts."""
    found = styles(report)
    items = "".join(f'<li class="{found[row["model"]]}">{esc(row["model"])}</li>' for row in ordered(report))
    return f'<ul class="legend">{items}</ul>'


def figure(caption: str, small: str, inner: str, kind: str = "") -> str:
    """A chart or table with its caption; a chart of fixed size scrolls inside its box."""
    note = f"<small>{esc(small)}</small>" if small else ""
    inner = scroll(inner, caption) if 'class="fixed"' in inner else inner
    of = ' class="control"' if "control" in kind.split() else ""
    return f"<figure{of}><figcaption>{esc(caption)}{note}</figcaption>{inner}</figure>"


def scroll(inner: str, label: str) -> str:
    """A box that scrolls what is too wide for the page; the keyboard reaches it too."""
    return f'<div class="scroll" role="region" aria-label="{esc(label)}" tabindex="0">{inner}</div>'


def grid(figures: list[str], *, wide: bool = False) -> str:
    """Figures side by side: up to three where there is room, two ``wide`` ones."""
    kinds = f"n{min(len(figures), 2 if wide else 3)}" + (" wide" if wide else "")
    return f'<div class="grid {kinds}">{"".join(figures)}</div>'


def section(title: str, text: str, figures: list[str], keys: str = "", more: str = "", *, wide: bool = False) -> str:
    return f"<section><h2>{esc(title)}</h2><p>{esc(text)}</p>{keys}{grid(figures, wide=wide)}{more}</section>"
