"""The printed table and benchmarks/README.md, both from the JSON alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import plot, rows

FOLDER = Path(__file__).resolve().parent
FAMILIES = {
    "noise": "Noise",
    "update": "Losses and updates",
    "mask": "Masking and dampening",
    "membership": "Membership inference",
    "overhead": "What a call costs",
}
MEANING = """\
| column | meaning |
|---|---|
| ours | the public function, e.g. `ff.ops.noise.add_normal_`; in the table of calls what the case says |
| eager | plain PyTorch as users write it: see the function of that name in the op's file, e.g. `mask/elementwise.py` |
| compiled | `torch.compile` of the plain form, compile time not counted |
| published | the published procedure, restated; "-" where it is the eager form |
| limit | a kernel that touches the same bytes once, same process, same buffers, same instruction set |
| vs eager | eager / ours: how many times as fast |
| fresh pages | the same ratio where every large temporary gets fresh pages from the system (see below) |
| of limit | ours / limit: 1 is as fast as memory allows (compute-bound ops can't come near) |
| spread | fastest and slowest block over all placements, as a share of the median |
| memory | peak resident memory above the inputs' during one call: ours / eager |
| bars | what was reached and what was asked (`targets.py`); MISS where missed, with what the limit kernel would reach if that is less |

Times are medians a call: variants run in one process on the same buffers, in an order drawn anew each round, in blocks of
at least 2 ms after untimed calls that fill the caches, over several placements of the buffers, with 1 thread in thread CPU time.
Every variant's result is compared with float64 first; a wrong one gets no time.

Plain forms make temporaries, and what these cost depends on what the process did before: glibc starts by
taking each block of 128 KiB or more from the system and giving it back, so that every use faults its pages
in; after larger blocks have been freed it keeps up to 32 MiB for reuse. Times here are those of the second,
settled state, which favours plain PyTorch; the column `fresh pages` and the word `fresh` are those of the
first, in which the bars against plain PyTorch were set. A bar that holds only there is marked FRESH ONLY. In
either state blocks over 32 MiB come fresh unless an earlier case left a hole as large, so that the eager times of
the largest cases differ from run to run by up to three times.

What a call costs is measured inside `torch.no_grad()`, as in-place work on parameters needs; outside of it each tensor is asked whether
it requires grad, 10 us more for `dampen_`'s three lists of 161. The rest is torch's dispatcher: an op that does nothing took 1.7 us with
the arguments of `error_max_step_`, and 37 us with those three lists.

Why bars are missed, as far as we know. At AVX2, by division: loops of nothing else, without a call and from the nearest cache, took
0.40 us for 4096 elements of `dampen_`, which makes 6.4 for 64K, where the bar leaves 7.2 and a call takes 1.4 (a product in the
division's place: 0.31), and 0.223 ns an element for the step, 13.7 us for 20x3x32x32, where it leaves 14.9 and a call takes 1.6 (without
the root 0.185, without the division 0.163). Approximate roots and quotients, mended by a Newton step, took longer, and fetching ahead
gained nothing. Against `torch.compile` `dampen_` 1M and the larger steps are at the memory's limit. `saliency_mask` against numpy's
partition, 10x, is met by little: that takes 20 ms here and took 114 on the machine that the bars come from, and half of our time is the
one read of the list. `lira_stats` at 16 models: the ratio, which reads the moments again, takes a fifth of the time, and where large
temporaries get fresh pages so do the moments, 1.6 MB a call, which takes four times as long as the work.
"""


COMMANDS = """
```
make bench                                            # measures everything and writes this page
python -m fastforget bench --op add_normal_ dampen_   # some ops; also --isa avx2, --threads 2, --compiled
python -m fastforget bench --quick                    # small sizes only
python -m fastforget bench --check                    # ends with 1 if a row misses its bar
bash benchmarks/gpu.sh OUT                            # build, tests and times on a machine with a CUDA GPU
```
"""
FORMS = """
`prealloc` writes into a buffer made before; `foreach` uses torch's multi-tensor calls; `fused` is
Adam(fused=True); `adam_only` leaves out UNSIR's penalty (less work: a bound, not an equal); `sort` sorts the
values of each side and searches ranks; `op` calls the op by `torch.ops`.
"""


def _machine_lines(result: dict[str, Any]) -> list[str]:
    m, s = result["machine"], result["settings"]
    caches = ", ".join(f"{name} {size}" for name, size in m["caches"].items())
    return [
        f"{m['cpu']}, {m['cores']} cores, {caches}",
        f"torch {m['torch']} ({m['torch_cpu']}), Python {m['python']}, {m['system']}, huge pages: {m['huge_pages']}",
        f"fastforget {m['fastforget']}, {m['compiler']}, instruction sets {', '.join(s['isas'])}",
        f"{m['date']}, {s['threads']} thread(s), {s['clock']}, {s['placements']} placements, "
        f"load {m['load_before']} before, {m.get('load_after')} after",
        *result.get("notes", []),
    ]


def text(result: dict[str, Any]) -> str:
    parts = ["\n".join(_machine_lines(result))]
    for family, title in FAMILIES.items():
        lines = [rows.cells(row) for row in result["rows"] if row["family"] == family]
        if lines:
            parts.append(f"{title}\n" + rows.aligned(rows.HEADS, lines))
    extra = result.get("noise_phase") or []
    if extra:
        parts.append("UNSIR's noise phase\n" + rows.aligned(tuple(extra[0]), [_plain(row) for row in extra]))
    others = [line for row in result["rows"] for line in _other_lines(row)]
    if others:
        parts.append("Further plain forms\n" + rows.aligned(("op", "case", "isa", "form", "time", "vs ours"), others))
    parts.append(rows.tally(result["rows"]))
    if missed := _missed(result, ""):
        parts.append("\n".join(missed))
    return "\n\n".join(parts)


def _missed(result: dict[str, Any], bullet: str) -> list[str]:
    """A line for each row that doesn't meet all its bars with reused memory."""
    found = [(rows.row_standing(row), row) for row in result["rows"]]
    return [
        f"{bullet}{stands}: {row['op']} {row['case']}, {row['isa']}: {rows.bars(row)}"
        for stands, row in found
        if stands not in (None, rows.MET)
    ]


def _plain(row: dict[str, Any]) -> list[str]:
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]


