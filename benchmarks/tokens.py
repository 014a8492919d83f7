"""Token scores and their training loss by blocks, against whole tables [N, T, V] as users write them: seconds and memory.

    python -m fastforget._bench.tokens                      prints the table
    python -m fastforget._bench.tokens --out FILE.json      and writes it, e.g. to benchmarks/results/tokens.json

Every way runs in a process of its own, with one thread: first once, for what the process's memory grows by at most while it runs (the
inputs are there already), then some rounds, of which the median of the thread's CPU seconds counts.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastforget._files import write_whole
from fastforget.ops import membership

from . import machine

ROUNDS = 3
CASES = {"4x128": (4, 128, 50_000, 256), "4x512": (4, 512, 50_000, 256)}  # N, T, V, D
Call = Callable[[Tensor, Tensor, Tensor], Any]


def scores_by_blocks(hidden: Tensor, weight: Tensor, labels: Tensor) -> Any:
    return membership.token_scores(hidden, labels, weight)


@torch.no_grad()
def scores_plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Any:
    """As the authors of min-k%++ compute it: probabilities, their logarithms, and two sums over the vocabulary."""
    logits = (hidden @ weight.T)[:, :-1]
    p, log_p = logits.softmax(dim=2), logits.log_softmax(dim=2)
    of_label = log_p.gather(2, labels[:, 1:, None])[..., 0]
    mean = (p * log_p).sum(dim=2)
    variance = (p * log_p.square()).sum(dim=2) - mean.square()
    standard = (of_label - mean) / variance.sqrt()
    return [values.sort(dim=1).values[:, : int(k * values.shape[1])].mean(dim=1) for values in (of_label, standard) for k in (0.1, 0.2)]


def training_by_blocks(hidden: Tensor, weight: Tensor, labels: Tensor) -> Any:
    own = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(-membership.token_log_probs(own[0], labels, own[1]).mean(), own)


def training_plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Any:
    own = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logits = (own[0] @ own[1].T)[:, :-1]
    return torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()), own)


WAYS: dict[str, tuple[str, Call]] = {
    "scores, by blocks": ("scores", scores_by_blocks),
    "scores, whole tables": ("scores", scores_plain),
    "loss and gradients, by blocks": ("training", training_by_blocks),
    "loss and gradients, whole table": ("training", training_plain),
}


def one(case: str, way: str) -> dict[str, float]:
    """In this process: megabytes at most beside the inputs, and seconds."""
    torch.set_num_threads(1)
    n, t, v, d = CASES[case]
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(n, t, d, generator=generator), torch.randn(v, d, generator=generator) / d**0.5
    labels = torch.randint(0, v, (n, t), generator=generator)
    call = WAYS[way][1]
    call(hidden[:, :3], weight[:10], labels[:, :3] % 10)  # what is loaded at the first call isn't part of it
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten
    before = _kilobytes("VmRSS")
    call(hidden, weight, labels)
    grown, seconds = _kilobytes("VmHWM") - before, []
    for _ in range(ROUNDS):
        began = time.thread_time()
        with torch.autograd.set_multithreading_enabled(False):  # a backward pass in this thread, so that its clock sees it
            call(hidden, weight, labels)
        seconds.append(time.thread_time() - began)
    return {"megabytes": round(grown / 1024, 1), "seconds": round(statistics.median(seconds), 3)}


def _kilobytes(field: str) -> int:
    """Of this process, as Linux counts it."""
    return int(re.search(rf"^{field}:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)[1])  # type: ignore[index]


def run() -> dict[str, Any]:
    """All cases and ways, each in a process of its own."""
    rows = []
    for case, (n, t, v, d) in CASES.items():
        for way in WAYS:
            command = [sys.executable, "-m", "fastforget._bench.tokens", "--one", case, way]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"case": case, "tokens": n * t, "vocabulary": v, "width": d, "way": way, **found})
    return {"machine": machine.facts(), "rounds": ROUNDS, "threads": 1, "rows": rows}


def table(results: dict[str, Any]) -> str:
    """For docs/language.md."""
    cases = list(dict.fromkeys(row["case"] for row in results["rows"]))
    lines = ["| way | " + " | ".join(f"{case} tokens: MB | s" for case in cases) + " |", "|---" * (1 + 2 * len(cases)) + "|"]
    for way in dict.fromkeys(row["way"] for row in results["rows"]):
        found = [row for case in cases for row in results["rows"] if row["case"] == case and row["way"] == way]
        lines.append(f"| {way} | " + " | ".join(f"{row['megabytes']:.0f} | {row['seconds']:.2f}" for row in found) + " |")
    first, about = results["rows"][0], results["machine"]
    gradient = first["vocabulary"] * first["width"] * 4 / 2**20
    return "\n".join(
        [
            *lines,
            "",
            f"float32, vocabulary {first['vocabulary']:,}, width {first['width']}, one thread of an {about['cpu']}, {about['date']};",
            f"memory beside the inputs. The gradient of the head's weight ({gradient:.0f} MB) is part of both trainings.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fastforget._bench.tokens", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "WAY"), help="measures one way in this process")
    given = parser.parse_args(argv)
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    results = run()
    print(table(results))
    if given.out:
        write_whole(given.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
