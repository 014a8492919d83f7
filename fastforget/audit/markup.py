"""The pieces of HTML that the page's sections share."""

from __future__ import annotations

from html import escape

from .report import AuditReport


def esc(text: str) -> str:
    """Safe inside an element or a quoted attribute; a number stays on one line with its % sign."""
    return escape(text, quote=True).replace(" %", "\u00a0%")


def kind(model: str) -> str:
    """A model's style class; never its name, which comes from outside."""
    return model if model in ("original", "unlearned", "retrained") else "other"


def tone(status: str) -> str:
    return status if status in ("PASS", "PARTIAL", "FAIL") else "NONE"


def legend(report: AuditReport) -> str:
    items = "".join(f'<li class="{kind(row["model"])}">{esc(row["model"])}</li>' for row in report.rows)
    return f'<ul class="legend">{items}</ul>'


def figure(caption: str, small: str, chart: str) -> str:
    """A chart with its caption; one of fixed size scrolls inside its box."""
    note = f"<small>{esc(small)}</small>" if small else ""
    inner = f'<div class="scroll">{chart}</div>' if 'class="fixed"' in chart else chart
    return f"<figure><figcaption>{esc(caption)}{note}</figcaption>{inner}</figure>"


def section(title: str, text: str, figures: list[str], keys: str = "") -> str:
    return (
        f"<section><h2>{esc(title)}</h2><p>{esc(text)}</p>{keys}"
        f'<div class="grid n{min(len(figures), 3)}">{"".join(figures)}</div></section>'
    )