def _other_lines(row: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    if row["family"] == "overhead":
        return
    for name, seconds in row["others"].items():
        yield (
            row["op"],
            row["case"],
            row["isa"],
            name,
            rows.duration(seconds),
            rows.times(row["ratios"][name]),
        )


def _table(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    out += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(out)


def markdown(result: dict[str, Any], source: str, picture: str, elsewhere: Sequence[dict[str, Any]] = ()) -> str:
    """The page of a result; ``elsewhere``: those of other machines, whose rows come last, each under its machine's facts."""
    parts = [
        "# Benchmarks",
        f"Written by `python -m fastforget bench --readme` from `{source}`; don't edit by hand.",
        COMMANDS.strip(),
        "\n".join(f"- {line}" for line in _machine_lines(result)),
        f"![How many times as fast as plain PyTorch, by size, for each op family]({picture})",
        "Memory reused, float32; of several cases of a size the slowest.",
        MEANING.strip(),
    ]
    for family, title in FAMILIES.items():
        lines = [rows.cells(row) for row in result["rows"] if row["family"] == family]
        if lines:
            parts += [f"## {title}", _table(rows.HEADS, lines)]
    if result.get("noise_phase"):
        extra = result["noise_phase"]
        parts += ["## UNSIR's noise phase", _table(extra[0], [_plain(row) for row in extra])]
    others = [line for row in result["rows"] for line in _other_lines(row)]
    if others:
        parts += [
            "## Further plain forms",
            FORMS.strip(),
            _table(("op", "case", "isa", "form", "time", "vs ours"), others),
        ]
    parts.append(f"## Bars\n\n{rows.tally(result['rows'])}")
    if missed := _missed(result, "- "):
        parts.append("\n".join(missed))
    for other in elsewhere:
        parts += [
            f"## On another machine: {other['machine']['cpu']}",
            "\n".join(f"- {line}" for line in _machine_lines(other)),
            _table(rows.HEADS, [rows.cells(row) for row in other["rows"]]),
            rows.tally(other["rows"]),
            *(["\n".join(missed)] if (missed := _missed(other, "- ")) else []),
        ]
    return "\n\n".join(parts) + "\n"


def write_readme(result: dict[str, Any], source: Path, folder: Path = FOLDER) -> list[Path]:
    """Writes README.md and the plot beside the JSON; returns their paths."""
    picture = source.with_suffix(".svg")
    picture.write_text(plot.ratios_by_size(result["rows"], {f: FAMILIES[f] for f in list(FAMILIES)[:4]}))
    readme = folder / "README.md"
    place = Path(os.path.relpath(picture.resolve(), folder)).as_posix()
    beside = [json.loads(path.read_text()) for path in sorted(source.parent.glob("cpu-*.json")) if path.resolve() != source.resolve()]
    readme.write_text(markdown(result, source.name, place, beside))
    return [picture, readme]
