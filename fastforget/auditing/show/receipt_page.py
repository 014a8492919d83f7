"""The receipt as one page for people: no script, no request. Every name from outside passes through ``esc``."""

from __future__ import annotations

import json
import math
from typing import Any

from ..._text import number, percent
from .markup import esc, tone
from .style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
FIGURES = (
    ("forget set", percent, ("accuracy", "forget")),
    ("unseen, forgotten", percent, ("accuracy", "test_forget")),
    ("unseen, kept", percent, ("accuracy", "test_retain")),
    ("attack AUC", number, ("attacks", "forget_vs_test", "loss", "auc")),
    ("forgetting rate", percent, ("forgetting_rate",)),
)


def render(found: dict[str, Any], name: str) -> str:
    """The page of a receipt that lies in a file called ``name``."""
    verdict = found["verdict"]
    reasons = "".join(f"<li><span>{esc(reason)}</span></li>" for reason in verdict["reasons"])
    forgotten = ", ".join(map(str, found["forgotten_classes"]))
    many = "es" if len(found["forgotten_classes"]) > 1 else ""
    about = f"class{many} {forgotten}" if forgotten else f"{found['forget_set']['samples']} samples"
    when = found["created"].replace("T", " ").replace("+00:00", " UTC")
    parts = [
        f'<header><p class="eyebrow">fastforget receipt</p><h1>Forgetting {esc(about)}</h1>'
        f'<p class="lead">{esc(when)}: {esc(found["called"])}.</p>'
        f'<div class="verdict {tone(verdict["status"])}"><div class="stamp">{esc(verdict["status"])}</div>'
        f"<ul>{reasons}</ul></div></header>",
        "<section><h2>Measured</h2><p>Accuracies on the forget set, on unseen samples of the forgotten and of the kept classes; the loss "
        f"attack's AUC, forget set against unseen samples. The retrained model is the aim.</p>{_table(found)}</section>",
        "<section><h2>Hashes</h2><p>sha256. They tell this receipt's models and samples from all others.</p>"
        f"{_list(_hashes(found))}</section>",
        f"<section><h2>How to verify</h2>{_how(found, name)}</section>",
        f"<section><h2>How it was made</h2>{_list(_made(found))}</section>",
        f"<section><h2>The rule behind the verdict</h2><p>{esc(verdict['rule'])}</p></section>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<link rel="icon" href="data:,">\n'
        f"<title>Receipt: forgetting {esc(about)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _table(found: dict[str, Any]) -> str:
    rows = found["rows"] + found["control_rows"]
    head = "".join(f'<th scope="col">{esc(label)}</th>' for label, _, _ in FIGURES)
    body = []
    for row in rows:
        cells = "".join(f"<td>{esc(show(_figure(row, keys)))}</td>" for _, show, keys in FIGURES)
        label = f"{'control: ' if row['control'] else ''}{row['model']}"
        body.append(f'<tr><th scope="row">{esc(label)}</th><td class="tone {tone(row["status"])}">{esc(row["status"])}</td>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">model</th><th scope="col">by the rule</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure(row: dict[str, Any], keys: tuple[str, ...]) -> float:
    value: Any = row
    for key in keys:
        value = value[key]
    return math.nan if value is None else value


def _hashes(found: dict[str, Any]) -> dict[str, str]:
    lines = {f"weights, {name}": model["weights_sha256"] for name, model in found["models"].items()}
    lines["forget set"] = found["forget_set"]["samples_sha256"]
    if found["forget_set"]["ids"]:
        lines["forget set, ids"] = found["forget_set"]["ids"]["sha256"]
    return {**lines, "this receipt": found["sha256"]}


def _how(found: dict[str, Any], name: str) -> str:
    command = f"python -m fastforget verify {name} --model WEIGHTS.pt"
    return (
        "<p>With the file beside this page and the weights of the model in question:</p>"
        f"<p><code>{esc(command)}</code></p>"
        "<p>It hashes the weights again, checks this receipt's own hash, and judges the figures again by the rule. "
        "--original, --forget and --ids check the original's weights, the forgotten samples and their ids too. "
        "The receipt's own hash shows damage; against a rewritten receipt, keep that hash in another place.</p>"
    )


def _made(found: dict[str, Any]) -> dict[str, str]:
    method = found["method"]
    lines = {"request": found["request"], **{f"samples, {k}": str(v) for k, v in found["sizes"].items()}}
    if method:
        lines["method"] = method["method"]
        lines["options"] = _text(method["options"])
        lines["unlearning says"] = f"{method['verdict']['why']}"
    lines |= {f"seed, {k}": str(v) for k, v in found["seeds"].items() if v is not None}
    lines |= {k: _text(v) for k, v in {**found["machine"], **found["versions"], **found["facts"]}.items() if v is not None}
    return lines


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _list(entries: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in entries.items()) + "</dl>"
