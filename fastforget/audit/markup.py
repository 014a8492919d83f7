"""The pieces of HTML that the page's sections share."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from .report import AuditReport, number

CURVES = 4  # colours for models of other names, and for controls
NAMES = {"lira": "LiRA", "lira_offline": "LiRA offline", "u_lira": "U-LiRA", "rmia": "RMIA", "rmia_offline": "RMIA offline"}
NAMES |= {"attack_p": "attack P", "attack_r": "attack R"}


def esc(text: str) -> str:
    """Safe inside an element or a quoted attribute; a number stays on one line with its % sign."""
    return escape(text, quote=True).replace(" %", "\u00a0%")


def shown(report: AuditReport) -> list[dict[str, Any]]:
    """The rows that charts show at first: all but the controls."""
    return [row for row in report.rows if not row.get("control")]


def controls(report: AuditReport) -> list[dict[str, Any]]:
    """The rows of the models that must not pass."""
    return [row for row in (*report.rows, *getattr(report, "control_rows", ())) if row.get("control")]


def ordered(report: AuditReport) -> list[dict[str, Any]]:
    """All rows, the controls last: whether they are drawn or not, the others keep their places."""
    return [*shown(report), *controls(report)]


def judged(report: AuditReport) -> list[dict[str, Any]]:
    """The rows that the verdict is about."""
    return [row for row in report.judged() if not row.get("control")]


def styles(report: AuditReport) -> dict[str, str]:
    """Each model's style classes; never its name, which comes from outside. Charts hide ``control`` until asked."""
    own = ("original", "unlearned", "retrained")
    others = [row["model"] for row in shown(report) if row["model"] not in own]
    found = {row["model"]: row["model"] for row in shown(report)}
    found |= {name: f"other{i % CURVES + 1}" for i, name in enumerate(others)}
    return found | {row["model"]: f"control c{i % CURVES + 1}" for i, row in enumerate(controls(report))}


def attack_name(attack: str) -> str:
    """How a text names an attack: "LiRA", "loss attack"."""
    return NAMES.get(attack, f"{attack.replace('_', ' ')} attack")


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


def plain(value: float | None) -> str:
    """A figure of any size: three decimals, or two digits where those would show nothing; whole numbers from 10 on as such."""
    if value is None or not math.isfinite(value):
        return "-" if value is None or math.isnan(value) else "∞" if value > 0 else "-∞"
    if abs(value) >= 10 and value == round(value):
        return f"{value:.0f}"
    return f"{value:.2g}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else number(value)
